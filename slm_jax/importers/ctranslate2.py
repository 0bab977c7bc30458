"""Whisper's encoder out of a model of CTranslate2, as faster-whisper has it: `model.bin` beside a `config.json`.

The file is CTranslate2's binary format 6: variables one after another, each behind its name, shape and type; then names
that stand for others. Weights may be of any type that its converter writes: those of int8 and int16 are to be divided
by a scale.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from slm_jax.audio.frontends import WhisperFrontend
from slm_jax.encoders.whisper import WhisperConfig, WhisperEncoder, encoder_seconds
from slm_jax.importers import CheckpointError, Imported
from slm_jax.importers.hugging_face import directory as directories
from slm_jax.importers.hugging_face import speech, whisper
from slm_jax.importers.hugging_face.directory import Directory
from slm_jax.importers.hugging_face.tensors import Tensor

_WEIGHTS = 'model.bin'
_VERSION, _KIND, _REVISION = 6, 'WhisperSpec', 3
_LANDMARK, _HEADS = 'encoder/conv1/weight', 'encoder/num_heads'
_DTYPES = ('float32', 'int8', 'int16', 'int32', 'float16', ml_dtypes.bfloat16)
_FUSED, _PARTS = 'self_attention/linear_0', ('q_proj', 'k_proj', 'v_proj')  # one above the other in one weight
_MODULES = {
    'self_attn_layer_norm': 'self_attention/layer_norm', 'self_attn/out_proj': 'self_attention/linear_1',
    'final_layer_norm': 'ffn/layer_norm', 'fc1': 'ffn/linear_0', 'fc2': 'ffn/linear_1',
    **{f'self_attn/{part}': f'{_FUSED}/{part}' for part in _PARTS},
}  # fmt: skip


def is_checkpoint(directory: Directory) -> bool:
    """Whether `model.bin` is there, beside a configuration that names no family; from the Hub, it is fetched."""
    if directory.config.keys() & {'model_type', 'architectures'}:
        return False
    directories.fetch(directory, speech.PREPROCESSORS, (_WEIGHTS,))
    return (directory.path / _WEIGHTS).is_file()


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Takes the encoder out of a Whisper of CTranslate2.

    Raises:
        CheckpointError: another kind of model, or one that is damaged, incomplete or of no use; names the variable.
    """
    file = directory.path / _WEIGHTS
    variables = {name: variable for name, variable in _variables(file).items() if name.startswith('encoder/')}

    def variable(name: str, axes: int) -> Tensor:
        found = variables.get(name)
        if found is None or len(found.shape) != axes or 0 in found.shape:
            raise CheckpointError(f'{file}: the weights have no tensor {name} with {axes} axes. Convert it again.')
        return found

    emb_dim, num_mel_bins, _ = variable(_LANDMARK, 3).shape
    if (num_heads := int(variable(_HEADS, 0).open())) < 1:
        raise CheckpointError(f'{file}: {_HEADS} is {num_heads}; it must be a positive number.')
    config = WhisperConfig(
        num_layers=len({name.split('/')[1] for name in variables if re.match(r'encoder/layer_\d', name)}),
        emb_dim=emb_dim,
        num_heads=num_heads,
        mlp_dim=variable('encoder/layer_0/ffn/linear_0/weight', 2).shape[0],
    )
    del variables[_HEADS]
    speech.check_preprocessor(directory, whisper.PREPROCESSOR | {'feature_size': num_mel_bins})
    return speech.convert(
        directory,
        out,
        WhisperEncoder(config),
        WhisperFrontend(num_mel_bins),
        num_mel_bins,
        _name,
        _LANDMARK,
        encoder_seconds=encoder_seconds,
        found=_whole(variables),
        sizes=_WEIGHTS,
    )


def _name(path: str) -> str:
    if path == 'embed_positions':
        return 'encoder/position_encodings/encodings'
    module, _, kind = path.rpartition('/')
    is_norm = module.endswith('norm')
    kind = {'kernel': 'weight', 'scale': 'gamma', 'bias': 'beta' if is_norm else 'bias'}[kind]
    layer, _, part = module.partition('/')
    return f'encoder/layer_{{}}/{_MODULES[part]}/{kind}' if layer == 'layers' else f'encoder/{module}/{kind}'


def _variables(file: pathlib.Path) -> dict[str, Tensor]:
    """All variables of a model by name, those too that are others'.

    Raises:
        CheckpointError: it is no Whisper of the format, or damaged.
    """
    with file.open('rb') as stream:
        header = stream.read(6)
        version, length = struct.unpack('<IH', header) if len(header) == 6 else (None, 0)
        kind = stream.read(length)[:-1].decode(errors='replace') if version == _VERSION else None
        if kind is None:
            raise CheckpointError(
                f'{file} is no model of CTranslate2 in its binary format {_VERSION} (it begins with {version}). '
                'Convert it again with ct2-transformers-converter, version 3 or later.'
            )
        revision = _take(stream, 'I')
        if (kind, revision) != (_KIND, _REVISION):
            raise CheckpointError(
                f'{file} is a {kind} of revision {revision}; only {_KIND} of revision {_REVISION}, a Whisper, is read.'
            )
        found = dict(_variable(stream) for _ in range(_take(stream, 'I')))
        for _ in range(_take(stream, 'I')):
            alias, name = _string(stream), _string(stream)
            if name not in found:
                raise CheckpointError(f'{file}: {alias} stands for {name}, which is not there. Fetch it again.')
            found |= {f'{alias}{part}': found[f'{name}{part}'] for part in ('', '_scale') if f'{name}{part}' in found}
        if extra := stream.read():
            raise CheckpointError(f'{file}: {len(extra)} bytes stand behind its last variable. Fetch it again.')
    return found


def _variable(stream: BinaryIO) -> tuple[str, Tensor]:
    """The variable that begins here; leaves the stream behind it."""
    file, name = pathlib.Path(stream.name), _string(stream)
    shape = tuple(_take(stream, 'I') for _ in range(_take(stream, 'B')))
    kind, size = _take(stream, 'B'), _take(stream, 'I')
    if kind >= len(_DTYPES):
        raise CheckpointError(f'{file}: {name} is of type {kind}, which nobody here knows.')
    dtype, offset = np.dtype(_DTYPES[kind]), stream.tell()
    if size != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f'{file}: {name}, {dtype} {list(shape)}, cannot be {size} bytes. Fetch it again.')
    if offset + size > file.stat().st_size:
        raise CheckpointError(f'{file} is truncated: {name} ends at byte {offset + size}. Fetch it again.')
    stream.seek(size, os.SEEK_CUR)
    return name, Tensor(file, shape, dtype, functools.partial(np.memmap, file, dtype, 'r', offset, shape))


def _take(stream: BinaryIO, form: str) -> int:
    data = stream.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise CheckpointError(f'{stream.name} is truncated: it ends at byte {stream.tell()}. Fetch it again.')
    return struct.unpack(f'<{form}', data)[0]


def _string(stream: BinaryIO) -> str:
    length = _take(stream, 'H')
    data = stream.read(length)
    if len(data) < length or data[-1:] != b'\0' or not data.isascii():
        raise CheckpointError(f'{stream.name}: no name ends at byte {stream.tell()}. It is damaged; fetch it again.')
    return data[:-1].decode()


def _whole(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The variables in floating point, all in float32 if one was quantised, and attention's first weights in parts.

    Raises:
        CheckpointError: a scale that is missing or does not fit; keys with a bias, which no Whisper has.
    """
    quantised = [name for name, each in variables.items() if each.dtype.kind == 'i' and each.shape]
    scales = {name: variables.get(f'{name}_scale') for name in quantised}
    found = {}
    for name, tensor in variables.items():
        if name.removesuffix('_scale') in scales and name not in scales:
            continue
        if name in scales:
            scale = scales[name]
            if scale is None or math.prod(scale.shape) not in (1, *tensor.shape[:1]):
                raise CheckpointError(f'{tensor.file}: {name} is {tensor.dtype} without a {name}_scale that fits it.')
            tensor = _float32(tensor, scale)
        elif scales:
            tensor = _float32(tensor, None)
        module, _, kind = name.rpartition('/')
        parts = [f'{module}/{part}/{kind}' for part in _PARTS]
        if not module.endswith(_FUSED) or kind not in ('weight', 'bias'):
            found[name] = tensor
            continue
        if not tensor.shape or tensor.shape[0] % len(_PARTS):
            raise CheckpointError(f'{tensor.file}: {name} is {list(tensor.shape)}, which does not part into three.')
        found |= {part: _rows(tensor, number) for number, part in enumerate(parts)}
        if kind == 'bias' and np.any(found.pop(parts[1]).open()):
            raise CheckpointError(f'{tensor.file}: {name} gives the keys a bias, which no Whisper has.')
    return found


def _float32(tensor: Tensor, scale: Tensor | None) -> Tensor:
    def read() -> np.ndarray:
        values = tensor.open().astype(np.float32)
        if scale is None:
            return values
        with np.errstate(divide='ignore', invalid='ignore'):  # what then is no number is refused
            return values / scale.open().astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))

    return dataclasses.replace(tensor, dtype=np.dtype('float32'), open=read)


def _rows(tensor: Tensor, number: int) -> Tensor:
    """One of the equal parts that lie one above the other."""
    rows = tensor.shape[0] // len(_PARTS)
    part = slice(number * rows, (number + 1) * rows)
    return dataclasses.replace(tensor, shape=(rows, *tensor.shape[1:]), open=lambda: tensor.open()[part])
