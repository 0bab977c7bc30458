"""What texts a training met, as hashes, so that a test can ask without the data whether its words were among them."""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt64

from slm_jax import paths

FILE = 'seen.npz'  # in a model's directory
KINDS = ('instructions', 'targets')

Hashes = UInt64[np.ndarray, ' n']


def hashes(texts: Iterable[str]) -> Hashes:
    """Of each text without case and punctuation."""
    return np.array([_hash(' '.join(re.findall(r'\w+', text.casefold()))) for text in texts], np.uint64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little')


def joined(parts: Sequence[Mapping[str, Hashes]]) -> dict[str, Hashes]:
    """All of them, each once."""
    none = np.zeros(0, np.uint64)
    return {kind: np.unique(np.concatenate([none, *(part[kind] for part in parts)])) for kind in KINDS}


def write(model_dir: str | os.PathLike, seen: Mapping[str, Hashes]) -> None:
    """Writes the file, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **seen)
    paths.write(paths.path(model_dir) / FILE, content.getvalue())


def read(model_dir: str | os.PathLike) -> dict[str, Hashes] | None:
    """What the file says; None where there is none, as in models of before."""
    path = paths.path(model_dir) / FILE
    if not path.is_file():
        return None
    with path.open('rb') as file, np.load(file) as arrays:
        return dict(arrays)
