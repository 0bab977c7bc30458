"""Whisper's encoder (arXiv 2212.04356, section 2.2): two convolutions and a Transformer over a window of 30 s.

Reference: `transformers`' `WhisperEncoder`, whose names the parameters have. It attends to the silence after a clip
as to the clip, so a short clip costs as much as one of 30 s, and nothing has to be masked.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slm_jax.encoders.layers import FRAMES, conv, dense, layer_norm

_WINDOW = 3000  # frames at 100 Hz


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes, and the type of activations. Public models have `mlp_dim` = 4 · `emb_dim` and heads of 64."""

    num_layers: int
    emb_dim: int
    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32


def _attend_by_head(
    query: Float[Array, 'b t h k'], key: Float[Array, 'b t h k'], value: Float[Array, 'b t h k']
) -> Float[Array, 'b t h k']:
    """`jax.nn.dot_product_attention`, one head of one clip at a time: its 9 MB of scores fit into a CPU's cache.

    Four clips of Whisper base have 288 MB of them, in every layer. They are normalised after the product with the
    values, which is narrower.
    """

    def attend(head: tuple[Float[Array, 't k'], ...]) -> Float[Array, 't k']:
        query, key, value = head
        scores = jnp.matmul(query, key.T, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        y = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return (y / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)

    b, t, h, k = query.shape
    heads = [x.swapaxes(1, 2).reshape(b * h, t, k) for x in (query, key, value)]
    return jax.lax.map(attend, tuple(heads)).reshape(b, h, t, k).swapaxes(1, 2)


class _SelfAttention(nn.Module):
    config: WhisperConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
        d, axes, dtype = self.config.emb_dim, ('embed', 'joined_kv'), self.config.dtype

        def heads_of(name: str, use_bias: bool = True) -> Float[Array, 'b t h k']:
            y = dense(d, axes, dtype, name, use_bias)(x)
            y = y.reshape(*y.shape[:2], self.config.num_heads, -1)
            return nn.with_logical_constraint(y, ('batch', 'length', 'heads', 'kv'))

        query, key, value = heads_of('q_proj'), heads_of('k_proj', use_bias=False), heads_of('v_proj')
        y = jax.lax.platform_dependent(query, key, value, cpu=_attend_by_head, default=jax.nn.dot_product_attention)
        y = nn.with_logical_constraint(y.reshape(x.shape), ('batch', 'length', 'joined_kv'))
        return dense(d, axes[::-1], dtype, 'out_proj')(y)


class _Layer(nn.Module):
    """Self-attention and a GELU block, each pre-normalised; (output, None) for nn.scan."""

    config: WhisperConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d']) -> tuple[Float[Array, 'b t d'], None]:
        config, dtype = self.config, self.config.dtype
        y = layer_norm(1e-5, dtype, 'self_attn_layer_norm')(x)
        x = nn.with_logical_constraint(x + _SelfAttention(config, name='self_attn')(y), FRAMES)
        y = layer_norm(1e-5, dtype, 'final_layer_norm')(x)
        y = nn.with_logical_constraint(
            dense(config.mlp_dim, ('embed', 'mlp'), dtype, 'fc1')(y), ('batch', 'length', 'mlp')
        )
        x = x + dense(config.emb_dim, ('mlp', 'embed'), dtype, 'fc2')(nn.gelu(y, approximate=False))
        return nn.with_logical_constraint(x, FRAMES), None


class WhisperEncoder(nn.Module):
    """Log-mel frames at 100 Hz -> frames at 50 Hz."""

    config: WhisperConfig

    @nn.compact
    def __call__(
        self, features: Float[Array, 'b t mel'], lengths: Int[Array, ' b'], deterministic: bool = True
    ) -> tuple[Float[Array, 'b u d'], Int[Array, ' b']]:
        """Features as `WhisperFrontend` makes them: after the last frame comes its like, silence, up to 30 s.

        Returns the frames of the clips, zero beyond them, and their number. There is no dropout, as in Whisper's own
        training: `deterministic` changes nothing.
        """
        config = self.config
        u, lengths = -(-features.shape[1] // 2), -(-lengths // 2)
        x = jnp.pad(features, ((0, 0), (0, _WINDOW - features.shape[1]), (0, 0)), mode='edge').astype(config.dtype)
        for name, stride in (('conv1', 1), ('conv2', 2)):
            x = nn.with_logical_constraint(conv(config.emb_dim, 3, stride, 1, config.dtype, name)(x), FRAMES)
            x = nn.gelu(x, approximate=False)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('length', 'embed'))
        x = x + self.param('embed_positions', init, x.shape[1:], jnp.float32).astype(config.dtype)
        x, _ = nn.scan(
            _Layer,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(config, name='layers')(x)
        x = layer_norm(1e-5, config.dtype, 'layer_norm')(x[:, :u])
        return jnp.where((jnp.arange(u) < lengths[:, None])[..., None], x, 0.0), lengths
