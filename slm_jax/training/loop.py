"""The compiled steps of training: one jit each, compiled once per batch shape."""

import contextlib
import io
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from slm_jax import paths
from slm_jax.training.state import Params, TrainState, merge, optimizer_of, optimizer_with, some

Batch = Mapping[str, Any]


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is NaN or infinite."""


def train_step(
    system: Any,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    rng: Key[Array, ''],
    paths: Collection[str] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One step: the loss, its gradient with respect to what is trained and nothing else, the update.

    `paths` are those of `state.trainable` that train yet; of the others there is no gradient, and neither they nor
    their statistics change. None: all do.

    The step's key is `rng` folded with its number, so a resumed run draws what an unbroken one would have drawn. If
    the loss or the gradient is not finite, nothing is updated, now or in any later step, and `bad_step` tells when.

    Returns:
        (new state, {'step_loss', 'grad_norm', 'param_norm', 'bad_step': scalars, 'metrics': {name: (sum, weight)}}).
    """
    training, resting, statistics = state.trainable, {}, state.opt_state
    if paths is not None:
        (training, resting), statistics = some(training, paths), optimizer_of(statistics, paths)

    def loss_of(training):
        return system.loss(merge(training, resting, frozen), batch, jax.random.fold_in(rng, state.step))

    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(training)
    grad_norm = optax.global_norm(gradient)
    updates, updated = optimizer.update(gradient, statistics, training)
    whole = state.bad_step < 0
    good = whole & jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    statistics = keep(updated, statistics)
    bad_step = jnp.where(whole & ~good, state.step, state.bad_step)
    state = TrainState(
        step=state.step + good.astype(jnp.int32),
        bad_step=bad_step,
        trainable=merge(keep(optax.apply_updates(training, updates), training), resting),
        opt_state=statistics if paths is None else optimizer_with(state.opt_state, statistics, paths),
    )
    scalars = {
        'step_loss': loss,
        'grad_norm': grad_norm,
        'param_norm': optax.global_norm(state.trainable),
        'bad_step': bad_step,
    }
    return state, {**scalars, 'metrics': metrics}


class CompiledPerShape:
    """A jitted function, compiled ahead of time for each shape of its batch; compile times are told."""

    def __init__(
        self,
        name: str,
        function: Callable,
        say: Callable[[str], None],
        tracing: Callable[[], contextlib.AbstractContextManager],
        **jit_options: Any,
    ):
        self._name, self._say, self._tracing = name, say, tracing
        self._jitted = jax.jit(function, **jit_options)
        self._compiled = {}
        self.compile_seconds = 0.0

    def traced(self, batch: Batch, *arguments: Any) -> Any:
        """What JAX makes of the function before XLA does: `jax.stages.Traced`."""
        with self._tracing():
            return self._jitted.trace(batch, *arguments)

    def compiled(self, batch: Batch, *arguments: Any) -> Any:
        """The executable for this batch's shapes. `arguments` follow it; all may be abstract, with shardings."""
        shapes = tuple(sorted((name, tuple(array.shape)) for name, array in batch.items()))
        if shapes not in self._compiled:
            started = time.perf_counter()
            with self._tracing():
                self._compiled[shapes] = self._jitted.lower(batch, *arguments).compile()
            seconds = time.perf_counter() - started
            self.compile_seconds += seconds
            self._say(f'compiled {self._name} for {describe(batch)} in {seconds:.1f} s')
        return self._compiled[shapes]

    def __call__(self, batch: Batch, *arguments: Any) -> Any:
        return self.compiled(batch, *arguments)(batch, *arguments)


def describe(batch: Batch) -> str:
    """A batch's size in a few words."""
    if 'images' in batch:
        rows, height, width, _ = batch['images'].shape
        return f'{rows} images of {width} x {height}'
    rows, samples = batch['speech_samples'].shape
    speech = f'{samples / 16_000:.1f} s of audio' if samples else 'text'
    if 'speech_frames' in batch and batch['speech_frames'].shape[1]:
        speech = f'{batch["speech_frames"].shape[1]} stored frames'
    return f'{rows} x {speech} ({batch["decoder_target_tokens"].shape[1]} target tokens)'


class MeanMetrics:
    """Sums of (sum, weight) over batches; the values are fetched when asked for, not before."""

    def __init__(self):
        self._waiting = []
        self._sums = {}

    def add(self, metrics: Mapping[str, tuple[Array, Array]]) -> None:
        """Takes one batch's metrics, on the device."""
        self._waiting.append(metrics)

    def means(self) -> dict[str, float]:
        """Weighted means of all that was added; names whose weight is 0 are left out."""
        for metrics in jax.device_get(self._waiting):
            for name, (total, weight) in metrics.items():
                old = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = old[0] + float(total), old[1] + float(weight)
        self._waiting = []
        return {name: total / weight for name, (total, weight) in self._sums.items() if weight}


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over steps, on the host: of the metrics by their weights, of norms over steps."""
    mean = MeanMetrics()
    for record in records:
        mean.add(record['metrics'])
    norms = {name: float(np.mean([record[name] for record in records])) for name in ('grad_norm', 'param_norm')}
    return mean.means() | norms


class Meter:
    """Times steps and counts seconds of audio; compilation does not count."""

    def __init__(self, step_fn: Any):  # whose `compile_seconds` are known
        self._step_fn = step_fn
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured, such as an evaluation's time."""
        self._started = time.perf_counter()
        self._compiled = self._step_fn.compile_seconds
        self._waited = self._speech = self._used = self._sent = 0.0

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Its body is time in which the device may have nothing to do for want of a batch."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def add(self, batch: Batch, rows: int) -> None:
        """Counts a batch by its rows on this host; it has `rows` on all of them."""
        speech, sent = speech_seconds(batch)
        used, hosts = speech, rows / len(batch['speech_lengths'])
        if 'decoder_segment_ids' in batch:  # rows of packed texts, which have no audio
            used, sent = float(np.count_nonzero(batch['decoder_segment_ids'])), float(batch['decoder_segment_ids'].size)
        self._speech += speech * hosts
        self._used += used * hosts
        self._sent += sent * hosts

    def take(self, num_steps: int) -> dict[str, float]:
        """Rates since the last call, over `num_steps` steps."""
        elapsed = time.perf_counter() - self._started - (self._step_fn.compile_seconds - self._compiled)
        rates = {'step_seconds': elapsed / num_steps, 'input_wait_share': self._waited / elapsed}
        if self._speech:
            rates['audio_seconds_per_second'] = self._speech / elapsed
        if self._sent:
            rates['padding_share'] = 1.0 - self._used / self._sent
        self.restart()
        return rates


def save_batch(model_dir: str | os.PathLike, step: int, loader: Any) -> pathlib.Path:
    """Writes the batch of a step, all of its rows, to an .npz file, made once more: it is a function of the step."""
    path, content = paths.path(model_dir) / f'bad_batch_{step}.npz', io.BytesIO()
    if jax.process_index() == 0:
        with contextlib.closing(loader.batches(step)) as batches:
            np.savez(content, **next(batches)[1])
        paths.write(path, content.getvalue())
    return path


def sample_texts(tokens: np.ndarray, infos: Sequence[Any], vocabulary: Any, count: int) -> str:
    """The first `count` decoded examples beside their references."""
    lines = []
    for row, info in zip(tokens, infos):
        if info is not None and len(lines) < count:
            text = vocabulary.decode([int(token) for token in row if token > 1])
            lines.append(f'  {info.instruction} [{info.reference}]\n    {text}')
    return '\n'.join(lines)


def speech_seconds(batch: Batch) -> tuple[float, float]:
    """(seconds of speech, seconds of audio sent to the device) of a host's batch."""
    speech, sent = float(np.sum(batch['speech_lengths'])) / 16_000, batch['speech_samples'].size / 16_000
    if 'speech_frames' in batch:  # all of which stand for as many samples
        rows, frames, _ = batch['speech_frames'].shape
        sent = speech * rows * frames / max(int(np.sum(batch['speech_frame_lengths'])), 1)
    return speech, sent


def bytes_per_device(tree: Any) -> int:
    """Bytes that a tree of arrays, abstract or not, with shardings takes on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_report(compiled: Any, state: TrainState, frozen: Params, device: jax.Device) -> str:
    """What one step needs on one device, from XLA's own analysis of the compiled program."""
    parts = {
        'frozen parameters': bytes_per_device(frozen),
        'trained parameters': bytes_per_device(state.trainable),
        'optimizer': bytes_per_device(state.opt_state),
    }
    analysis = compiled.memory_analysis()
    if analysis is None:
        return f'memory per device: {_join(parts)}; this backend does not tell the rest'
    parts['activations and gradients'] = analysis.temp_size_in_bytes
    # Donated state is counted among the arguments and again among the outputs.
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    total = max(total, sum(parts.values()))  # XLA leaves out what is on the device and not read
    text = f'memory per device: {_size(total)} = {_join(parts)} + batch'
    limit = (device.memory_stats() or {}).get('bytes_limit')
    if limit and total > limit:
        text += f'\nWARNING: the device has {_size(limit)}. Use fewer seconds per batch, remat, fsdp or model > 1.'
    elif limit:
        text += f'; the device has {_size(limit)}'
    return text


def _join(parts: Mapping[str, int]) -> str:
    return ' + '.join(f'{_size(size)} {name}' for name, size in parts.items())


def _size(number: float) -> str:
    for unit in ('B', 'kB', 'MB'):
        if number < 1000:
            return f'{number:.3g} {unit}'
        number /= 1000
    return f'{number:.1f} GB'
