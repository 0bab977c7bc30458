"""Trains whatever part of a system is not frozen: `python -m slm_jax.train --gin_file=FILE --gin.NAME=VALUE`.

One program for an adapter between frozen foundations, for fine-tuning, and for making a foundation; it reads from
top to bottom. It knows a system only by its protocol (`slm_jax.systems.System`), and runs on one CPU as on many hosts.
"""

import contextlib
import functools
import os
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import cli, configuration

EXIT_TERMINATED = 128 + signal.SIGTERM  # what a shell reports; a scheduler takes it for 'start me again'


def train(
    *,
    system: Any,
    loader: Any,
    optimizer: Any,
    model_dir: str | os.PathLike,
    train_steps: int,
    eval_loaders: Mapping[str, Any] | None = None,
    foundations: Mapping[str, str] | None = None,
    trainable: Sequence[str] = ('.*',),
    partitioner: Any = None,
    seed: int = 0,
    frozen_dtype: Any = None,
    log_period: int = 20,
    eval_period: int = 500,
    eval_batches: int | None = None,
    checkpoint_period: int | None = None,
    max_to_keep: int = 2,
    best_metric: str | None = None,
    num_samples: int = 4,
    decode: Any = None,
    tensorboard: bool = True,
) -> dict[str, Any]:
    """Trains until `train_steps`, from the newest checkpoint in `model_dir` if there is one.

    Killed at any instant and started again, it goes on with bit-identical losses. SIGTERM and Ctrl-C write a
    checkpoint first.

    Args:
        system: see `slm_jax.systems.System`.
        loader: see `slm_jax.data.loader.SpeechTextLoader`; used are `batches`, `batch_shapes`, `state` and `skipped`.
        optimizer: `optax.GradientTransformation`; see `slm_jax.training.optimizers`.
        model_dir: for checkpoints, card and logs.
        train_steps: steps in all, over all restarts.
        eval_loaders: from a name ('dev') to a loader, of which `examples`, `vocabulary` and `skipped` are used.
        foundations: where parts start from: {'llm': 't5_tiny', 'speech_encoder': '/path'}, each an installed
            foundation, a foundation's directory, or the model directory of another training that trained this part.
            Whether a part then trains is said by `trainable` alone. Trained parameters that no foundation gives start
            fresh; frozen ones must be given.
        trainable: regular expressions; a parameter trains if one matches its whole path ('adapter/.*').
        partitioner: `slm_jax.training.partitioning.Partitioner`; None: data parallel over all devices.
        seed: of initialisation, dropout and masks. The order of the data has its own, in the loader.
        frozen_dtype: in which frozen parameters are held; int8: their kernels and embeddings with a scale for each
            output channel; None: float32 on CPU (where bfloat16 is slow), else bfloat16.
        log_period, eval_period, checkpoint_period: in steps; `checkpoint_period` is `eval_period` if None.
        eval_batches: at most so many batches of each evaluation loader; None: all.
        max_to_keep: newest checkpoints kept.
        best_metric: such as 'dev/loss'; the checkpoint where it was lowest is kept too.
        num_samples: examples decoded and shown at each evaluation, from the first evaluation loader.
        decode: `slm_jax.decoding.DecodeConfig` for them; None: greedy.
        tensorboard: whether to write TensorBoard events into `model_dir`.

    Returns:
        {'step': steps done, 'evaluation': {'dev/loss': ...}, 'terminated': whether a signal ended it early}.

    Raises:
        ValueError: configuration, foundations or checkpoint do not fit together; before any step is made.
        NonFiniteError: loss or gradient is NaN or infinite. The batch and all that was trained before it are saved.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tqdm import tqdm

    from slm_jax import decoding
    from slm_jax.data import notices
    from slm_jax.training import checkpoints as checkpoints_lib
    from slm_jax.training import logs, loop, partitioning
    from slm_jax.training import origins as origins_lib
    from slm_jax.training import state as state_lib

    say = logs.say
    foundations = dict(foundations or {})
    eval_loaders = dict(eval_loaders or {})
    checkpoint_period = checkpoint_period or eval_period
    model_dir = pathlib.Path(model_dir).expanduser().absolute()

    # ---------------------------------------------------------------- devices
    partitioner = partitioner or partitioning.Partitioner()
    mesh = partitioner.mesh()
    device = jax.local_devices()[0]
    everywhere = partitioning.replicated(mesh)
    sizes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
    say(f'{mesh.size} x {device.device_kind} ({sizes}), {jax.process_count()} host(s)')

    # ---------------------------------------------------------------- parameters, not yet made
    notes = set()
    abstract_batches = []
    for shapes in loader.batch_shapes():
        sharding = partitioning.batch_sharding(mesh, next(iter(shapes.values()))[0][0], notes)
        abstract_batches.append(
            {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}
        )
    # The longest batch says what memory is needed; its compilation is needed anyhow.
    longest = max(abstract_batches, key=lambda batch: sum(leaf.size for leaf in batch.values()))
    init_batch = {name: (leaf.shape, leaf.dtype) for name, leaf in longest.items()}

    def init(rng):
        return system.init(rng, {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in init_batch.items()})

    boxed = jax.eval_shape(init, jax.random.key(seed))
    param_shardings = partitioner.shardings(boxed, mesh, notes)
    abstract = origins_lib.place(state_lib.unboxed(boxed), param_shardings)
    abstract_trainable, abstract_frozen = state_lib.split(abstract, trainable)
    held = origins_lib.hold(abstract_frozen, boxed, frozen_dtype)
    for note in sorted(notes):
        say(f'note: {note}')

    # ---------------------------------------------------------------- foundations, and the checkpoint's
    origins = origins_lib.find(foundations)
    fresh_paths = origins_lib.check(origins, abstract_trainable, abstract_frozen)
    needed = {o.subtree: o.describe() for o in origins if o.paths.keys() & state_lib.flatten(abstract_frozen).keys()}
    checkpoints = checkpoints_lib.Checkpoints(model_dir, max_to_keep, best_metric)
    start = checkpoints.latest()
    old_card = None if start is None else checkpoints.read_card(start)
    card = {
        'name': model_dir.name,
        'kind': checkpoints_lib.KIND,
        'foundations': needed,
        'initialised_from': {o.subtree: o.describe() for o in origins if o.subtree not in needed},
        'trainable': [trainable] if isinstance(trainable, str) else list(trainable),
        'num_params': {
            'trained': state_lib.num_params(abstract_trainable),
            'frozen': state_lib.num_params(abstract_frozen),
        },
        'seed': seed,
        'data': loader.state(),
        'versions': checkpoints_lib.versions(),
        'evaluation': {},
    }
    if old_card is not None:
        checkpoints_lib.check_foundations(model_dir, old_card['foundations'], needed)
        card['evaluation'] = old_card['evaluation']
        if old_card['data'] != card['data']:
            say(
                'WARNING: the data or its order is not what it was when this training began; the losses that follow '
                'are not those of an unbroken run.'
            )

    # ---------------------------------------------------------------- state: restored, or new
    rng = jax.jit(jax.random.key, out_shardings=everywhere)(seed)
    abstract_opt = jax.eval_shape(optimizer.init, abstract_trainable)
    trainable_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_trainable)
    opt_shardings = partitioning.like_params(abstract_opt, abstract_trainable, trainable_shardings, mesh)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    abstract_state = state_lib.TrainState(
        step=scalar,
        bad_step=scalar,
        trainable=abstract_trainable,
        opt_state=origins_lib.place(abstract_opt, opt_shardings),
    )
    frozen = origins_lib.load(origins, held)
    if start is not None:
        state, rng = checkpoints.restore(start, abstract_state, rng)
        say(f'resumed {model_dir} at step {start}')
    else:
        if fresh_paths:
            say(f'freshly initialised: {origins_lib.summary(fresh_paths)}')
        given = origins_lib.load(origins, abstract_trainable)
        fresh_leaves = {path: state_lib.flatten(abstract_trainable)[path] for path in fresh_paths}
        fresh = origins_lib.fresh(init, rng, state_lib.unflatten(fresh_leaves))
        params = state_lib.merge(given, fresh)
        opt_state = jax.jit(optimizer.init, out_shardings=opt_shardings)(params)
        zero, none = (jax.device_put(jnp.int32(value), everywhere) for value in (0, -1))
        state = state_lib.TrainState(step=zero, bad_step=none, trainable=params, opt_state=opt_state)
        del given, fresh, params, opt_state
    start = int(state.step)
    counts = card['num_params']
    say(f'{type(system).__name__}: {counts["trained"]:,} parameters trained, {counts["frozen"]:,} frozen')

    # ---------------------------------------------------------------- steps, compiled when first needed
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    compiled_per_shape = functools.partial(
        loop.CompiledPerShape, say=say, tracing=functools.partial(partitioner.tracing, mesh)
    )
    step_fn = compiled_per_shape(
        'training step',
        lambda batch, state, frozen, rng: loop.train_step(system, optimizer, state, frozen, batch, rng),
        donate_argnums=1,
        out_shardings=(state_shardings, everywhere),
    )
    eval_fn = compiled_per_shape(
        'evaluation',
        lambda batch, params, frozen: system.loss(state_lib.merge(params, frozen), batch, None)[1],
        out_shardings=everywhere,
    )
    decode = decode or decoding.DecodeConfig(max_decode_length=64)
    predict_fn = compiled_per_shape(
        'decoding',
        lambda batch, params, frozen: system.predict(state_lib.merge(params, frozen), batch, decode),
        out_shardings=everywhere,
    )
    if start < train_steps:
        executable = step_fn.compiled(longest, state, frozen, rng)
        say(loop.memory_report(executable, state, frozen, device))

    def evaluate():
        """Metrics of all evaluation loaders, by 'loader/metric', and some decoded examples on the terminal."""
        results = {}
        for position, (name, eval_loader) in enumerate(eval_loaders.items()):
            mean = loop.MeanMetrics()
            with contextlib.closing(eval_loader.examples()) as examples:
                for index, (batch, infos) in enumerate(examples):
                    if index == eval_batches:
                        break
                    batch = partitioning.shard_batch(batch, mesh)
                    mean.add(eval_fn(batch, state.trainable, frozen))
                    if index == position == 0 and num_samples:
                        tokens = np.asarray(predict_fn(batch, state.trainable, frozen))
                        texts = loop.sample_texts(tokens, infos, eval_loader.vocabulary, num_samples)
                        writer.write_texts(done, {f'{name}/samples': texts})
            results |= {f'{name}/{metric}': value for metric, value in mean.means().items()}
            writer.write_scalars(done, {key: value for key, value in results.items() if key.startswith(f'{name}/')})
        return results

    def save():
        checkpoints.save(state, rng, card | {'config': configuration.operative_config()})

    # ---------------------------------------------------------------- the loop
    checkpoints.write_card(card | {'config': configuration.operative_config(), 'step': start})
    skipped = {'train': loader.skipped, **{name: each.skipped for name, each in eval_loaders.items()}}
    writer = logs.create_writer(model_dir, tensorboard)
    losses = logs.LossRecord(model_dir)
    progress = tqdm(total=train_steps, initial=start, unit='step', disable=None if jax.process_index() == 0 else True)
    meter = loop.Meter(step_fn, jax.process_count())
    waiting = []  # (step, what the step returned), still on the device
    done = start

    def report(records):
        """Writes what some steps returned. Asks the device, so not for the step it is still at."""
        values = jax.device_get([record for _, record in records])
        losses.write((step, value['step_loss']) for (step, _), value in zip(records, values))
        bad_step = int(values[-1]['bad_step'])
        scalars = loop.summarise(values) | meter.take(len(records))
        writer.write_scalars(records[-1][0] + 1, {f'train/{name}': value for name, value in scalars.items()})
        if bad_step >= 0:
            save()
            path = loop.save_batch(model_dir, bad_step, loader)
            loss, norm = next((float(v['step_loss']), float(v['grad_norm'])) for v in values if v['bad_step'] >= 0)
            raise loop.NonFiniteError(
                f'step {bad_step}: the loss is {loss} and the norm of its gradient {norm}. The batch is in {path}; '
                f'the checkpoint of step {bad_step} holds all that was trained before it. Look for a wrong example '
                'in the batch, or start again with a lower learning rate or a smaller clip_norm.'
            )

    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            notices.record(model_dir, skipped)
            stack.callback(notices.remind, model_dir, skipped)
        stack.callback(checkpoints.close)
        stack.callback(writer.close)
        stack.callback(losses.close)
        stack.callback(progress.close)
        terminated = stack.enter_context(loop.termination_signal())
        batches = stack.enter_context(contextlib.closing(loader.batches(start)))
        while done < train_steps and not terminated(done):
            with meter.waiting_for_input():
                step, host_batch = next(batches)
            if step != done:
                raise ValueError(f'the loader gave the batch of step {step} for step {done}')
            batch = partitioning.shard_batch(host_batch, mesh)
            state, record = step_fn(batch, state, frozen, rng)
            meter.add(host_batch)
            waiting.append((step, record))
            done += 1
            progress.update()

            # The host runs at most two steps ahead of the device, and asks for numbers one step late.
            if len(waiting) > 2:
                jax.block_until_ready(waiting[-3][1]['step_loss'])
            evaluation_due = done % eval_period == 0 or done == train_steps
            checkpoint_due = done % checkpoint_period == 0 or done == train_steps
            if evaluation_due or checkpoint_due:
                report(waiting)
                waiting = []
                if evaluation_due:
                    card['evaluation'] = evaluate()
                if checkpoint_due:
                    save()
                meter.restart()
            elif len(waiting) > log_period:
                report(waiting[:-1])
                waiting = waiting[-1:]

        stopped_early = done < train_steps
        if waiting:
            report(waiting)
        if stopped_early:
            save()
            say(f'stopped by a signal; step {done} is saved. The same command goes on from there.')
    return {'step': done, 'evaluation': card['evaluation'], 'terminated': stopped_early}


def main(argv: Sequence[str] | None = None) -> int:
    """The program.

    Returns:
        Exit status: 0 trained to the end, 143 saved and stopped by a signal, 1 NaN or infinite loss, 2 configuration.
    """
    parser = configuration.parser(__doc__)
    parser.add_argument(
        '--multihost',
        action='store_true',
        help='join the other hosts (found by themselves on TPU pods and Slurm; else set JAX_COORDINATOR_ADDRESS, '
        'JAX_NUM_PROCESSES and JAX_PROCESS_ID)',
    )
    args = parser.parse_args(argv)
    if args.multihost:
        from slm_jax.training import partitioning

        partitioning.join_hosts()
    from slm_jax.training import loop

    try:
        configuration.parse_gin(args.gin_file, args.gin_bindings)
        result = configuration.configured(train)()
    except loop.NonFiniteError as error:
        return cli.fail('train', error)
    except (ValueError, OSError) as error:
        return cli.fail('train', error, 2)
    return EXIT_TERMINATED if result['terminated'] else 0


if __name__ == '__main__':
    from slm_jax import train as program  # gin files configure slm_jax.train, not __main__

    sys.exit(program.main())
