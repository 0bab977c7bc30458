"""The decoding cache: keys and values stay where they were written, whatever a search makes of its beams.

Shape names: b sequences, k beams, m maximum length, h heads that keys have, d head width.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

_SHORTEST_READ = 32  # positions


def append(
    module: nn.Module,
    keys_values: Sequence[Float[Array, 'b h d k']],
    position: Int[Array, ''],
    max_decode_length: int,
) -> list[Float[Array, 'b h d m*k']]:
    """Writes the beams' keys and values to the cache of `module` and returns all of both."""
    cached = []
    for name, new in zip(('cached_key', 'cached_value'), keys_values, strict=True):
        beams = new.shape[-1]
        shape = (*new.shape[:-1], max_decode_length * beams)
        variable = module.variable('cache', name, jnp.zeros, shape, new.dtype)
        if variable.value.shape != shape:
            raise ValueError(f'{name} is {variable.value.shape}, not {shape}: give cached_step beams={beams}.')
        if not module.is_mutable_collection('cross'):  # else the cache is only allocated
            variable.value = lax.dynamic_update_slice_in_dim(variable.value, new, position * beams, axis=3)
        cached.append(variable.value)
    return cached


def own(
    module: nn.Module, beams: int, batch: int, max_decode_length: int | None, batch_axis: int
) -> tuple[Int32[Array, ''], Bool[Array, 'b k m*k']]:
    """(position, own): the index of a cached step, and which of the keys each beam has behind it.

    A key stays where it was written. That of position p by beam j is at p * k + j; `written_by` [b * k, m] holds
    the j of every position of a beam, and is all that a search has to reorder.

    Args:
        module: whose cache has both.
        beams, batch: k and b.
        max_decode_length: m, where the cache is allocated; a step knows it.
        batch_axis: of the cache's arrays; axes before it have length one here.
    """
    counter = module.variable('cache', 'position', jnp.zeros, (), jnp.int32)
    shape = (*(1,) * batch_axis, batch, max_decode_length)
    written_by = module.variable('cache', 'written_by', jnp.zeros, shape, jnp.int32)
    position, length = counter.value, written_by.value.shape[-1]
    table = jnp.broadcast_to(written_by.value.reshape(batch, -1, length), (batch, beams, length))
    if not module.is_mutable_collection('cross'):  # else the cache is only allocated
        itself = jnp.broadcast_to(jnp.arange(beams)[:, None], (batch, beams, 1))
        table = lax.dynamic_update_slice_in_dim(table, itself, position, axis=2)
        written_by.value = table.reshape(written_by.value.shape)
        counter.value = position + 1
    found = (table[..., None] == jnp.arange(beams)) & (jnp.arange(length) <= position)[:, None]
    return position, found.reshape(batch, beams, -1)


def read(attended: Callable[[int, Array], Array], queries: Array, written: Int[Array, ''], length: int) -> Array:
    """`attended(n, queries)` of the first n of `length` keys: few more than have been written.

    `attended` masks what is not written. Lengths are known when a program is traced, so there is a branch for each of
    32 positions, 64, 128 ... for each query.
    """
    lengths = [_SHORTEST_READ * queries.shape[1]]
    while lengths[-1] < length:
        lengths.append(2 * lengths[-1])
    lengths[-1] = length
    branches = [functools.partial(attended, n) for n in lengths]
    return lax.switch(jnp.sum(written > np.array(lengths)), branches, queries)
