"""The loop of a training, and what it does besides stepping: reports, evaluations, checkpoints."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from slm_jax import configuration
from slm_jax.data import notices
from slm_jax.training import hosts, logs, loop, partitioning, preemption, profiles
from slm_jax.training.setup import Steps
from slm_jax.training.state import Params, TrainState

_EARLY = (1, 2, 5, 10)  # of a slow machine's first steps one wants to hear soon


@dataclasses.dataclass(frozen=True)
class Periods:
    """How often the loop does what, in steps; `steps` is where it ends."""

    steps: int
    log: int
    evaluation: int
    checkpoint: int
    local: int | None = None  # checkpoints on a local disk, besides

    def due(self, period: int, done: int) -> bool:
        """Whether what is done every so many steps is due after `done`; after the last all is."""
        return done % period == 0 or done == self.steps


@dataclasses.dataclass
class Run:
    """A training that is ready for its next step.

    Attributes:
        state, frozen, rng: on the devices of `mesh`.
        steps: compiled for that mesh.
        loader, eval_loaders: see `slm_jax.train.train`, as are the rest.
        card: of the model. `evaluation` is kept up to date.
    """

    state: TrainState
    frozen: Params
    rng: Key[Array, '']
    mesh: Mesh
    steps: Steps
    loader: Any
    eval_loaders: Mapping[str, Any]
    checkpoints: Any  # `checkpoints.Checkpoints`, or several as one
    card: dict[str, Any]
    periods: Periods
    eval_batches: int | None
    num_samples: int
    tensorboard: bool
    profile: Sequence[int] | None

    def train(self) -> dict[str, Any]:
        """The loop; returns what `slm_jax.train.train` does."""
        periods, start = self.periods, int(self.state.step)
        done = start
        self.checkpoints.write_card(self._card() | {'step': done})
        waiting: list[tuple[int, Any]] = []  # (step, what the step returned), still on the device
        with contextlib.ExitStack() as stack:
            self._open(stack, done)
            self._stop = stack.enter_context(preemption.Stop())
            batches = stack.enter_context(contextlib.closing(self.loader.batches(done, self._rows)))
            while done < periods.steps and not self._stop.reached():
                with self._meter.waiting_for_input(), hosts.doing(f'waiting for its input of step {done}'):
                    step, host_batch = next(batches)
                if step != done:
                    raise ValueError(f'the loader gave the batch of step {step} for step {done}')
                batch = partitioning.shard_batch(host_batch, self.mesh)
                with self._profile.step(step):
                    self.state, record = self.steps.train_at(step)(batch, self.state, self.frozen, self.rng)
                self._meter.add(host_batch, len(batch['speech_lengths']))
                waiting.append((step, record))
                done += 1
                self._progress.update()

                # The host runs at most two steps ahead of the device, and asks for numbers one step late.
                if len(waiting) > 2:
                    jax.block_until_ready(waiting[-3][1]['step_loss'])
                evaluation_due, checkpoint_due = (
                    periods.due(period, done) for period in (periods.evaluation, periods.checkpoint)
                )
                local_due = periods.local is not None and done % periods.local == 0
                if evaluation_due or checkpoint_due or local_due:
                    self._report(waiting)
                    waiting = []
                    if evaluation_due:
                        self.card['evaluation'] = self._evaluate(done)
                    if checkpoint_due:
                        self._save()
                    elif local_due:
                        self.checkpoints.save_local(self.state, self.rng, self._card())
                    self._meter.restart()
                elif len(waiting) > 1 and (step % periods.log == 0 or step - start in _EARLY):
                    self._report(waiting[:-1], rates=step % periods.log == 0)
                    waiting = waiting[-1:]
            if waiting:
                self._report(waiting)
            if done < periods.steps:
                self._save()
                logs.say(f'stopped by a signal; step {done} is saved. The same command goes on from there.')
        return {'step': done, 'evaluation': self.card['evaluation'], 'terminated': done < periods.steps}

    def _open(self, stack: contextlib.ExitStack, done: int) -> None:
        """What is written to while training, closed with `stack`."""
        model_dir = self.checkpoints.model_dir
        if hosts.first():
            skipped = {'train': self.loader.skipped, **{name: each.skipped for name, each in self.eval_loaders.items()}}
            notices.record(model_dir, skipped)
            stack.callback(notices.remind, model_dir, skipped)
        self._writer = logs.Writers(model_dir, self.tensorboard)
        stack.callback(self._writer.close)
        self._losses = logs.LossRecord(model_dir)
        stack.callback(self._losses.close)
        self._progress = logs.Progress(self.periods.steps, done)
        stack.callback(self._progress.close)
        self._profile = profiles.Profile(self.profile, model_dir, lambda: self.state, logs.say)
        stack.callback(self._profile.close)
        self._meter, self._unmetered = loop.Meter(self.steps), 0

    def _rows(self, rows: int) -> np.ndarray:
        """Which rows of a global batch this host takes."""
        return partitioning.host_rows(self.mesh, rows)

    def _card(self) -> dict[str, Any]:
        return self.card | {'config': configuration.operative_config()}

    def _save(self) -> None:
        self.checkpoints.save(self.state, self.rng, self._card())

    def _report(self, records: Sequence[tuple[int, Any]], rates: bool = True) -> None:
        """Writes what some steps returned. Asks the device, so not for the step it is still at.

        Without `rates` at first: a step runs while the next one's shape is compiled, and has no time of its own.

        Raises:
            NonFiniteError: one of them was not finite; its batch is saved, and the state before it.
        """
        values = jax.device_get([record for _, record in records])
        self._losses.write((step, value['step_loss']) for (step, _), value in zip(records, values))
        bad_step = int(values[-1]['bad_step'])
        scalars = loop.summarise(values)
        self._unmetered += len(records)
        if rates:
            scalars |= self._meter.take(self._unmetered)
            self._unmetered = 0
        self._writer.write_scalars(records[-1][0] + 1, {f'train/{name}': value for name, value in scalars.items()})
        if bad_step >= 0:
            self._save()
            path = loop.save_batch(self.checkpoints.model_dir, bad_step, self.loader)
            loss, norm = next((float(v['step_loss']), float(v['grad_norm'])) for v in values if v['bad_step'] >= 0)
            raise loop.NonFiniteError(
                f'step {bad_step}: the loss is {loss} and the norm of its gradient {norm}. The batch is in {path}; '
                f'the checkpoint of step {bad_step} holds all that was trained before it. Look for a wrong example '
                'in the batch, or start again with a lower learning rate or a smaller clip_norm.'
            )

    def _evaluate(self, done: int) -> dict[str, float]:
        """Metrics of all evaluation loaders, by 'loader/metric', and some decoded examples on the terminal.

        Those of before, where a signal ends it; the last evaluation is finished.
        """
        results: dict[str, float] = {}
        for position, (name, eval_loader) in enumerate(self.eval_loaders.items()):
            mean = loop.MeanMetrics()
            with contextlib.closing(eval_loader.examples(self._rows)) as examples:
                waited = hosts.named(examples, f'waiting for its input of {name!r}')
                for index, (batch, infos) in enumerate(waited):
                    if index == self.eval_batches:
                        break
                    if self._stop.reached() and done < self.periods.steps:
                        return self.card['evaluation']
                    batch = partitioning.shard_batch(batch, self.mesh)
                    mean.add(self.steps.evaluate(batch, self.state.trainable, self.frozen))
                    if index == position == 0 and self.num_samples:
                        tokens = np.asarray(self.steps.decode(batch, self.state.trainable, self.frozen))
                        texts = loop.sample_texts(
                            tokens[self._rows(len(tokens))], infos, eval_loader.vocabulary, self.num_samples
                        )
                        self._writer.write_texts(done, {f'{name}/samples': texts})
            means = {f'{name}/{metric}': value for metric, value in mean.means().items()}
            self._writer.write_scalars(done, means)
            results |= means
        return results
