"""USM-style Conformer encoder: the structure and numerics of the public USM audio towers, of Gemma 3n and Gemma 4.

Sources: USM (arXiv 2303.01037) and, for every detail, `transformers`' `Gemma3nAudioEncoder` and `Gemma4AudioModel`.
Where a reference lets the padding of a batch reach a clip's last frames, this encoder gives what the reference gives
for the clip alone.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slm_jax.encoders.layers import FRAMES, dense, stack_of

# The norms that end a residual branch start small, so that a fresh stack is near the identity: started at 1, every
# branch weighs as much as all that went before it, and CTC stays on its plateau of blanks.
_BRANCH_SCALE = 0.1
CLIP_BOUND = float(jnp.finfo(jnp.bfloat16).max)  # is none
_SUBSAMPLE_NORMS = ('cumulative', 'layer')


@dataclasses.dataclass(frozen=True)
class UsmConfig:
    """Sizes and switches; the defaults are Gemma 3n's.

    Attention reaches `context_left - 1` frames back and `context_right` ahead, computed in chunks of `chunk_size`
    queries. `reduction_factor` drops frames at the end (4: 25 Hz to 6.25 Hz); 1 keeps the 25 Hz that CTC and an adapter
    read.

    What Gemma 4 has otherwise: the norm of the subsampling is over the channels of each place alone
    (`subsample_norm = 'layer'`) and pads both ends of time alike (`subsample_padding`); keys have a scale; the inputs
    and outputs of most linear maps are clipped to bounds that are parameters; a last linear map gives frames of
    `output_dim`.
    """

    num_layers: int = 12
    emb_dim: int = 1536
    num_heads: int = 8
    conv_kernel_size: int = 5
    chunk_size: int = 12
    context_left: int = 13
    context_right: int = 0
    logit_cap: float = 50.0
    residual_weight: float = 0.5
    reduction_factor: int = 1
    num_mel_bins: int = 128
    subsample_channels: tuple[int, int] = (128, 32)
    subsample_norm: str = 'cumulative'
    subsample_norm_epsilon: float = 1e-3
    subsample_padding: tuple[int, int] = (0, 2)
    key_scale: float = 1.0
    clipped_linears: bool = False
    output_dim: int | None = None
    norm_epsilon: float = 1e-6
    activation_clip: float = 1e10
    dropout_rate: float = 0.0
    remat_policy: str = 'none'
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.subsample_norm not in _SUBSAMPLE_NORMS:
            raise ValueError(
                f'UsmConfig.subsample_norm is {self.subsample_norm!r}; there are {", ".join(_SUBSAMPLE_NORMS)}.'
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f'UsmConfig.dropout_rate is {self.dropout_rate!r}; it must be in [0, 1).')


class _Dense(nn.Module):
    """Matrix product over the last axis; with `clipped`, of an input in bounds, as is the output then.

    The leading axes are merged first: on CPU, XLA computes the kernel's gradient of a product of two matrices more than
    twice as fast as that of a batched one.
    """

    features: int
    axes: tuple[str, str]
    dtype: Any
    clipped: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b f']:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes)
        kernel = self.param('kernel', init, (x.shape[-1], self.features), jnp.float32).astype(self.dtype)
        y = self._bounded('input', x).reshape(-1, x.shape[-1]) @ kernel
        return self._bounded('output', y).reshape(*x.shape[:-1], self.features)

    def _bounded(self, what: str, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
        if not self.clipped:
            return x
        least, most = (
            self.param(f'{what}_{name}', nn.with_logical_partitioning(nn.initializers.constant(value), ()), ())
            for name, value in (('min', -CLIP_BOUND), ('max', CLIP_BOUND))
        )
        return jnp.clip(x, *(jax.lax.stop_gradient(bound).astype(x.dtype) for bound in (least, most)))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 with a learned scale."""

    epsilon: float
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
        init = nn.with_logical_partitioning(nn.initializers.constant(self.initial_scale), ('embed',))
        scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(x.dtype)


def _conv_3x3_stride_2(
    x: Float[Array, 'b t f c'], kernel: Float[Array, '3 3 c d'], padding: tuple[int, int]
) -> Float[Array, 'b u g d']:
    """3x3 convolution, stride 2, padded as said in time and (1, 1) in frequency."""
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), (padding, (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


class _SubsampleBlock(nn.Module):
    """Convolution, norm, ReLU. The norm is of all that was heard so far, or over channels."""

    channels: int
    config: UsmConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t f c'], valid: Bool[Array, 'b u']) -> Float[Array, 'b u g d']:
        axes = ('conv_time', 'conv_frequency', 'conv_in', 'conv_out')
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
        kernel = self.param('kernel', init, (3, 3, x.shape[-1], self.channels), jnp.float32)
        scale_init = nn.with_logical_partitioning(nn.initializers.ones, ('conv_out',))
        scale = self.param('scale', scale_init, (self.channels,), jnp.float32)
        kernel = kernel.astype(self.config.dtype)
        y = _conv_3x3_stride_2(x, kernel, self.config.subsample_padding).astype(jnp.float32)
        y = nn.with_logical_constraint(y, ('batch', 'length', 'conv_frequency', 'conv_out'))
        if self.config.subsample_norm == 'layer':
            mean = jnp.mean(y, axis=3, keepdims=True)
            variance = jnp.mean(jnp.square(y - mean), axis=3, keepdims=True)
        else:
            count = y.shape[2] * y.shape[3] * jnp.arange(1, y.shape[1] + 1, dtype=jnp.float32)[:, None, None]
            mean = jnp.cumsum(jnp.sum(y, axis=(2, 3), keepdims=True), axis=1) / count
            variance = jnp.cumsum(jnp.sum(jnp.square(y - mean), axis=(2, 3), keepdims=True), axis=1) / count
        y = nn.relu((y - mean) * jax.lax.rsqrt(variance + self.config.subsample_norm_epsilon) * scale)
        return jnp.where(valid[:, :, None, None], y, 0.0).astype(self.config.dtype)


class _FeedForward(nn.Module):
    config: UsmConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], deterministic: bool) -> Float[Array, 'b t d']:
        config = self.config
        clip = config.activation_clip
        y = RMSNorm(1e-6, name='pre_layer_norm')(jnp.clip(x, -clip, clip))
        y = _Dense(4 * config.emb_dim, ('embed', 'mlp'), config.dtype, config.clipped_linears, name='ffw_layer_1')(y)
        y = nn.silu(nn.with_logical_constraint(y, ('batch', 'length', 'mlp')))
        y = nn.Dropout(config.dropout_rate)(y, deterministic=deterministic)
        y = _Dense(config.emb_dim, ('mlp', 'embed'), config.dtype, config.clipped_linears, name='ffw_layer_2')(y)
        y = RMSNorm(1e-6, _BRANCH_SCALE, name='post_layer_norm')(jnp.clip(y, -clip, clip))
        x = x + config.residual_weight * nn.Dropout(config.dropout_rate)(y, deterministic=deterministic)
        return nn.with_logical_constraint(x, FRAMES)


class _LocalAttention(nn.Module):
    """Chunked local self-attention with relative positions and a soft cap on the logits."""

    config: UsmConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], valid: Bool[Array, 'b t']) -> Float[Array, 'b t d']:
        config = self.config
        b, t, _ = x.shape
        heads, head_dim = config.num_heads, config.emb_dim // config.num_heads
        past, future, chunk = max(0, config.context_left - 1), config.context_right, config.chunk_size
        chunks, context = -(-t // chunk), chunk + past + future

        def heads_of(name: str) -> Float[Array, 'b h t k']:
            y = _Dense(config.emb_dim, ('embed', 'joined_kv'), config.dtype, config.clipped_linears, name=name)(x)
            y = y.reshape(b, t, heads, head_dim).swapaxes(1, 2)
            return nn.with_logical_constraint(y, ('batch', 'heads', 'length', 'kv'))

        def contexts(y: Array) -> Array:
            """[b, h, t, k] -> [b, h, chunks, context, k], joined from neighbouring chunks."""
            # Slices, since the gradient of a gather is a scatter.
            before, after = -(-past // chunk), -(-future // chunk)
            pad = (before * chunk, (chunks + after) * chunk - t)
            y = jnp.pad(y, ((0, 0), (0, 0), pad, (0, 0)))
            y = y.reshape(*y.shape[:2], -1, chunk, y.shape[3])
            y = jnp.concatenate([y[:, :, i : i + chunks] for i in range(before + 1 + after)], axis=3)
            return y[:, :, :, before * chunk - past :][:, :, :, :context]

        per_dim_scale = self.param(
            'per_dim_scale', nn.with_logical_partitioning(nn.initializers.zeros, ('kv',)), (head_dim,), jnp.float32
        )
        # softplus of the learned scale, 1 at its initial value of 0
        scale = head_dim**-0.5 / math.log(2.0) * jax.nn.softplus(per_dim_scale)
        query = heads_of('q_proj') * scale.astype(config.dtype)
        query = jnp.pad(query, ((0, 0), (0, 0), (0, chunks * chunk - t), (0, 0)))
        query = query.reshape(b, heads, chunks, chunk, head_dim)
        key, value = contexts(config.key_scale * heads_of('k_proj')), contexts(heads_of('v_proj'))

        positions = _sinusoids(np.arange(past, -future - 1, -1), config.emb_dim)
        relative = _Dense(config.emb_dim, ('embed', 'joined_kv'), config.dtype, name='pos_proj')(
            positions.astype(config.dtype)
        )
        relative = relative.reshape(-1, heads, head_dim)
        logits = jnp.einsum('bnuwh,bnuch->bnuwc', query, key)
        logits += _relative_shift(jnp.einsum('bnuwh,fnh->bnuwf', query, relative), context)
        logits = config.logit_cap * jnp.tanh(logits.astype(jnp.float32) / config.logit_cap)

        offset = np.arange(context)[None, :] - np.arange(chunk)[:, None]  # 0 is `past` frames back
        mask = contexts(valid[:, None, :, None])[..., 0][:, :, :, None, :] & ((offset >= 0) & (offset <= past + future))
        weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min), axis=-1)
        y = jnp.einsum('bnuwc,bnuch->bnuwh', weights.astype(config.dtype), value)
        y = y.reshape(b, heads, chunks * chunk, head_dim)[:, :, :t]
        y = y.swapaxes(1, 2).reshape(b, t, -1)
        return nn.with_logical_constraint(y, ('batch', 'length', 'joined_kv'))


def _sinusoids(positions: np.ndarray, width: int) -> Float[np.ndarray, 'f width']:
    """Sines then cosines at timescales from 1 to 10,000 frames."""
    timescales = width // 2
    inverse = np.exp(-np.arange(timescales) * (math.log(1e4) / max(timescales - 1, 1)))
    angles = positions[:, None] * inverse[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def _relative_shift(x: Float[Array, 'b n u w f'], context: int) -> Float[Array, 'b n u w c']:
    """Scores by distance (past to future) -> scores by place in the query's context."""
    b, n, u, w, f = x.shape
    x = jnp.pad(x, ((0, 0),) * 4 + ((0, context + 1 - f),))
    return x.reshape(b, n, u, w * (context + 1))[..., : w * context].reshape(b, n, u, w, context)


class _LightConv(nn.Module):
    """Gated causal depthwise convolution."""

    config: UsmConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], deterministic: bool) -> Float[Array, 'b t d']:
        config = self.config
        y = RMSNorm(config.norm_epsilon, name='pre_layer_norm')(x)
        y = _Dense(2 * config.emb_dim, ('embed', 'mlp'), config.dtype, config.clipped_linears, name='linear_start')(y)
        value, gate = jnp.split(y, 2, axis=-1)
        y = nn.with_logical_constraint(value * nn.sigmoid(gate), ('batch', 'length', 'mlp'))
        size = config.conv_kernel_size
        init = nn.with_logical_partitioning(nn.initializers.normal(size**-0.5), ('conv_time', 'embed'))
        kernel = self.param('depthwise_kernel', init, (size, config.emb_dim), jnp.float32).astype(config.dtype)
        # A sum of shifted products: on CPU 25 times faster than XLA's depthwise convolution.
        padded = jnp.pad(y, ((0, 0), (size - 1, 0), (0, 0)))
        y = sum(padded[:, i : i + x.shape[1]] * kernel[i] for i in range(size))
        y = jnp.clip(y, -config.activation_clip, config.activation_clip)
        y = nn.silu(RMSNorm(config.norm_epsilon, name='conv_norm')(y))
        y = _Dense(config.emb_dim, ('mlp', 'embed'), config.dtype, config.clipped_linears, name='linear_end')(y)
        x = x + nn.Dropout(config.dropout_rate)(y, deterministic=deterministic)
        return nn.with_logical_constraint(x, FRAMES)


class ConformerBlock(nn.Module):
    """Half feed-forward, local attention, light convolution, half feed-forward, norm."""

    config: UsmConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], valid: Bool[Array, 'b t']) -> tuple[Float[Array, 'b t d'], None]:
        config, clip = self.config, self.config.activation_clip
        x = _FeedForward(config, name='ffw_layer_start')(x, self.deterministic)
        y = RMSNorm(1e-6, name='pre_attention_norm')(jnp.clip(x, -clip, clip))
        y = _LocalAttention(config, name='attention')(y, valid)
        y = _Dense(config.emb_dim, ('joined_kv', 'embed'), config.dtype, config.clipped_linears, name='attention_out')(
            y
        )
        y = RMSNorm(1e-6, _BRANCH_SCALE, name='post_attention_norm')(jnp.clip(y, -clip, clip))
        x = x + nn.Dropout(config.dropout_rate)(y, deterministic=self.deterministic)
        x = nn.with_logical_constraint(jnp.where(valid[..., None], x, 0.0), FRAMES)
        x = _LightConv(config, name='lconv1d')(x, self.deterministic)
        x = _FeedForward(config, name='ffw_layer_end')(x, self.deterministic)
        x = RMSNorm(1e-6, name='norm')(jnp.clip(x, -clip, clip))
        return nn.with_logical_constraint(x, FRAMES), None


class UsmEncoder(nn.Module):
    """Log-mel frames at 100 Hz -> frames at 25 Hz (divided by `reduction_factor`)."""

    config: UsmConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, 'b t mel'],
        lengths: Int[Array, ' b'],
        deterministic: bool = True,
        layer: int | None = None,
    ) -> tuple[Float[Array, 'b u d'], Int[Array, ' b']]:
        """Features must be zero beyond `lengths`, as the frontends make them; so are the returned frames.

        With `layer`, what that layer of the stack gives, at 25 Hz.
        """
        config = self.config
        x = features[..., None].astype(config.dtype)
        for i, channels in enumerate(config.subsample_channels):
            lengths = -(-lengths // 2)
            valid = jnp.arange(-(-x.shape[1] // 2)) < lengths[:, None]
            x = _SubsampleBlock(channels, config, name=f'subsample_{i}')(x, valid)
        x = x.reshape(x.shape[0], x.shape[1], -1)
        x = _Dense(config.emb_dim, ('conv_features', 'embed'), config.dtype, name='input_proj')(x)
        x = nn.with_logical_constraint(nn.Dropout(config.dropout_rate)(x, deterministic=deterministic), FRAMES)
        block = ConformerBlock
        if config.remat_policy != 'none':
            policy = {'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims, 'full': None}
            block = nn.remat(block, prevent_cse=False, policy=policy[config.remat_policy])
        x, _ = stack_of(block, config.num_layers, layer, dropout=True)(config, deterministic, name='conformer')(
            x, valid
        )
        if layer is not None:
            return jnp.where(valid[..., None], x, 0.0), lengths
        if config.output_dim is not None:
            x = dense(config.output_dim, ('embed', 'mlp'), config.dtype, 'output_proj')(x)
            x = nn.with_logical_constraint(x, FRAMES)
        if config.reduction_factor > 1:
            x, valid = x[:, :: config.reduction_factor], valid[:, :: config.reduction_factor]
            lengths = -(-lengths // config.reduction_factor)
        return jnp.where(valid[..., None], x, 0.0), lengths
