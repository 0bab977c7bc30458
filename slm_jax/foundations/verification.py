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
from collections.abc import Mapping
from typing import Any

from slm_jax import paths

_BLOCK_BYTES = 2**26


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
        note = paths.cache() / 'verified' / f'{hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]}.json'
    known = {'directory': str(directory), 'content': content, 'files': paths.files(directory)}
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
        paths.write(note, json.dumps(known))
    return None


def opened(directory: pathlib.Path, name: str, context: Any) -> Any:
    """The leaf of this path in an Orbax directory, as a TensorStore.

    Raises:
        ValueError: it is not there.
    """
    import tensorstore

    place = {'driver': 'ocdbt', 'base': paths.kvstore(directory), 'path': name.replace('/', '.') + '/'}
    spec = {'driver': 'zarr', 'kvstore': place, 'fill_missing_data_reads': False}
    return tensorstore.open(spec, context=context).result()


def _content(directory: pathlib.Path, leaves: Mapping[str, Any]) -> str:
    """SHA-256 over the bytes of the leaves in order.

    Raises:
        ValueError: a leaf cannot be read.
    """
    import tensorstore

    content, context = hashlib.sha256(), tensorstore.Context()
    for name, leaf in leaves.items():
        store = opened(directory, name, context)
        if store.shape != leaf.shape:
            raise ValueError(f'{name} is {list(store.shape)} and not {list(leaf.shape)}')
        length, *rest = leaf.shape or (1,)
        chunk = (store.chunk_layout.read_chunk.shape or (1,))[0]  # whole chunks, so that none is read twice
        rows = chunk * max(1, _BLOCK_BYTES // max(1, chunk * leaf.dtype.itemsize * math.prod(rest)))
        for start in range(0, length, rows):
            where = slice(start, min(start + rows, length)) if leaf.shape else ()
            content.update(store[where].read(order='C').result().tobytes())
    return content.hexdigest()
