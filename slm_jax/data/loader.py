"""From a SeqIO task or mixture to batches: stores (cache.py), a plan (plan.py), and a thread."""

import slm_jax.data.tensorflow_cpu  # isort: skip  before others load TensorFlow  # noqa: F401

import atexit
import dataclasses
import difflib
import hashlib
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

import gin
from slm_jax.audio.augmentation import WaveformAugmentation
from slm_jax.data import alignments, cache, feature_converter, frames, measure, mixtures, notices, preprocessors, seen
from slm_jax.data import plan as plan_lib

HostRows = Callable[[int], Iterable[int]]
_LOOKED_AT = 32  # examples of a task, evenly over all, that stand for it
DEFAULT_LENGTHS = {'speech': 120 * 16000, 'inputs': 1024, 'targets': 2048, 'teacher_inputs': 2048}


@dataclasses.dataclass(frozen=True)
class ExampleInfo:
    """What a report wants to know of one example of an evaluation.

    Attributes:
        id, task, lang, target_lang: '' where not known.
        instruction, reference: the texts that were encoded as inputs and targets.
        audio: the recording's path, None where the source gave samples.
        seconds: length of the speech.
        offset: where in the recording it begins, in seconds; None where it is all of it.
        phrases: those that are said; None where nothing is known of them.
    """

    id: str
    task: str
    lang: str
    target_lang: str
    instruction: str
    reference: str
    audio: str | None
    seconds: float
    offset: float | None = None
    phrases: Sequence[str] | None = None


@gin.configurable
class SpeechTextLoader:
    """Batches of a registered task or mixture.

    Stores that are missing are built first. Which examples make up the batch of a step depends on
    the data, the seed and the step only: not on the hosts, nor on what was read before.

    Args:
        mixture_or_task_name: a registered name, or a mixture on the spot: {name: rate}.
        split: 'train', 'validation' or 'test', as the tasks have them.
        seconds_per_batch: seconds of (padded) audio in a batch, over all hosts.
        task_feature_lengths: the most that is allowed of 'speech' (samples), 'inputs', 'targets' and 'teacher_inputs'
            (tokens). What is longer is a bad example; nothing is ever cut. Default: `DEFAULT_LENGTHS`.
        num_buckets: the most static shapes; fewer where 91% of the samples are speech already.
        seed: of order and wordings.
        cache_dir: where stores are; None = `paths.cache()`.
        on_bad_example: 'raise' stops, 'skip' goes on, counts and lists (`skipped`).
        row_multiple: rows of every batch are a multiple of this. Those that the devices do not divide are filled up
            with empty rows.
        tokens_per_batch: see `plan.Plan`.
        prefetch: batches made ahead.
        encoder_seconds, shape_cost: see `plan.Plan`.
        data_dir: where TFDS keeps its data; None = $TFDS_DATA_DIR or ~/tensorflow_datasets.
        teacher: whether batches have `teacher_input_tokens`: the prompt with the transcript in the place of the speech,
            for a system whose `objective` has a teacher. `slm-jax train` asks for it by itself.
        token_ends: likewise, by alignments of manifests (alignments.py); 0 where there are none.
        encoder: whose stored frames are read in the place of recordings; None: the recordings.
        augmentation: changes recordings each time they are read; None: they are as stored. In gin it is given to
            `train/`, or training's validation is changed as well.
        limit: the first so many examples of each task that can be used; None: all.

    Raises:
        ValueError: an argument that cannot be; a split or file that is not there; a task whose targets the tokenizer
            cannot write; a store without the encoder's frames.
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
        on_bad_example: str = 'raise',
        row_multiple: int = 1,
        tokens_per_batch: int | None = None,
        prefetch: int = 4,
        data_dir: str | os.PathLike | None = None,
        encoder_seconds: float = 0.0,
        shape_cost: float = 0.0,
        teacher: bool = False,
        token_ends: bool = False,
        encoder: frames.Encoder | None = None,
        augmentation: WaveformAugmentation | None = None,
        limit: int | None = None,
    ):
        _check('seconds_per_batch', seconds_per_batch, 'a number of seconds above 0', float, above=0)
        _check('num_buckets', num_buckets, 'a whole number from 1 on')
        _check('seed', seed, 'a whole number from 0 on', above=-1)
        _check('row_multiple', row_multiple, 'a whole number from 1 on')
        _check('prefetch', prefetch, 'a whole number from 1 on')
        for name, value in (('tokens_per_batch', tokens_per_batch), ('limit', limit)):
            if value is not None:
                _check(name, value, 'a whole number from 1 on')
        _check('encoder_seconds', encoder_seconds, 'a number of seconds from 0 on', float, above=-1e-9)
        _check('shape_cost', shape_cost, 'a share of the training, from 0 on,', float, above=-1e-9)
        _check_lengths(task_feature_lengths)
        if data_dir:
            seqio.set_tfds_data_dir_override(str(data_dir))
        self._tasks, rates = mixtures.tasks_and_rates(mixture_or_task_name)
        self.name = ', '.join(task.name for task in self._tasks[:3])
        self.vocabulary = self._tasks[0].output_features['targets'].vocabulary
        self.split = split
        self._lengths = {**DEFAULT_LENGTHS, **(task_feature_lengths or {})}
        self._prefetch = prefetch
        self.skipped: list[tuple[str, str]] = []
        self._stores = cache.open_stores(self._tasks, split, cache_dir, on_bad_example)
        for store in {id(store): store for store in self._stores}.values():
            self.skipped += store.skipped
        self._augmentation = augmentation
        if augmentation:
            augmentation.check()
        self._encoder = encoder if any(store.samples.any() for store in self._stores) else None
        if self._encoder:
            if augmentation:
                raise ValueError(
                    'SpeechTextLoader.augmentation changes recordings, which stored frames do not show. Set ENCODED to '
                    'False, or leave it out: SpeechEncoder.frame_augmentation changes frames.'
                )
            for task, store in zip(self._tasks, self._stores):
                frames.check(task, store, self._encoder)
            self._lengths['speech'] = int(min(self._lengths['speech'], self._encoder.most_samples))
        self._limit = limit
        self._unknown: list[dict[str, np.ndarray]] = []
        self._seen: list[dict[str, np.ndarray]] = []
        self._teacher, self._teacher_inputs = teacher, []
        self._token_ends = token_ends
        self.planned = [
            self._measure(task, store, rate, on_bad_example)
            for task, store, rate in zip(self._tasks, self._stores, rates)
        ]
        self.plan = plan_lib.Plan(
            self.planned,
            seconds_per_batch,
            num_buckets,
            seed,
            row_multiple,
            tokens_per_batch,
            self._lengths,
            encoder_seconds=encoder_seconds,
            shape_cost=shape_cost,
        )
        self._longest_teacher = self.plan.longest(self._teacher_inputs) if teacher else []
        self.speech_fill = self.plan.speech_fill
        self._shapes = [self._shapes_of(bucket) for bucket in self.plan.buckets]
        for shape, length in zip(self._shapes, self._longest_teacher):
            shape['teacher_input_tokens'] = ((shape['speech_lengths'][0][0], length), np.dtype(np.int32))
        self._steps: list[Any] = [
            measure.postcache(task, store.spec, teacher) for task, store in zip(self._tasks, self._stores)
        ]
        self._seed = seed
        self._waited = self._elapsed = 0.0
        self._report(num_buckets)

    @property
    def seen(self) -> dict[str, np.ndarray]:
        """Hashes of the texts; see `slm_jax.data.seen`."""
        return seen.joined(self._seen)

    def _report(self, num_buckets: int) -> None:
        """Says what there is, and what a person should know of it."""
        hours = sum(task.samples.sum() for task in self.planned) / 16000 / 3600
        count, name = sum(len(task.index) for task in self.planned), f'{self.name} {self.split}'
        text = f'{name}: {count} examples, {hours:.2f} h; {len(self.plan.buckets)} shapes'
        if hours:
            text += f'; {self.speech_fill:.0%} of the samples sent are speech'
        if self.speech_fill < 0.9:
            text += f' (more with num_buckets, NUM_BUCKETS, above {num_buckets}, or fewer very long clips)'
        notices.say(text)
        letters, lost = (np.concatenate([part[key] for part in self._unknown]) for key in ('letters', 'lost'))
        if lost.any():
            shown = np.concatenate([part['shown'] for part in self._unknown])
            notices.say(
                f'WARNING: {name}: {(lost > 0).sum()} of {len(lost)} targets hold characters that the tokenizer writes '
                f'as unknown, {lost.sum() / letters.sum():.1%} of all letters: {", ".join(shown[:3])}. The model can '
                'neither learn nor write them.'
            )
        if self.skipped:
            notices.say(notices.listing(name, [error for _, error in self.skipped]))

    # ------------------------------------------------------------------ lengths

    def _measure(self, task: seqio.Task, store: cache.Store, rate: float, on_bad_example: str) -> plan_lib.TaskLengths:
        """The lengths of the examples that can be used; the others are skipped, or stop it all."""
        measured = measure.measure(task, store, self._teacher)
        self._seen.append({kind: measured[f'seen_{kind}'] for kind in seen.KINDS})
        good = measured['used'].copy()
        lengths = {
            'speech': store.samples,
            'inputs': measured['inputs'],
            'targets': measured['targets'],
        }
        if self._teacher:
            lengths['teacher_inputs'] = measured['teacher_inputs']
        errors = {int(i): str(e) for i, e in zip(measured['bad'], measured['errors'])}
        for feature in lengths:
            for i in np.nonzero(good & (lengths[feature] > self._lengths[feature]))[0]:
                name = measure.name_of(store.features(int(i)))
                errors.setdefault(
                    int(i),
                    preprocessors.too_long(name, feature, int(lengths[feature][i]), self._lengths[feature]),
                )
        if errors and on_bad_example == 'raise':
            raise preprocessors.BadExampleError(
                f"{task.name}: {next(iter(errors.values()))}\n(on_bad_example='skip' leaves such examples out.)"
            )
        for number, error in errors.items():
            good[number] = False
            self.skipped.append((store.name(number), error))
        index = np.nonzero(good)[0][: self._limit].astype(np.min_scalar_type(len(good)))
        if not len(index):
            first = f'; the first fault: {next(iter(errors.values()))}' if errors else ''
            raise ValueError(f'{task.name}: no usable example in split {self.split!r}{first}')
        unknown = {'letters': measured['letters'][index], 'lost': measured['lost'][index], 'shown': measured['shown']}
        if unknown['lost'].any() and (unknown['lost'] == unknown['letters']).all():
            raise ValueError(
                f'{task.name}: the tokenizer writes all {len(index)} targets of split {self.split!r} as unknown: '
                f'{measured["shown"][0]}. Choose a foundation whose tokenizer has these characters '
                '(language models: mT5, UMT5, ByT5).'
            )
        self._unknown.append(unknown)
        usable = {'samples' if name == 'speech' else name: length[index] for name, length in lengths.items()}
        if self._teacher:
            self._teacher_inputs.append(usable.pop('teacher_inputs'))
        return plan_lib.TaskLengths(index, **usable, rate=rate)

    # ------------------------------------------------------------------ batches

    def _example(self, task: int, position: int, seed: int, listen: bool = True) -> dict[str, Any]:
        """One example after all steps of its task; `listen`: False gives silence in the place of its recording."""
        store, index = self._stores[task], int(self.planned[task].index[position])
        example = dict(store.features(index), template_seed=np.int64(seed), index=np.int64(index))
        if 'speech' in store.spec:
            silence = np.broadcast_to(np.int16(0), store.samples[index])
            speech = store.speech(index) if listen and not self._encoder else silence
            example['speech'] = self._augmentation(speech, (seed, index)) if listen and self._augmentation else speech
        example = self._steps[task](example)
        if self._token_ends:
            example = {**example, 'token_ends': alignments.token_ends(example, self.vocabulary)}
        if listen and self._encoder and store.samples[index]:
            width = self._shapes[0]['speech_frames'][0][2]
            example = {**example, 'frames': frames.read(store, self._encoder, index, width)}
        return example

    def fitting(self, bucket: plan_lib.Bucket, task: int, position: int, seed: int) -> dict:
        """`_example`; a wording that is too long for the bucket gives way to a measured one."""
        example = self._example(task, position, seed)
        if any(len(example[name]) > getattr(bucket, name) for name in ('inputs', 'targets')):
            measured = measure.wordings(self._tasks[task], self._stores[task])
            example = self._example(task, position, seed % measured)
        return example

    def _batch(
        self, batch: plan_lib.Batch, host_rows: HostRows | None
    ) -> tuple[dict[str, np.ndarray], list[tuple[int, dict] | None]]:
        """A host's rows of a batch, and of each of them (task, example); None for an empty row."""
        bucket, count = self.plan.buckets[batch.bucket], len(batch.rows)
        lengths = {'speech': bucket.samples, 'inputs': bucket.inputs, 'targets': bucket.targets}
        if self._teacher:
            lengths['teacher_inputs'] = self._longest_teacher[batch.bucket]
        if self._token_ends:
            lengths['token_ends'] = bucket.targets
        planned = [batch.rows[row] if row < count else None for row in (host_rows or range)(count)]
        examples = [
            None if row is None or row[0] < 0 else (int(row[0]), self.fitting(bucket, *map(int, row)))
            for row in planned
        ]
        rows = [feature_converter.model_features(example[1] if example else {}, lengths) for example in examples]
        if self._encoder:
            shape = self._shapes[batch.bucket]['speech_frames'][0][1:]
            given = [example[1].get('frames') if example else None for example in examples]
            rows = [feature_converter.with_frames(row, made, shape) for row, made in zip(rows, given)]
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if 'first_tokens' in self._shapes[batch.bucket]:
            arrays['first_tokens'] = arrays['decoder_target_tokens'][:, 0].copy()
        return arrays, examples

    def batches(
        self, start_step: int = 0, host_rows: HostRows | None = None
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) for ever, from `start_step`; made ahead by a thread.

        Args:
            start_step: the first one.
            host_rows: from the number of rows of a batch to those that this host takes; from that number on they are
                empty. None: all of them.
        """

        def make():
            step = start_step
            while True:
                yield step, self._batch(self.plan.batch(step), host_rows)[0]
                step += 1

        return self.ahead(make())

    def examples(
        self, host_rows: HostRows | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], list[ExampleInfo | None]]]:
        """Every example once: (batch, what each of its rows is; None for an empty row). `host_rows` as in `batches`."""

        def make():
            for batch in self.plan.evaluation():
                arrays, examples = self._batch(batch, host_rows)
                yield arrays, [example and self._info(*example) for example in examples]

        return self.ahead(make())

    def some_examples(self) -> dict[str, np.ndarray]:
        """A batch of some examples of each task, without their samples, to see what kinds there are."""
        chosen = [
            (number, position)
            for number, task in enumerate(self.planned)
            for position in np.unique(np.linspace(0, len(task.index) - 1, _LOOKED_AT).astype(int)).tolist()
        ]
        examples = [self._example(*each, 0, listen=False) for each in chosen]
        heard = [len(each.pop('speech', ())) for each in examples]
        lengths = {name: max(len(each.get(name, ())) for each in examples) for name in DEFAULT_LENGTHS}
        if not self._teacher:
            del lengths['teacher_inputs']
        if self._token_ends:
            lengths['token_ends'] = lengths['targets']
        rows = [feature_converter.model_features(each, lengths) for each in examples]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return batch | {'speech_lengths': np.array(heard, np.int32)}

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
            offset=float(text('offset')) if text('offset') else None,
            phrases=json.loads(text('phrases')) if text('phrases') else None,
        )

    def ahead(self, items: Iterator) -> Iterator:
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

    def batch_shapes(self) -> list[dict[str, tuple[tuple[int, ...], Any]]]:
        """Per bucket {name: (shape of the global batch, dtype)}."""
        return self._shapes

    def _shapes_of(self, bucket: plan_lib.Bucket) -> dict[str, tuple[tuple[int, ...], Any]]:
        shapes = {
            'speech_samples': ((bucket.rows, bucket.samples), np.dtype(np.int16)),
            'speech_lengths': ((bucket.rows,), np.dtype(np.int32)),
            'encoder_input_tokens': ((bucket.rows, bucket.inputs), np.dtype(np.int32)),
            'decoder_input_tokens': ((bucket.rows, bucket.targets), np.dtype(np.int32)),
            'decoder_target_tokens': ((bucket.rows, bucket.targets), np.dtype(np.int32)),
            'decoder_loss_weights': ((bucket.rows, bucket.targets), np.dtype(np.float32)),
        }
        if self._token_ends:
            shapes['token_ends'] = ((bucket.rows, bucket.targets), np.dtype(np.float32))
        if getattr(self.vocabulary, 'languages', ()):  # with their codes targets begin, and so do the answers shown
            shapes['first_tokens'] = shapes['speech_lengths']
        return self._encoder.shapes(shapes) if self._encoder else shapes

    def state(self) -> dict:
        """What, with the step, fixes the data: a checkpoint stores it, and a resume compares it."""
        digest = hashlib.sha256(repr((self._seed, self.plan.buckets)).encode())
        for array in self._teacher_inputs:
            digest.update(array.astype(np.int64).tobytes())
        for task in self.planned:
            for array in (task.index, task.samples, task.inputs, task.targets):
                for start in range(0, len(array), plan_lib.LARGE):
                    digest.update(array[start : start + plan_lib.LARGE].astype(np.int64).tobytes())
            digest.update(repr(task.rate).encode())
        return {
            'seed': self._seed,
            'split': self.split,
            'tasks': [task.name for task in self._tasks],
            'plan': digest.hexdigest(),
            **({'encoder': self._encoder.key} if self._encoder else {}),
            **({'augmentation': repr(self._augmentation)} if self._augmentation else {}),
        }


# The macros of gin/runs that set an argument.
_MACROS = {
    'row_multiple': 'ROW_MULTIPLE',
    'seconds_per_batch': 'BATCH_SECONDS',
    'num_buckets': 'NUM_BUCKETS',
    'seed': 'RANDOM_SEED',
    'encoder_seconds': 'ENCODER_SECONDS',
    'shape_cost': 'SHAPE_COST',
}


def _check(name: str, value: Any, expected: str, kind: type = int, above: float = 0) -> None:
    """Refuses an argument that is no such number; names it and its macro."""
    if type(value) not in {int, kind} or not above < value < math.inf:
        macro = f' ({_MACROS[name]})' if name in _MACROS else ''
        raise ValueError(f'{name}{macro} is {value!r}; {expected} was expected.')


def _check_lengths(lengths: Mapping[str, int] | None) -> None:
    """Refuses a feature that there is not, and a length that is none."""
    argument = 'task_feature_lengths (TASK_FEATURE_LENGTHS)'
    if not isinstance(lengths, (Mapping, type(None))):
        raise ValueError(f"{argument} is {lengths!r}; {{'speech': samples, 'inputs': tokens, …}} was expected.")
    for name, length in (lengths or {}).items():
        if name not in DEFAULT_LENGTHS:
            near = difflib.get_close_matches(str(name), DEFAULT_LENGTHS, n=1)
            raise ValueError(
                f'{argument} has no {name!r}; '
                + (f'did you mean {near[0]!r}?' if near else f'there are {", ".join(DEFAULT_LENGTHS)}.')
            )
        if type(length) is not int or length < 1:
            unit = 'samples' if name == 'speech' else 'tokens'
            raise ValueError(f'{argument}: {name!r} is {length!r}; a whole number of {unit} from 1 on was expected.')
