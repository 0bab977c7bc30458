"""Batches of a unit manifest for a vocoder: crops of units, one a frame, and the samples that they are of."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from slm_jax import paths
from slm_jax.codebooks import unit_files
from slm_jax.data import manifests, segments

HostRows = Callable[[int], Iterable[int]]


@dataclasses.dataclass(frozen=True)
class _Clip:
    units: np.ndarray
    durations: np.ndarray
    audio: tuple[str, str, str]


class UnitAudio:
    """What `slm_jax.train` needs of a loader. Which crops a batch has depends on the data, the seed and the step only.

    Args:
        manifest: JSONL of `slm-jax codebook encode`, all of it of one codebook.
        num_units: of the codebook.
        frames_per_second: of its encoder.
        crop_seconds: the most that a row has of a clip.
        rows: of a batch.
        seed: of order and crops.

    Raises:
        ValueError: a line that cannot be used, or none; names it.
    """

    skipped: list[tuple[str, str]] = []
    vocabulary = None

    def __init__(
        self,
        manifest: str | os.PathLike,
        num_units: int,
        frames_per_second: int,
        crop_seconds: float = 1.28,
        rows: int = 16,
        seed: int = 0,
    ):
        for name, value in (('crop_seconds', crop_seconds), ('rows', rows)):
            if not value > 0:
                raise ValueError(f'UnitAudio.{name} is {value!r}; a number above 0 was expected.')
        self._frames, self._rows, self._seed = max(1, round(crop_seconds * frames_per_second)), rows, seed
        self._samples = 16_000 // frames_per_second
        self._clips, self.codebook = _clips(manifest, num_units)
        first = self._clips[0]
        frames, samples = int(first.durations.sum()), len(segments.read(*first.audio))
        if abs(frames * self._samples - samples) > 2 * self._samples + 1600:
            raise ValueError(
                f'{manifest}: the units of {first.audio[0]} last {frames} frames, and its {samples / 16_000:.2f} s are '
                f'{samples / self._samples:.0f} frames at {frames_per_second} a second (UnitAudio.frames_per_second). '
                "Give the rate of the codebook's encoder."
            )
        digest = hashlib.sha256(paths.path(manifest).read_bytes())
        self._about = {'manifest': str(manifest), 'content': digest.hexdigest(), 'codebook': self.codebook}

    def batches(
        self, start_step: int = 0, host_rows: HostRows | None = None
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) for ever; see `slm_jax.data.loader.SpeechTextLoader`."""
        step = start_step
        while True:
            first = step * self._rows
            yield step, self._batch([self._drawn(first + row) for row in range(self._rows)], host_rows)
            step += 1

    def examples(self, host_rows: HostRows | None = None) -> Iterator[tuple[dict[str, np.ndarray], list[None]]]:
        """The beginning of each clip once."""
        for first in range(0, len(self._clips), self._rows):
            crops: list[Any] = [(number, 0) for number in range(first, min(first + self._rows, len(self._clips)))]
            crops += [None] * (self._rows - len(crops))
            batch = self._batch(crops, host_rows)
            yield batch, [None] * len(batch['speech_lengths'])

    def batch_shapes(self) -> list[dict[str, tuple[tuple[int, ...], Any]]]:
        """Per shape of a batch, of which there is one, {name: (shape, dtype)}."""
        rows, frames = self._rows, self._frames
        shapes = {
            'speech_samples': ((rows, frames * self._samples), np.dtype(np.int16)),
            'speech_lengths': ((rows,), np.dtype(np.int32)),
            'decoder_target_tokens': ((rows, frames), np.dtype(np.int32)),
        }
        return [shapes]

    def state(self) -> Mapping[str, Any]:
        """What, with the step, fixes the data."""
        return {'seed': self._seed, 'crop': self._frames, 'rows': self._rows, **self._about}

    def _drawn(self, place: int) -> tuple[int, int]:
        """(clip, first frame) at a place of the order."""
        epoch, within = divmod(place, len(self._clips))
        number = int(np.random.default_rng((self._seed, epoch)).permutation(len(self._clips))[within])
        frames = int(self._clips[number].durations.sum())
        rng = np.random.default_rng((self._seed, 1, place))
        return number, int(rng.integers(max(frames - self._frames, 0) + 1))

    def _batch(self, crops: list[Any], host_rows: HostRows | None) -> dict[str, np.ndarray]:
        taken = [crops[row] if row < self._rows else None for row in (host_rows or range)(self._rows)]
        rows = [self._row(*crop) if crop else {} for crop in taken]
        batch = {}
        for name, (shape, dtype) in self.batch_shapes()[0].items():
            batch[name] = np.zeros((len(rows), *shape[1:]), dtype)
            for place, row in enumerate(rows):
                value = np.asarray(row.get(name, 0))
                where: tuple[Any, ...] = (place, *(slice(length) for length in value.shape))
                batch[name][where] = value
        return batch

    def _row(self, number: int, start: int) -> dict[str, Any]:
        clip = self._clips[number]
        units = np.repeat(clip.units, clip.durations)[start : start + self._frames]
        samples = segments.read(*clip.audio)[start * self._samples :][: len(units) * self._samples]
        return {'speech_samples': samples, 'speech_lengths': len(samples), 'decoder_target_tokens': units + 1}


def _clips(manifest: str | os.PathLike, num_units: int) -> tuple[list[_Clip], str]:
    """The clips of a unit manifest, and the codebook of all of them."""
    clips, label = [], None
    folder = paths.path(manifest).parent
    for found in unit_files.read(manifest, num_units):
        name = found.id or f'line {len(clips) + 1}'
        label = label or found.row.get('codebook')
        own = found.row.get('codebook')
        if found.durations is None or own is None or own != label:
            wrong = 'no durations' if found.durations is None else f'units of the codebook {own}, not of {label}'
            raise ValueError(f'{manifest}: {name} has {wrong}. Write all of it by one `slm-jax codebook encode`.')
        fields = manifests.fields(found.row, folder)
        if not fields['audio']:
            raise ValueError(f'{manifest}: {name} has no "audio", which a vocoder learns from. Give its recording.')
        if len(found.units):
            audio = fields['audio'], fields['offset'], fields['duration']
            clips.append(_Clip(found.units, found.durations, audio))
    if not clips:
        raise ValueError(f'{manifest}: no line has units.')
    return clips, str(label)
