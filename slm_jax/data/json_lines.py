"""JSON lines: files of one JSON object a line, the one way to read and to write them.

A line ends at a line feed and nowhere else: a text may hold U+2028, U+0085 and whatever else `str.splitlines` cuts at.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from slm_jax import paths

_BOM = b'\xef\xbb\xbf'  # also inside a file, where files that have one were joined


class JsonLinesError(ValueError):
    """A file or line that is no JSON lines: `str()` says what it is instead, and the remedy."""


def lines(path: str | os.PathLike, may_be_empty: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines that are not blank.

    Raises:
        JsonLinesError: the file is missing, no file, in another encoding, or empty; names it.
    """
    try:
        content = paths.path(path).read_bytes()
    except OSError as error:
        raise JsonLinesError(
            f'{path}: cannot be read ({error.strerror or error}). Give the path of a JSONL file that you may read.'
        ) from error
    if content[:2] in (b'\xff\xfe', b'\xfe\xff') or b'\0' in content[:64]:
        raise JsonLinesError(
            f'{path}: is in UTF-16 (or is no text), not in UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW'
        )
    found = ((number, line) for number, line in enumerate(content.split(b'\n'), 1) if line.removeprefix(_BOM).strip())
    first = next(found, None)
    if first is None:
        if not may_be_empty:
            raise JsonLinesError(f'{path}: the file is empty. Write one JSON object a line.')
        return
    yield first
    yield from found


def parse(line: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        JsonLinesError: it holds none, or text that is not UTF-8.
    """
    try:
        text = line.removeprefix(_BOM).decode()
        row = json.loads(text)
        if b'\\u' in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise JsonLinesError(f'byte {line[error.start]:#x} is not UTF-8. Save the file as UTF-8.') from None
    except UnicodeEncodeError:
        raise JsonLinesError('half a character: a \\ud… that stands alone. Write the text again.') from None
    except (ValueError, RecursionError) as error:
        raise JsonLinesError(f'not JSON ({error}). Write one JSON object a line.') from None
    if not isinstance(row, dict):
        raise JsonLinesError(f'a JSON object was expected, this is {text.strip()[:40]!r}. Write one object a line.')
    return row


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All objects of a file, which may be empty.

    Raises:
        JsonLinesError: see `lines` and `parse`; names file and line.
    """
    rows = []
    for number, line in lines(path, may_be_empty=True):
        try:
            rows.append(parse(line))
        except JsonLinesError as error:
            raise JsonLinesError(f'{path}:{number}: {error}') from None
    return rows


def write(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of these objects."""
    with paths.path(path).open('w', encoding='utf-8') as file:
        for row in rows:
            append(file, row)


def append(file: TextIO, row: Mapping[str, Any]) -> None:
    """Writes one line."""
    file.write(json.dumps(row, ensure_ascii=False) + '\n')
