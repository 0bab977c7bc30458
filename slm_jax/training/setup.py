"""What a training is before its first step: shapes, types and places of all its arrays, and its compiled steps.

Only `new_state` makes an array, so all else may be asked for on devices that are not there.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core
from jax.sharding import Mesh
from jaxtyping import Array, Key

from slm_jax.decoding import DecodeConfig
from slm_jax.systems import Batch, System
from slm_jax.training import checkpoints, loop, origins, partitioning, state
from slm_jax.training.partitioning import Partitioner
from slm_jax.training.state import Params, TrainState

BatchShapes = Mapping[str, tuple[tuple[int, ...], Any]]  # of each array of a batch, (shape, type)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A system's parameters on the devices of a mesh. Leaves are abstract, with shardings.

    Attributes:
        system, partitioner, mesh: what is laid out, and where.
        boxed: all parameters, with the logical names of their axes; without shardings.
        trainable: what trains.
        frozen: what does not.
        held: of that, what the system reads, in the types in which it is held.
        notes: lines on what could not be divided, and on what is not held.
        phases: from which step on what of it trains.
    """

    system: System
    partitioner: Partitioner
    mesh: Mesh
    boxed: Params
    trainable: Params
    frozen: Params
    held: Params
    notes: set[str]
    phases: state.Phases

    def init(self, rng: Key[Array, '']) -> Params:
        """Fresh parameters, boxed."""
        return _init(self.system, rng)

    @property
    def everywhere(self) -> jax.sharding.NamedSharding:
        """On every device of the mesh."""
        return partitioning.replicated(self.mesh)

    def batch(self, shapes: BatchShapes) -> dict[str, jax.ShapeDtypeStruct]:
        """An abstract batch with its sharding; rows are filled up to what the devices divide."""
        sharding = partitioning.batch_sharding(self.mesh)

        def one(shape, dtype):
            rows = partitioning.padded_rows(self.mesh, shape[0])
            return jax.ShapeDtypeStruct((rows, *shape[1:]), dtype, sharding=sharding)

        return {name: one(*each) for name, each in shapes.items()}


def _init(system: System, rng: Key[Array, '']) -> Params:
    return system.init(rng, least_batch())


def least_batch() -> Batch:
    """A second and a word: what parameters and metrics there are does not depend on the batch."""
    tokens = jnp.zeros((1, 8), jnp.int32)
    return {
        'teacher_input_tokens': tokens,
        'token_ends': jnp.zeros((1, 8), jnp.float32),
        'speech_samples': jnp.zeros((1, 16_000), jnp.int16),
        'speech_lengths': jnp.full((1,), 16_000, jnp.int32),
        'encoder_input_tokens': tokens,
        'decoder_input_tokens': tokens,
        'decoder_target_tokens': tokens,
        'decoder_loss_weights': jnp.zeros((1, 8), jnp.float32),
    }


def reads_transcripts(system: System) -> bool:
    """Whether batches need `teacher_input_tokens`."""
    return bool(getattr(system, 'teacher', None) or getattr(system, 'reads_transcripts', False))


def lay_out(
    system: System, trainable: state.Patterns, partitioner: Partitioner, mesh: Mesh, frozen_dtype: Any = None
) -> Layout:
    """Lays a system's parameters out over the devices of a mesh.

    Args:
        system: see `slm_jax.systems.System`.
        trainable: regular expressions, see `state.split`; each may have the step from which on, see `state.phases`.
        partitioner: its rules say which axis goes where.
        mesh: `partitioner.mesh()`, or one of devices that are not there.
        frozen_dtype: see `origins.hold`.

    Raises:
        ValueError: a pattern matches no parameter or the system's teacher, a step is none, or the type is none that
            parameters are held in.
    """
    notes: set[str] = set()
    boxed = jax.eval_shape(functools.partial(_init, system), jax.random.key(0))
    placed = origins.place(state.unboxed(boxed), partitioner.shardings(boxed, mesh, notes))
    trained, frozen = state.split(placed, trainable)
    if (teacher := getattr(system, 'teacher', None)) in trained:
        raise ValueError(
            f'train.trainable names {teacher}/…, which is the teacher by {type(system).__name__}.objective: what it '
            'teaches would change with what it learns. Leave it frozen, or choose an objective without a teacher.'
        )
    read = state.read(system, frozen)
    if unread := state.flatten(frozen).keys() - state.flatten(read).keys():
        count = state.num_params(frozen) - state.num_params(read)
        notes.add(f'{count:,} frozen parameters are not read, so not loaded: {origins.summary(sorted(unread))}')
    held = origins.hold(read, boxed, frozen_dtype)
    phases = state.phases(trained, trainable)
    for first, paths in phases[1:]:
        later = state.some(trained, {path for path in paths if path not in phases[0][1]})[0]
        notes.add(
            f'from step {first:,} on {state.num_params(later):,} parameters train besides: until then they have no '
            'gradient, but are held in float32 and with the statistics of the optimizer, which are 0'
        )
    return Layout(system, partitioner, mesh, boxed, trained, frozen, held, notes, phases)


def abstract_state(layout: Layout, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of a training: each of the optimizer's statistics lies where its parameter does.

    Raises:
        ValueError: the optimizer has patterns that match no parameter.
    """
    abstract = jax.eval_shape(optimizer.init, layout.trainable)
    for _, paths in layout.phases:  # says now what it would say later
        training = state.some(layout.trainable, paths)[0]
        jax.eval_shape(optimizer.update, training, state.optimizer_of(abstract, paths), training)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout.trainable)
    places = partitioning.like_params(abstract, layout.trainable, shardings, layout.mesh)
    scalar: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.everywhere)
    return TrainState(
        step=scalar, bad_step=scalar, trainable=layout.trainable, opt_state=origins.place(abstract, places)
    )


def activation_bytes(layout: Layout, batch: Mapping[str, Any], rng: Key[Array, '']) -> int:
    """About what a training step needs beside parameters, over all devices: by tracing it, which is not compiling it.

    What the forward pass keeps for the gradient, and twice the largest array on its way (softmax of a frozen encoder's
    attention, which keeps nothing). For Whisper it is within 5% of what XLA says once the largest shape is compiled.
    """

    def kept(trainable: Params, frozen: Params, batch: Batch, rng: Key[Array, '']) -> Any:
        def loss(trainable: Params) -> Any:
            return layout.system.loss(state.merge(trainable, frozen), batch, rng)

        return jax.vjp(loss, trainable, has_aux=True)[1]

    with layout.partitioner.tracing(layout.mesh):
        jaxpr = jax.make_jaxpr(kept)(layout.trainable, layout.held, batch, rng)
    return sum(map(_bytes, jaxpr.out_avals)) + 2 * _largest(jaxpr.jaxpr)


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize if hasattr(array, 'size') else 0


def _largest(jaxpr: core.Jaxpr) -> int:
    """Bytes of the largest array that any of its equations gives, or any of theirs."""
    inner = (_largest(part) for equation in jaxpr.eqns for part in core.jaxprs_in_params(equation.params))
    outer = (_bytes(var.aval) for equation in jaxpr.eqns for var in equation.outvars)
    return max(*outer, *inner, 0, 0)


def check_metric(layout: Layout, metric: str | None, eval_loaders: Iterable[str]) -> None:
    """Whether an evaluation will give this metric.

    Args:
        layout: of the system.
        metric: 'loader/name', or None.
        eval_loaders: names of the evaluation loaders.

    Raises:
        ValueError: there is no such loader, or the system has no such metric.
    """
    if metric is None:
        return
    params = state.unboxed(layout.boxed)
    names = jax.eval_shape(lambda params: layout.system.loss(params, least_batch(), None)[1], params)
    known = [f'{loader}/{name}' for loader in eval_loaders for name in sorted(names)]
    if metric not in known:
        raise ValueError(f'train.best_metric is {metric!r}; evaluation gives {", ".join(known) or "nothing"}.')


def new_card(name: str, layout: Layout, found: Sequence[origins.Origin], trainable: state.Patterns) -> dict[str, Any]:
    """The card of a model that is about to be trained; `seed` and `data` are added by whoever knows them.

    Args:
        name: of the model.
        layout: of its parameters.
        found: where they come from; `foundations` of the card are those of which a part stays frozen.
        trainable: as `lay_out` got it.
    """
    frozen = state.flatten(layout.frozen)
    frozen_in = [bool(origin.paths.keys() & frozen.keys()) for origin in found]
    needed, trained = (
        origins.described(origin for origin, stays in zip(found, frozen_in, strict=True) if stays == which)
        for which in (True, False)
    )
    return {
        'name': name,
        'kind': checkpoints.KIND,
        'foundations': needed,
        'initialised_from': trained,
        'trainable': [trainable] if isinstance(trainable, str) else _as_json(trainable),
        'num_params': {'trained': state.num_params(layout.trainable), 'frozen': state.num_params(frozen)},
        'versions': checkpoints.versions(),
        'evaluation': {},
    }


def _as_json(trainable: state.Patterns) -> Any:
    return dict(trainable) if isinstance(trainable, Mapping) else list(trainable)


def new_state(
    layout: Layout,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    found: Sequence[origins.Origin],
    fresh_paths: Sequence[str],
    rng: Key[Array, ''],
) -> TrainState:
    """The state before the first step.

    Args:
        layout, optimizer: of the training.
        abstract: from `abstract_state`.
        found, fresh_paths: where trained parameters come from, and which come from nowhere: `origins.check`.
        rng: for those.
    """
    given = origins.load(found, abstract.trainable)
    leaves = state.flatten(abstract.trainable)
    fresh = origins.fresh(layout.init, rng, state.unflatten({path: leaves[path] for path in fresh_paths}))
    params = state.merge(given, fresh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    zero, none = (jax.device_put(jnp.int32(value), layout.everywhere) for value in (0, -1))
    return TrainState(step=zero, bad_step=none, trainable=params, opt_state=opt_state)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a training runs on its devices; each is compiled when a shape of batch first needs it.

    Attributes:
        train: (batch, state, frozen, rng) to (state, record), see `loop.train_step`, when all trains that ever does.
            The state is donated.
        earlier: the same of the phases before, each with the step before which it is right.
        evaluate: (batch, trainable, frozen) to metrics {name: (sum, weight)}.
        decode: (batch, trainable, frozen) to tokens.
    """

    train: loop.CompiledPerShape
    evaluate: loop.CompiledPerShape
    decode: loop.CompiledPerShape
    earlier: tuple[tuple[int, loop.CompiledPerShape], ...] = ()

    def train_at(self, step: int) -> loop.CompiledPerShape:
        """What step `step` of a training is."""
        return next((each for until, each in self.earlier if step < until), self.train)

    @property
    def compile_seconds(self) -> float:
        """That all training steps took."""
        return sum(each.compile_seconds for each in (self.train, *(each for _, each in self.earlier)))


def steps(
    layout: Layout,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    decode: DecodeConfig,
    say: Callable[[str], None],
) -> Steps:
    """The compiled steps of a training.

    Args:
        layout, optimizer: of the training.
        abstract: from `abstract_state`.
        decode: how to generate.
        say: is told what was compiled, and how long it took.
    """
    system, everywhere = layout.system, layout.everywhere

    def tracing(generation: bool = False) -> contextlib.AbstractContextManager:
        return layout.partitioner.tracing(layout.mesh, generation)

    def training(name: str, paths: frozenset[str] | None = None) -> loop.CompiledPerShape:
        return loop.CompiledPerShape(
            name,
            lambda batch, state, frozen, rng: loop.train_step(system, optimizer, state, frozen, batch, rng, paths),
            say,
            tracing,
            donate_argnums=1,
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), everywhere),
        )

    untils = [first for first, _ in layout.phases[1:]]
    return Steps(
        train=training('training step'),
        earlier=tuple(
            (until, training(f'training step (before {until})', paths))
            for until, (_, paths) in zip(untils, layout.phases)
        ),
        evaluate=loop.CompiledPerShape(
            'evaluation',
            lambda batch, params, frozen: system.loss(state.merge(params, frozen), batch, None)[1],
            say,
            tracing,
            out_shardings=everywhere,
        ),
        decode=loop.CompiledPerShape(
            'decoding',
            lambda batch, params, frozen: system.predict(state.merge(params, frozen), batch, decode),
            say,
            functools.partial(tracing, generation=True),
            out_shardings=everywhere,
        ),
    )
