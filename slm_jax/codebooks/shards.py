"""Work that is cut into shards: in several processes, and a run that was broken off goes on after what is done.

FOLDER/run.json       what decides the results
FOLDER/00000.…        what was made of the first shard, and so on
"""

import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tqdm

from slm_jax import paths

_RUN = 'run.json'


def make(
    folder: pathlib.Path,
    run: Mapping[str, Any],
    names: list[str],
    work: Callable[[int], bytes],
    processes: int,
    what: str,
) -> list[pathlib.Path]:
    """The files of all shards, those made that are not there yet.

    Args:
        folder: of the files.
        run: what decides their content; JSON.
        names: of the files.
        work: gives the content of a shard's file, by its number. With several processes, each makes its own copy of it.
        processes: that work.
        what: is done, for the bar.

    Raises:
        ValueError: the folder is of another run, or whatever `work` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / _RUN
    if begun.exists():
        old, new = json.loads(begun.read_text()), json.loads(json.dumps(run))
        if other := ', '.join(sorted(name for name in {**old, **new} if old.get(name) != new.get(name))):
            raise ValueError(f'{folder} is of another run (other {other}). Remove it, or give another OUT.')
    else:
        paths.write(begun, json.dumps(run))
    files = [folder / name for name in names]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    writer = _Writer(files, work)
    with tqdm.tqdm(desc=what, total=len(files), initial=len(files) - len(missing), unit=' shards', disable=None) as bar:
        if processes > 1 and len(missing) > 1:
            with multiprocessing.get_context('spawn').Pool(min(processes, len(missing))) as pool:
                for _ in pool.imap_unordered(writer, missing):
                    bar.update()
        else:
            for number in missing:
                writer(number)
                bar.update()
    return files


class _Writer:
    def __init__(self, files: list[pathlib.Path], work: Callable[[int], bytes]):
        self._files, self._work = files, work

    def __call__(self, number: int) -> None:
        content, file = self._work(number), self._files[number]
        part = file.with_suffix('.part')
        part.write_bytes(content)
        os.replace(part, file)
