"""What a task computes before its cache placeholder, stored once for random access.

    CACHE_DIR/LABEL-SPLIT-FINGERPRINT/
        00000.arrayrecord …   records 2i and 2i+1: the features of example i, and its speech
        00000.json …          ids, samples, and what was left out, per shard
        store.json            written last: the store is whole

The name holds a fingerprint of the source and of the steps up to the placeholder, so tasks that
share those (transcribe and translate one corpus) share a store, and a changed task gets a new one.
Every shard takes its name when it is finished; a build that was cut goes on after the last of them.
"""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import inspect
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
import seqio
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from array_record.python import array_record_module

from slm_jax.data.preprocessors import BadExampleError

FORMAT = 1  # part of every fingerprint: raise it when what a step writes changes
SHARD_EXAMPLES = 1000


def default_dir() -> pathlib.Path:
    """$SLM_JAX_CACHE, or ~/.cache/slm_jax."""
    return pathlib.Path(os.environ.get('SLM_JAX_CACHE') or '~/.cache/slm_jax').expanduser()


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
    """Where the store of a task's split is, or will be."""
    _check_placeholder(task)
    steps = list(task.preprocessors[: task._cache_step_idx])
    description = [FORMAT, split, _describe_source(task, split), describe(steps)]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode())
    label = task.name
    if isinstance(task.source, seqio.TfdsDataSource):
        label = task.source.tfds_dataset.name
    elif hasattr(function := getattr(task.source, '_dataset_fn', None), 'label'):
        label = function.label(split)
    label = re.sub(r'[^\w.-]+', '_', label)
    split = re.sub(r'[^\w.-]+', '_', split)
    return pathlib.Path(cache_dir or default_dir()) / f'{label}-{split}-{digest.hexdigest()[:12]}'


def _check_placeholder(task: seqio.Task) -> None:
    if not task.supports_caching:
        raise ValueError(
            f'task {task.name!r} has no seqio.CacheDatasetPlaceholder: put one after '
            'the steps that are the same in every epoch'
        )


def fetch_source(task: seqio.Task) -> None:
    """Downloads what the task reads, where it is a TFDS data set that is not there yet."""
    if isinstance(task.source, seqio.TfdsDataSource):
        task.source.tfds_dataset.builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def open_store(
    task: seqio.Task,
    split: str,
    cache_dir: str | os.PathLike | None = None,
    on_bad_example: str = 'raise',
) -> 'Store':
    """Opens the store of a task's split; builds it first where it is missing or was cut.

    Args:
        task, split: what to read.
        cache_dir: where stores are kept; None = `default_dir()`.
        on_bad_example: 'raise' stops at the first example that cannot be used, 'skip' leaves it out
            and lists it in `Store.skipped`.

    Raises:
        BadExampleError: as said; also where an earlier run skipped examples and this one may not.
        ValueError: no such split, or no example in it.
    """
    if on_bad_example not in ('raise', 'skip'):
        raise ValueError(f"on_bad_example={on_bad_example!r}: 'raise' or 'skip' was expected")
    fetch_source(task)
    if split not in task.splits:
        raise ValueError(f'task {task.name!r} has no split {split!r}; it has {list(task.splits)}')
    directory = store_dir(task, split, cache_dir)
    if not (directory / 'store.json').exists():
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / 'lock', 'w') as lock:  # a second process waits, then finds it built
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / 'store.json').exists():
                _build(task, split, directory, on_bad_example)
    store = Store(directory)
    if store.skipped and on_bad_example == 'raise':
        raise BadExampleError(_REMEDY.format(store.skipped[0][1]))
    return store


_REMEDY = "{}\n(on_bad_example='skip' leaves such examples out, and counts and lists them.)"


def _source_examples(task: seqio.Task, split: str, skip: int) -> tf.data.Dataset:
    dataset = task.source.get_dataset(split=split, shuffle=False)
    if not isinstance(dataset.element_spec, Mapping):
        raise ValueError(f'the source of task {task.name!r} must give dictionaries')
    dataset = dataset.enumerate().map(lambda i, example: example | {'source_index': i})
    return task.preprocess_precache(dataset.skip(skip), seed=0)


def _build(task, split, directory: pathlib.Path, on_bad_example: str) -> None:
    done = sorted(directory.glob('*.json'))
    start = json.loads(done[-1].read_text())['next_source_index'] if done else 0
    dataset = _source_examples(task, split, start)
    spec = {name: [s.dtype.name, s.shape.rank] for name, s in dataset.element_spec.items() if name != 'source_index'}
    if 'source_index' not in dataset.element_spec and start:
        dataset = _source_examples(task, split, 0).skip(sum(len(json.loads(path.read_text())['ids']) for path in done))
    logging.info('Preparing %s %s in %s', task.name, split, directory)
    shards = len(done)
    bar = tqdm.tqdm(desc=f'Preparing {task.name} {split}', unit=' examples', mininterval=1)
    writer = _ShardWriter(directory, shards)
    last = start - 1
    for example in dataset.as_numpy_iterator():
        last = int(example.pop('source_index', last + 1))
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
    bar.close()
    partial = directory / 'store.json.part'
    partial.write_text(json.dumps({'task': task.name, 'split': split, 'shards': shards, 'spec': spec}))
    partial.rename(directory / 'store.json')


class _ShardWriter:
    def __init__(self, directory: pathlib.Path, number: int):
        self._path = directory / f'{number:05d}.arrayrecord'
        self._writer = None
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
            raise ValueError(
                f'{about["task"]}: split {about["split"]!r} holds no usable example '
                f'({len(self.skipped)} were skipped). See {self.directory}'
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
