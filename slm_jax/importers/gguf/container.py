"""The container: metadata, and tensors that are dequantised when they are read.

The header is parsed here and not by the library `gguf`, which makes an array of every token of a vocabulary, maps whole
files and takes half a minute and half a gigabyte for it. What the quantisations mean is the library's.
"""

import dataclasses
import math
import pathlib
import struct
from typing import Any, BinaryIO

import numpy as np

from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face.tensors import Tensor

MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_ALIGNMENT = 'general.alignment'
_STRING, _ARRAY = 8, 9
_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}


@dataclasses.dataclass(frozen=True)
class File:
    """A GGUF file.

    Attributes:
        path: where it is.
        metadata: by key.
        tensors: by name, as float32.
    """

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: pathlib.Path) -> File:
    """Reads the header of a GGUF file.

    Raises:
        CheckpointError: it is no GGUF, is truncated or damaged, or quantised in a way that nobody here knows.
    """
    size = path.stat().st_size
    with path.open('rb') as stream:
        if stream.read(4) != MAGIC:
            raise CheckpointError(f'{path} is no GGUF file: it does not begin with {MAGIC.decode()}.')
        version, num_tensors, num_keys = struct.unpack('<IQQ', stream.read(20).ljust(20, b'\0'))
        if version not in _VERSIONS:
            raise CheckpointError(
                f'{path} is GGUF of version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]}, little-endian, are '
                'read. Convert it with a llama.cpp of today.'
            )
        try:
            metadata = {}
            for _ in range(num_keys):
                key = _string(stream)
                metadata[key] = _value(stream, *struct.unpack('<I', stream.read(4)))
            entries = []
            for _ in range(num_tensors):
                name, (dims,) = _string(stream), struct.unpack('<I', stream.read(4))
                if dims > 4:
                    raise ValueError(f'{dims} dimensions of {name}')
                *shape, kind, offset = struct.unpack(f'<{dims}QIQ', stream.read(8 * dims + 12))
                entries.append((name, tuple(shape[::-1]), kind, offset))
            alignment = metadata.get(_ALIGNMENT, 32)
            data = math.ceil(stream.tell() / alignment) * alignment
        except (ValueError, OverflowError, MemoryError, struct.error, TypeError, ZeroDivisionError) as error:
            raise CheckpointError(
                f'{path} is truncated or damaged in its header, at byte {stream.tell()} of {size} ({error}). Fetch it '
                'again.'
            ) from error
    if metadata.get('split.count', 0) > 1:
        raise CheckpointError(
            f'{path} is one of {metadata["split.count"]} parts. Join them first: llama-gguf-split --merge.'
        )
    found = {name: _tensor(path, size, name, shape, kind, data + offset) for name, shape, kind, offset in entries}
    return File(path, metadata, found)


def _string(stream: BinaryIO) -> str:
    (length,) = struct.unpack('<Q', stream.read(8))
    if length > 2**30:
        raise ValueError(f'a text of {length} bytes')
    text = stream.read(length)
    if len(text) != length:
        raise ValueError('it ends within a text')
    return text.decode()


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind == _ARRAY:
        inner, length = struct.unpack('<IQ', stream.read(12))
        if inner in _SCALARS:
            code = _SCALARS[inner]
            wanted = length * struct.calcsize('<' + code)
            if wanted > 2**32:
                raise ValueError(f'an array of {wanted} bytes')
            return list(struct.unpack(f'<{length}{code}', stream.read(wanted)))
        return [_value(stream, inner) for _ in range(length)]
    if kind not in _SCALARS:
        raise ValueError(f'a value of type {kind}')
    code = '<' + _SCALARS[kind]
    return struct.unpack(code, stream.read(struct.calcsize(code)))[0]


def _tensor(path: pathlib.Path, size: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
    import gguf

    try:
        quantisation = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), quantisation)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(
            f'{path}: tensor {name} is quantised in a way that the library gguf does not know ({error}). Take a file '
            'of another quantisation, such as Q8_0 or Q4_K_M.'
        ) from error
    if not shape or min(shape) < 1 or shape[-1] % block:
        raise CheckpointError(
            f'{path}: tensor {name} is {list(shape)}, which {quantisation.name} cannot be; the file is damaged. Fetch '
            'it again.'
        )
    stored = _Stored(path, offset, quantisation, shape, shape[-1] // block * block_bytes)
    if stored.end > size:
        raise CheckpointError(
            f'{path} is truncated: tensor {name} ends at byte {stored.end}, the file at {size}. Fetch it again.'
        )
    return Tensor(path, shape, np.dtype('float32'), lambda: stored)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in its file; the rows that are asked for are dequantised."""

    path: pathlib.Path
    offset: int
    quantisation: Any
    shape: tuple[int, ...]
    row_bytes: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape[:-1]) * self.row_bytes

    def __getitem__(self, rows: slice) -> np.ndarray:
        import gguf

        stored = np.memmap(self.path, np.uint8, 'r', self.offset, (self.end - self.offset,))
        if len(self.shape) == 1:
            return gguf.quants.dequantize(np.array(stored), self.quantisation)[rows]
        block = np.array(stored.reshape(*self.shape[:-1], self.row_bytes)[rows])
        return gguf.quants.dequantize(block, self.quantisation)

    def reshape(self, shape: tuple[int, ...]) -> np.ndarray:
        """The whole of it."""
        return self[:].reshape(shape)


def reordered(tensor: Tensor, order: np.ndarray) -> Tensor:
    """A tensor whose rows are those of `tensor` in this order."""
    return dataclasses.replace(tensor, open=lambda: tensor.open()[:][order])
