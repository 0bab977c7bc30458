"""From logical axis names to devices: one program for a CPU, a GPU and a pod of many hosts.

Modules name the axes of their parameters and activations logically, with T5X's names; rules map these names to the
axes of a mesh (`data`, `fsdp`, `model`), and XLA does the rest.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# T5X's table. `embed` goes over `fsdp`, which is one device wide unless asked otherwise. Axes that are not listed
# (layers, length, relpos_buckets, ...) are on every device.
LOGICAL_AXIS_RULES: Rules = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'model'),
    ('mlp', 'model'),
    ('heads', 'model'),
    ('joined_kv', 'model'),
    ('embed', 'fsdp'),
)
_BATCH_AXES = ('data', 'fsdp')


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """Sizes of the mesh and the rules that map logical axes to it.

    Attributes:
        data: devices that hold the same parameters and other examples; -1: all that remain.
        fsdp: devices that hold other examples and other parts of the parameters.
        model: devices that hold the same examples and other parts of the parameters.
        rules: pairs (logical axis, mesh axis or axes or None).
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    rules: Rules = LOGICAL_AXIS_RULES

    def __post_init__(self):
        for field in ('data', 'fsdp', 'model'):
            size = getattr(self, field)
            if size != -1 and size < 1:
                raise ValueError(f'Partitioner.{field} is {size}; it must be at least 1, or -1 for all that remain.')

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """The mesh (data, fsdp, model) over `devices` (all there are, if None).

        Raises:
            ValueError: the sizes do not multiply to the number of devices, or TPU slices do not divide `data`.
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
            return jax.make_mesh(sizes, names, axis_types, devices=devices)
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
    def tracing(self, mesh: jax.sharding.Mesh):
        """Inside, modules' logical constraints take effect."""
        with jax.set_mesh(mesh), nn.logical_axis_rules(self.rules):
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


def batch_sharding(mesh: jax.sharding.Mesh, rows: int, notes: set[str] | None = None) -> NamedSharding:
    """Sharding of a global batch of `rows` examples: rows over data and fsdp, or all rows everywhere."""
    return _divisible(NamedSharding(mesh, PartitionSpec(_BATCH_AXES)), (rows,), ('batch',), notes)


def shard_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts this host's rows of a batch on its devices; the result is the global batch.

    Raises:
        ValueError: several hosts, and a number of rows that the devices do not divide.
    """
    hosts = jax.process_count()

    def one(name, array):
        rows = array.shape[0] * hosts
        sharding = batch_sharding(mesh, rows)
        if hosts > 1 and sharding.spec[0] is None:
            ways = mesh.shape['data'] * mesh.shape['fsdp']
            raise ValueError(
                f'{name}: {rows} rows of {hosts} hosts are not divided by data * fsdp = {ways} devices. '
                'Choose a batch size that is a multiple of it.'
            )
        return jax.make_array_from_process_local_data(sharding, array, (rows, *array.shape[1:]))

    return {name: one(name, array) for name, array in batch.items()}


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


def join_hosts() -> None:
    """Makes this process one of several hosts, before JAX is used for anything else.

    TPU pods and Slurm say by themselves who is who; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID do.
    """
    if os.environ.get('JAX_COORDINATOR_ADDRESS'):
        jax.distributed.initialize(
            os.environ['JAX_COORDINATOR_ADDRESS'],
            int(os.environ['JAX_NUM_PROCESSES']),
            int(os.environ['JAX_PROCESS_ID']),
        )
    else:
        jax.distributed.initialize()
