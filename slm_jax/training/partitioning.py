"""From logical axis names to devices: one program for a CPU, a GPU and a pod of many hosts.

Modules name the axes of their parameters and activations logically, with T5X's names; rules map these names to the
axes of a mesh (`data`, `fsdp`, `model`), and XLA does the rest.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# T5X's table. `embed` goes over `fsdp`, which is one device wide unless asked otherwise. Axes that are not listed
# (layers, length, relpos_buckets, ...) are on every device. The first rule of an array's axes that finds its part of
# the mesh free holds: activations divide their rows before their width, parameters have no rows.
LOGICAL_AXIS_RULES: Rules = (
    ('batch', ('data', 'fsdp')),
    ('llm_batch', ('data', 'fsdp')),
    ('vocab', 'model'),
    ('mlp', 'model'),
    ('heads', 'model'),
    ('joined_kv', 'model'),
    ('embed', 'fsdp'),
)
# While text is generated, a step of the language model has one token of each row: far less than the weights, which
# therefore stay where they are (2D weight-stationary, arXiv 2211.05102). The width of its activations goes over `fsdp`
# with that of the weights, and products are summed over it. Attention, and the speech encoder before, divide rows.
GENERATION_RULES: Rules = tuple((name, 'data' if name == 'llm_batch' else axes) for name, axes in LOGICAL_AXIS_RULES)
_BATCH_AXES = ('data', 'fsdp')


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """Sizes of the mesh and the rules that map logical axes to it.

    Attributes:
        data: devices that hold the same parameters and other examples; -1: all that remain.
        fsdp: devices that hold other examples and other parts of the parameters.
        model: devices that hold the same examples and other parts of the parameters.
        rules: pairs (logical axis, mesh axis or axes or None).
        generation_rules: the same, of activations while text is generated. Parameters lie by `rules`, always.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    rules: Rules = LOGICAL_AXIS_RULES
    generation_rules: Rules = GENERATION_RULES

    def __post_init__(self):
        for field in ('data', 'fsdp', 'model'):
            size = getattr(self, field)
            if size != -1 and size < 1:
                raise ValueError(f'Partitioner.{field} is {size}; it must be at least 1, or -1 for all that remain.')

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """The mesh (data, fsdp, model) over `devices` (all there are, if None).

        Raises:
            ValueError: the sizes do not multiply to the number of devices, TPU slices do not divide `data`, or the
                torus of a slice has no such axes.
        """
        devices = jax.devices() if devices is None else devices
        sizes = [self.data, self.fsdp, self.model]
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) == 1 and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if -1 in sizes or math.prod(sizes) != len(devices):
            raise ValueError(
                f'Partitioner: data={self.data}, fsdp={self.fsdp}, model={self.model} do not multiply to the '
                f'{len(devices)} devices there are. One of them may be -1, for all that remain.'
            )
        names, axis_types = ('data', 'fsdp', 'model'), (jax.sharding.AxisType.Auto,) * 3
        slices = len({getattr(device, 'slice_index', 0) for device in devices if device.platform == 'tpu'})
        if slices < 2:
            try:
                return jax.make_mesh(sizes, names, axis_types, devices=devices)
            except NotImplementedError:  # it splits no side of a torus
                raise ValueError(
                    f'Partitioner: data={sizes[0]}, fsdp={sizes[1]}, model={sizes[2]}: JAX does not lay this mesh onto '
                    'these TPUs: each of the three must be a product of sides of their torus (of 4x4: 4 or 16).'
                ) from None
        # Between slices there is only the network of the data centre, so each has whole examples and whole parameters.
        if sizes[0] % slices:
            raise ValueError(
                f'Partitioner.data is {sizes[0]}; on {slices} TPU slices it must be a multiple of {slices}.'
            )
        within = (sizes[0] // slices, *sizes[1:])
        placed = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
        return jax.sharding.Mesh(placed, names, axis_types=axis_types)

    def shardings(
        self, boxed: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, notes: set[str] | None = None
    ) -> Any:
        """Shardings of an abstract tree whose leaves are boxed with logical axes; without a box: on every device.

        An axis whose length the devices do not divide stays whole on each of them; `notes` gets a line about it.
        """

        def one(leaf):
            names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
            value = nn.unbox(leaf)
            spec = nn.logical_to_mesh_axes(names, self.rules) if names else PartitionSpec()
            return _divisible(NamedSharding(mesh, spec), value.shape, names, notes)

        return jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))

    @contextlib.contextmanager
    def tracing(self, mesh: jax.sharding.Mesh, generation: bool = False):
        """Inside, modules' logical constraints take effect; of `System.predict`, those of generation."""
        with jax.set_mesh(mesh), nn.logical_axis_rules(self.generation_rules if generation else self.rules):
            yield


def _divisible(
    sharding: NamedSharding, shape: Sequence[int], names: Iterable[str | None], notes: set[str] | None
) -> NamedSharding:
    """The same sharding, less the axes of `shape` that it does not divide."""
    names = [*names, *[None] * len(shape)]
    spec = []
    for axes, size, name in zip(sharding.spec, shape, names):
        ways = math.prod(sharding.mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))
        if size % ways:
            if notes is not None:
                notes.add(f'axis {name!r} of length {size} is not divided by {ways} devices: whole on each of them')
            axes = None
        spec.append(axes)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def describe(mesh: jax.sharding.Mesh) -> str:
    """A mesh in a few words."""
    sizes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
    return f'{mesh.size} x {mesh.local_devices[0].device_kind} ({sizes}), {jax.process_count()} host(s)'


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of a global batch: its rows over data and fsdp, which divide them (`padded_rows`)."""
    return NamedSharding(mesh, PartitionSpec(_BATCH_AXES))


def _ways(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in _BATCH_AXES)


def _parts(mesh: jax.sharding.Mesh) -> list[int]:
    """Which of these parts the devices of this host hold; hosts that a model axis joins hold the same ones."""
    host = jax.process_index()
    devices = mesh.devices.reshape(_ways(mesh), -1)
    return [number for number, part in enumerate(devices) if any(device.process_index == host for device in part)]


def padded_rows(mesh: jax.sharding.Mesh, rows: int) -> int:
    """Rows of a global batch on the devices: filled up with empty ones to what data * fsdp divides."""
    return -(-rows // _ways(mesh)) * _ways(mesh)


def host_rows(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
    """Which rows of a global batch of `rows` this host's devices hold, ascending; from `rows` on they are empty."""
    size = padded_rows(mesh, rows) // _ways(mesh)
    return np.concatenate([np.arange(part * size, (part + 1) * size) for part in _parts(mesh)])


def padding_note(mesh: jax.sharding.Mesh, rows: Sequence[int]) -> str | None:
    """A line on what empty rows cost batches of these sizes, and the remedy; None where it is next to nothing."""
    ways = _ways(mesh)
    uneven = sum(count % ways > 0 for count in rows)
    empty = 1 - float(np.mean([count / padded_rows(mesh, count) for count in rows]))
    if empty < 0.02:
        return None
    return (
        f'data * fsdp = {ways} divides the rows of {len(rows) - uneven} of {len(rows)} shapes of batches; the others '
        f'are filled up with empty rows, {empty:.0%} of all. ROW_MULTIPLE = {ways} (row_multiple of the loader), with '
        'more BATCH_SECONDS where the clips are long, avoids it; the batches are others then.'
    )


def shard_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts this host's rows of a batch, those of `host_rows`, on its devices; the result is the global batch."""
    sharding, parts = batch_sharding(mesh), _parts(mesh)

    def one(array):
        size = len(array) // len(parts)

        def piece(index):
            place = parts.index((index[0].start or 0) // size) if size else 0
            return array[place * size : (place + 1) * size]

        return jax.make_array_from_callback((_ways(mesh) * size, *array.shape[1:]), sharding, piece)

    return {name: one(array) for name, array in batch.items()}


def like_params(tree: Any, params: Any, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shardings for an abstract optimizer state: a leaf below a parameter's path with its shape lies where it does.

    Args:
        tree: abstract optimizer state. Optax keeps, per statistic, a tree with the structure of the parameters.
        params, shardings: the abstract parameters and where they lie.
    """
    places = {
        (tuple(map(str, path)), leaf.shape): sharding
        for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings))
    }

    def one(path, leaf):
        path = tuple(map(str, path))
        for start in range(len(path)):
            if (path[start:], leaf.shape) in places:
                return places[path[start:], leaf.shape]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)
