"""Trains whatever part of a system is not frozen: `python -m slm_jax.train --gin_file=FILE --gin.NAME=VALUE`.

One program for an adapter between frozen foundations, for fine-tuning, and for making a foundation; it reads from
top to bottom. It knows a system only by its protocol (`slm_jax.systems.System`), and runs on one CPU as on many hosts.
"""

import contextlib
import dataclasses
import functools
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, configuration

EXIT_TERMINATED = 128 + signal.SIGTERM  # what a shell reports; a scheduler takes it for 'start me again'
EXIT_HOST_LOST = os.EX_TEMPFAIL  # 75: another host died or cannot be reached; 'start all of us again'
_PLACES = re.compile(r'(.*\.)?(model_dir|foundations|cache_dir|data_dir)', re.IGNORECASE)  # hosts may differ in them


def train(
    *,
    system: Any,
    loader: Any,
    optimizer: Any,
    model_dir: str | os.PathLike,
    train_steps: int,
    eval_loaders: Mapping[str, Any] | None = None,
    foundations: Mapping[str, str | None] | None = None,
    trainable: Sequence[str] | Mapping[str, int] = ('.*',),
    partitioner: Any = None,
    seed: int = 0,
    frozen_dtype: Any = None,
    encoded: bool = False,
    log_period: int = 20,
    eval_period: int = 500,
    eval_batches: int | None = None,
    checkpoint_period: int | None = None,
    local_checkpoint_dir: str | None = None,
    local_checkpoint_period: int = 50,
    max_to_keep: int = 2,
    best_metric: str | None = None,
    num_samples: int = 4,
    decode: Any = None,
    tensorboard: bool = True,
    compilation_cache_dir: str | os.PathLike | None = None,
    profile: Sequence[int] | None = None,
    log_format: str = 'text',
) -> dict[str, Any]:
    """Trains until `train_steps`, from the newest checkpoint in `model_dir` if there is one.

    Killed at any instant and started again, it goes on with bit-identical losses. SIGTERM and Ctrl-C, on any of several
    hosts, write a checkpoint first; a second Ctrl-C ends at once. Hosts other than the first say nothing but errors.

    Args:
        system: see `slm_jax.systems.System`.
        loader: see `slm_jax.data.loader.SpeechTextLoader`; used are `batches`, `batch_shapes`, `state` and `skipped`.
            Or a function that makes it, called when all that needs no data was checked; with `teacher=True` where the
            system has one or reads transcripts, and `token_ends=True` where it reads them. Where the system checks its
            data, `some_examples` is used too.
        optimizer: `optax.GradientTransformation`; see `slm_jax.training.optimizers`.
        model_dir: for checkpoints, card and logs.
        train_steps: steps in all, over all restarts.
        eval_loaders: from a name ('dev') to a loader, likewise; used are `examples`, `vocabulary` and `skipped`.
        foundations: where parts start from: {'llm': 't5_tiny', 'speech_encoder': '/path'}, each an installed
            foundation, a foundation's directory, or the model directory of another training that trained this part;
            None, as of a part without parameters, is as if it were not there.
            Whether a part then trains is said by `trainable` alone. Trained parameters that no foundation gives start
            fresh; frozen ones must be given.
        trainable: regular expressions; a parameter trains if one matches its whole path ('adapter/.*'). Or each with
            the step from which on, {'adapter/.*': 0, 'speech_encoder/.*': 5000}: before, there is no gradient of it.
        partitioner: `slm_jax.training.partitioning.Partitioner`; None: data parallel over all devices.
        seed: of initialisation, dropout and masks. The order of the data has its own, in the loader.
        frozen_dtype: in which frozen parameters are held; int8: their kernels and embeddings with a scale for each
            output channel; None: float32 on CPU (where bfloat16 is slow), else bfloat16.
        encoded: whether the loaders, which are made here then, read the stored frames of the frozen speech encoder
            (`slm-jax prepare --encode`) in the place of recordings.
        log_period, eval_period, checkpoint_period: in steps; `checkpoint_period` is `eval_period` if None.
        eval_batches: at most so many batches of each evaluation loader; None: all.
        local_checkpoint_dir: on a disk of this machine, for more checkpoints, every `local_checkpoint_period` steps:
            a restart on this machine goes on from the newest that is whole, there or in `model_dir`.
        max_to_keep: newest checkpoints kept.
        best_metric: such as 'dev/loss'; the checkpoint where it was lowest is kept too.
        num_samples: examples decoded and shown at each evaluation, from the first evaluation loader; none of a system
            that cannot answer.
        decode: `slm_jax.decoding.DecodeConfig` for them; None: greedy.
        tensorboard: whether to write TensorBoard events into `model_dir`.
        compilation_cache_dir: where compiled steps are kept for the next start, and for other hosts: a folder that all
            see, or gs://bucket/folder. None: JAX_COMPILATION_CACHE_DIR, if that is set.
        profile: the first step and the one after the last of which `model_dir`/profile gets a profile, on every host.
        log_format: 'json': what is said is a JSON object a line, with time, host and step, and no progress bar.

    Returns:
        {'step': steps done, 'evaluation': {'dev/loss': ...}, 'terminated': whether a signal ended it early}.

    Raises:
        ValueError: configuration, foundations or checkpoint do not fit together; before any step is made.
        NonFiniteError: loss or gradient is NaN or infinite. The batch and all that was trained before it are saved.
    """
    from slm_jax.training import hosts, partitioning, profiles, run, setup

    _set_up(log_format, compilation_cache_dir)
    profiles.check(profile)
    local_period = None if local_checkpoint_dir is None else local_checkpoint_period
    periods = run.Periods(train_steps, log_period, eval_period, checkpoint_period or eval_period, local_period)
    _check(periods, seed, eval_batches, max_to_keep, num_samples)
    num_samples = num_samples if getattr(system, 'answers', True) else 0
    given = {part: name for part, name in (foundations or {}).items() if name is not None}
    plan, needs = _planned(
        system, optimizer, trainable, given, partitioner or partitioning.Partitioner(), frozen_dtype,
        encoded, best_metric, eval_loaders or {},
    )  # fmt: skip
    mesh = plan.layout.mesh
    with contextlib.ExitStack() as stack:
        checkpoints = _opened(stack, model_dir, max_to_keep, best_metric, local_checkpoint_dir)
        card = setup.new_card(checkpoints.model_dir.name, plan.layout, plan.found, trainable) | {'seed': seed}
        start = checkpoints.latest()
        hosts.compare(
            _alike(card)
            | {'mesh': dict(mesh.shape), 'checkpoint to go on from': start, 'best_metric': best_metric}
            | {'periods': periods, 'eval_batches': eval_batches, 'num_samples': num_samples}
        )
        old_card = _goes_on(checkpoints, start, card, train_steps)
        if start is not None and start >= train_steps:
            return {'step': start, 'evaluation': card['evaluation'], 'terminated': False}
        loader, eval_loaders = _read(plan, card, old_card, loader, eval_loaders or {}, needs)
        if hasattr(loader, 'seen'):  # others than ours may not tell
            checkpoints.write_seen(loader.seen, card['initialised_from'])
        state, frozen, rng, steps = _compiled(plan, card, checkpoints, start, seed, loader, decode)
        return run.Run(
            state, frozen, rng, mesh, steps, loader, eval_loaders, checkpoints, card, periods, eval_batches,
            num_samples, tensorboard, profile,
        ).train()  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A training of which no data have been read; see `slm_jax.training.setup`."""

    layout: Any
    optimizer: Any
    abstract: Any
    found: Sequence[Any]
    fresh_paths: Sequence[str]


def _planned(
    system: Any,
    optimizer: Any,
    trainable: Sequence[str] | Mapping[str, int],
    foundations: Mapping[str, str],
    partitioner: Any,
    frozen_dtype: Any,
    encoded: bool,
    best_metric: str | None,
    eval_loaders: Mapping[str, Any],
) -> tuple[_Plan, dict[str, Any]]:
    """What is to be trained, and what its loaders have to give."""
    from slm_jax.codebooks import labels
    from slm_jax.training import frozen_encoder, logs, origins, partitioning, setup

    mesh = partitioner.mesh()
    logs.say(partitioning.describe(mesh))
    layout = setup.lay_out(system, trainable, partitioner, mesh, frozen_dtype)
    abstract = setup.abstract_state(layout, optimizer)
    setup.check_metric(layout, best_metric, eval_loaders)
    found = origins.find(foundations)
    fresh_paths = origins.check(found, layout.trainable, layout.frozen)
    labels.check(system, foundations)
    needs: dict[str, Any] = {'teacher': True} if setup.reads_transcripts(system) else {}
    needs |= {'token_ends': True} if getattr(system, 'token_ends', False) else {}
    if encoded:
        layout, encoder = frozen_encoder.left_out(layout), frozen_encoder.of(system, foundations)
        needs['encoder'] = encoder
        logs.say(f'note: {frozen_encoder.NOTE.format(encoder.name)}')
    return _Plan(layout, optimizer, abstract, found, fresh_paths), needs


def _opened(
    stack: contextlib.ExitStack,
    model_dir: str | os.PathLike,
    max_to_keep: int,
    best_metric: str | None,
    local_checkpoint_dir: str | None,
) -> Any:
    """The checkpoints, closed with `stack`."""
    from slm_jax.training import local_checkpoints, logs, separate_disks

    checkpoints: Any = separate_disks.open_checkpoints(model_dir, max_to_keep, best_metric, logs.say)
    stack.enter_context(contextlib.closing(checkpoints))
    if local_checkpoint_dir is not None:
        checkpoints = local_checkpoints.LocalToo(checkpoints, local_checkpoint_dir, logs.say)
        stack.enter_context(contextlib.closing(checkpoints))
    return checkpoints


def _goes_on(checkpoints: Any, start: int | None, card: dict[str, Any], train_steps: int) -> dict[str, Any] | None:
    """The card of the checkpoint to go on from, whose evaluation the new one takes over; None: there is none."""
    from slm_jax.training import checkpoints as checkpoints_lib
    from slm_jax.training import logs

    if start is None:
        return None
    old_card = checkpoints.read_card(start)
    checkpoints_lib.check_foundations(checkpoints.model_dir, old_card['foundations'], card['foundations'])
    card['evaluation'] = old_card['evaluation']
    if start >= train_steps:
        logs.say(f'{checkpoints.model_dir} is at step {start} and {train_steps} are asked for: nothing left to do.')
    return old_card


def _read(
    plan: _Plan,
    card: dict[str, Any],
    old_card: Mapping[str, Any] | None,
    loader: Any,
    eval_loaders: Mapping[str, Any],
    needs: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The loaders, made; the card then says which data they have."""
    from slm_jax.training import hosts, logs, partitioning

    # The evaluation's first, so that a split that is not there is said at once.
    with hosts.doing('reading its data'):
        eval_loaders = {name: _made(each, needs) for name, each in eval_loaders.items()}
        loader = _made(loader, needs)
        if hasattr(plan.layout.system, 'check_data') and hasattr(loader, 'some_examples'):  # others may not tell
            plan.layout.system.check_data(loader.some_examples())
        card['data'] = loader.state()
    hosts.compare({f'the data, {name}': value for name, value in card['data'].items()})
    rows = [each['speech_lengths'][0][0] for each in loader.batch_shapes()]
    padding = partitioning.padding_note(plan.layout.mesh, rows)
    for note in sorted(plan.layout.notes) + [padding] * bool(padding):
        logs.say(f'note: {note}')
    if old_card is not None and old_card['data'] != card['data']:
        logs.say(
            'WARNING: the data or its order is not what it was when this training began; the losses that follow '
            'are not those of an unbroken run.'
        )
    return loader, eval_loaders


def _compiled(
    plan: _Plan, card: Mapping[str, Any], checkpoints: Any, start: int | None, seed: int, loader: Any, decode: Any
) -> tuple[Any, ...]:
    """(state, frozen parameters, key, steps) of the first step or that of a checkpoint; the largest is compiled."""
    import jax

    from slm_jax import decoding
    from slm_jax.training import logs, loop, origins, setup

    layout, say = plan.layout, logs.say
    rng = jax.jit(jax.random.key, out_shardings=layout.everywhere)(seed)
    frozen = origins.load(plan.found, layout.held)
    if start is not None:
        state, rng = checkpoints.restore(start, plan.abstract, rng)
        say(f'resumed {checkpoints.model_dir} at step {start}')
    else:
        if plan.fresh_paths:
            say(f'freshly initialised: {origins.summary(plan.fresh_paths)}')
        if hasattr(layout.system, 'check_fresh'):
            layout.system.check_fresh(plan.fresh_paths)
        state = setup.new_state(layout, plan.optimizer, plan.abstract, plan.found, plan.fresh_paths, rng)
    counts = card['num_params']
    say(f'{type(layout.system).__name__}: {counts["trained"]:,} parameters trained, {counts["frozen"]:,} frozen')
    decode = decode or decoding.DecodeConfig(max_decode_length=64)
    steps = setup.steps(layout, plan.optimizer, plan.abstract, decode, say)
    # The largest shape says what memory is needed; its compilation is needed anyhow.
    batches = [layout.batch(shapes) for shapes in loader.batch_shapes()]
    largest = max(batches, key=lambda batch: setup.activation_bytes(layout, batch, rng))
    program = steps.train.compiled(largest, state, frozen, rng)
    say(loop.memory_report(program, state, frozen, layout.mesh.local_devices[0]))
    return state, frozen, rng, steps


def _set_up(log_format: str, compilation_cache_dir: str | os.PathLike | None) -> None:
    """What concerns the whole process; see `train`."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from slm_jax import terminal

    if log_format not in terminal.FORMATS:
        raise ValueError(f'train.log_format is {log_format!r}; it must be one of {", ".join(terminal.FORMATS)}.')
    terminal.use(log_format, jax.process_index())
    if compilation_cache_dir is not None:
        jax.config.update('jax_compilation_cache_dir', str(compilation_cache_dir))
        compilation_cache.reset_cache()  # it was opened, if anything has been compiled


def _check(periods: Any, seed: int, eval_batches: int | None, max_to_keep: int, num_samples: int) -> None:
    """Refuses numbers that nothing can be made of."""
    for name, value, least in (
        ('train_steps', periods.steps, 1),
        ('log_period', periods.log, 1),
        ('eval_period', periods.evaluation, 1),
        ('checkpoint_period', periods.checkpoint, 1),
        ('local_checkpoint_period', periods.local, 1),
        ('eval_batches', eval_batches, 1),
        ('max_to_keep', max_to_keep, 1),
        ('num_samples', num_samples, 0),
        ('seed', seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f'train.{name} is {value}; it must be at least {least}.')
    if seed >= 2**32:
        raise ValueError(f'train.seed is {seed}; it must be below 2**32.')


def _alike(card: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same on every host, before data are read; where things are may differ."""
    foundations = {**card['foundations'], **card['initialised_from']}
    fields = {f'the version of {name}': value for name, value in card['versions'].items()}
    fields |= {f'foundation {part!r}': entry['fingerprint'] for part, entry in foundations.items()}
    fields |= {name: card[name] for name in ('seed', 'trainable', 'num_params')}
    for statement in re.split(r'\n(?=\S)', configuration.operative_config()):
        name, equals, value = statement.partition(' = ')
        if equals and not _PLACES.fullmatch(name):
            fields[f'gin: {name}'] = value
    return fields


def _made(loader: Any, needs: Mapping[str, Any]) -> Any:
    """A loader, and if it is yet to be made, one that gives what is needed."""
    if callable(loader):
        return loader(**needs)
    if 'encoder' in needs:
        raise ValueError('train.encoded: give loaders as functions that make them; they are told whose frames to read.')
    return loader


def check_lengths() -> None:
    """Refuses clips that are longer than the speech encoder takes, before their data is prepared.

    Raises:
        ValueError: TASK_FEATURE_LENGTHS lets through more.
    """
    from slm_jax.data import loader
    from slm_jax.inference import model

    most = getattr(model.query('slm_jax.train.train.system'), 'max_seconds', None)
    lengths = model.query('%TASK_FEATURE_LENGTHS')
    if most is None or not isinstance(lengths, Mapping):
        return
    speech = lengths.get('speech', loader.DEFAULT_LENGTHS['speech'])
    if speech > most * 16_000:
        raise ValueError(
            f"TASK_FEATURE_LENGTHS['speech'] is {speech}, {speech / 16_000:g} s; the speech encoder takes {most:g} s "
            f'at once. Set it to {most * 16_000:.0f} or less: what is longer is then a bad example (on_bad_example).'
        )


def ensure_foundations() -> None:
    """Imports the public foundations that FOUNDATIONS names, if they are not there yet."""
    from slm_jax import import_
    from slm_jax.inference import model

    import_.ensure(*map(str, (model.query('slm_jax.train.train.foundations') or {}).values()))


def main(argv: Sequence[str] | None = None) -> int:
    """The program.

    Returns:
        Exit status: 0 trained to the end, 143 saved and stopped by a signal, 75 another host was lost (start all of
        them again, as after 143), 1 NaN or infinite loss or a fault of the program, 2 configuration or data, 130 a
        second Ctrl-C. Where one of several hosts ends with 1 or 2, all do.
    """
    parser = configuration.parser(__doc__)
    cli.add_multihost(parser)
    args = parser.parse_args(argv)
    from slm_jax.training import loop

    fail = functools.partial(cli.fail, 'train')
    try:
        with cli.together(args.multihost, fail, ValueError, OSError):
            configuration.parse_gin(args.gin_file, args.gin_bindings)
            check_lengths()
            ensure_foundations()
            result = configuration.configured(train)()
    except loop.NonFiniteError as error:
        return cli.fail('train', error, 1)
    except (ValueError, OSError) as error:
        return fail(error)
    return EXIT_TERMINATED if result['terminated'] else 0


if __name__ == '__main__':
    from slm_jax import train as program  # gin files configure slm_jax.train, not __main__

    sys.exit(program.main())
