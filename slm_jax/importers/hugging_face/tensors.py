"""Weights in a Hugging Face directory: safetensors or PyTorch files, single or sharded.

Headers are read and checked at once, arrays when they are opened. They are mapped from their file and unmapped as
soon as nobody holds them, one array at a time and never a shard, so that what is resident is what is being read:
that is why safetensors, whose header is JSON, is parsed here and not by its library, which maps whole files.
"""

import dataclasses
import functools
import json
import math
import operator
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from slm_jax.importers import CheckpointError

DTYPES = {
    'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': ml_dtypes.bfloat16,
    'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8', 'BOOL': 'bool',
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes, the limit of the format
_SAFETENSORS, _TORCH, _INDEX = 'model.safetensors', 'pytorch_model.bin', '.index.json'
# Where weights may be: the first that is there is read, with the shards that it names if it is an index.
WEIGHTS = (_SAFETENSORS, _SAFETENSORS + _INDEX, _TORCH, _TORCH + _INDEX)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of a checkpoint.

    Attributes:
        file: where it is.
        shape, dtype: as stored.
        open: gives the array, or what is sliced and reshaped as one, read-only; let it go when done.
    """

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    open: Callable[[], Any]


def tensors(directory: pathlib.Path, landmark: str | None = None) -> dict[str, Tensor]:
    """Arrays of a Hugging Face directory by name; safetensors where there are both.

    Args:
        directory: that they are in.
        landmark: see `prefix`; shards in which nothing has the prefix are not looked at.

    Raises:
        CheckpointError: no weights, a shard or array that is missing, or a file that is damaged, truncated or not
            what its name says.
    """
    for name in WEIGHTS:
        if (directory / name).is_file():
            read = _safetensors if name.startswith(_SAFETENSORS) else _torch
            return _sharded(directory / name, landmark, read) if name.endswith(_INDEX) else read(directory / name)
    raise CheckpointError(
        f'{directory} has neither model.safetensors nor pytorch_model.bin, nor an index of shards (*.index.json). '
        'Weights of Flax or TensorFlow: load and save them with transformers first.'
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is none.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read as JSON: {error}.') from error
    if not isinstance(value, dict):
        raise CheckpointError(f'{path} holds no JSON object.')
    return value


def shards(index: pathlib.Path, landmark: str | None = None) -> list[str]:
    """Files that an index of shards names, as far as `tensors` looks at them.

    Raises:
        CheckpointError: it names none.
    """
    return sorted(set(_weight_map(index, landmark).values()))


def prefix(names: Iterable[str], landmark: str, where: pathlib.Path) -> str:
    """What stands before all names of one part of a checkpoint: a speech encoder in a larger model.

    Args:
        names: of the checkpoint's tensors.
        landmark: name, within the part, of one that no other part has.
        where: for the message.

    Raises:
        CheckpointError: the landmark is not there, or more than once.
    """
    found = [name.removesuffix(landmark) for name in names if f'.{name}'.endswith(f'.{landmark}')]
    if len(found) != 1:
        raise CheckpointError(f'{where}: the weights have no tensor {landmark}, or more than one.')
    return found[0]


def _weight_map(index: pathlib.Path, landmark: str | None) -> dict[str, str]:
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map or any(type(name) is not str for name in weight_map.values()):
        raise CheckpointError(f'{index} has no weight_map from tensors to files, so nobody knows its shards.')
    part = '' if landmark is None else prefix(weight_map, landmark, index)
    return {name: file for name, file in weight_map.items() if name.startswith(part)}


def _sharded(
    index: pathlib.Path, landmark: str | None, read: Callable[[pathlib.Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    weight_map, found = _weight_map(index, landmark), {}
    for shard in shards(index, landmark):
        path = index.parent / shard
        if pathlib.Path(shard).name != shard or not path.is_file():
            names = [name for name, file in weight_map.items() if file == shard]
            raise CheckpointError(
                f'{index} names the shard {shard!r} ({names[0]} and {len(names) - 1} more), which is not there. '
                'Fetch it again.'
            )
        found[shard] = read(path)
    for name, shard in weight_map.items():
        if name not in found[shard]:
            raise CheckpointError(f'{index.parent / shard} has no tensor {name}, which {index.name} says it has.')
    return {name: found[shard][name] for name, shard in weight_map.items()}


def _safetensors(file: pathlib.Path) -> dict[str, Tensor]:
    size = file.stat().st_size
    with file.open('rb') as stream:
        header_size = int.from_bytes(stream.read(8), 'little')
        if not 2 <= header_size <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(f'{file} is not a safetensors file, or was cut off in its header. Fetch it again.')
        try:
            header = json.loads(stream.read(header_size))
            header.pop('__metadata__', None)
            entries = []
            for name, entry in header.items():
                start, stop = map(operator.index, entry['data_offsets'])
                entries.append((start, stop, name, str(entry['dtype']), tuple(map(operator.index, entry['shape']))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f'{file} is not a safetensors file: its header means nothing ({error!r}).') from error
    data, previous, found = 8 + header_size, 0, {}
    for start, stop, name, dtype, shape in sorted(entries):
        if dtype not in DTYPES:
            raise CheckpointError(f'{file}: tensor {name} is of type {dtype}; there are {", ".join(DTYPES)}.')
        dtype = np.dtype(DTYPES[dtype])
        if data + stop > size:
            raise CheckpointError(
                f'{file} is truncated: tensor {name} ends at byte {data + stop}, the file at {size}. Fetch it again.'
            )
        if start != previous or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise CheckpointError(
                f'{file}: tensor {name}, {dtype} {list(shape)}, cannot be in bytes {start} to {stop}.'
            )
        previous = stop
        found[name] = Tensor(file, shape, dtype, functools.partial(_map, file, dtype, data + start, shape))
    if data + previous != size:
        raise CheckpointError(f'{file}: its tensors end at byte {data + previous}, the file at {size}. Fetch it again.')
    return found


def _map(file: pathlib.Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(file, dtype, 'r', offset, shape) if math.prod(shape) else np.empty(shape, dtype)


def _torch(file: pathlib.Path) -> dict[str, Tensor]:
    found = {}
    for name, value in _load_torch(file).items():
        if not hasattr(value, 'untyped_storage'):
            raise CheckpointError(
                f'{file}: {name} is no tensor but a {type(value).__name__}. A state dictionary alone is wanted: '
                'torch.save(model.state_dict(), …).'
            )
        dtype = np.dtype(_torch_array(value[:0] if value.ndim else value).dtype)
        found[name] = Tensor(file, tuple(value.shape), dtype, functools.partial(_open_torch, file, name))
    return found


def _open_torch(file: pathlib.Path, name: str) -> np.ndarray:
    return _torch_array(_load_torch(file)[name])


def _torch_array(value: Any) -> np.ndarray:
    import torch

    value = value.detach()
    if value.dtype == torch.bfloat16:  # which NumPy alone does not have
        return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _load_torch(file: pathlib.Path) -> dict[str, Any]:
    """The state dictionary in a PyTorch file, mapped: each call maps anew, so what was read can be let go."""
    if not zipfile.is_zipfile(file):
        return _load_old_torch(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f'{file} is damaged ({error}). Fetch it again.') from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > file.stat().st_size:
            raise CheckpointError(f'{file}: {entry.filename} in it is compressed, which PyTorch never does.')
    return _plain_tensors(file, mmap=True)


@functools.lru_cache(maxsize=1)
def _load_old_torch(file: pathlib.Path) -> dict[str, Any]:
    """As before PyTorch 1.6: the file cannot be mapped, and takes memory as a whole."""
    return _plain_tensors(file, mmap=False)


def _plain_tensors(file: pathlib.Path, mmap: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f'{file} is read by PyTorch, which is not installed: pip install slm_jax[hf], or fetch safetensors.'
        ) from error
    damage = (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)
    try:
        state = torch.load(file, map_location='cpu', weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, *damage) as error:
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise CheckpointError(
            f'{file} is damaged, or holds more than plain tensors, and is not loaded: {reason}'
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f'{file} holds no dictionary of tensors but a {type(state).__name__}.')
    return state
