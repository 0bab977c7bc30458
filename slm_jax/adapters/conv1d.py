"""The adapter of ComSL (arXiv 2305.14838): two convolutions, each of which halves the number of vectors.

The first stands between two feed-forward blocks of half weight, each followed by a norm; both are gated. As the
authors' released code has it; of the paper's recordings, 550 frames become 275 and then 138 vectors.

Shape names: b batch, t frames, d frame width, s = ceil(t / 2), e width of the LLM's embeddings.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_TAPS = 3  # of a convolution, one of which is the frame at twice the place


@dataclasses.dataclass(frozen=True)
class Conv1dConfig:
    """Sizes of the adapter.

    Attributes:
        output_dim: width of the LLM's token embeddings.
        expansion: of the feed-forward blocks, in widths of what they read.
        dtype: of activations; parameters are float32.
    """

    output_dim: int
    expansion: int = 4
    dtype: Any = 'float32'

    def __post_init__(self):
        for field in ('output_dim', 'expansion'):
            if getattr(self, field) < 1:
                raise ValueError(f'Conv1dConfig.{field} is {getattr(self, field)}; it must be at least 1.')


def _linear(features: int, axes: tuple[str, str], dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


class _FeedForward(nn.Module):
    """The input and half of what a ReLU block makes of it, normalised."""

    config: Conv1dConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
        width, dtype = x.shape[-1], self.config.dtype
        y = nn.relu(_linear(self.config.expansion * width, ('embed', 'mlp'), dtype, 'wi')(x))
        y = nn.with_logical_constraint(y, ('batch', 'length', 'mlp'))
        x = x + 0.5 * _linear(width, ('mlp', 'embed'), dtype, 'wo')(y)
        norm = nn.LayerNorm(
            1e-5,
            dtype,
            use_fast_variance=False,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
            name='norm',
        )
        return nn.with_logical_constraint(norm(x), ('batch', 'length', 'embed'))


class _Halving(nn.Module):
    """A convolution with stride 2 over frames and their neighbours, and its gate; what is not valid is silence to it.

    Written as a product with windows, and the gate as an axis of its own, so that devices divide both alike.
    """

    config: Conv1dConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], lengths: Int[Array, ' b']
    ) -> tuple[Float[Array, 'b s e'], Int[Array, ' b']]:
        dtype, out = self.config.dtype, self.config.output_dim
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', (0, 1), (2, 3))
        init = nn.with_logical_partitioning(init, ('conv_time', 'embed', 'conv_gate', 'mlp'))
        kernel = self.param('kernel', init, (_TAPS, x.shape[-1], 2, out), jnp.float32)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ('conv_gate', 'mlp'))
        bias = self.param('bias', init, (2, out), jnp.float32)

        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        padded = jnp.pad(jnp.where(valid[..., None], x, 0).astype(dtype), ((0, 0), (1, 1), (0, 0)))
        count = -(-x.shape[1] // 2)
        windows = jnp.stack([padded[:, tap : tap + 2 * count - 1 : 2] for tap in range(_TAPS)], axis=2)
        y = jnp.einsum('bski,kigo->bsgo', windows, kernel.astype(dtype)) + bias.astype(dtype)
        y = y[:, :, 0] * jax.nn.sigmoid(y[:, :, 1])
        return nn.with_logical_constraint(y, ('batch', 'length', 'embed')), -(-lengths // 2)


class Conv1dAdapter(nn.Module):
    """Frames of a speech encoder to a quarter as many embeddings for an LLM. There is no dropout, as in the reference.

    It is called as all adapters are; CTC has no part in it.
    """

    config: Conv1dConfig

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int[Array, ' b'],
        ctc_logits: Any = None,
        deterministic: bool = True,
        label_embeddings: Any = None,
    ) -> tuple[Float[Array, 'b u e'], Int[Array, ' b']]:
        """Adapts frames; what stands at and after `frame_lengths` changes nothing.

        Returns:
            Embeddings, 0 after their length, and their lengths, a quarter of those of the frames, rounded up.
        """
        del ctc_logits, deterministic, label_embeddings
        x = _FeedForward(self.config, name='before')(frames)
        x, lengths = _Halving(self.config, name='conv_1')(x, frame_lengths)
        x = _FeedForward(self.config, name='after')(x)
        x, lengths = _Halving(self.config, name='conv_2')(x, lengths)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = nn.with_logical_constraint(jnp.where(valid[..., None], x, 0), ('batch', 'length', 'llm_embed'))
        return x, lengths.astype(jnp.int32)
