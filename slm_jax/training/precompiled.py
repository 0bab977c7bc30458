"""A training's steps compiled for devices that need not be there, and what the compiler says of them."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from slm_jax.decoding import DecodeConfig
from slm_jax.systems import System
from slm_jax.training import chips, collectives, flops, frozen_encoder, loop, partitioning, setup, state
from slm_jax.training.topologies import Topology

STEPS = ('train', 'evaluate', 'decode')
_SIZE = re.compile(r'([\d.]+)([KMGT]?)i?B?\b')
_POWER = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Size:
    """A batch: rows of all devices together, seconds of audio, tokens of instruction and answer."""

    rows: int
    seconds: float
    inputs: int
    targets: int

    def shapes(self, system: System) -> setup.BatchShapes:
        """As `SpeechTextLoader.batch_shapes` has them. A teacher reads as much as inputs and targets are together."""
        rows, teacher = self.rows, setup.reads_transcripts(system)
        taught = {'teacher_input_tokens': ((rows, self.inputs + self.targets), jnp.int32)} if teacher else {}
        if getattr(system, 'token_ends', False):
            taught['token_ends'] = (rows, self.targets), jnp.float32
        return taught | {
            'speech_samples': ((rows, round(self.seconds * 16_000)), jnp.int16),
            'speech_lengths': ((rows,), jnp.int32),
            'encoder_input_tokens': ((rows, self.inputs), jnp.int32),
            'decoder_input_tokens': ((rows, self.targets), jnp.int32),
            'decoder_target_tokens': ((rows, self.targets), jnp.int32),
            'decoder_loss_weights': ((rows, self.targets), jnp.float32),
        }

    def rounded_up(self, mesh: Mapping[str, int]) -> 'Size':
        """With rows that the mesh divides."""
        ways = mesh['data'] * mesh['fsdp']
        return dataclasses.replace(self, rows=-(-self.rows // ways) * ways)


@dataclasses.dataclass(frozen=True)
class Training:
    """What is compiled: see `slm_jax.train.train`.

    Attributes:
        decode: how to generate.
    """

    system: System
    trainable: state.Patterns
    optimizer: optax.GradientTransformation
    partitioner: partitioning.Partitioner
    frozen_dtype: Any
    decode: DecodeConfig
    encoded: bool = False

    def lay_out(self, mesh: Mapping[str, int], topology: Topology) -> setup.Layout:
        """On the devices of a topology.

        Raises:
            ValueError: the mesh does not fit the devices, or the encoder whose frames are read trains.
        """
        partitioner = dataclasses.replace(self.partitioner, **cast(dict[str, Any], mesh))
        devices = partitioner.mesh(topology.devices())
        layout = setup.lay_out(self.system, self.trainable, partitioner, devices, self.frozen_dtype)
        return frozen_encoder.left_out(layout) if self.encoded else layout

    def batch(self, layout: setup.Layout, size: Size) -> dict[str, jax.ShapeDtypeStruct]:
        """An abstract batch on the devices of a layout."""
        shapes = size.shapes(self.system)
        if self.encoded:
            shapes = frozen_encoder.shapes(frozen_encoder.of_system(self.system), shapes)
        return layout.batch(shapes)


@dataclasses.dataclass(frozen=True)
class Report:
    """One step on one layout. Sizes are bytes of one device, and of one step.

    Attributes:
        step: 'train', 'evaluate' or 'decode'.
        topology, mesh, size: what it was compiled for.
        usable: memory that a program may take.
        arguments: {'frozen', 'trained', 'optimizer', 'batch': bytes}.
        temporary: activations, gradients and all else that lives during the step; None: the compiler gave up before it
            knew.
        outputs: that are not written over arguments.
        code: the program itself.
        flops: of matrix products.
        moved: None where the compiler gave up, or its program cannot be read.
        compile_seconds: of XLA.
        roofline: the estimate; None of an unknown chip or without `moved`.
        notes: what could not be divided, and what else is to be known.
    """

    step: str
    topology: Topology
    mesh: Mapping[str, int]
    size: Size
    usable: float
    arguments: Mapping[str, int]
    temporary: int | None
    outputs: int
    code: int
    flops: float
    moved: collectives.Collectives | None
    compile_seconds: float
    roofline: chips.Roofline | None
    notes: tuple[str, ...]

    @property
    def total(self) -> int | None:
        """Bytes in all; None: not known."""
        if self.temporary is None:
            return None
        return sum(self.arguments.values()) + self.temporary + self.outputs + self.code

    @property
    def fits(self) -> bool:
        """Whether the device has so much."""
        return self.total is not None and self.total <= self.usable

    def as_json(self) -> dict[str, Any]:
        """For files and other programs."""
        moved = self.moved
        return {
            'step': self.step,
            'topology': self.topology.name,
            'mesh': dict(self.mesh),
            'batch': dataclasses.asdict(self.size),
            'fits': self.fits,
            'usable_bytes': round(self.usable),
            'bytes': {
                **self.arguments,
                'temporary': self.temporary,
                'outputs': self.outputs,
                'code': self.code,
                'total': self.total,
            },
            'flops': self.flops,
            'collectives': moved and moved.by_kind,
            'sent_bytes': moved and moved.sent,
            'largest_collectives': moved and [dataclasses.asdict(each) for each in moved.largest(20)],
            'open_loops': moved and [dataclasses.asdict(each) for each in moved.open_loops],
            'compile_seconds': round(self.compile_seconds, 1),
            'estimate': self.roofline
            and {
                'seconds': self.roofline.seconds,
                'compute': self.roofline.compute,
                'memory': self.roofline.memory,
                'network': self.roofline.network,
                'mfu': self.roofline.mfu,
            },
            'simulated': self.topology.simulated,
            'notes': list(self.notes),
        }


def compiled(
    training: Training,
    topology: Topology,
    mesh: Mapping[str, int],
    size: Size,
    steps: Iterable[str] = STEPS,
    say: Callable[[str], None] = lambda line: None,
) -> list[Report]:
    """Compiles steps of a training, as `train` would on such devices.

    Args:
        training: of which system, with which optimizer.
        topology: of the devices.
        mesh: {'data', 'fsdp', 'model': devices}.
        size: of the batch; its rows are rounded up to what the mesh divides.
        steps: which of `STEPS`.
        say: is told what was compiled, and how long it took.

    Raises:
        ValueError: the mesh does not fit the devices, or the configuration is no training.
    """
    layout = training.lay_out(mesh, topology)
    size = size.rounded_up(layout.mesh.shape)
    abstract = setup.abstract_state(layout, training.optimizer)
    batch = training.batch(layout, size)
    rng = jax.eval_shape(jax.random.key, 0)
    rng = jax.ShapeDtypeStruct(rng.shape, rng.dtype, sharding=layout.everywhere)
    made = setup.steps(layout, training.optimizer, abstract, training.decode, say)
    arguments = {
        'train': (batch, abstract, layout.held, rng),
        'evaluate': (batch, layout.trainable, layout.held),
        'decode': (batch, layout.trainable, layout.held),
    }
    held = {
        'frozen': loop.bytes_per_device(layout.held),
        'trained': loop.bytes_per_device(layout.trainable),
        'optimizer': loop.bytes_per_device(abstract.opt_state),
        'batch': loop.bytes_per_device(batch),
    }
    result = []
    for name in steps:
        step = getattr(made, name)
        traced = step.traced(*arguments[name])
        length = training.decode.max_decode_length
        counted = flops.count(traced.jaxpr.jaxpr, length) / layout.mesh.size
        started = time.perf_counter()
        program, said = _program(step, arguments[name])
        seconds = time.perf_counter() - started
        analysis = program.memory_analysis() if program else None
        moved, notes = _moved(program) if program else (None, said)
        bytes_held = held if name == 'train' else {**held, 'optimizer': 0}
        report = Report(
            step=name,
            topology=topology,
            mesh=dict(layout.mesh.shape),
            size=size,
            usable=topology.usable,
            arguments=bytes_held,
            temporary=analysis.temp_size_in_bytes if analysis else _needed(said, bytes_held),
            outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes if analysis else 0,
            code=analysis.generated_code_size_in_bytes if analysis else 0,
            flops=counted,
            moved=moved,
            compile_seconds=seconds,
            roofline=None,
            notes=(*sorted(layout.notes), *notes),
        )
        result.append(dataclasses.replace(report, roofline=_roofline(report, layout, length)))
    return result


def _program(step: loop.CompiledPerShape, arguments: Sequence[Any]) -> tuple[Any, tuple[str, ...]]:
    """The executable, or None and what the compiler says of its memory."""
    try:
        return step.compiled(*arguments), ()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if 'RESOURCE_EXHAUSTED' not in message:
            raise ValueError(f'XLA does not compile this layout: {message.splitlines()[0]}') from error
        return None, (message.splitlines()[0].partition('HLO module')[0].strip(),)


def _needed(said: Sequence[str], held: Mapping[str, int]) -> int | None:
    """Bytes of temporaries by the compiler's message that it is all too much; it counts the arguments among them."""
    for line in said:
        if found := re.search(r'(?:HLO temporaries \(|Used )' + _SIZE.pattern, line):
            return max(0, int(float(found[1]) * _POWER[found[2]]) - sum(held.values()))
    return None


def _moved(program: Any) -> tuple[collectives.Collectives | None, tuple[str, ...]]:
    try:
        return collectives.collectives(program.as_text()), ()
    except jax.errors.JaxRuntimeError as error:
        return None, (
            'collectives are not known: this jaxlib cannot read what this libtpu writes; install the one that belongs '
            f"to it: pip install 'jax[tpu]=={jax.__version__}' ({str(error)[:60]} …)",
        )


def _roofline(report: Report, layout: setup.Layout, length: int) -> chips.Roofline | None:
    chip = report.topology.chip
    if chip is None or report.moved is None:
        return None
    weights = sum(map(_model_share, jax.tree.leaves((layout.trainable, layout.held))))
    state = report.arguments['trained'] + report.arguments['optimizer'] if report.step == 'train' else 0
    passes = {'train': 3, 'evaluate': 1, 'decode': length}[report.step]
    memory = chips.memory_traffic(weights, state, report.temporary or 0, passes)
    return chips.roofline(chip, report.flops, memory, report.moved.sent)


def _model_share(leaf: Any) -> float:
    """Bytes of an array that a device multiplies with: what lies along fsdp is gathered first."""
    ways = leaf.sharding.mesh.shape['model'] if 'model' in _axes(leaf) else 1
    return leaf.size * leaf.dtype.itemsize / ways


def _axes(leaf: Any) -> list[str]:
    """Axes of the mesh that divide an array."""
    return [axis for entry in leaf.sharding.spec for axis in ([entry] if isinstance(entry, str) else entry or ())]


# ---------------------------------------------------------------------- layouts


def meshes(devices: int) -> list[dict[str, int]]:
    """All ways to write a number of devices as data * fsdp * model."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    return [
        {'data': devices // model // fsdp, 'fsdp': fsdp, 'model': model}
        for model in divisors
        for fsdp in divisors
        if devices // model % fsdp == 0
    ]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A layout by its abstract arrays, without compiling.

    Attributes:
        mesh, size: with rows that the mesh divides.
        held: bytes on a device of parameters, optimizer and batch: exact, and the least that a step needs.
        needed: with activations: an estimate.
        sent: bytes that a device sends in a training step: an estimate, to rank by.
    """

    mesh: Mapping[str, int]
    size: Size
    held: int
    needed: float
    sent: float


def proposals(training: Training, topology: Topology, size: Size) -> list[Proposal]:
    """All layouts: those that fit by the estimate and send least come first, those last whose arrays alone do not."""
    found: list[Proposal] = []
    activity: tuple[float, float] | None = None
    for mesh in meshes(topology.size):
        try:
            layout = training.lay_out(mesh, topology)
        except ValueError:
            continue  # JAX does not lay it onto this torus
        fitted = size.rounded_up(mesh)
        activity = activity or _activity(training, layout, fitted)
        state = setup.abstract_state(layout, training.optimizer)
        batch = training.batch(layout, fitted)
        held = sum(map(loop.bytes_per_device, (layout.held, state, batch)))
        rows = fitted.rows / (mesh['data'] * mesh['fsdp'])
        # Of the activations, model divides those within a layer and not those between layers: about half.
        activations = rows * activity[0] * (0.5 + 0.5 / mesh['model'])
        found.append(Proposal(mesh, fitted, held, held + activations, _sent(layout, mesh, rows * activity[1])))

    def rank(each: Proposal) -> tuple[float, ...]:
        if each.needed <= topology.usable:
            return 0, each.sent
        return 1, each.needed

    return sorted(found, key=rank)


def _activity(training: Training, layout: setup.Layout, size: Size) -> tuple[float, float]:
    """Of a row: (bytes of activations, tokens that pass through a parameter on average)."""
    batch = training.batch(layout, size)
    held = setup.activation_bytes(layout, batch, jax.eval_shape(jax.random.key, 0))

    def loss(trainable: Any, frozen: Any, batch: Any) -> Any:
        return training.system.loss(state.merge(trainable, frozen), batch, None)[0]

    with layout.partitioner.tracing(layout.mesh):
        jaxpr = jax.make_jaxpr(loss)(layout.trainable, layout.held, batch)
    products = flops.count(jaxpr.jaxpr) / (2 * state.num_params(state.unboxed(layout.boxed)))
    return held / size.rows, products / size.rows


def _sent(layout: setup.Layout, mesh: Mapping[str, int], tokens: float) -> float:
    """Bytes that a device sends in a training step, roughly.

    fsdp: every parameter is gathered forward and backward. model: where a product sums over a divided axis its result
    is reduced, forward, in what is computed again, and backward. data and fsdp: the gradients of what trains.
    """
    fsdp, model, rows = mesh['fsdp'], mesh['model'], mesh['data'] * mesh['fsdp']
    boxes = state.flatten(layout.boxed)
    sent = 0.0
    for path, held in {**state.flatten(layout.trainable), **state.flatten(layout.held)}.items():
        leaf = max(jax.tree.leaves(held), key=lambda leaf: leaf.size)  # of int8 and its scales, the former
        axes = _axes(leaf)
        if 'fsdp' in axes:
            sent += 2 * _model_share(leaf) * (fsdp - 1) / fsdp
        if 'model' in axes and leaf.ndim > 1 and leaf.sharding.spec[-1] != 'model':
            layers = dict(zip(getattr(boxes[path], 'names', ()), leaf.shape)).get('layers', 1)
            sent += 3 * 2 * (model - 1) / model * 2 * tokens * leaf.shape[-1] * layers
    trained = sum(map(_model_share, jax.tree.leaves(layout.trainable)))
    return sent + 2 * trained * (rows - 1) / rows


def best(
    training: Training,
    topology: Topology,
    size: Size,
    step: str,
    progress: Callable[[Sequence[Proposal]], Iterable[Proposal]],
    most: int = 3,
) -> tuple[Report, int]:
    """(of the likeliest layouts, compiled, the one that fits and sends least; how many were compiled).

    If none fits, it is the one that needs least.

    Args:
        training, topology, size: see `compiled`.
        step: by which to choose.
        progress: goes through the candidates, as `tqdm` does.
        most: compilations.

    Raises:
        ValueError: JAX lays no mesh onto the devices.
    """
    candidates = proposals(training, topology, size)[:most]
    if not candidates:
        raise ValueError(f'--mesh auto: JAX lays no mesh onto {topology.name}.')
    found = [compiled(training, topology, each.mesh, each.size, [step])[0] for each in progress(candidates)]

    def rank(report: Report) -> tuple[float, ...]:
        if report.fits:
            return 0, report.moved.sent if report.moved else math.inf
        return 1, math.inf if report.total is None else report.total

    return min(found, key=rank), len(found)


def smallest(
    training: Training,
    known: Report,
    size: Size,
    progress: Callable[[Sequence[Topology]], Iterable[Topology]],
) -> Report | None:
    """The smallest listed slice of a chip on which a layout of a step fits, found by compiling.

    In each, it is the layout that needs least by an estimate; slices that it exceeds by a third are not compiled for.

    Args:
        training, size: see `compiled`.
        known: what was compiled already; says which step, and of which chip.
        progress: goes through the slices, as `tqdm` does.
    """
    topology = known.topology
    listed = topology.chip.slices if topology.chip else ('1', '2', '4', '8')
    for other in progress([topology.resized(shape) for shape in listed]):
        if known.fits and other.size >= topology.size:
            return known
        least = min(proposals(training, other, size), key=lambda each: each.needed, default=None)
        if least is None or least.needed > 1.3 * topology.usable or least.held > topology.usable:
            continue
        report = compiled(training, other, least.mesh, least.size, [known.step])[0]
        if report.fits:
            return report
    return known if known.fits else None
