"""Layers of language models: those of T5 with T5X's numerics, and what others share with it."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from slm_jax.llms import cache

_NUM_BUCKETS = 32
_MAX_DISTANCE = 128
_QUERIES = 1024  # at most so many attend at once
# Axes of what goes from layer to layer. Where weights stay where they are (`partitioning.GENERATION_RULES`), all rows
# are where a part of the width is, and only attention divides the rows: hence two names for them.
STREAM = ('llm_batch', 'length', 'embed')
HEADS = ('batch', 'length', 'heads', 'kv')
CACHED = ('batch', 'heads', 'kv', 'length')
REMAT_POLICIES = ('none', 'minimal', 'full')
ACTIVATIONS = {
    'linear': lambda x: x,
    'relu': nn.relu,
    'silu': nn.silu,
    'gelu': nn.gelu,  # by tanh, as T5X's
    'gelu_exact': functools.partial(nn.gelu, approximate=False),
}


def relative_position_bucket(
    relative_position: Int[np.ndarray, '*shape'], bidirectional: bool
) -> Int32[np.ndarray, '*shape']:
    """Buckets of key position minus query position: exact when near, logarithmic out to 128.

    Computed in numpy because positions are known when a program is traced.
    """
    distance = -relative_position
    num_buckets, first = _NUM_BUCKETS, np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        first = np.where(distance < 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    # The epsilon and float32 are T5X's: they decide the bucket of a few borderline distances.
    ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
    logarithmic = exact + (np.log(ratio) / np.log(_MAX_DISTANCE / exact) * (num_buckets - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(logarithmic, num_buckets - 1))
    return (first + bucket).astype(np.int32)


class RelativePositionBias(nn.Module):
    """T5's learned attention bias, a scalar per head and bucket of distances."""

    num_heads: int
    dtype: Any
    bidirectional: bool

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
        self.rel_embedding = self.param(
            'rel_embedding',
            nn.with_logical_partitioning(init, ('heads', 'relpos_buckets')),
            (self.num_heads, _NUM_BUCKETS),
            jnp.float32,
        )

    def _by_offset(self, offsets: np.ndarray) -> Float[Array, 'h o']:
        buckets = relative_position_bucket(offsets, self.bidirectional)
        return jnp.take(self.rel_embedding.astype(self.dtype), buckets, axis=1, mode='clip')

    def __call__(self, length: int) -> Float[Array, '1 h l l']:
        """The bias of every query (axis -2) and key (axis -1) of a sequence."""
        # The bias is a Toeplitz matrix. Repeating the 2 * length - 1 distinct values, padded by
        # one, and cutting rows one shorter shifts each row by one: no gather over length ** 2
        # elements forward, and no scatter into them backward, which is slow on CPU.
        values = self._by_offset(np.arange(1 - length, length))
        row = 2 * length - 1
        values = jnp.tile(jnp.pad(values, ((0, 0), (0, 1))), (1, length))
        skewed = values[:, : length * row].reshape(self.num_heads, length, row)
        return skewed[None, :, :, length - 1 :]

    def at(self, position: Int32[Array, ''], length: int) -> Float[Array, '1 h 1 l']:
        """The row of `__call__(length)` for the query at `position`; later keys get any value."""
        by_distance = self._by_offset(-np.arange(length))
        distance = jnp.clip(position - jnp.arange(length), 0)
        return jnp.take(by_distance, distance, axis=1, mode='clip')[None, :, None, :]


def rematerialised(layer: type[nn.Module], policy: str, scanned: bool) -> type[nn.Module]:
    """The layer, of whose activations `policy` (one of `REMAT_POLICIES`) says which are kept."""
    if policy == 'none':
        return layer
    kept = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims if policy == 'minimal' else None
    return nn.remat(layer, prevent_cse=not scanned, policy=kept)


def dot_product_attention(
    queries: Float[Array, 'b l h d'],
    keys: Float[Array, 'b s g d'],
    values: Float[Array, 'b s g d'],
    seen: Bool[Array, '#b l s'],
) -> Float[Array, 'b l h d']:
    """`jax.nn.dot_product_attention`; of a long text in parts: all weights at once would be most of the memory."""
    length = queries.shape[1]
    parts = -(-length // _QUERIES)
    if parts == 1:
        return jax.nn.dot_product_attention(queries, keys, values, mask=seen[:, None])
    size = -(-length // parts)

    def divided(x):
        x = jnp.pad(x, [(0, 0), (0, parts * size - length), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(len(x), parts, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint  # or a gradient would keep the weights of all parts
    def attended(part):
        return jax.nn.dot_product_attention(part[0], keys, values, mask=part[1][:, None])

    y = jnp.moveaxis(lax.map(attended, (divided(queries), divided(seen))), 0, 1)
    return y.reshape(len(y), parts * size, *y.shape[3:])[:, :length]


class LayerNorm(nn.Module):
    """Root-mean-square normalisation with a scale, in float32; no mean, no bias."""

    dtype: Any
    epsilon: float = 1e-6
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x: Float[Array, '*b e']) -> Float[Array, '*b e']:
        scale = self.param(
            'scale',
            nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)),
            (x.shape[-1],),
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.mean(lax.square(x), axis=-1, keepdims=True) + self.epsilon)
        return x.astype(self.dtype) * scale.astype(self.dtype)


def layer_norm(epsilon: float, dtype: Any, name: str | None) -> nn.Module:
    """Normalisation with mean and bias, which `LayerNorm` lacks."""
    return nn.LayerNorm(
        epsilon,
        dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
        name=name,
    )


class Dense(nn.Module):
    """A linear map of the trailing axes `inputs` to `outputs`.

    The kernel is stored as [*inputs, *outputs], or as a matrix when `axes` has two names, as it has to with a bias.
    `out_dtype`, if given, is that of the products' sums.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: Any
    distribution: str = 'truncated_normal'
    init_scale: float = 1.0
    use_bias: bool = False
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
        matrix = (int(np.prod(self.inputs)), int(np.prod(self.outputs)))
        shape = (*self.inputs, *self.outputs)
        variance_scaling = nn.initializers.variance_scaling(1.0, 'fan_in', self.distribution)

        def init(key, stored_shape, dtype):
            return self.init_scale * variance_scaling(key, matrix, dtype).reshape(stored_shape)

        kernel = self.param(
            'kernel',
            nn.with_logical_partitioning(init, self.axes),
            matrix if len(self.axes) == 2 else shape,
            jnp.float32,
        )
        contracted = len(self.inputs)
        dimensions = (range(x.ndim - contracted, x.ndim), range(contracted))
        kernel = kernel.astype(self.dtype).reshape(shape)
        y = lax.dot_general(x.astype(self.dtype), kernel, (dimensions, ((), ())), preferred_element_type=self.out_dtype)
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y += self.param('bias', init, matrix[1:], jnp.float32).astype(self.dtype).reshape(self.outputs)
        return y


class Embedding(nn.Module):
    """Embeddings of tokens, or of what else `rows` says; unit variance at first, as T5's."""

    vocab_size: int
    emb_dim: int
    dtype: Any
    stddev: float = 1.0
    rows: str = 'vocab'

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), (self.rows, 'embed'))
        self.embedding = self.param('embedding', init, (self.vocab_size, self.emb_dim), jnp.float32)

    def __call__(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        return jnp.take(self.embedding.astype(self.dtype), tokens, axis=0)

    def logits(self, x: Float[Array, 'b l e'], scale: float = 1.0) -> Float[Array, 'b l v']:
        """Logits in float32 from the shared embedding, whose products have the type of `x`."""
        embedding = self.embedding.astype(x.dtype)
        logits = jnp.einsum('ble,ve->blv', x, embedding, preferred_element_type=jnp.float32)
        return nn.with_logical_constraint(logits * scale, ('batch', 'length', 'vocab'))


class Attention(nn.Module):
    """Multi-head attention; 1 / sqrt(head width) lives in the initial query kernel, as in T5X."""

    config: Any  # T5Config

    def setup(self):
        cfg = self.config
        heads = (cfg.num_heads, cfg.head_dim)
        head_axes = ('heads', 'kv') if cfg.scan_layers else ('joined_kv',)
        dense = functools.partial(Dense, dtype=cfg.dtype, distribution='normal')
        project = functools.partial(dense, (cfg.emb_dim,), heads, ('embed', *head_axes))
        self.query = project(init_scale=cfg.head_dim**-0.5)
        self.key = project()
        self.value = project()
        self.out = dense(heads, (cfg.emb_dim,), (*head_axes, 'embed'))
        # One dropout pattern for all queries: T5 broadcasts it along the length.
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: Float[Array, 'b q e'],
        memory: Float[Array, 'b k e'],
        bias: Float[Array, '#b #h #q k'],
        deterministic: bool = True,
    ) -> Float[Array, 'b q e']:
        """Attends from `x` to `memory`; `bias` is added to the logits."""
        queries, keys, values = (
            nn.with_logical_constraint(y, HEADS) for y in (self.query(x), self.key(memory), self.value(memory))
        )
        weights = self._weights('bqhd,bkhd->bhqk', queries, keys, bias)
        self.sow('intermediates', 'weights', weights)
        weights = self.dropout(weights, deterministic)
        return self._joined(jnp.einsum('bhqk,bkhd->bqhd', weights, values))

    def keys_values(self, memory: Float[Array, 'b k e']) -> list[Float[Array, 'b h d k']]:
        """Keys and values of `memory` as T5X's cache has them: length last."""
        return [
            nn.with_logical_constraint(jnp.transpose(x, (0, 2, 3, 1)), CACHED)
            for x in (self.key(memory), self.value(memory))
        ]

    def attend(
        self,
        x: Float[Array, 'b q e'],
        keys: Float[Array, 'b h d k'],
        values: Float[Array, 'b h d k'],
        *biases: Float[Array, '#b #h #q k'],
        written: Int[Array, ''] | None = None,
    ) -> Float[Array, 'b q e']:
        """A cached step: attends from `x` to `keys_values`.

        Of those after the first `written`, which `biases` have to mask, few are read; None reads all.
        """

        def attended(length, queries):
            bias = sum(bias[..., :length] for bias in biases)
            weights = self._weights('bqhd,bhdk->bhqk', queries, keys[..., :length], bias)
            return jnp.einsum('bhdk,bhqk->bqhd', values[..., :length], weights)

        queries = nn.with_logical_constraint(self.query(x), HEADS)
        if written is None:
            return self._joined(attended(keys.shape[-1], queries))
        return self._joined(cache.read(attended, queries, written, keys.shape[-1]))

    def _joined(self, x: Float[Array, 'b q h d']) -> Float[Array, 'b q e']:
        return self.out(nn.with_logical_constraint(x, ('llm_batch', *HEADS[1:])))

    def _weights(self, product, queries, keys, bias) -> Float[Array, 'b h q k']:
        if self.config.float32_attention_logits:
            queries, keys = queries.astype(jnp.float32), keys.astype(jnp.float32)
        logits = jnp.einsum(product, queries, keys)
        return jax.nn.softmax(logits + bias.astype(logits.dtype)).astype(self.config.dtype)


class Mlp(nn.Module):
    """Feed-forward block: the product of one activated projection per entry of `mlp_activations`.

    `config` has `mlp_activations`, `mlp_bias`, `emb_dim`, `mlp_dim` and `dtype`.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Float[Array, 'b l e']) -> Float[Array, 'b l e']:
        cfg = self.config
        dense = functools.partial(Dense, dtype=cfg.dtype, use_bias=cfg.mlp_bias)
        branches = []
        for i, activation in enumerate(cfg.mlp_activations):
            name = 'wi' if len(cfg.mlp_activations) == 1 else f'wi_{i}'
            branch = dense((cfg.emb_dim,), (cfg.mlp_dim,), ('embed', 'mlp'), name=name)(x)
            branch = nn.with_logical_constraint(branch, ('llm_batch', 'length', 'mlp'))
            branches.append(ACTIVATIONS[activation](branch))
        y = functools.reduce(operator.mul, branches)
        return dense((cfg.mlp_dim,), (cfg.emb_dim,), ('mlp', 'embed'), name='wo')(y)
