"""A manifest that a program writes for hours: OUT.part grows batch by batch, OUT is whole or absent.

The first line of OUT.part says what makes up the answers, each other one holds a batch: (place, row) of what is kept,
and how many were left out, and why. So the same command goes on after the last whole batch.
"""

import collections
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from slm_jax import paths
from slm_jax.data import json_lines


def place(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """OUT and OUT.part.

    Raises:
        ValueError: OUT cannot be written there.
    """
    out = pathlib.Path(name).expanduser()
    if paths.is_url(name):
        raise ValueError(f'{name}: answers are written line by line, which needs a local disk; copy OUT then.')
    if out.exists():
        raise ValueError(f'{out}: is there already. Remove it, or give another name.')
    if not out.parent.is_dir():
        raise ValueError(f'{out}: there is no folder {out.parent}. Make it first.')
    return out, out.with_name(f'{out.name}.part')


def begin(part: pathlib.Path, settings: Mapping[str, Any]) -> int:
    """Opens the file of what is answered so far; returns how many batches are in it.

    Args:
        part: OUT.part.
        settings: what makes up the answers, each by its name for people.

    Raises:
        ValueError: it is of another command, or none of ours.
    """
    content = part.read_bytes() if part.exists() else b''
    whole = content[: content.rfind(b'\n') + 1]
    if not whole:
        paths.write(part, json.dumps(settings) + '\n')
        return 0
    lines = whole.split(b'\n')[:-1]
    try:
        begun = json.loads(lines[0])
        other = [name for name, value in settings.items() if begun[name] != json.loads(json.dumps(value))]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f'{part}: is not what a run of this program left. Move it away.') from None
    if other:
        raise ValueError(
            f'{part}: was begun with another {" and another ".join(other)}. Go on with the same command, or remove it.'
        )
    if len(whole) < len(content):
        os.truncate(part, len(whole))
    return len(lines) - 1


def append(file: TextIO, rows: Sequence[tuple[int, Mapping[str, Any]]], left_out: Mapping[str, int]) -> None:
    """Writes a batch: (place, row) of what is kept, and how many are left out, by why."""
    file.write(json.dumps({'rows': rows, 'left_out': left_out}, ensure_ascii=False) + '\n')
    file.flush()


def finish(part: pathlib.Path, out: pathlib.Path, remedy: str) -> collections.Counter[str]:
    """Makes OUT of OUT.part, in the order of the places; returns how many were left out, and why.

    Raises:
        ValueError: nothing is left; with the remedy.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    left_out: collections.Counter[str] = collections.Counter()
    for batch in json_lines.read(part)[1:]:
        rows += batch['rows']
        left_out.update(batch['left_out'])
    if not rows:
        part.unlink()
        raise ValueError(f'{out}: no answer is left of {left_out.total()} ({", ".join(left_out)}). {remedy}')
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for _, row in sorted(rows, key=lambda each: each[0])]
    paths.write(out, ''.join(lines))
    part.unlink()
    return left_out


def said(out: pathlib.Path, count: int, left_out: collections.Counter[str], what: str) -> str:
    """A line for people: how many of `count` are in OUT."""
    why = ', '.join(f'{number} {why}' for why, number in sorted(left_out.items()))
    return f'{out}: {count - left_out.total()} {what}' + (f'; left out: {why}' if why else '')


def kept(raw: Mapping[str, Any], line: Mapping[str, str], folder: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """What a manifest's line in `folder` says of its recording and text, as a line of OUT."""
    from slm_jax.data import manifests

    row = {name: value for name, value in raw.items() if name not in manifests.KNOWN}
    audio = next((raw[name] for name in manifests.AUDIO if raw.get(name)), None)
    if audio is not None:
        row['audio'] = manifests.moved(audio, folder, out.absolute().parent)
    row |= {name: float(line[name]) for name in ('offset', 'duration') if line[name]}
    return row | {name: line[name] for name in ('text', 'lang') if line[name]}


def identity(line: Mapping[str, str], manifest: pathlib.Path) -> str:
    """A line's id, or its manifest's name and its number there."""
    return line['id'] if line['id'] != line['origin'] else f'{manifest.stem}:{line["origin"].rpartition(":")[2]}'
