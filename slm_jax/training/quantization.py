"""Frozen weights in int8, one scale for each output channel; activations keep their type.

`Quantized` is a box as Flax has them for parameters: a module that asks for its kernel gets the product of values and
scale, so models know nothing of it, and a scanned stack unpacks one layer at a time, inside its loop.
"""

from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int8

_WEIGHTS = ('kernel', 'embedding')  # norms, biases and position biases are small, and stay as they are


class Quantized(flax.struct.PyTreeNode, nn.meta.AxisMetadata):
    """Weights as int8 times a scale, which has length 1 along the axes that share one.

    Either field may be abstract, as the leaves of any tree of parameters.
    """

    values: Int8[Array, '*shape']
    scale: Float32[Array, '*#shape']

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes along which the scale is one."""
        return tuple(axis for axis, length in enumerate(self.scale.shape) if length == 1)

    def unbox(self) -> Float32[Array, '*shape']:
        """The weights; each is off by at most half a scale."""
        return self.values.astype(jnp.float32) * self.scale

    def replace_boxed(self, val: Float[Array, '*shape']) -> 'Quantized':
        """Other weights, quantised alike."""
        return quantize(val, self.axes)

    def add_axis(self, index: int, params: dict[str, Any]) -> 'Quantized':
        """Itself: axes have no names here."""
        return self

    remove_axis = add_axis


def quantize(weights: Float[Array, '*shape'], axes: Sequence[int]) -> Quantized:
    """Symmetric rounding to -127 ... 127, where 127 is the largest magnitude along `axes`."""
    weights = weights.astype(jnp.float32)
    largest = jnp.max(jnp.abs(weights), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return Quantized(jnp.round(weights / scale).astype(jnp.int8), scale)


def abstract(path: str, leaf: jax.ShapeDtypeStruct, names: Sequence[str | None]) -> Quantized | jax.ShapeDtypeStruct:
    """What a parameter is held as: `Quantized` if it is a kernel or an embedding, else as it is.

    Args:
        path: in the system's parameters.
        leaf: with its sharding. The values get the same, the scale that of the axes it has.
        names: logical names of the axes; none: they are not known, and the parameter stays as it is.
    """
    if path.rpartition('/')[2] not in _WEIGHTS or not names:
        return leaf
    shared = _input_axes(names)
    spec = (None if axis in shared else place for axis, place in enumerate(leaf.sharding.spec))
    values: Any = jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=leaf.sharding)
    scale: Any = jax.ShapeDtypeStruct(
        tuple(1 if axis in shared else length for axis, length in enumerate(leaf.shape)),
        jnp.float32,
        sharding=NamedSharding(leaf.sharding.mesh, PartitionSpec(*spec)),
    )
    return Quantized(values, scale)


def _input_axes(names: Sequence[str | None]) -> tuple[int, ...]:
    """The axes over which a kernel sums. An embedding has no such, and is taken as the output layer it may be."""
    axes = [axis for axis, name in enumerate(names) if name != 'layers']
    if 'vocab' in names or names[axes[0]] == 'embed':
        return (names.index('embed'),)
    return tuple(axes[:-1])
