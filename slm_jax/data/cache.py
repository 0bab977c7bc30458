"""What a task computes before its cache placeholder, stored once for random access.

    CACHE_DIR/LABEL-SPLIT-FINGERPRINT[-STATE]/
        00000.arrayrecord …   records 2i and 2i+1: the features of example i, and its speech
        00000.json …          ids, samples, and what was left out, per shard
        store.json            written last: the store is whole

The name holds a fingerprint of the source and of the steps up to the placeholder, so tasks that
share those (transcribe and translate one corpus) share a store, and a changed task gets a new one.
So does a changed manifest, or one of whose recordings changed: the state is that of these files.
Every shard takes its name when it is finished; a build that was cut goes on after the last of them.
"""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import inspect
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from slm_jax.data import notices
from slm_jax.data.preprocessors import BadExampleError
from slm_jax.foundations import verification

FORMAT = 1  # part of every fingerprint: raise it when what a step writes changes
SHARD_EXAMPLES = 1000
_MOST_FAULTS = 1000  # one after the other; a source that cannot go on fails for ever


def describe(thing) -> object:
    """A JSON-able description of a step or source: the same where it does the same."""
    if isinstance(thing, functools.partial):
        return ['partial', describe(thing.func), describe(thing.args), describe(thing.keywords)]
    if inspect.isfunction(thing):
        with contextlib.suppress(OSError, TypeError):
            cells = [c.cell_contents for c in thing.__closure__ or ()]
            return [thing.__module__, inspect.getsource(thing), describe(cells)]
    if isinstance(getattr(thing, 'fingerprint', None), str):
        return thing.fingerprint
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return [type(thing).__qualname__, describe(vars(thing))]
    if isinstance(thing, Mapping):
        return {str(k): describe(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(v) for v in thing]
    if thing is None or isinstance(thing, (str, int, float)):
        return thing
    text = repr(thing)
    if re.search(r' at 0x[0-9a-f]+', text):  # an object without a repr of its own
        return [
            type(thing).__qualname__,
            describe(vars(thing) if hasattr(thing, '__dict__') else {}),
        ]
    return text


def _describe_source(task: seqio.Task, split: str) -> object:
    source = task.source
    if isinstance(source, seqio.TfdsDataSource):
        loader = source.tfds_dataset
        return [
            'tfds',
            loader.name,
            loader.data_dir,
            source._splits if hasattr(source, '_splits') else split,
            getattr(loader, '_split_map', None),
        ]
    if isinstance(source, seqio.FunctionDataSource):
        function = source._dataset_fn  # SeqIO gives no public way to it
        if hasattr(function, 'fingerprint'):
            return ['function', function.fingerprint(split)]
        return ['function', describe(function)]
    return [type(source).__qualname__, describe(vars(source))]


def store_dir(task: seqio.Task, split: str, cache_dir: str | os.PathLike | None) -> pathlib.Path:
    """Where the store of a task's split is, or will be.

    Raises:
        ValueError: no such split, or a manifest that cannot be read.
    """
    _check_placeholder(task)
    if split not in task.splits:
        raise ValueError(
            f'task {task.name!r} has no split {split!r}; it has {list(task.splits)}. Choose one of these, give '
            'tasks.manifest.path a file for it where the task is a manifest, or train without evaluation: '
            '--gin.train.eval_loaders={}'
        )
    steps = list(task.preprocessors[: task._cache_step_idx])
    description = [FORMAT, split, _describe_source(task, split), describe(steps)]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode())
    label, state = task.name, ''
    if isinstance(task.source, seqio.TfdsDataSource):
        label = task.source.tfds_dataset.name
    elif (function := getattr(task.source, '_dataset_fn', None)) and hasattr(function, 'state'):
        label, state = function.label(split), f'-{function.state(split)[:8]}'
    label = re.sub(r'[^\w.-]+', '_', label)
    split = re.sub(r'[^\w.-]+', '_', split)
    return pathlib.Path(cache_dir or verification.cache()) / f'{label}-{split}-{digest.hexdigest()[:12]}{state}'


def _check_placeholder(task: seqio.Task) -> None:
    if not task.supports_caching:
        raise ValueError(
            f'task {task.name!r} has no seqio.CacheDatasetPlaceholder: put one after '
            'the steps that are the same in every epoch'
        )


def fetch_source(task: seqio.Task) -> None:
    """Downloads what the task reads, where it is a TFDS data set that is not there yet.

    Raises:
        ValueError, OSError: TFDS cannot; says why.
    """
    if isinstance(task.source, seqio.TfdsDataSource):
        try:
            task.source.tfds_dataset.builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise ValueError(f'{task.name}: TFDS cannot prepare its data ({type(error).__name__}: {error})') from error


def open_store(
    task: seqio.Task,
    split: str,
    cache_dir: str | os.PathLike | None = None,
    on_bad_example: str = 'raise',
) -> 'Store':
    """Opens the store of a task's split; builds it first where it is missing or was cut.

    Args:
        task, split: what to read.
        cache_dir: where stores are kept; None = `verification.cache()`.
        on_bad_example: 'raise' stops at the first example that cannot be used, 'skip' leaves it out
            and lists it in `Store.skipped`.

    Raises:
        BadExampleError: as said; also where an earlier run skipped examples and this one may not.
        ValueError: no such split, or no example in it.
    """
    return open_stores([task], split, cache_dir, on_bad_example)[0]


def open_stores(
    tasks: Sequence[seqio.Task],
    split: str,
    cache_dir: str | os.PathLike | None = None,
    on_bad_example: str = 'raise',
) -> list['Store']:
    """`open_store` for each of the tasks; those that share a store get the same object."""
    if on_bad_example not in ('raise', 'skip'):
        raise ValueError(f"on_bad_example={on_bad_example!r}: 'raise' or 'skip' was expected")
    stores: dict[pathlib.Path, Store] = {}
    result = []
    for task in tasks:
        fetch_source(task)
        directory = store_dir(task, split, cache_dir)
        if not (directory / 'store.json').exists():
            directory.mkdir(parents=True, exist_ok=True)
            with open(directory / 'lock', 'w') as lock:  # a second process waits, then finds it built
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (directory / 'store.json').exists():
                    _build(task, split, directory, on_bad_example)
        if directory not in stores:
            stores[directory] = Store(directory)
        result.append(stores[directory])
        if result[-1].skipped and on_bad_example == 'raise':
            raise BadExampleError(_REMEDY.format(result[-1].skipped[0][1]))
    return result


_REMEDY = "{}\n(on_bad_example='skip' leaves such examples out, and counts and lists them.)"


def _source_examples(task: seqio.Task, split: str, skip: int) -> tf.data.Dataset:
    dataset = task.source.get_dataset(split=split, shuffle=False)
    if not isinstance(dataset.element_spec, Mapping):
        raise ValueError(f'the source of task {task.name!r} must give dictionaries')
    dataset = dataset.enumerate().map(lambda i, example: example | {'source_index': i})
    return task.preprocess_precache(dataset.skip(skip), seed=0)


def _say_what_is_stale(task: seqio.Task, split: str, directory: pathlib.Path) -> None:
    """Names the stores of what the same files were before."""
    if hasattr(getattr(task.source, '_dataset_fn', None), 'state'):
        same = glob.escape(directory.name.rpartition('-')[0]) + '-*'
        stale = sorted(str(path) for path in directory.parent.glob(same) if path != directory)
        if stale:
            notices.say(
                f'{task.name} {split}: the manifest or its recordings are not what they were. Stores of before, which '
                f'may be deleted: {", ".join(stale)}'
            )


def _examples(task: seqio.Task, split: str, dataset: tf.data.Dataset, start: int) -> Iterator[tuple[int, dict]]:
    """(index in the source, example); of what a step could not make, an example with an `error` alone.

    Raises:
        ValueError: the source itself cannot be read on.
    """
    examples, last, faults = dataset.as_numpy_iterator(), start - 1, 0
    while True:
        try:
            example = next(examples)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            last, faults = last + 1, faults + 1
            reason = f'{task.name} {split}: example {last} of the source: {reason_of(error)}'
            ended = isinstance(error, tf.errors.DataLossError) or 'generator_py_func' in error.message
            if ended or faults > _MOST_FAULTS:
                raise ValueError(f'{reason}\nThe source cannot be read on: mend it, or fetch it again.') from error
            yield last, {'id': f'{task.name}/{split}/{last}'.encode(), 'error': reason.encode()}
        else:
            last, faults = int(example.pop('source_index', last + 1)), 0
            yield last, example


def reason_of(error: tf.errors.OpError) -> str:
    """What went wrong in a function that TensorFlow called, or in TensorFlow, without its traceback."""
    text = re.sub(r'\{\{[^}]*\}\}|\[\[.*?\]\]|\[Op:.*?\]', '', error.message).strip()
    text = text.split('\nTraceback')[0].split('\n')[0]
    return re.sub(
        r'^Error in user-defined function passed to \S+ transformation with iterator: \S+: ', '', text
    ).strip()


def _build(task, split, directory: pathlib.Path, on_bad_example: str) -> None:
    done = sorted(directory.glob('*.json'))
    start = json.loads(done[-1].read_text())['next_source_index'] if done else 0
    dataset = _source_examples(task, split, start)
    spec = {name: [s.dtype.name, s.shape.rank] for name, s in dataset.element_spec.items() if name != 'source_index'}
    if 'source_index' not in dataset.element_spec and start:
        dataset = _source_examples(task, split, 0).skip(sum(len(json.loads(path.read_text())['ids']) for path in done))
    _say_what_is_stale(task, split, directory)
    shards = len(done)
    bar = tqdm.tqdm(desc=f'Preparing {task.name} {split}', unit=' examples', mininterval=1)
    writer = _ShardWriter(directory, shards)
    last = start - 1
    with contextlib.closing(bar):
        for last, example in _examples(task, split, dataset, start):
            error = example.get('error', b'').decode()
            if error and on_bad_example == 'raise':
                raise BadExampleError(_REMEDY.format(error))
            writer.add(example, error)
            bar.update()
            if len(writer.ids) + len(writer.skipped) == SHARD_EXAMPLES:
                writer.finish(last + 1)
                shards += 1
                writer = _ShardWriter(directory, shards)
    if writer.ids or writer.skipped:
        writer.finish(last + 1)
        shards += 1
    partial = directory / 'store.json.part'
    partial.write_text(json.dumps({'task': task.name, 'split': split, 'shards': shards, 'spec': spec}))
    partial.rename(directory / 'store.json')


class _ShardWriter:
    def __init__(self, directory: pathlib.Path, number: int):
        self._path = directory / f'{number:05d}.arrayrecord'
        self._writer: Any = None
        self.ids, self.samples, self.skipped = [], [], []

    def add(self, example: dict, error: str) -> None:
        name = example.get('id', b'').decode() or str(len(self.ids))
        if error:
            self.skipped.append([name, error])
            return
        if self._writer is None:
            self._writer = array_record_module.ArrayRecordWriter(f'{self._path}.part', 'group_size:1,uncompressed')
        speech = example.pop('speech', np.zeros(0, np.int16))
        self.ids.append(name)
        self.samples.append(len(speech))
        self._writer.write(_pack(example))
        self._writer.write(speech.astype('<i2').tobytes())

    def finish(self, next_source_index: int) -> None:
        if self._writer is not None:
            self._writer.close()
            os.rename(f'{self._path}.part', self._path)
        index = self._path.with_suffix('.json')
        partial = index.with_suffix('.part')
        partial.write_text(
            json.dumps(
                {
                    'ids': self.ids,
                    'samples': self.samples,
                    'skipped': self.skipped,
                    'next_source_index': next_source_index,
                }
            )
        )
        partial.rename(index)


def _pack(example: Mapping[str, np.ndarray | bytes]) -> bytes:
    """Length-prefixed JSON header {name: [dtype, shape, bytes]}, then the values."""
    header, values = {}, []
    for name, value in example.items():
        if isinstance(value, bytes):
            header[name] = ['string', [], len(value)]
        else:
            value = np.asarray(value)
            if value.dtype == object:
                raise ValueError(f'feature {name!r}: only single strings and numbers are stored')
            header[name] = [value.dtype.name, value.shape, value.nbytes]
            value = value.tobytes()
        values.append(value)
    head = json.dumps(header).encode()
    return len(head).to_bytes(4, 'little') + head + b''.join(values)


def _unpack(record: bytes) -> dict[str, np.ndarray | bytes]:
    position = 4 + int.from_bytes(record[:4], 'little')
    example = {}
    for name, (dtype, shape, size) in json.loads(record[4:position]).items():
        value = record[position : position + size]
        example[name] = value if dtype == 'string' else np.frombuffer(value, dtype).reshape(shape)
        position += size
    return example


@dataclasses.dataclass
class Store:
    """Random access to a task's stored examples.

    Attributes:
        ids: [n] names of the examples.
        samples: int64 [n], length of each one's speech.
        skipped: (id, what was wrong) of the examples that could not be used.
        spec: {feature: (dtype name, rank)}.
    """

    directory: pathlib.Path

    def __post_init__(self):
        about = json.loads((self.directory / 'store.json').read_text())
        self.spec = {name: tuple(value) for name, value in about['spec'].items()}
        self.ids, self.skipped, samples, starts = [], [], [], [0]
        for number in range(about['shards']):
            shard = json.loads((self.directory / f'{number:05d}.json').read_text())
            self.ids += shard['ids']
            self.skipped += [tuple(entry) for entry in shard['skipped']]
            samples += shard['samples']
            starts.append(len(self.ids))
        self.samples = np.array(samples, np.int64)
        self._starts = np.array(starts)
        self._readers = {}
        if not self.ids:
            first = f' ({len(self.skipped)} were skipped; the first: {self.skipped[0][1]})' if self.skipped else ''
            raise ValueError(
                f'{about["task"]}: split {about["split"]!r} holds no usable example{first}. See {self.directory}'
            )

    def __len__(self) -> int:
        return len(self.ids)

    def _record(self, index: int, offset: int) -> bytes:
        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        if shard not in self._readers:
            self._readers[shard] = array_record_module.ArrayRecordReader(
                str(self.directory / f'{shard:05d}.arrayrecord'),
                'readahead_buffer_size:0,max_parallelism:0',
            )
        return self._readers[shard].read([2 * (index - int(self._starts[shard])) + offset])[0]

    def features(self, index: int) -> dict[str, np.ndarray | bytes]:
        """Everything but the speech."""
        return _unpack(self._record(index, 0))

    def speech(self, index: int) -> np.ndarray:
        """int16 [samples]."""
        return np.frombuffer(self._record(index, 1), '<i2')

    def all_features(self) -> Iterator[dict[str, np.ndarray | bytes]]:
        """`features` of every example, in order."""
        return (self.features(index) for index in range(len(self)))
