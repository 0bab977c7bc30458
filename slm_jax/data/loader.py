"""From a SeqIO task or mixture to batches: stores (cache.py), a plan (plan.py), and a thread."""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import atexit
import dataclasses
import difflib
import functools
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
from absl import logging

import gin
from slm_jax.data import cache, feature_converter, preprocessors
from slm_jax.data import plan as plan_lib

DEFAULT_LENGTHS = {'speech': 120 * 16000, 'inputs': 1024, 'targets': 2048}
_FEATURES = ('speech', 'inputs', 'targets')


@dataclasses.dataclass(frozen=True)
class ExampleInfo:
    """What a report wants to know of one example of an evaluation.

    Attributes:
        id, task, lang, target_lang: '' where not known.
        instruction, reference: the texts that were encoded as inputs and targets.
        audio: the recording's path, None where the source gave samples.
        seconds: length of the speech.
    """

    id: str
    task: str
    lang: str
    target_lang: str
    instruction: str
    reference: str
    audio: str | None
    seconds: float


@gin.configurable
class SpeechTextLoader:
    """Batches of a registered task or mixture.

    Stores that are missing are built first. Which examples make up the batch of a step depends on
    the data, the seed and the step only: not on the hosts, nor on what was read before.

    Args:
        mixture_or_task_name: a registered name, or a mixture on the spot: {name: rate}.
        split: 'train', 'validation' or 'test', as the tasks have them.
        seconds_per_batch: seconds of (padded) audio in a batch, over all hosts.
        task_feature_lengths: the most that is allowed of 'speech' (samples), 'inputs' and 'targets'
            (tokens). What is longer is a bad example; nothing is ever cut. Default: `DEFAULT_LENGTHS`.
        num_buckets: the most static shapes; fewer where 91% of the samples are speech already.
        seed: of order and wordings.
        cache_dir: where stores are; None = `cache.default_dir()`.
        num_shards, shard_index: number of hosts, and which of them this is.
        on_bad_example: 'raise' stops, 'skip' goes on, counts and lists (`skipped`).
        row_multiple: rows of every batch are a multiple of this: the data-parallel size.
        tokens_per_batch: see `plan.Plan`.
        prefetch: batches made ahead.
        data_dir: where TFDS keeps its data; None = $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        preprocessors.BadExampleError: an example that cannot be used, unless these are skipped.
    """

    def __init__(
        self,
        mixture_or_task_name: str | Mapping[str, float] = gin.REQUIRED,
        split: str = 'train',
        seconds_per_batch: float = 120.0,
        task_feature_lengths: Mapping[str, int] | None = None,
        num_buckets: int = 24,
        seed: int = 0,
        cache_dir: str | os.PathLike | None = None,
        num_shards: int = 1,
        shard_index: int = 0,
        on_bad_example: str = 'raise',
        row_multiple: int = 1,
        tokens_per_batch: int | None = None,
        prefetch: int = 4,
        data_dir: str | os.PathLike | None = None,
    ):
        if data_dir:
            seqio.set_tfds_data_dir_override(str(data_dir))
        self._tasks, rates = tasks_and_rates(mixture_or_task_name)
        self.name = ', '.join(task.name for task in self._tasks[:3])
        self.vocabulary = self._tasks[0].output_features['targets'].vocabulary
        self.split = split
        self._lengths = {**DEFAULT_LENGTHS, **(task_feature_lengths or {})}
        self._shard, self._prefetch = (shard_index, num_shards), prefetch
        if row_multiple % num_shards:
            raise ValueError(f'row_multiple={row_multiple} is no multiple of the {num_shards} hosts')
        self.skipped: list[tuple[str, str]] = []
        stores, self._stores, self._planned = {}, [], []
        for task, rate in zip(self._tasks, rates):
            directory = cache.store_dir(task, split, cache_dir)
            if directory not in stores:
                stores[directory] = cache.open_store(task, split, cache_dir, on_bad_example)
                self.skipped += stores[directory].skipped
            store = stores[directory]
            self._stores.append(store)
            self._planned.append(self._measure(task, store, rate, on_bad_example))
        self.plan = plan_lib.Plan(
            self._planned,
            seconds_per_batch,
            num_buckets,
            seed,
            row_multiple,
            tokens_per_batch,
            self._lengths,
        )
        self.speech_fill = self.plan.speech_fill
        self._steps = [_postcache(task, store.spec) for task, store in zip(self._tasks, self._stores)]
        self._seed = seed
        self._waited = self._elapsed = 0.0
        hours = sum(task.samples.sum() for task in self._planned) / 16000 / 3600
        logging.info(
            '%s %s: %d examples, %.2f h; %d shapes; %.1f%% of the samples sent are speech',
            self.name,
            split,
            sum(len(task.index) for task in self._planned),
            hours,
            len(self.plan.buckets),
            100 * self.speech_fill,
        )
        if self.speech_fill < 0.9:
            logging.warning(
                'num_buckets=%d leaves %.0f%% of the samples to padding: a larger one, or '
                "a smaller task_feature_lengths['speech'], leaves less",
                num_buckets,
                100 * (1 - self.speech_fill),
            )
        self.report_skipped()

    def report_skipped(self) -> None:
        """Logs how many examples were skipped, and which."""
        if self.skipped:
            logging.warning(
                '%s %s: %d bad examples skipped:\n%s',
                self.name,
                self.split,
                len(self.skipped),
                '\n'.join(error for _, error in self.skipped),
            )

    # ------------------------------------------------------------------ lengths

    def _measure(self, task: seqio.Task, store: cache.Store, rate: float, on_bad_example: str) -> plan_lib.TaskLengths:
        """Runs the task's later steps over all texts, in every wording; remembers their lengths."""
        description = [
            cache.FORMAT,
            task.name,
            cache.describe(list(task.preprocessors[task._cache_step_idx + 1 :])),
            {k: cache.describe(f.vocabulary) for k, f in task.output_features.items()},
        ]
        digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode())
        path = store.directory / f'lengths-{digest.hexdigest()[:12]}.npz'
        if not path.exists():
            measured = _measure_tokens(task, store)
            partial = path.with_name(f'{path.stem}.{os.getpid()}.part.npz')
            np.savez(partial, **measured)
            os.replace(partial, path)
        with np.load(path) as file:
            measured = dict(file)
        good = measured['used'].copy()
        lengths = {
            'speech': store.samples,
            'inputs': measured['inputs'],
            'targets': measured['targets'],
        }
        errors = {int(i): str(e) for i, e in zip(measured['bad'], measured['errors'])}
        for feature in _FEATURES:
            for i in np.nonzero(good & (lengths[feature] > self._lengths[feature]))[0]:
                features = store.features(int(i))
                name = next(filter(None, map(features.get, ('audio', 'origin', 'id')))).decode()
                errors.setdefault(
                    int(i),
                    preprocessors.too_long(name, feature, int(lengths[feature][i]), self._lengths[feature]),
                )
        if errors and on_bad_example == 'raise':
            raise preprocessors.BadExampleError(
                f"{task.name}: {next(iter(errors.values()))}\n(on_bad_example='skip' leaves such examples out.)"
            )
        for i, error in errors.items():
            good[i] = False
            self.skipped.append((store.ids[i], error))
        index = np.nonzero(good)[0]
        if not len(index):
            raise ValueError(f'{task.name}: no usable example in split {self.split!r}')
        return plan_lib.TaskLengths(index, *(lengths[f][index] for f in _FEATURES), rate)

    # ------------------------------------------------------------------ batches

    def _example(self, task: int, position: int, seed: int) -> dict[str, np.ndarray]:
        """One example after all steps of its task."""
        store, index = self._stores[task], int(self._planned[task].index[position])
        example = dict(store.features(index), template_seed=np.int64(seed), index=np.int64(index))
        if 'speech' in store.spec:
            example['speech'] = store.speech(index)
        return self._steps[task](example)

    def _fitting(self, bucket: plan_lib.Bucket, task: int, position: int, seed: int) -> dict:
        """`_example`; a wording that is too long for the bucket gives way to a measured one."""
        example = self._example(task, position, seed)
        if any(len(example[name]) > getattr(bucket, name) for name in ('inputs', 'targets')):
            measured = _seeds(self._stores[task])
            example = self._example(task, position, seed % measured)
        return example

    def _rows(self, batch: plan_lib.Batch) -> np.ndarray:
        """This host's rows of a batch."""
        index, count = self._shard
        share = len(batch.rows) // count
        return batch.rows[index * share : (index + 1) * share]

    def _batch(self, batch: plan_lib.Batch) -> tuple[dict[str, np.ndarray], list[dict | None]]:
        bucket = self.plan.buckets[batch.bucket]
        lengths = {'speech': bucket.samples, 'inputs': bucket.inputs, 'targets': bucket.targets}
        examples = [None if row[0] < 0 else self._fitting(bucket, *map(int, row)) for row in self._rows(batch)]
        rows = [feature_converter.model_features(example or {}, lengths) for example in examples]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, examples

    def batches(self, start_step: int = 0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) for ever, from `start_step`; made ahead by a thread."""

        def make():
            step = start_step
            while True:
                yield step, self._batch(self.plan.batch(step))[0]
                step += 1

        return self._ahead(make())

    def examples(self) -> Iterator[tuple[dict[str, np.ndarray], list[ExampleInfo | None]]]:
        """Every example once: (batch, what each of its rows is; None for a row of padding)."""

        def make():
            for batch in self.plan.evaluation():
                arrays, examples = self._batch(batch)
                yield (
                    arrays,
                    [example and self._info(int(row[0]), example) for row, example in zip(self._rows(batch), examples)],
                )

        return self._ahead(make())

    def _info(self, task: int, example: Mapping) -> ExampleInfo:
        def text(name: str) -> str:
            return example.get(name, b'').decode()

        return ExampleInfo(
            id=text('id'),
            task=self._tasks[task].name,
            lang=text('lang'),
            target_lang=text('target_lang'),
            instruction=text('inputs_pretokenized'),
            reference=text('targets_pretokenized'),
            audio=text('audio') or None,
            seconds=len(example.get('speech', ())) / 16000,
        )

    def _ahead(self, items: Iterator) -> Iterator:
        """Runs an iterator in a thread, `prefetch` items ahead; times how long we wait for it."""
        made, stop, end = queue.Queue(self._prefetch), threading.Event(), object()

        def put(item) -> bool:
            while not stop.is_set():
                try:
                    made.put(item, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        def work():
            try:
                for item in items:
                    if not put((item, None)):
                        return
                put((end, None))
            except BaseException as error:  # handed to whoever iterates
                put((end, error))

        thread = threading.Thread(target=work, daemon=True, name='slm_jax input')

        def close():
            stop.set()
            thread.join()

        atexit.register(close)  # TensorFlow aborts if its threads outlive the interpreter
        thread.start()
        try:
            resumed = time.monotonic()
            while True:
                asked = time.monotonic()
                item, error = made.get()
                now = time.monotonic()
                self._waited += now - asked
                self._elapsed += now - resumed
                resumed = now
                if error is not None:
                    raise error
                if item is end:
                    return
                yield item
        finally:
            close()
            atexit.unregister(close)

    @property
    def wait_share(self) -> float:
        """Of the time between batches, the share in which the consumer waited for input."""
        return self._waited / self._elapsed if self._elapsed else 0.0

    def batch_shapes(self) -> list[dict[str, tuple[tuple[int, ...], np.dtype]]]:
        """Per bucket {name: (shape of the global batch, dtype)}."""
        shapes = []
        for b in self.plan.buckets:
            shapes.append(
                {
                    'speech_samples': ((b.rows, b.samples), np.dtype(np.int16)),
                    'speech_lengths': ((b.rows,), np.dtype(np.int32)),
                    'encoder_input_tokens': ((b.rows, b.inputs), np.dtype(np.int32)),
                    'decoder_input_tokens': ((b.rows, b.targets), np.dtype(np.int32)),
                    'decoder_target_tokens': ((b.rows, b.targets), np.dtype(np.int32)),
                    'decoder_loss_weights': ((b.rows, b.targets), np.dtype(np.float32)),
                }
            )
        return shapes

    def state(self) -> dict:
        """What, with the step, fixes the data: a checkpoint stores it, and a resume compares it."""
        digest = hashlib.sha256(repr((self._seed, self.plan.buckets)).encode())
        for task in self._planned:
            for array in (task.index, task.samples, task.inputs, task.targets):
                digest.update(np.ascontiguousarray(array, np.int64).tobytes())
            digest.update(repr(task.rate).encode())
        return {
            'seed': self._seed,
            'split': self.split,
            'tasks': [task.name for task in self._tasks],
            'plan': digest.hexdigest(),
        }


def tasks_and_rates(name: str | Mapping[str, float]) -> tuple[list[seqio.Task], list[float]]:
    """The tasks of a task, of a mixture, or of {name: rate}, and how often each is drawn.

    A mixture's rate is shared by its tasks in proportion to theirs.

    Raises:
        ValueError: no such name; says which are near.
    """
    if isinstance(name, Mapping):
        parts = [(tasks_and_rates(part), float(rate)) for part, rate in name.items()]
        return (
            [task for (tasks, _), _ in parts for task in tasks],
            [rate * r / sum(rates) for (_, rates), rate in parts for r in rates],
        )
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3)
        raise ValueError(
            f'no task or mixture is called {name!r}' + (f'; did you mean {" or ".join(near)}?' if near else '')
        )
    provider = seqio.get_mixture_or_task(name)
    tasks = seqio.get_subtasks(provider)
    if isinstance(provider, seqio.Task):
        return [provider], [1.0]
    return list(tasks), [float(provider.get_rate(task)) for task in tasks]


def _seeds(store: cache.Store) -> int:
    """How many wordings are measured.

    Speech tasks choose among few templates: all of them. A text task may draw more freely; what it draws later may be
    longer, see `_fitting`.
    """
    return preprocessors.MAX_TEMPLATES if 'speech' in store.spec else 3


def _measure_tokens(task: seqio.Task, store: cache.Store) -> dict[str, np.ndarray]:
    """Token lengths, the longest over the measured wordings, of the examples the task keeps."""
    n = len(store)
    result = {name: np.zeros(n, np.int64) for name in ('inputs', 'targets')}
    result['used'] = np.zeros(n, bool)
    bad = {}
    empty = {'speech': np.zeros(0, np.int16)} if 'speech' in store.spec else {}
    steps = _postcache(task, store.spec)
    for i, features in enumerate(store.all_features()):
        for seed in range(_seeds(store)):
            example = steps(dict(features, **empty, index=np.int64(i), template_seed=np.int64(seed)))
            if example is None:
                break
            result['used'][i] = True
            for name in ('inputs', 'targets'):
                result[name][i] = max(result[name][i], len(example.get(name, ())))
            if example.get('error'):
                bad[i] = example['error'].decode()
                break
    result['bad'] = np.array(list(bad), np.int64)
    result['errors'] = np.array(list(bad.values()), np.str_)
    return result


def _postcache(task: seqio.Task, spec: Mapping) -> Callable[[dict], dict | None]:
    """The task's steps after the placeholder, as a function of one example.

    Steps that are `preprocessors.ExampleStep`s are called as they are. Any other SeqIO step is run
    by TensorFlow over a dataset of that one example: right, but milliseconds instead of
    microseconds.
    """
    steps = task.preprocessors[task._cache_step_idx + 1 :]
    if all(isinstance(step, preprocessors.ExampleStep) for step in steps):

        def call(example):
            for step in steps:
                added = step.function({k: example[k] for k in step.reads if k in example}, task.output_features, None)
                if added is None:
                    return None
                example = {**example, **added}
            return example

        return call

    signature = {name: tf.TensorSpec([None] * rank, dtype) for name, (dtype, rank) in spec.items()}
    signature |= dict.fromkeys(('template_seed', 'index'), tf.TensorSpec((), tf.int64))

    @functools.partial(tf.function, input_signature=[signature], autograph=False)
    def run(example):
        dataset = tf.data.Dataset.from_tensors(example)
        return task.preprocess_postcache(dataset, sequence_length=None, seed=0).get_single_element()

    def call_tensorflow(example):
        try:
            result = run({k: tf.constant(v) for k, v in example.items()})
        except tf.errors.InvalidArgumentError as error:
            if 'empty' in str(error):  # a filter left the example out
                return None
            raise
        return {k: v.numpy() for k, v in result.items()}

    return call_tensorflow
