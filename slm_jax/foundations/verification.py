"""Whether stored parameters are those that a card describes, to the last bit.

Reading all of them takes some seconds per gigabyte, and is done when a directory is new or changed: what was found
whole is noted with size and times of each file. The notes are in the user's cache, since parameters may be read-only.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

_BLOCK_BYTES = 2**26


def cache() -> pathlib.Path:
    """Directory for what can be found again: $SLM_JAX_CACHE, or slm_jax in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get('SLM_JAX_CACHE'):
        return pathlib.Path(own).expanduser()
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'slm_jax'


def differs(directory: pathlib.Path, leaves: Mapping[str, Any], content: str) -> str | None:
    """How the leaves in an Orbax directory differ from what was saved there; None if they do not.

    Takes the memory of one block of a leaf. Reads nothing if no file has changed since they were found whole.

    Args:
        directory: of the parameters.
        leaves: with `shape` and `dtype`, by path, in the order of the paths.
        content: see `foundations.fingerprint`.
    """
    directory, note = directory.resolve(), None
    with contextlib.suppress(RuntimeError):  # a user without a home
        note = cache() / 'verified' / f'{hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]}.json'
    # The time of change too, which nobody can set: a copy may bring the time of writing along.
    files = {}
    for path in sorted(directory.rglob('*')):
        if path.is_file():
            stat = path.stat()
            files[str(path.relative_to(directory))] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    known = {'directory': str(directory), 'content': content, 'files': files}
    with contextlib.suppress(OSError, ValueError):
        if note and json.loads(note.read_text(encoding='utf-8')) == known:
            return None
    try:
        found = _content(directory, leaves)
    except (ValueError, OSError) as error:
        reason = str(error).partition('\n')[0][:300]
        return f'cannot be read ({reason})'
    if found != content:
        return f'has the content {found}, by its card it is {content}'
    if note is None:
        return None
    with contextlib.suppress(OSError):  # No place to note it: then it is read again.
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile('w', encoding='utf-8', dir=note.parent, delete=False) as stream:
            json.dump(known, stream)
        os.replace(stream.name, note)
    return None


def _content(directory: pathlib.Path, leaves: Mapping[str, Any]) -> str:
    """SHA-256 over the bytes of the leaves in order.

    Raises:
        ValueError: a leaf cannot be read.
    """
    import tensorstore

    content, context = hashlib.sha256(), tensorstore.Context()
    for name, leaf in leaves.items():
        store = tensorstore.open(
            {
                'driver': 'zarr',
                'kvstore': {'driver': 'ocdbt', 'base': f'file://{directory}/', 'path': name.replace('/', '.') + '/'},
                'fill_missing_data_reads': False,
            },
            context=context,
        ).result()
        if store.shape != leaf.shape:
            raise ValueError(f'{name} is {list(store.shape)} and not {list(leaf.shape)}')
        length, *rest = leaf.shape or (1,)
        chunk = (store.chunk_layout.read_chunk.shape or (1,))[0]  # whole chunks, so that none is read twice
        rows = chunk * max(1, _BLOCK_BYTES // max(1, chunk * leaf.dtype.itemsize * math.prod(rest)))
        for start in range(0, length, rows):
            where = slice(start, min(start + rows, length)) if leaf.shape else ()
            content.update(store[where].read(order='C').result().tobytes())
    return content.hexdigest()
