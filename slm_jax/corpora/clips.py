"""Many clips, made one by one or in parallel; a run that was broken off goes on where it was."""

import contextlib
import io
import multiprocessing
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float
from tqdm import tqdm

from slm_jax.audio.waveforms import SAMPLE_RATE
from slm_jax.data import json_lines


def save(path: pathlib.Path, samples: Float[np.ndarray, ' samples']) -> float:
    """Writes samples at 16 kHz as FLAC; returns their seconds."""
    import soundfile

    flac = io.BytesIO()
    soundfile.write(flac, samples, SAMPLE_RATE, format='FLAC', subtype='PCM_16')
    path.write_bytes(flac.getvalue())
    return round(samples.size / SAMPLE_RATE, 3)


def begun(path: pathlib.Path, run: Mapping[str, Any]) -> list[dict]:
    """What a run that was broken off had done; a file that begins with `run`, and whose lines are whole, is left.

    Raises:
        ValueError: it is another run's.
    """
    whole = path.read_bytes() if path.exists() else b''
    path.write_bytes(whole[: whole.rfind(b'\n') + 1])
    first, *rows = json_lines.read(path) or [dict(run)]
    if first != run:
        other = ', '.join(name for name in run if first.get(name) != run[name])
        raise ValueError(f'{path} is of another run ({other}: {first}, not {run}). Give another OUT.')
    if not rows:
        json_lines.write(path, [dict(run)])
    return rows


def make(
    done: pathlib.Path,
    run: Mapping[str, Any],
    jobs: Sequence[tuple[int, Any]],
    work: Callable[[tuple[int, Any]], dict],
    processes: int,
) -> list[dict]:
    """What `work` returns of each job, in order; what had been done already is not done again.

    Up to one in a hundred may be left out, and is logged.

    Args:
        done: the file that remembers.
        run: what decides the results; JSON.
        jobs: each with its number.
        work: returns an object with `number`, and `left_out` where a text was not read.
        processes: that work.

    Raises:
        RuntimeError: more texts were not read.
        ValueError: `done` is another run's.
    """
    rows = begun(done, run)
    finished = {row['number'] for row in rows}
    jobs = [job for job in jobs if job[0] not in finished]
    with contextlib.ExitStack() as stack:
        made: Iterator[dict] = map(work, jobs)
        if processes > 1 and len(jobs) > 1:
            pool = stack.enter_context(multiprocessing.get_context('spawn').Pool(min(processes, len(jobs))))
            made = pool.imap_unordered(work, jobs, chunksize=min(8, -(-len(jobs) // processes)))
        file = stack.enter_context(done.open('a', encoding='utf-8'))
        for row in tqdm(made, 'Reading', len(jobs) + len(rows), initial=len(rows), unit='clip', disable=None):
            json_lines.append(file, row)
            file.flush()
            rows.append(row)
            unread = [row['left_out'] for row in rows if 'left_out' in row] if 'left_out' in row else []
            if unread:
                logging.warning('left out: %s', unread[-1])
            if len(unread) > 5 + len(rows) / 100:
                raise RuntimeError(f'{len(unread)} sentences were not read; {unread[-1]}')
    return sorted(rows, key=lambda row: row['number'])
