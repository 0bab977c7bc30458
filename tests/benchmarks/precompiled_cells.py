"""Runs of `slm-jax precompile` whose results go into one file, a JSON line each; what is in it is not run again."""

import concurrent.futures
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: in the file.
        arguments: of `slm-jax precompile`.
    """

    name: str
    arguments: tuple[str, ...]


def read(file: pathlib.Path) -> dict[str, Any]:
    """{name: result} of a file that may not be there."""
    lines = file.read_text(encoding='utf-8').splitlines() if file.exists() else []
    return {entry['name']: entry for entry in map(json.loads, lines)}


def run(cells: Sequence[Cell], file: pathlib.Path, jobs: int) -> dict[str, Any]:
    """Runs the cells that the file lacks, so many at a time, each in a process of its own."""
    missing = [cell for cell in cells if cell.name not in read(file)]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_result, cell): cell for cell in missing}
        for future in tqdm(concurrent.futures.as_completed(running), total=len(missing), desc=str(file)):
            with file.open('a', encoding='utf-8') as out:
                out.write(json.dumps({'name': running[future].name, **future.result()}) + '\n')
    return {cell.name: entry for cell in cells if (entry := read(file).get(cell.name))}


def _result(cell: Cell) -> dict[str, Any]:
    command = [sys.executable, '-m', 'slm_jax.cli', 'precompile', '--json=-', '--no-smallest', *cell.arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):  # 3: it does not fit, which is a result
        raise SystemExit(f'{cell.name}: {done.stderr}')
    return json.loads(done.stdout)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, with the first row as the head."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([lines[0], '| ' + ' | '.join('---' for _ in rows[0]) + ' |', *lines[1:]])


def gigabytes(count: float | None) -> str:
    """1.5e9 -> '1.5'."""
    return '?' if count is None else f'{count / 1e9:.3g}'


def main(doc: str, cells: Callable[[str], Sequence[Cell]], default: str, show: Callable[[dict[str, Any]], str]) -> None:
    """The command line of a benchmark: fills its file and prints its table."""
    import argparse

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--file', type=pathlib.Path, default=pathlib.Path(default), help=f'default: {default}')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time; XXL takes a core and 2.5 GB each')
    parser.add_argument('--only', default='', help='cells whose name holds this')
    parser.add_argument('--gin_file', default='models/slm_xxl.gin')
    args = parser.parse_args()
    chosen = [cell for cell in cells(args.gin_file) if args.only in cell.name]
    print(show(run(chosen, args.file, args.jobs)))
