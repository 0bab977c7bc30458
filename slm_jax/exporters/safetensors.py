"""Writes the safetensors format: a JSON header, then the arrays one after another."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from slm_jax.importers.hugging_face.tensors import DTYPES, Tensor

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def write(file: pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes `file`, one array in memory at a time.

    Args:
        tensors: by name; what they say of a file is not read.
        metadata: texts, for the header.
    """
    header: dict[str, Any] = {'__metadata__': dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        stop = offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            'dtype': _NAMES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [offset, stop],
        }  # fmt: skip
        offset = stop
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # arrays begin at a multiple of 8 bytes
    with file.open('wb') as stream:
        stream.write(len(text).to_bytes(8, 'little') + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor.open()).tobytes())
