"""The shards of a store: shard i holds what a task makes of the examples [1000 i, 1000 (i + 1)) of its source.

    00000.arrayrecord   records 2k and 2k+1: the features of the shard's k-th example, and its speech
    00000.json          ids, samples, and what was left out; written last

One machine goes through the source once; many make some shards each. What they write is the same.
"""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
from array_record.python import array_record_module

from slm_jax import paths
from slm_jax.data import sources
from slm_jax.data.preprocessors import BadExampleError

SHARD_EXAMPLES = 1000
REMEDY = "{}\n(on_bad_example='skip' leaves such examples out, and counts and lists them.)"
_MOST_FAULTS = 1000  # one after the other; a source that cannot go on fails for ever


def done(directory: pathlib.Path) -> set[int]:
    """The shards that are finished."""
    return {int(path.stem) for path in directory.glob('[0-9]*.json')}


def build(
    task: seqio.Task,
    split: str,
    directory: pathlib.Path,
    first: int = 0,
    stop: int | None = None,
    on_bad_example: str = 'skip',
    wrote: Callable[[], Any] = lambda: None,
    pieces: Sequence[Any] | None = None,
) -> None:
    """Writes the shards `first` to `stop`, or to the end of the source; of a stopped build all that were finished stay.

    Args:
        task, split: what to read.
        directory: of the store.
        first, stop: numbers of shards.
        on_bad_example: see `cache.open_store`.
        wrote: called after each example.
        pieces: where the examples are, if that is known; see `sources.Contents`.

    Raises:
        BadExampleError: an example that cannot be used, unless these are skipped.
        ValueError: the source cannot be read on.
    """
    start, end = first * SHARD_EXAMPLES, None if stop is None else stop * SHARD_EXAMPLES
    shard = _Shard(directory, first)
    for index, example in _examples(task, split, _dataset(task, split, start, end, pieces), start):
        while index // SHARD_EXAMPLES > shard.number:
            shard.finish()
            shard = _Shard(directory, shard.number + 1)
        error = example.get('error', b'').decode()
        if error and on_bad_example == 'raise':
            raise BadExampleError(REMEDY.format(error))
        shard.add(example, error)
        wrote()
    if shard.ids or shard.skipped or stop is not None:
        shard.finish()
    for number in range(shard.number + 1, stop or 0):
        _Shard(directory, number).finish()


def spec(task: seqio.Task, split: str) -> dict[str, list]:
    """{feature: [dtype name, rank]} of what is stored."""
    stored = _dataset(task, split, 0, 0, []).element_spec
    return {name: [s.dtype.name, s.shape.rank] for name, s in stored.items() if name != 'source_index'}


def count(task: seqio.Task, split: str) -> int:
    """How many examples the source gives."""
    dataset = task.source.get_dataset(split=split, shuffle=False)
    known = int(dataset.cardinality())
    return known if known >= 0 else sum(1 for _ in dataset)


def files_of(task: seqio.Task) -> sources.Shards | None:
    """The task's source, if it is one of files that can be read from anywhere on."""
    function = getattr(task.source, '_dataset_fn', None)  # SeqIO gives no public way to it
    return function if isinstance(function, sources.Shards) else None


def _dataset(
    task: seqio.Task, split: str, start: int, stop: int | None, pieces: Sequence[Any] | None
) -> tf.data.Dataset:
    """What the task makes of the examples `start` to `stop` of its source, each with its `source_index`."""
    files = files_of(task)
    if files and (pieces is not None or start or stop):
        dataset = files.dataset(files.contents(split).pieces(start, stop) if pieces is None else pieces)
    else:
        dataset = task.source.get_dataset(split=split, shuffle=False).skip(start)
        dataset = dataset if stop is None else dataset.take(stop - start)
    if not isinstance(dataset.element_spec, Mapping):
        raise ValueError(f'the source of task {task.name!r} must give dictionaries')
    dataset = dataset.enumerate(start)
    result = task.preprocess_precache(dataset.map(lambda i, example: example | {'source_index': i}), seed=0)
    if 'source_index' in result.element_spec:
        return result

    def steps(index, example):  # one of them drops what it does not know
        made = task.preprocess_precache(tf.data.Dataset.from_tensors(example), seed=0)
        return made.map(lambda example: example | {'source_index': index})

    return dataset.flat_map(steps)


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
            last, faults = int(example.pop('source_index')), 0
            yield last, example


def reason_of(error: tf.errors.OpError) -> str:
    """What went wrong in a function that TensorFlow called, or in TensorFlow, without its traceback."""
    text = re.sub(r'\{\{[^}]*\}\}|\[\[.*?\]\]|\[Op:.*?\]', '', error.message).strip()
    text = text.split('\nTraceback')[0].split('\n')[0]
    return re.sub(
        r'^Error in user-defined function passed to \S+ transformation with iterator: \S+: ', '', text
    ).strip()


class _Shard:
    """A shard that is being written."""

    def __init__(self, directory: pathlib.Path, number: int):
        self.number, self._directory = number, directory
        self._writer: Any = None
        self._part = pathlib.Path()
        self.ids, self.samples, self.skipped = [], [], []

    def add(self, example: dict, error: str) -> None:
        name = example.get('id', b'').decode() or str(self.number * SHARD_EXAMPLES + len(self.ids))
        if error:
            self.skipped.append([name, error])
            return
        if self._writer is None:
            self._part = part_of(self._directory / f'{self.number:05d}.arrayrecord')
            self._writer = array_record_module.ArrayRecordWriter(str(self._part), 'group_size:1,uncompressed')
        speech = example.pop('speech', np.zeros(0, np.int16))
        self.ids.append(name)
        self.samples.append(len(speech))
        self._writer.write(pack(example))
        self._writer.write(speech.astype('<i2').tobytes())

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            publish(self._part, self._directory / f'{self.number:05d}.arrayrecord')
        about = {'ids': self.ids, 'samples': self.samples, 'skipped': self.skipped}
        paths.write(self._directory / f'{self.number:05d}.json', json.dumps(about))


def part_of(path: pathlib.Path) -> pathlib.Path:
    """Where a file of a store is written, always on this machine, before it takes its place by `publish`."""
    folder = tempfile.mkdtemp(prefix='slm_jax_') if paths.is_url(path) else path.parent
    return pathlib.Path(folder, f'{path.stem}.{os.getpid()}.part{path.suffix}')


def publish(part: pathlib.Path, path: pathlib.Path) -> None:
    """Puts a finished file in its place."""
    if paths.is_url(path):
        paths.upload(part, path)
        shutil.rmtree(part.parent)
    else:
        os.replace(part, path)


def pack(example: Mapping[str, np.ndarray | bytes]) -> bytes:
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


def unpack(record: bytes) -> dict[str, np.ndarray | bytes]:
    """What was packed."""
    position = 4 + int.from_bytes(record[:4], 'little')
    example = {}
    for name, (dtype, shape, size) in json.loads(record[4:position]).items():
        value = record[position : position + size]
        example[name] = value if dtype == 'string' else np.frombuffer(value, dtype).reshape(shape)
        position += size
    return example
