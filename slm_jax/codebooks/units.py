"""Recordings to frames, and frames to units, a shard at a time: what the processes of `shards` do."""

import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from slm_jax.codebooks.codebook import Codebook
from slm_jax.codebooks.recordings import Recording, Recordings

SHARD = 64  # recordings
_FRAMES = 512  # clips are filled up to a multiple, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Heard:
    """Recordings and the encoder that hears them.

    Attributes:
        recordings: which.
        encoder: a `data.frames.Encoder`.
        on_bad_example: 'raise' stops at what cannot be used, 'skip' leaves it out.
    """

    recordings: Recordings
    encoder: Any
    on_bad_example: str

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.recordings) // SHARD)

    def frames(self, number: int) -> Iterator[tuple[Recording, Any]]:
        """Each recording of a shard with its frames; without those it has the error that left it out.

        Raises:
            ValueError: one that cannot be used, unless these are skipped.
        """
        most = self.encoder.most_samples
        for recording in self.recordings.read(SHARD * number, SHARD * (number + 1)):
            if len(recording.samples) > most:
                seconds = f'{len(recording.samples) / 16_000:.1f} s, and the speech encoder takes {most / 16_000:g} s'
                recording = recording._replace(error=f'{recording.row["id"]}: {seconds} at once. Split the recording.')
            frames = None
            if not recording.error:
                frames = self.encoder(recording.samples)
                if not len(frames):
                    recording = recording._replace(
                        error=f'{recording.row["id"]}: too short for one frame. Leave the recording out.'
                    )
            if recording.error and self.on_bad_example == 'raise':
                raise ValueError(f'{recording.error}\n(--on_bad_example skip leaves such recordings out.)')
            yield recording, frames


@dataclasses.dataclass(frozen=True)
class FrameShards(Heard):
    """The frames of a shard of recordings, as `kmeans` reads them."""

    def __call__(self, number: int) -> bytes:
        """The content of its file."""
        found = [frames for recording, frames in self.frames(number) if not recording.error]
        file = io.BytesIO()
        np.save(file, np.concatenate(found).view(np.uint16) if found else np.zeros((0, 1), np.uint16))
        return file.getvalue()


@dataclasses.dataclass(frozen=True)
class UnitShards(Heard):
    """The units of a shard of recordings, as lines of a unit manifest; see `unit_files`.

    Attributes:
        codebook: its directory.
    """

    codebook: str | os.PathLike = ''

    @functools.cached_property
    def _codebook(self) -> Codebook:
        return Codebook.load(self.codebook)

    def __call__(self, number: int) -> bytes:
        """The content of its file. What was left out has a line with its `error`."""
        return b''.join(map(self._line, *zip(*self.frames(number))))

    def _line(self, recording: Recording, frames: Any) -> bytes:
        if recording.error:
            row: dict[str, Any] = {'error': recording.error}
        else:
            units, durations = of_clip(self._codebook, frames)
            said = {'units': units.tolist(), 'durations': durations.tolist(), 'codebook': self._codebook.label}
            row = {**recording.row, **said}
        return (json.dumps(row, ensure_ascii=False) + '\n').encode()


def of_clip(codebook: Codebook, frames: Any) -> tuple[np.ndarray, np.ndarray]:
    """Units of one clip's frames [frames, width], and their durations."""
    padded = np.zeros((1, -(-len(frames) // _FRAMES) * _FRAMES, frames.shape[1]), np.float32)
    padded[0, : len(frames)] = frames
    units, durations, count = codebook.encode(jnp.asarray(padded), jnp.array([len(frames)]))
    return np.asarray(units)[0, : int(count[0])], np.asarray(durations)[0, : int(count[0])]


def join(files: Sequence[pathlib.Path], out: pathlib.Path) -> dict[str, Any]:
    """Writes the lines of all shards that are no errors to one file, which is then there whole.

    Returns:
        `recordings`, `frames` and `units`, how many; `errors` of what was left out.

    Raises:
        ValueError: nothing is left.
    """
    told: dict[str, Any] = {'recordings': 0, 'frames': 0, 'units': 0, 'errors': []}
    part = out.with_name(f'{out.name}.part')
    with part.open('wb') as joined:
        for row, line in ((json.loads(line), line) for file in files for line in file.read_bytes().splitlines(True)):
            if 'units' not in row:
                told['errors'].append(row['error'])
                continue
            joined.write(line)
            told['recordings'] += 1
            told['frames'] += sum(row['durations'])
            told['units'] += len(row['units'])
    if not told['recordings']:
        part.unlink()
        raise ValueError(f'{out}: no recording could be used; the first: {told["errors"][0]}')
    os.replace(part, out)
    return told
