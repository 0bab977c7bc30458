"""GGUF files, which llama.cpp and Ollama have: decoder-only LLMs with their tokenizer, of any quantisation.

What a file says is said again as config.json would say it, and then as for a directory of Hugging Face's layout.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from slm_jax.importers import CheckpointError, Imported, chat
from slm_jax.importers.gguf import container, tokenizer
from slm_jax.importers.hugging_face import decoder_only
from slm_jax.importers.hugging_face.directory import Directory
from slm_jax.importers.hugging_face.tensors import Tensor
from slm_jax.llms import rotary
from slm_jax.llms.decoder_only import DecoderOnlyConfig

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
# Keys after the architecture's name, and the flags of config.json that say the same.
_SIZES = {
    'embedding_length': 'hidden_size', 'block_count': 'num_hidden_layers', 'feed_forward_length': 'intermediate_size',
    'attention.head_count': 'num_attention_heads',
}  # fmt: skip
_OPTIONAL = {
    'attention.head_count_kv': 'num_key_value_heads', 'attention.key_length': 'head_dim',
    'attention.layer_norm_rms_epsilon': 'rms_norm_eps', 'rope.freq_base': 'rope_theta',
    'context_length': 'max_position_embeddings',
}  # fmt: skip
_SCALING = 'rope.scaling.'
# Keys that are taken at one value alone; the second is of llama.cpp's own, and the third of training.
_FIXED = {'expert_count': 0, 'expert_used_count': 0, 'attention.causal': True}
_READ = {'vocab_size', 'rope.dimension_count', 'attention.value_length', 'leading_dense_block_count'}
_MODULES = {
    'decoder/decoder_norm': 'output_norm',
    'decoder/layers/pre_self_attention_layer_norm': 'blk.{}.attn_norm',
    'decoder/layers/pre_mlp_layer_norm': 'blk.{}.ffn_norm',
    'decoder/layers/self_attention/query': 'blk.{}.attn_q', 'decoder/layers/self_attention/key': 'blk.{}.attn_k',
    'decoder/layers/self_attention/value': 'blk.{}.attn_v', 'decoder/layers/self_attention/out': 'blk.{}.attn_output',
    'decoder/layers/self_attention/query_norm': 'blk.{}.attn_q_norm',
    'decoder/layers/self_attention/key_norm': 'blk.{}.attn_k_norm',
    'decoder/layers/mlp/wi_0': 'blk.{}.ffn_gate', 'decoder/layers/mlp/wi_1': 'blk.{}.ffn_up',
    'decoder/layers/mlp/wo': 'blk.{}.ffn_down',
}  # fmt: skip
_NAMES = decoder_only.Names('token_embd.weight', 'output.weight', '', _MODULES)
_FREQUENCIES = 'rope_freqs.weight'
# What Llama 3's rotary scaling may have been; a file keeps no more than what came of it.
_LLAMA3 = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192.0}


def find(source: str) -> pathlib.Path | None:
    """The file at a path, or the only one in a directory that has no config.json; None: the path is something else.

    Raises:
        CheckpointError: the directory has several.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir() or (path / 'config.json').exists():
        return None
    files = sorted(path.glob('*.gguf'))
    if len(files) > 1:
        raise CheckpointError(f'{path} has {len(files)} GGUF files, such as {files[0].name}. Name one of them.')
    return files[0] if files else None


def convert(source: str, path: pathlib.Path, out: pathlib.Path) -> tuple[Directory, Imported]:
    """Makes a decoder-only LLM of a GGUF file.

    Args:
        source: as it was asked for.
        path: the file.
        out: where it will stand; the model file says so.

    Returns:
        What the card says of the file, with its metadata for a configuration, and the parts.

    Raises:
        CheckpointError: a file that is none or is damaged, an architecture or quantisation or key that is not known, a
            tensor or key that is missing; names it.
    """
    file = container.read(path)
    flags = _flags(file)
    licence, config = file.metadata.get('general.license'), decoder_only.config(path, flags)
    said = tokenizer.said(file)
    found = dict(file.tensors)
    if (factors := found.pop(_FREQUENCIES, None)) is not None:
        config = dataclasses.replace(config, rope_scaling=_scaling(path, config, factors))
    if file.metadata['general.architecture'] == 'llama':
        found = _unpermuted(config, found)
    directory = Directory(source, path, None, licence if isinstance(licence, str) else None, flags)
    imported = decoder_only.assemble(
        directory, out, config, found, _NAMES, chat.text(said, config.vocab_size), said.content
    )
    scalars = {key: value for key, value in file.metadata.items() if not key.startswith('tokenizer.')}
    return dataclasses.replace(directory, config=scalars), imported


def _flags(file: container.File) -> dict[str, Any]:
    """Metadata as config.json would have it."""
    path, metadata = file.path, file.metadata
    architecture = metadata.get('general.architecture')
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f'{path}: general.architecture is {architecture!r}; what can be imported from GGUF is '
            f'{", ".join(ARCHITECTURES)}.'
        )
    own = {
        key.removeprefix(f'{architecture}.'): value
        for key, value in metadata.items()
        if key.startswith(f'{architecture}.')
    }
    for key in _SIZES:
        if own.get(key) is None:
            raise CheckpointError(f'{path} has no key {architecture}.{key}. Convert the model again.')
    for key, expected in _FIXED.items():
        if own.get(key, expected) != expected:
            raise CheckpointError(f'{path}: {architecture}.{key} is {own[key]!r}; only {expected!r} is supported.')
    known = _SIZES.keys() | _OPTIONAL.keys() | _FIXED.keys() | _READ
    if unknown := sorted(key for key in own.keys() - known if not key.startswith(_SCALING)):
        raise CheckpointError(
            f'{path}: unknown key {architecture}.{unknown[0]} = {own[unknown[0]]!r}. Whether numbers depend on it '
            'nobody here knows.'
        )
    if _NAMES.embedding not in file.tensors:
        raise CheckpointError(f'{path} has no tensor {_NAMES.embedding}. Fetch it again.')
    flags = {flag: own[key] for key, flag in (_SIZES | _OPTIONAL).items() if key in own}
    flags |= {
        'model_type': architecture,
        'vocab_size': file.tensors[_NAMES.embedding].shape[0],
        'tie_word_embeddings': _NAMES.head not in file.tensors,
        'rope_scaling': _linear(path, own),
    }
    head_dim = own.get('attention.key_length', own.get('rope.dimension_count'))
    if head_dim is not None:
        flags['head_dim'] = head_dim
    for key in ('rope.dimension_count', 'attention.value_length'):
        if own.get(key, head_dim) != head_dim:
            raise CheckpointError(
                f'{path}: {architecture}.{key} is {own[key]!r}, and heads are {head_dim} wide; other models have that.'
            )
    if architecture != 'qwen2' and 'blk.0.attn_q.bias' in file.tensors:
        flags['attention_bias'] = True
    if architecture == 'llama' and 'blk.0.ffn_gate.bias' in file.tensors:
        flags['mlp_bias'] = True
    return flags


def _linear(path: pathlib.Path, own: dict[str, Any]) -> dict[str, Any] | None:
    kind = own.get(_SCALING + 'type', 'none')
    if kind == 'none':
        return None
    if kind != 'linear':
        raise CheckpointError(f"{path}: rope.scaling.type is {kind!r}; there are none, linear and Llama 3's tensor.")
    return {'rope_type': 'linear', 'factor': own.get(_SCALING + 'factor')}


def _scaling(path: pathlib.Path, config: DecoderOnlyConfig, factors: Tensor) -> dict[str, Any]:
    """Llama 3's scaling of rotary positions, of which a file has what it makes of each frequency."""
    said = factors.open()[:]
    scaling = {'rope_type': 'llama3', 'factor': float(said.max()), **_LLAMA3}
    plain, scaled = (rotary.frequencies(config.rope_theta, config.head_dim, some) for some in (None, scaling))
    if said.shape != plain.shape or not np.allclose(plain / scaled, said, rtol=1e-4):
        raise CheckpointError(f"{path}: the factors in {_FREQUENCIES} are not those of Llama 3's rotary positions.")
    return scaling


def _unpermuted(config: DecoderOnlyConfig, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries and keys with a head's halves one after the other, which llama.cpp interleaves in this architecture."""
    result = dict(found)
    for part, heads in (('q', config.num_heads), ('k', config.num_kv_heads)):
        stored = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
        order = stored.swapaxes(1, 2).reshape(-1)
        for layer in range(config.num_layers):
            for kind in ('weight', 'bias'):
                name = f'blk.{layer}.attn_{part}.{kind}'
                if name in found and found[name].shape[0] == len(order):
                    result[name] = container.reordered(found[name], order)
    return result
