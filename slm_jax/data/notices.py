"""What the input pipeline tells people: on the terminal, and examples that were skipped in a file as well."""

import pathlib
import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from slm_jax.data import json_lines

Skipped = Sequence[tuple[str, str]]  # (id, what is wrong)
_LISTED = 20
_FILE = 'skipped.jsonl'
silent = False  # on hosts other than the first, which speaks for all


def say(text: str) -> None:
    """A line on the standard error, above progress bars."""
    if not silent:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def listing(name: str, skipped: Sequence[str], whole: str = '') -> str:
    """How many examples were skipped, and the first of them; `whole`: where all are."""
    faults = list(dict.fromkeys(skipped))  # one recording may be an example of many tasks
    lines = [f'{name}: {len(skipped)} bad examples skipped:', *(f'    {fault}' for fault in faults[:_LISTED])]
    if len(faults) > _LISTED:
        lines.append(f'    … and {len(faults) - _LISTED} more' + (f': {whole}' if whole else ''))
    return '\n'.join(lines)


def record(model_dir: pathlib.Path, skipped: Mapping[str, Skipped]) -> None:
    """Writes all that was skipped for a training, of each of its loaders, to `model_dir`/skipped.jsonl."""
    rows = [{'data': name, 'id': i, 'error': error} for name, examples in skipped.items() for i, error in examples]
    if rows:
        model_dir.mkdir(parents=True, exist_ok=True)
        json_lines.write(model_dir / _FILE, rows)
    else:
        (model_dir / _FILE).unlink(missing_ok=True)


def remind(model_dir: pathlib.Path, skipped: Mapping[str, Skipped]) -> None:
    """Lists at the end of a training what was skipped for it."""
    for name, examples in skipped.items():
        if examples:
            say(listing(name, [error for _, error in examples], str(model_dir / _FILE)))
