"""Output frames of a frozen speech encoder, stored beside the speech that they are of.

    STORE/frames-KEY/
        00000.arrayrecord   bfloat16 [frames, width] of each example of the store's shard, in order
        frames.json         which encoder made them, written last: the frames are whole

The key is that of the encoder: its parameters, and how it computes. A run that was cut goes on after the shards that
are finished, whoever made them, as in cache.py.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import seqio
import tqdm
from array_record.python import array_record_module

from slm_jax import paths
from slm_jax.data import cache, measure, shards
from slm_jax.data.preprocessors import BadExampleError

_WHOLE = 'frames.json'


class Encoder(Protocol):
    """What makes frames; see `training.frozen_encoder.FrozenEncoder`."""

    @property
    def key(self) -> str:
        """Another for every encoder that makes other frames."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides its frames: `fingerprint`, `configuration`, …; and its `name`, which does not. JSON."""

    @property
    def most_samples(self) -> float:
        """Longest recording that it takes."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Frames of a recording, bfloat16 [frames, width]."""

    def shapes(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """{name: (shape, dtype)} of a batch, with frames in the place of samples."""


def _directory(store: cache.Store, encoder: Encoder) -> pathlib.Path:
    return store.directory / f'frames-{encoder.key}'


def encode(
    store: cache.Store,
    encoder: Encoder,
    on_bad_example: str,
    run: Callable[[Sequence[int]], object] | None = None,
) -> list[tuple[str, str]]:
    """Stores the frames of a store's recordings, if that has not been done; of texts there are none.

    Args:
        store: of the recordings.
        encoder: of which the frames are.
        on_bad_example: 'raise' stops at recordings longer than the encoder takes, 'skip' leaves them without frames.
        run: `encode_shard` for all of these shards; None: here, one after the other.

    Returns:
        (id, what is wrong) of those that are too long.

    Raises:
        BadExampleError: as said.
    """
    if not store.samples.any():
        return []
    long = [int(index) for index in np.flatnonzero(store.samples > encoder.most_samples)]
    bad = [(store.name(index), _too_long(store, index, encoder.most_samples)) for index in long]
    if bad and on_bad_example == 'raise':
        raise BadExampleError(shards.REMEDY.format(f'{len(bad)} recordings are too long; the first: {bad[0][1]}'))
    directory = _directory(store, encoder)
    with cache.locked(directory):
        if not (directory / _WHOLE).exists():
            done = {path.stem for path in directory.glob('*.arrayrecord')}
            missing = [number for number in range(len(store.sizes)) if f'{number:05d}' not in done]
            (run or functools.partial(_encode_here, store, encoder))(missing)
            for left in directory.glob('*.part.*'):  # by runs that were cut
                left.unlink()
            paths.write(directory / _WHOLE, json.dumps(dict(encoder.identity), indent=2))
    return bad


def _too_long(store: cache.Store, index: int, most: float) -> str:
    return (
        f'{measure.name_of(store.features(index))}: {store.samples[index] / 16_000:.1f} s, and the speech encoder '
        f'takes {most / 16_000:g} s at once. Split the recording.'
    )


def _encode_here(store: cache.Store, encoder: Encoder, numbers: Sequence[int]) -> None:
    count = sum(len(store.shard(number)) for number in numbers)
    with tqdm.tqdm(desc=f'Encoding {store.directory.name}', total=count, unit=' examples', mininterval=1) as bar:
        for number in numbers:
            encode_shard(store, encoder, number, bar.update)


def encode_shard(store: cache.Store, encoder: Encoder, number: int, wrote: Callable[[], object] = lambda: None) -> None:
    """Writes the frames of one shard; `wrote` is called after each example."""
    path = _directory(store, encoder) / f'{number:05d}.arrayrecord'
    part = shards.part_of(path)
    writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1,uncompressed')
    for index in store.shard(number):
        heard = 0 < store.samples[index] <= encoder.most_samples
        writer.write(encoder(store.speech(index)).tobytes() if heard else b'')
        wrote()
    writer.close()
    shards.publish(part, path)


def check(task: seqio.Task, store: cache.Store, encoder: Encoder) -> None:
    """Whether the frames of a store are there, and are those of what a task makes of its recordings.

    Raises:
        ValueError: they are not; says whose frames there are.
    """
    if not store.samples.any():
        return
    for step in measure.steps_after_store(task):
        if 'speech' in getattr(step, 'adds', ()):
            raise ValueError(
                f'task {task.name!r} changes its recordings each time they are read, which stored frames do not show. '
                'Set ENCODED to False.'
            )
    if (_directory(store, encoder) / _WHOLE).exists():
        return
    others = [json.loads(path.read_text()) for path in sorted(store.directory.glob(f'frames-*/{_WHOLE}'))]
    there = '; '.join(_difference(encoder.identity, other) for other in others)
    raise ValueError(
        f'{store.directory} has no frames of the speech encoder {_named(encoder.identity)}'
        f'{f", but those of {there}" if there else ""}. Encode the data by the model that is trained '
        '(slm-jax prepare … --encode MODEL.gin, with the same --cache_dir), or set ENCODED to False.'
    )


def _named(identity: Mapping[str, Any]) -> str:
    return f'{identity["name"]} (fingerprint {identity["fingerprint"][:12]})'


def _difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Another encoder by its name, and what is not as in this one's configuration."""
    fields = [re.findall(r'\w+=[^,()\n]+', each['configuration']) for each in (other, own)]
    without = ', '.join(field for field in fields[0] if field not in fields[1])
    return _named(other) + (f' with {without}' if without and other['fingerprint'] == own['fingerprint'] else '')


def read(store: cache.Store, encoder: Encoder, index: int, width: int) -> np.ndarray:
    """bfloat16 [frames, width] of an example."""
    record = store.record(_directory(store, encoder), index, 1, 0)
    return np.frombuffer(record, ml_dtypes.bfloat16).reshape(-1, width)
