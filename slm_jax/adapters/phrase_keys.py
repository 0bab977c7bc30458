"""Speech and phrases as points of one space, near where a phrase is said: the two sides of a phrase retriever.

Every tenth of a second of speech has a key of its own, for what is said about there, since a phrase is but a part of a
recording; a phrase has one, of its letters. Their inner product is a cosine, so an index of vectors finds the phrases
that are nearest to any part of a recording (inference/retrieval.py).

Shape names: b batch, t frames, d frame width, s = ceil(t / stride) keys, l letters, e width, k width of a key.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slm_jax.encoders.layers import FRAMES, dense, layer_norm


@dataclasses.dataclass(frozen=True)
class PhraseKeysConfig:
    """Sizes of both sides.

    Attributes:
        stride: frames of the encoder that make up one key: about a tenth of a second.
        emb_dim: width of the layers.
        key_dim: of what an index holds.
        num_layers: of each side; each sees `kernel` places about its own.
        kernel: odd.
        vocab_size: of the letters, bytes behind three special tokens.
    """

    stride: int = 2
    emb_dim: int = 192
    key_dim: int = 96
    num_layers: int = 4
    kernel: int = 7
    vocab_size: int = 259
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32

    def __post_init__(self):
        for field in ('stride', 'emb_dim', 'key_dim', 'num_layers', 'kernel'):
            if getattr(self, field) < 1:
                raise ValueError(f'PhraseKeysConfig.{field} is {getattr(self, field)}; it must be at least 1.')
        if self.kernel % 2 == 0:
            raise ValueError(f'PhraseKeysConfig.kernel is {self.kernel}; it must be odd, to have a middle.')


class SpeechKeys(nn.Module):
    """Frames of a speech encoder -> keys of length 1; dropout only when not `deterministic`."""

    config: PhraseKeysConfig

    @nn.compact
    def __call__(
        self, frames: Float[Array, 'b t d'], frame_lengths: Int[Array, ' b'], deterministic: bool = True
    ) -> tuple[Float[Array, 'b s k'], Int[Array, ' b']]:
        cfg = self.config
        valid = jnp.arange(frames.shape[1]) < frame_lengths[:, None]
        x = layer_norm(1e-6, cfg.dtype, 'frames_norm')(jnp.where(valid[..., None], frames, 0).astype(cfg.dtype))
        x = jnp.where(valid[..., None], x, 0)
        x = jnp.pad(x, ((0, 0), (0, -frames.shape[1] % cfg.stride), (0, 0)))
        x = x.reshape(x.shape[0], -1, cfg.stride * x.shape[2])
        lengths = -(-frame_lengths // cfg.stride)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = nn.with_logical_constraint(
            dense(cfg.emb_dim, ('speech_embed', 'embed'), cfg.dtype, 'projection')(x), FRAMES
        )
        x = _Layers(cfg, name='layers')(x, valid, deterministic)
        x = dense(cfg.key_dim, ('embed', 'key'), cfg.dtype, 'key')(x)
        return _unit(nn.with_logical_constraint(x, ('batch', 'length', 'key'))), lengths


class TextKeys(nn.Module):
    """Letters of phrases, 0 after the end -> a key of length 1 each."""

    config: PhraseKeysConfig

    @nn.compact
    def __call__(self, letters: Int[Array, 'b l'], deterministic: bool = True) -> Float[Array, 'b k']:
        cfg = self.config
        valid = letters != 0
        embedding_init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('letters', 'embed'))
        x = nn.Embed(cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype, embedding_init=embedding_init, name='letters')(
            letters
        )
        x = _Layers(cfg, name='layers')(x, valid, deterministic)
        x = jnp.where(valid[..., None], x, 0)
        count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
        x = jnp.sum(x, axis=1) / jnp.sqrt(count.astype(cfg.dtype))
        x = layer_norm(1e-6, cfg.dtype, 'norm')(x)
        x = dense(cfg.key_dim, ('embed', 'key'), cfg.dtype, 'key')(x)
        return _unit(nn.with_logical_constraint(x, ('batch', 'key')))


class _Layers(nn.Module):
    """Residual convolutions over time, gated; nothing comes from beyond the end."""

    config: PhraseKeysConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t e'], valid: Bool[Array, 'b t'], deterministic: bool
    ) -> Float[Array, 'b t e']:
        cfg = self.config
        deterministic = deterministic or not self.has_rng('dropout')
        for number in range(cfg.num_layers):
            y = layer_norm(1e-6, cfg.dtype, f'norm_{number}')(x)
            y = jnp.where(valid[..., None], y, 0)
            # A convolution as one product, which CPUs compile and compute many times faster.
            around = jnp.pad(y, ((0, 0), (cfg.kernel // 2, cfg.kernel // 2), (0, 0)))
            y = jnp.concatenate([around[:, place : place + x.shape[1]] for place in range(cfg.kernel)], axis=-1)
            y = dense(2 * cfg.emb_dim, ('conv_in', 'conv_out'), cfg.dtype, f'conv_{number}')(y)
            y = nn.glu(nn.with_logical_constraint(y, ('batch', 'length', 'conv_out')))
            y = dense(cfg.emb_dim, ('conv_out', 'embed'), cfg.dtype, f'dense_{number}')(y)
            y = nn.with_logical_constraint(y, FRAMES)
            x = x + nn.Dropout(cfg.dropout_rate)(y, deterministic)
        return x


def _unit(x: Float[Array, '*b k']) -> Float[Array, '*b k']:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
