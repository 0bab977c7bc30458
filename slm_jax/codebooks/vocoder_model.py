"""A vocoder of units: how long each lasts, and the waveform of units frame by frame.

ConvNeXt blocks at 100 Hz, and a head that gives magnitude and phase of a short-time Fourier transform, which is
inverted (Vocos, arXiv 2306.00814). The sizes are our own, and no public weights fit it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slm_jax.encoders.layers import FRAMES, dense, layer_norm, stack_of

_HOP, _FFT = 160, 640  # samples at 16 kHz: 10 ms, and windows of 40 ms
_RATE = 16_000 // _HOP
_EDGE = (_FFT - _HOP) // 2
_OVERLAP = 1.5  # what the squares of Hann windows, a quarter of one apart, add up to
_LOUDEST = 4.6  # log of a magnitude; no gradient overflows above


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes.

    Attributes:
        num_units: of the codebook.
        frames_per_second: of the codebook's encoder; a divisor of 100.
        emb_dim, mlp_dim, num_layers, kernel_size: of the blocks.
    """

    num_units: int
    frames_per_second: int = 50
    emb_dim: int = 256
    mlp_dim: int = 768
    num_layers: int = 6
    kernel_size: int = 7
    dtype: Any = jnp.float32

    def __post_init__(self):
        rate = self.frames_per_second
        if type(rate) is not int or rate < 1 or _RATE % rate:
            raise ValueError(
                f'VocoderConfig.frames_per_second is {rate!r}; a divisor of {_RATE} was expected: of Whisper it is 50, '
                'of USM 25.'
            )

    @property
    def samples(self) -> int:
        """Of a frame."""
        return 16_000 // self.frames_per_second


class _Block(nn.Module):
    """Depthwise convolution, norm, two linear maps; (output, None) for nn.scan."""

    config: VocoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], valid: Any) -> tuple[Float[Array, 'b t d'], None]:
        config, size = self.config, self.config.kernel_size
        init = nn.with_logical_partitioning(nn.initializers.normal(size**-0.5), ('conv_time', 'embed'))
        kernel = self.param('depthwise_kernel', init, (size, config.emb_dim), jnp.float32).astype(config.dtype)
        # A sum of shifted products: on CPU far faster than XLA's depthwise convolution.
        padded = jnp.pad(x, ((0, 0), (size // 2, size - 1 - size // 2), (0, 0)))
        y = sum(padded[:, i : i + x.shape[1]] * kernel[i] for i in range(size))
        y = layer_norm(1e-6, config.dtype, 'norm')(y)
        y = nn.gelu(dense(config.mlp_dim, ('embed', 'mlp'), config.dtype, 'mlp_in')(y))
        y = dense(config.emb_dim, ('mlp', 'embed'), config.dtype, 'mlp_out')(y)
        scale_init = nn.with_logical_partitioning(nn.initializers.constant(0.2), ('embed',))
        x = x + y * self.param('scale', scale_init, (config.emb_dim,), jnp.float32).astype(config.dtype)
        return nn.with_logical_constraint(jnp.where(valid[..., None], x, 0), FRAMES), None


class Vocoder(nn.Module):
    """Parameters: `embedding` of the units, `blocks` and `head` of the waveform, `duration_…` of the durations."""

    config: VocoderConfig

    def setup(self):
        config = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
        self.embedding = nn.Embed(config.num_units, config.emb_dim, config.dtype, embedding_init=init)
        self.norm = layer_norm(1e-6, config.dtype, 'norm')
        self.blocks = stack_of(_Block, config.num_layers, None)(config, name='blocks')
        self.head_norm = layer_norm(1e-6, config.dtype, 'head_norm')
        self.head = dense(_FFT + 2, ('embed', 'joined_kv'), config.dtype, 'head')
        self.duration_blocks = stack_of(_Block, 2, None)(config, name='duration_blocks')
        self.duration_norm = layer_norm(1e-6, config.dtype, 'duration_norm')
        self.duration_head = dense(1, ('embed', 'joined_kv'), config.dtype, 'duration_head')

    def __call__(self, units: Int[Array, 'b t'], lengths: Int[Array, ' b']) -> Float[Array, 'b n']:
        """The waveform of units, one a frame, in [-1, 1] or a little beyond; what follows a clip's own is no matter."""
        valid = jnp.arange(units.shape[1]) < lengths[:, None]
        repeats = _RATE // self.config.frames_per_second
        x, valid = jnp.repeat(self._embedded(units, valid), repeats, axis=1), jnp.repeat(valid, repeats, axis=1)
        x, _ = self.blocks(x, valid)
        y = self.head(self.head_norm(x)).astype(jnp.float32)
        magnitude, phase = jnp.split(y, 2, axis=-1)
        magnitude = jnp.where(valid[..., None], jnp.exp(jnp.minimum(magnitude, _LOUDEST)), 0.0)
        return _inverse(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))

    def log_durations(self, units: Int[Array, 'b u'], lengths: Int[Array, ' b']) -> Float[Array, 'b u']:
        """The logarithm of how many frames each unit lasts, of units without repetitions."""
        valid = jnp.arange(units.shape[1]) < lengths[:, None]
        x, _ = self.duration_blocks(self._embedded(units, valid), valid)
        return self.duration_head(self.duration_norm(x))[..., 0].astype(jnp.float32)

    def _embedded(self, units: Int[Array, 'b t'], valid: Any) -> Float[Array, 'b t d']:
        x = jnp.where(valid[..., None], self.norm(self.embedding(units)), 0)
        return nn.with_logical_constraint(x, FRAMES)


def _inverse(real: Float[Array, 'b t f'], imaginary: Float[Array, 'b t f']) -> Float[Array, 'b n']:
    """Inverse transform: windows of 40 ms, each `_HOP` samples after the one before it; `_HOP` samples a frame."""
    window = (0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(_FFT) / _FFT))).astype(np.float32)
    frames = jnp.fft.irfft(real + 1j * imaginary, _FFT) * window / _OVERLAP
    b, t, _ = frames.shape
    parts = _FFT // _HOP
    pieces = frames.reshape(b, t, parts, _HOP)
    moved = [jnp.pad(pieces[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0))) for i in range(parts)]
    total = jnp.sum(jnp.stack(moved), axis=0)
    return total.reshape(b, -1)[:, _EDGE : _EDGE + t * _HOP]
