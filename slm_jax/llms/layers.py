"""The layers of T5: relative position bias, norm, linear map and embedding, with T5X's numerics."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Int32

_NUM_BUCKETS = 32
_MAX_DISTANCE = 128


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


class LayerNorm(nn.Module):
    """Root-mean-square normalisation with a scale, in float32; no mean, no bias, eps 1e-6."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, '*b e']) -> Float[Array, '*b e']:
        scale = self.param(
            'scale',
            nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
            (x.shape[-1],),
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.mean(lax.square(x), axis=-1, keepdims=True) + 1e-6)
        return x.astype(self.dtype) * scale.astype(self.dtype)


class Dense(nn.Module):
    """A linear map of the trailing axes `inputs` to `outputs`, without bias.

    The kernel is stored as [*inputs, *outputs], or as a matrix when `axes` has two names.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: Any
    distribution: str = 'truncated_normal'
    init_scale: float = 1.0

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
        return lax.dot_general(x.astype(self.dtype), kernel, (dimensions, ((), ())))


class Embedding(nn.Module):
    """Token embeddings, initialised with unit variance."""

    vocab_size: int
    emb_dim: int
    dtype: Any

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
        self.embedding = self.param('embedding', init, (self.vocab_size, self.emb_dim), jnp.float32)

    def __call__(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        return jnp.take(self.embedding.astype(self.dtype), tokens, axis=0)

    def logits(self, x: Float[Array, 'b l e']) -> Float[Array, 'b l v']:
        """Logits in float32 from the shared embedding, scaled as T5 1.0 does."""
        logits = jnp.einsum('ble,ve->blv', x.astype(jnp.float32), self.embedding)
        return logits * self.emb_dim**-0.5
