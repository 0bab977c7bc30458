"""What a task computes before its cache placeholder, stored once for random access.

    CACHE_DIR/LABEL-SPLIT-FINGERPRINT[-STATE]/
        00000.arrayrecord, 00000.json …   see shards.py
        samples.npy       of the speech of every example
        skipped.jsonl     every example that could not be used, and why
        store.json        written last: the store is whole

The name holds a fingerprint of the source and of the steps up to the placeholder, so tasks that
share those (transcribe and translate one corpus) share a store, and a changed task gets a new one.
So does a changed manifest, or one of whose recordings changed: the state is that of these files.
A build that was cut goes on after the shards that are finished, whoever made them. A store may be in
an object store; of such a one the shards that are read come to this machine's cache, one by one.
"""

import slm_jax.data.tensorflow_cpu  # isort: skip  before others load TensorFlow  # noqa: F401

import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import inspect
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures

import numpy as np
import seqio
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from slm_jax import paths
from slm_jax.data import json_lines, notices, shards
from slm_jax.data.preprocessors import BadExampleError

FORMAT = 2  # part of every fingerprint: raise it when what a step writes changes
_OPEN_SHARDS = 256  # of all stores together
_STAGED_SHARDS = 256  # of a store that is elsewhere, kept on this machine
_READERS = 32  # threads that read small files


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
    root = paths.path(cache_dir) if cache_dir else paths.cache()
    return root / f'{label}-{split}-{digest.hexdigest()[:12]}{state}'


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
        cache_dir: where stores are kept; None = `paths.cache()`.
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
            with locked(directory):
                if not (directory / 'store.json').exists():
                    _build(task, split, directory, on_bad_example)
        if directory not in stores:
            stores[directory] = Store(directory)
        result.append(stores[directory])
        if result[-1].skipped and on_bad_example == 'raise':
            raise BadExampleError(shards.REMEDY.format(result[-1].skipped[0][1]))
    return result


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """A second process waits, then finds the store built. An object store has no locks; there both write the same."""
    directory.mkdir(parents=True, exist_ok=True)
    if paths.is_url(directory):
        yield
        return
    with open(directory / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say_what_is_stale(task: seqio.Task, split: str, directory: pathlib.Path) -> None:
    """Names the stores of what the same files were before."""
    if hasattr(getattr(task.source, '_dataset_fn', None), 'state'):
        same = glob.escape(directory.name.rpartition('-')[0]) + '-*'
        stale = sorted(str(path) for path in directory.parent.glob(same) if path != directory)
        if stale:
            notices.say(
                f'{task.name} {split}: the manifest or its recordings are not what they were. Stores of before, which '
                f'may be deleted: {", ".join(stale)}'
            )


def _build(task: seqio.Task, split: str, directory: pathlib.Path, on_bad_example: str) -> None:
    say_what_is_stale(task, split, directory)
    with tqdm.tqdm(desc=f'Preparing {task.name} {split}', unit=' examples', mininterval=1) as bar:
        stop: int | None = 0
        while stop is not None:  # there may be finished shards in between
            done = shards.done(directory)
            first = next(number for number in itertools.count(stop) if number not in done)
            stop = min((number for number in done if number > first), default=None)
            shards.build(task, split, directory, first, stop, on_bad_example, bar.update)
    finish(task, split, directory)


def finish(task: seqio.Task, split: str, directory: pathlib.Path) -> None:
    """Makes a store of the shards in a directory, which are all there."""
    numbers = sorted(shards.done(directory))
    made = list(_map(functools.partial(_lengths, directory), numbers))
    while made and not len(made[-1][0]) and not made[-1][1]:  # a step left out the last examples
        made.pop()
        (directory / f'{numbers.pop():05d}.json').unlink()
    part = shards.part_of(directory / 'samples.npy')
    np.save(part, np.concatenate([np.zeros(0, np.uint32), *(samples for samples, _ in made)]))
    shards.publish(part, directory / 'samples.npy')
    list_skipped(directory, [fault for _, faults in made for fault in faults])
    whole = {'task': task.name, 'split': split, 'spec': shards.spec(task, split)}
    for left in directory.glob('*.part.*'):  # by builds that were cut
        left.unlink()
    paths.write(directory / 'store.json', json.dumps(whole | {'shards': [len(samples) for samples, _ in made]}))


def skipped(directory: pathlib.Path) -> list[tuple[int, str, str]]:
    """(shard, id, what was wrong) of what the finished shards left out."""
    numbers = sorted(shards.done(directory))
    made = _map(functools.partial(_lengths, directory), numbers)
    return [(number, *fault) for number, (_, faults) in zip(numbers, made) for fault in faults]


def list_skipped(directory: pathlib.Path, faults: Iterable[Sequence[str]]) -> None:
    """Writes the list of what was left out, (id, what was wrong)."""
    lines = [json.dumps({'id': name, 'error': error}, ensure_ascii=False) + '\n' for name, error in faults]
    paths.write(directory / 'skipped.jsonl', ''.join(lines))


def _about(directory: pathlib.Path, number: int) -> dict:
    return json.loads((directory / f'{number:05d}.json').read_text())


def _lengths(directory: pathlib.Path, number: int) -> tuple[np.ndarray, list[list[str]]]:
    """Of a shard the samples of each example, and what was left out: what is small of it."""
    about = _about(directory, number)
    return np.array(about['samples'], np.uint32), about['skipped']


def _map(function: Callable, items: Iterable) -> Iterator:
    """`function` of each, some at once: the files may be far away."""
    with futures.ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(function, items)


@dataclasses.dataclass
class Store:
    """Random access to a task's stored examples.

    Attributes:
        samples: uint32 [n], length of each one's speech.
        skipped: (id, what was wrong) of the examples that could not be used.
        spec: {feature: (dtype name, rank)}.
        sizes: how many examples are in each shard.
    """

    directory: pathlib.Path

    def __post_init__(self):
        about = json.loads((self.directory / 'store.json').read_text())
        self.spec = {name: tuple(value) for name, value in about['spec'].items()}
        self.sizes = about['shards']
        self.samples = np.load(paths.local(self.directory / 'samples.npy'), mmap_mode='r')
        listed = json_lines.read(paths.local(self.directory / 'skipped.jsonl'))
        self.skipped = [(row['id'], row['error']) for row in listed]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
        if not len(self):
            first = f' ({len(self.skipped)} were skipped; the first: {self.skipped[0][1]})' if self.skipped else ''
            raise ValueError(
                f'{about["task"]}: split {about["split"]!r} holds no usable example{first}. See {self.directory}'
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.cached_property
    def ids(self) -> list[str]:
        """Names of all examples."""
        numbers = range(len(self.sizes))
        return [name for about in _map(functools.partial(_about, self.directory), numbers) for name in about['ids']]

    def name(self, index: int) -> str:
        """Of one example, without reading those of all."""
        shard, place = self._place(index)
        return _about(self.directory, shard)['ids'][place]

    def _place(self, index: int) -> tuple[int, int]:
        """Shard of an example, and its place there."""
        shard = int(np.searchsorted(self._starts, index, 'right')) - 1
        return shard, index - int(self._starts[shard])

    def record(self, directory: pathlib.Path, index: int, of_each: int, offset: int) -> bytes:
        """One of the records `of_each` example, out of shards in a directory that are cut as the store's are."""
        shard, place = self._place(index)
        return _reader(directory / f'{shard:05d}.arrayrecord').read([of_each * place + offset])[0]

    def features(self, index: int) -> dict[str, np.ndarray | bytes]:
        """Everything but the speech."""
        return shards.unpack(self.record(self.directory, index, 2, 0))

    def speech(self, index: int) -> np.ndarray:
        """int16 [samples]."""
        return np.frombuffer(self.record(self.directory, index, 2, 1), '<i2')

    def shard(self, number: int) -> range:
        """The examples of a shard."""
        return range(int(self._starts[number]), int(self._starts[number + 1]))


@functools.lru_cache(_OPEN_SHARDS)
def _reader(path: pathlib.Path) -> array_record_module.ArrayRecordReader:
    local = _staged(path) if paths.is_url(path) else path
    return array_record_module.ArrayRecordReader(str(local), 'readahead_buffer_size:0,max_parallelism:0')


def _staged(path: pathlib.Path) -> pathlib.Path:
    """A shard of a store that is elsewhere, on this machine; the one not used for longest makes room for it."""
    folder = paths.local_cache() / 'staged' / hashlib.sha256(str(path.parent).encode()).hexdigest()[:16]
    staged = folder / path.name
    if not staged.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f'{path.name}.{os.getpid()}.part'
        with path.open('rb') as source, partial.open('wb') as file:
            shutil.copyfileobj(source, file, 2**24)
        partial.replace(staged)
    os.utime(staged)
    for old in sorted(folder.glob('*.arrayrecord'), key=lambda file: file.stat().st_mtime)[:-_STAGED_SHARDS]:
        old.unlink(missing_ok=True)
    return staged
