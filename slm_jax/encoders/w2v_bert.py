"""w2v-BERT 2.0's encoder (SeamlessM4T, arXiv 2312.05187, section 3.2.1): a Conformer with causal convolutions.

Reference: `transformers`' `Wav2Vec2BertModel`, whose names the parameters have, with its adapter where there is one.
Where the reference's adapter lets the padding of a batch reach a clip's last frames, this encoder gives what the
reference gives for the clip alone.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slm_jax.encoders.layers import FRAMES, conv, dense, layer_norm, stack_of

ACTIVATIONS = {
    'swish': nn.silu, 'silu': nn.silu, 'relu': nn.relu, 'selu': nn.selu,
    'gelu': functools.partial(nn.gelu, approximate=False), 'gelu_new': nn.gelu,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class W2vBertConfig:
    """Sizes and switches; the defaults are w2v-BERT 2.0's.

    Attributes:
        positions: 'relative_key' (Shaw, arXiv 1803.02155, up to `max_left` frames back and `max_right` ahead),
            'relative' (Transformer-XL's), 'rotary', or None.
        intermediate_ffn: whether a feed-forward block follows the Conformer.
        num_adapter_layers: of the convolutional Transformer after it, `adapter_dim` wide; 0: there is none. Each
            divides the rate of the frames, 50 Hz, by `adapter_stride`.
        activation, adapter_activation: see `ACTIVATIONS`.
    """

    num_layers: int = 24
    emb_dim: int = 1024
    num_heads: int = 16
    mlp_dim: int = 4096
    conv_kernel_size: int = 31
    activation: str = 'swish'
    norm_epsilon: float = 1e-5
    positions: str | None = 'relative_key'
    max_left: int = 64
    max_right: int = 8
    rotary_base: int = 10_000
    intermediate_ffn: bool = False
    num_adapter_layers: int = 0
    adapter_dim: int = 1024
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    adapter_activation: str = 'relu'
    dtype: Any = jnp.float32


class _FeedForward(nn.Module):
    config: W2vBertConfig
    activation: str

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
        dtype = self.config.dtype
        y = dense(self.config.mlp_dim, ('embed', 'mlp'), dtype, 'intermediate_dense')(x)
        y = nn.with_logical_constraint(y, ('batch', 'length', 'mlp'))
        return dense(x.shape[-1], ('mlp', 'embed'), dtype, 'output_dense')(ACTIVATIONS[self.activation](y))


class _SelfAttention(nn.Module):
    config: W2vBertConfig
    positions: str | None

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], valid: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        config, axes = self.config, ('embed', 'joined_kv')
        b, t, d = x.shape
        heads, head_dim = config.num_heads, d // config.num_heads

        def heads_of(y: Array, name: str, use_bias: bool = True) -> Float[Array, '*b h k']:
            return dense(d, axes, config.dtype, name, use_bias)(y).reshape(*y.shape[:-1], heads, head_dim)

        turned = _rotate(x, heads, config.rotary_base) if self.positions == 'rotary' else x
        query, key, value = (
            nn.with_logical_constraint(heads_of(y, name), ('batch', 'length', 'heads', 'kv'))
            for y, name in ((turned, 'linear_q'), (turned, 'linear_k'), (x, 'linear_v'))
        )
        bias = None
        if self.positions == 'relative_key':
            left, right = config.max_left, config.max_right
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('relpos_buckets', 'kv'))
            table = self.param('distance_embedding', init, (left + right + 1, head_dim), jnp.float32)
            scores = jnp.einsum('bthk,rk->bhtr', query, table.astype(config.dtype))
            # Each distance from 1 - t to t - 1; farther ones are as the farthest of the table.
            scores = jnp.pad(scores, ((0, 0),) * 3 + ((max(t - 1 - left, 0), max(t - 1 - right, 0)),), mode='edge')
            bias = scores[..., max(left - t + 1, 0) :][..., : 2 * t - 1]
        if self.positions == 'relative':
            init = nn.with_logical_partitioning(nn.initializers.zeros, ('heads', 'kv'))
            content, place = (
                self.param(name, init, (heads, head_dim), jnp.float32).astype(config.dtype)
                for name in ('pos_bias_u', 'pos_bias_v')
            )
            distances = heads_of(jnp.asarray(_sinusoids(t, d), config.dtype), 'linear_pos', use_bias=False)
            bias = jnp.einsum('bthk,rhk->bhtr', query + place, distances)
            query = query + content
        if bias is not None:
            bias = _by_key(bias) * head_dim**-0.5
        y = jax.nn.dot_product_attention(query, key, value, bias, valid[:, None, None, :])
        y = nn.with_logical_constraint(y.reshape(b, t, d), ('batch', 'length', 'joined_kv'))
        return dense(d, axes[::-1], config.dtype, 'linear_out')(y)


def _rotate(x: Float[Array, 'b t d'], heads: int, base: float) -> Float[Array, 'b t d']:
    """Turns pairs of each head's features, one of either half, by angles that grow with time."""
    b, t, d = x.shape
    size = d // heads // 2
    inverse = np.float32(1.0) / np.float32(base) ** (np.arange(size, dtype=np.float32) / np.float32(size))
    angles = np.arange(t, dtype=np.float32)[:, None] * inverse  # rounded as the reference's: they grow large
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    first, second = jnp.split(x.reshape(b, t, heads, -1), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(b, t, d).astype(x.dtype)


def _sinusoids(t: int, width: int) -> Float[np.ndarray, 'r width']:
    """Of the distances from t - 1 frames back to t - 1 ahead; sines and cosines take turns."""
    inverse = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-math.log(1e4) / width))
    angles = np.arange(t - 1, -t, -1, dtype=np.float32)[:, None] * inverse
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(2 * t - 1, width)


def _by_key(scores: Float[Array, 'b h t r']) -> Float[Array, 'b h t t']:
    """Scores by distance, 1 - t to t - 1, to scores by key. Rows one longer, cut one shorter: each shifts by one."""
    b, h, t, r = scores.shape
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(b, h, t * (r + 1))
    return flat[..., t - 1 : t - 1 + t * r].reshape(b, h, t, r)[..., :t]


class _Convolution(nn.Module):
    """Gated causal depthwise convolution."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], valid: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        config, dtype = self.config, self.config.dtype
        d, size = config.emb_dim, config.conv_kernel_size
        y = jnp.where(valid[..., None], layer_norm(config.norm_epsilon, dtype, 'layer_norm')(x), 0.0)
        y = nn.glu(dense(2 * d, ('embed', 'mlp'), dtype, 'pointwise_conv1', use_bias=False)(y))
        y = nn.with_logical_constraint(y, ('batch', 'length', 'mlp'))
        init = nn.with_logical_partitioning(nn.initializers.normal(size**-0.5), ('conv_time', 'embed'))
        kernel = self.param('depthwise_kernel', init, (size, d), jnp.float32).astype(dtype)
        # A sum of shifted products: on CPU far faster than XLA's depthwise convolution.
        padded = jnp.pad(y, ((0, 0), (size - 1, 0), (0, 0)))
        y = sum(padded[:, i : i + x.shape[1]] * kernel[i] for i in range(size))
        y = ACTIVATIONS[config.activation](layer_norm(config.norm_epsilon, dtype, 'depthwise_layer_norm')(y))
        return dense(d, ('mlp', 'embed'), dtype, 'pointwise_conv2', use_bias=False)(y)


class _ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm; (output, None) for nn.scan."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], valid: Bool[Array, 'b t']) -> tuple[Float[Array, 'b t d'], None]:
        config = self.config

        def norm(name: str, x: Array) -> Float[Array, 'b t d']:
            return layer_norm(config.norm_epsilon, config.dtype, name)(x)

        named = functools.partial(nn.with_logical_constraint, logical_axis_resources=FRAMES)
        x = named(x + 0.5 * _FeedForward(config, config.activation, name='ffn1')(norm('ffn1_layer_norm', x)))
        y = norm('self_attn_layer_norm', x)
        x = named(x + _SelfAttention(config, config.positions, name='self_attn')(y, valid))
        x = named(x + _Convolution(config, name='conv_module')(x, valid))
        x = named(x + 0.5 * _FeedForward(config, config.activation, name='ffn2')(norm('ffn2_layer_norm', x)))
        return named(norm('final_layer_norm', x)), None


class _AdapterLayer(nn.Module):
    """Fewer frames by two strided convolutions, one of which attention follows; then a feed-forward block."""

    config: W2vBertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], lengths: Int[Array, ' b']
    ) -> tuple[Float[Array, 'b u d'], Int[Array, ' b']]:
        config, dtype = self.config, self.config.dtype
        size, stride = config.adapter_kernel_size, config.adapter_stride
        valid = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]

        def reduced(norm: str, name: str) -> Float[Array, 'b u d']:
            y = jnp.where(valid, layer_norm(config.norm_epsilon, dtype, norm)(x), 0.0)
            return nn.with_logical_constraint(
                nn.glu(conv(2 * x.shape[-1], size, stride, stride // 2, dtype, name)(y)), FRAMES
            )

        lengths = jnp.where(lengths > 0, (lengths + 2 * (stride // 2) - size) // stride + 1, 0)
        residual = reduced('residual_layer_norm', 'residual_conv')
        y = reduced('self_attn_layer_norm', 'self_attn_conv')
        valid_after = jnp.arange(y.shape[1]) < lengths[:, None]
        x_after = residual + _SelfAttention(config, None, name='self_attn')(y, valid_after)
        x_after = nn.with_logical_constraint(x_after, FRAMES)
        y = layer_norm(config.norm_epsilon, dtype, 'ffn_layer_norm')(x_after)
        x_after = x_after + _FeedForward(config, config.adapter_activation, name='ffn')(y)
        return nn.with_logical_constraint(x_after, FRAMES), lengths


class W2vBertEncoder(nn.Module):
    """Pairs of filterbank frames at 50 Hz -> frames at 50 Hz, or fewer by the adapter."""

    config: W2vBertConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, 'b t f'],
        lengths: Int[Array, ' b'],
        deterministic: bool = True,
        layer: int | None = None,
    ) -> tuple[Float[Array, 'b u d'], Int[Array, ' b']]:
        """Returns frames, zero beyond each clip's own, and their number.

        There is no dropout, as the encoder is made to be frozen: `deterministic` changes nothing. With `layer`, what
        that layer of the stack gives, before the adapter.
        """
        config, dtype, epsilon = self.config, self.config.dtype, self.config.norm_epsilon
        valid = jnp.arange(features.shape[1]) < lengths[:, None]
        x = layer_norm(epsilon, dtype, 'feature_layer_norm')(features)
        x = nn.with_logical_constraint(
            dense(config.emb_dim, ('conv_features', 'embed'), dtype, 'feature_projection')(x), FRAMES
        )
        x, _ = stack_of(_ConformerLayer, config.num_layers, layer)(config, name='layers')(
            jnp.where(valid[..., None], x, 0.0), valid
        )
        if layer is not None:
            return jnp.where(valid[..., None], x, 0.0), lengths
        if config.intermediate_ffn:
            x = x + 0.5 * _FeedForward(config, 'relu', name='intermediate_ffn')(x)
            x = nn.with_logical_constraint(x, FRAMES)
        if config.num_adapter_layers and config.adapter_dim != config.emb_dim:
            x = dense(config.adapter_dim, ('embed', 'mlp'), dtype, 'adapter_proj')(x)
            x = nn.with_logical_constraint(layer_norm(epsilon, dtype, 'adapter_proj_layer_norm')(x), FRAMES)
        for i in range(config.num_adapter_layers):
            x, lengths = _AdapterLayer(config, name=f'adapter_layers_{i}')(x, lengths)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        return jnp.where(valid[..., None], x, 0.0), lengths
