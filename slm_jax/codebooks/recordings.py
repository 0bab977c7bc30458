"""Recordings that units are taken of: the lines of a manifest, or what tasks have stored. Any range of them is read."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int16

from slm_jax import paths
from slm_jax.data import json_lines, manifests, segments


class Recording(NamedTuple):
    """What is known of a recording as a manifest's line, and the recording; `error` where there is none to be had."""

    row: Mapping[str, Any]
    samples: Int16[np.ndarray, ' n']
    error: str = ''


class Recordings(Protocol):
    """Some recordings in their order."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, start: int, stop: int) -> Iterator[Recording]:
        """Those from `start` to `stop`."""


_NOTHING = np.zeros(0, np.int16)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The lines of a JSONL manifest; what a line does not know is left on it.

    Attributes:
        path: of the manifest.
        to: folder of the manifest that is to be written: relative paths are made relative to it.
    """

    path: str
    to: pathlib.Path

    def __len__(self) -> int:
        return sum(1 for _ in json_lines.lines(self.path))

    def read(self, start: int, stop: int) -> Iterator[Recording]:
        folder = paths.path(self.path).parent
        for row, example in manifests.rows(self.path, start, stop):
            name = next((name for name in manifests.AUDIO if row.get(name)), None)
            try:
                if example['error']:
                    raise ValueError(example['error'])
                if name is None:
                    raise ValueError(f'{example["origin"]}: the line has no "audio". Give the path of a recording.')
                samples = segments.read(example['audio'], example['offset'], example['duration'])
            except ValueError as error:
                yield Recording(row, _NOTHING, str(error))
            else:
                moved = {name: manifests.moved(row[name], folder, self.to)}
                yield Recording({'id': example['id'], **row, **moved}, samples)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What tasks have stored; `directories` are of stores (`data.cache`). Texts have no recording."""

    directories: Sequence[pathlib.Path]

    @functools.cached_property
    def _stores(self) -> list[Any]:
        from slm_jax.data import cache

        return [cache.Store(directory) for directory in self.directories]

    def __len__(self) -> int:
        return sum(map(len, self._stores))

    def read(self, start: int, stop: int) -> Iterator[Recording]:
        before = 0
        for store in self._stores:
            for index in range(max(start - before, 0), min(stop - before, len(store))):
                row, samples = _row(store.features(index)), store.speech(index)
                yield Recording(row, samples, '' if len(samples) else f'{row["id"]}: is a text without a recording.')
            before += len(store)


def _row(features: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stored example as a manifest's line."""
    texts = {name: features[name].decode() for name in manifests.FIELDS if isinstance(features.get(name), bytes)}
    texts |= {'translation': texts.pop('translations', ''), 'origin': ''}
    row: dict[str, Any] = {name: text for name, text in texts.items() if text}
    row |= {name: json.loads(row[name]) for name in ('translation', 'phrases') if name in row}
    row |= {name: float(row[name]) for name in ('offset', 'duration') if name in row}
    return {name: value for name, value in row.items() if value != {}}
