"""Decoder-only LLMs: Llama (SmolLM2 among them), Mistral, Qwen2, Qwen3 and OPT, with their tokenizers.

Parameters get the names of `slm_jax.llms.decoder_only`, layers side by side at axis 0. Rows of the embedding and of the
head change places with the tokens that pad and end (see `importers.chat`). Logits are those of `transformers` 5.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from slm_jax import foundations
from slm_jax.importers import CheckpointError, Imported, chat, finite
from slm_jax.importers import decoder_only as importers_decoder_only
from slm_jax.importers.hugging_face import speech
from slm_jax.importers.hugging_face.directory import Directory, check_types
from slm_jax.importers.hugging_face.t5 import ACTIVATIONS, HEAD, equal
from slm_jax.importers.hugging_face.tensors import Tensor, read_json, tensors
from slm_jax.llms.decoder_only import DecoderOnlyConfig
from slm_jax.llms.rotary import SCALINGS

MODEL_TYPES = {'llama': 'Llama', 'mistral': 'Mistral', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3', 'opt': 'OPT'}
FILES = (
    'generation_config.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja',
    'tokenizer.json',
)  # fmt: skip
_ROWS = 8192  # of an embedding, read at a time
_POSITIONS = 2  # rows of OPT's position embedding that no position has

_SIZES = {
    'vocab_size': 'vocab_size', 'hidden_size': 'emb_dim', 'num_hidden_layers': 'num_layers',
    'num_attention_heads': 'num_heads', 'intermediate_size': 'mlp_dim',
}  # fmt: skip
_OPT_SIZES = {
    **{key: name for key, name in _SIZES.items() if key != 'intermediate_size'}, 'ffn_dim': 'mlp_dim',
    'max_position_embeddings': 'max_positions',
}  # fmt: skip
# What transformers takes where config.json says nothing.
_DEFAULTS = {
    'llama': {}, 'mistral': {'num_key_value_heads': 8, 'sliding_window': 4096},
    'qwen2': {'num_key_value_heads': 32, 'sliding_window': 4096, 'max_window_layers': 28},
    'qwen3': {'num_key_value_heads': 32, 'sliding_window': 4096, 'max_window_layers': 28, 'head_dim': 128},
    'opt': {},
}  # fmt: skip
_READ = {'num_key_value_heads', 'head_dim', 'hidden_act', 'rms_norm_eps', 'rope_theta', 'rope_scaling'} | {
    'rope_parameters', 'original_max_position_embeddings', 'max_position_embeddings',
}  # fmt: skip
_OWN = {
    'llama': {'attention_bias', 'mlp_bias'},
    'mistral': {'sliding_window'},
    'qwen2': {'sliding_window', 'use_sliding_window', 'max_window_layers', 'layer_types'},
    'qwen3': {'sliding_window', 'use_sliding_window', 'max_window_layers', 'layer_types', 'attention_bias'},
    'opt': {
        'do_layer_norm_before', '_remove_final_layer_norm', 'word_embed_proj_dim', 'activation_function', 'enable_bias',
    },
}  # fmt: skip
_BOOLS = (
    'attention_bias', 'mlp_bias', 'use_sliding_window', 'do_layer_norm_before', '_remove_final_layer_norm',
    'enable_bias', 'tie_word_embeddings',
)  # fmt: skip
_FIXED = {'partial_rotary_factor': 1.0, 'rope_interleaved': False}
_OPT_FIXED = {'layer_norm_elementwise_affine': True}
# Of training, of parallel computation, and of other programs.
_WITHOUT_EFFECT = {
    'attention_dropout', 'activation_dropout', 'dropout', 'layerdrop', 'pretraining_tp', 'unk_token_id',
    'is_llama_config', 'transformers.js_config', '_model_name_or_path',
}  # fmt: skip
_ACTIVATIONS = ACTIVATIONS | {'gelu': 'gelu_exact'}

_MODULES = {
    'decoder/decoder_norm': 'norm',
    'decoder/layers/pre_self_attention_layer_norm': 'layers.{}.input_layernorm',
    'decoder/layers/pre_mlp_layer_norm': 'layers.{}.post_attention_layernorm',
    'decoder/layers/self_attention/query': 'layers.{}.self_attn.q_proj',
    'decoder/layers/self_attention/key': 'layers.{}.self_attn.k_proj',
    'decoder/layers/self_attention/value': 'layers.{}.self_attn.v_proj',
    'decoder/layers/self_attention/out': 'layers.{}.self_attn.o_proj',
    'decoder/layers/self_attention/query_norm': 'layers.{}.self_attn.q_norm',
    'decoder/layers/self_attention/key_norm': 'layers.{}.self_attn.k_norm',
    'decoder/layers/mlp/wi_0': 'layers.{}.mlp.gate_proj', 'decoder/layers/mlp/wi_1': 'layers.{}.mlp.up_proj',
    'decoder/layers/mlp/wo': 'layers.{}.mlp.down_proj',
}  # fmt: skip
_OPT_MODULES = _MODULES | {
    'decoder/decoder_norm': 'final_layer_norm', 'decoder/position_embedder': 'embed_positions',
    'decoder/project_in': 'project_in', 'decoder/project_out': 'project_out',
    'decoder/layers/pre_self_attention_layer_norm': 'layers.{}.self_attn_layer_norm',
    'decoder/layers/pre_mlp_layer_norm': 'layers.{}.final_layer_norm',
    'decoder/layers/self_attention/out': 'layers.{}.self_attn.out_proj',
    'decoder/layers/mlp/wi': 'layers.{}.fc1', 'decoder/layers/mlp/wo': 'layers.{}.fc2',
}  # fmt: skip
_EMBEDDING = 'embed_tokens.weight'


@dataclasses.dataclass(frozen=True)
class Names:
    """What tensors are called.

    Attributes:
        embedding, head: their names.
        prefix: before those of modules.
        modules: ours and theirs, {} in the place of the layer's number.
    """

    embedding: str
    head: str
    prefix: str
    modules: Mapping[str, str]


def module_name(module: str, cfg: DecoderOnlyConfig) -> str:
    """What the whole model of `transformers` calls one of our modules, {} in the place of the layer's number."""
    if cfg.positions == 'learned':
        return f'model.decoder.{_OPT_MODULES[module]}'
    return f'model.{_MODULES[module]}'


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Makes a decoder-only LLM of a Hugging Face directory.

    Args:
        directory: whose `model_type` is one of `MODEL_TYPES`.
        out: where it will stand; the model file says so.

    Raises:
        CheckpointError: a flag that cannot be honoured, a tensor that is missing, of another shape or of no use, no
            tokenizer, or a chat template without a place for the user; names it.
    """
    cfg = config(directory.path / 'config.json', directory.config)
    path, text, found = directory.path, said(directory), tensors(directory.path)
    prefixes = [name.removesuffix(_EMBEDDING) for name in found if f'.{name}'.endswith(f'.{_EMBEDDING}')]
    if len(prefixes) != 1:
        raise CheckpointError(f'{path}: the weights have no tensor {_EMBEDDING}, or more than one.')
    modules = _OPT_MODULES if directory.config['model_type'] == 'opt' else _MODULES
    names = Names(prefixes[0] + _EMBEDDING, HEAD, prefixes[0], modules)
    return assemble(directory, out, cfg, found, names, chat.text(text, cfg.vocab_size), text.content)


def assemble(
    directory: Directory,
    out: pathlib.Path,
    cfg: DecoderOnlyConfig,
    found: dict[str, Tensor],
    names: Names,
    text: chat.Text,
    tokenizer: bytes,
) -> Imported:
    """Puts together what was read of a checkpoint.

    Args:
        directory: the checkpoint, with flags by their names in config.json.
        out: where it will stand.
        cfg: by these flags; whether it is tied, and its other ends, are found out here.
        found: tensors by name.
        names: of the tensors that there must be.
        text: see `chat.text`.
        tokenizer: content of `tokenizer.json`.
    """
    flags, path = directory.config, directory.path
    if names.embedding not in found:
        raise CheckpointError(f'{path}: the weights have no tensor {names.embedding}.')
    head, embedding = found.pop(names.head, None), found[names.embedding]
    tied = flags.get('tie_word_embeddings')
    tied = flags['model_type'] == 'opt' if tied is None else tied
    if head is None and not tied:
        raise CheckpointError(
            f'{path}: {names.head} is missing, and by config.json (tie_word_embeddings) the head is not tied to the '
            'embedding. Save the model with its head (AutoModelForCausalLM).'
        )
    if head is not None and equal(head, embedding):
        head = None
    if head is not None and tied:
        raise CheckpointError(
            f'{head.file}: {names.head} differs from {names.embedding}, to which config.json says it is tied. Set '
            'tie_word_embeddings to false if the head was trained alone, or delete the tensor.'
        )
    if head is not None:
        found[names.head] = head
    cfg = dataclasses.replace(cfg, logits_via_embedding=head is None, other_ends=text.other_ends)
    params = _params(path, cfg, found, names, text.rows)
    gin = importers_decoder_only.model_file(cfg, params, text.chat, directory.source, out)
    return Imported('llm', params, gin, text.card, (foundations.TOKENIZER_JSON, tokenizer))


def config(file: pathlib.Path, flags: Mapping[str, Any]) -> DecoderOnlyConfig:
    """Sizes and numerics by the flags, `logits_via_embedding` and `other_ends` left open.

    Args:
        file: that the flags are in.
        flags: by their names in config.json.

    Raises:
        CheckpointError: a flag that is unknown, missing, or at a value that cannot be honoured; names it.
    """
    family = flags['model_type']
    known = _OWN[family] | _WITHOUT_EFFECT
    check_types(file, flags, {bool: _BOOLS, str: ('hidden_act', 'activation_function')})
    if family == 'opt':
        sizes = speech.check_flags(file, flags, _OPT_SIZES, _OPT_FIXED, known)
        return _opt(file, flags, sizes)
    sizes = speech.check_flags(file, flags, _SIZES, _FIXED, known | _READ)
    defaults = _DEFAULTS[family]
    flags = defaults | dict(flags)
    heads = sizes['num_heads']
    optional: dict[str, Any] = {
        'num_kv_heads': _count(file, flags, 'num_key_value_heads', heads),
        'head_dim': _count(file, flags, 'head_dim', defaults.get('head_dim', sizes['emb_dim'] // heads)),
    }
    if heads % optional['num_kv_heads']:
        raise CheckpointError(
            f'{file}: num_key_value_heads {optional["num_kv_heads"]} do not divide num_attention_heads {heads}.'
        )
    if optional['head_dim'] % 2:
        raise CheckpointError(f'{file}: head_dim is {optional["head_dim"]}; rotary positions want an even number.')
    theta, scaling = _rope(file, flags)
    bias = flags.get('attention_bias') or False
    window, layers = _window(file, flags, sizes['num_layers'])
    return DecoderOnlyConfig(
        **sizes,
        **optional,
        mlp_activations=(_activation(file, 'hidden_act', flags.get('hidden_act') or 'silu'), 'linear'),
        norm='rms',
        norm_epsilon=_positive(file, flags, 'rms_norm_eps', 1e-6),
        positions='rotary',
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=bias or family == 'qwen2',
        out_bias=bias,
        mlp_bias=flags.get('mlp_bias') or False,
        qk_norm=family == 'qwen3',
        sliding_window=window,
        sliding_layers=layers,
    )


def _opt(file: pathlib.Path, flags: Mapping[str, Any], sizes: dict[str, Any]) -> DecoderOnlyConfig:
    heads, width = sizes['num_heads'], sizes['emb_dim']
    if width % heads:
        raise CheckpointError(f'{file}: num_attention_heads {heads} do not divide hidden_size {width}.')

    def flag(key, default):
        return default if flags.get(key) is None else flags[key]

    first, bias = flag('do_layer_norm_before', True), flag('enable_bias', True)
    embed_dim = _count(file, flags, 'word_embed_proj_dim', width)
    return DecoderOnlyConfig(
        **sizes,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_activations=(_activation(file, 'activation_function', flag('activation_function', 'relu')),),
        norm='layer',
        norm_epsilon=1e-5,
        norm_first=first,
        final_norm=first and not flag('_remove_final_layer_norm', False),
        positions='learned',
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        embed_dim=None if embed_dim == width else embed_dim,
    )


def _count(file: pathlib.Path, flags: Mapping[str, Any], key: str, default: int) -> int:
    value = default if flags.get(key) is None else flags[key]
    if type(value) is not int or value < 1:
        raise CheckpointError(f'{file}: {key} is {value!r}; it must be a positive number.')
    return value


def _positive(file: pathlib.Path, flags: Mapping[str, Any], key: str, default: float) -> float:
    value = default if flags.get(key) is None else flags[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CheckpointError(f'{file}: {key} is {value!r}; it must be a number above 0.')
    return float(value)


def _activation(file: pathlib.Path, key: str, name: str) -> str:
    if name not in _ACTIVATIONS:
        raise CheckpointError(f'{file}: {key} is {name!r}; there are {", ".join(_ACTIVATIONS)}.')
    return _ACTIVATIONS[name]


def _rope(file: pathlib.Path, flags: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of rotary positions; transformers 5 has them in one mapping, older ones in two places."""
    said = flags.get('rope_scaling') or flags.get('rope_parameters') or {}
    if not isinstance(said, dict):
        raise CheckpointError(f'{file}: rope_scaling or rope_parameters is {said!r}; it must be an object.')
    theta = _positive(file, {'rope_theta': flags.get('rope_theta')} | said, 'rope_theta', 10_000.0)
    kind = said.get('rope_type', said.get('type')) or 'default'
    if kind not in SCALINGS:
        raise CheckpointError(f'{file}: rope_type is {kind!r}; there are {", ".join(SCALINGS)}.')
    others = {'rope_theta', 'rope_type', 'type', *SCALINGS['llama3']}
    if said.get('partial_rotary_factor') in (None, 1, 1.0):
        others.add('partial_rotary_factor')
    if unknown := sorted(said.keys() - others):
        raise CheckpointError(
            f'{file}: {unknown[0]!r} = {said[unknown[0]]!r} of rotary positions is not known with rope_type {kind!r}.'
        )
    if kind == 'llama3':
        trained = said.get('original_max_position_embeddings') or flags.get('max_position_embeddings')
        said = said | {'original_max_position_embeddings': flags.get('original_max_position_embeddings') or trained}
    if missing := [key for key in SCALINGS[kind] if said.get(key) is None]:
        raise CheckpointError(f'{file}: rope_type is {kind!r}, and {missing[0]} is missing.')
    scaling = {key: _positive(file, said, key, 1.0) for key in SCALINGS[kind]}
    return theta, {'rope_type': kind, **scaling} if scaling else None


def _window(file: pathlib.Path, flags: Mapping[str, Any], num_layers: int) -> tuple[int | None, tuple[int, ...] | None]:
    """How far back attention looks, and which layers do so; None: no layer, or all."""
    used = flags['model_type'] == 'mistral' or flags.get('use_sliding_window')
    if flags.get('sliding_window') is None or not used:
        if 'sliding_attention' in (flags.get('layer_types') or ()):
            raise CheckpointError(f'{file}: layer_types has sliding_attention, and no sliding_window is in use.')
        return None, None
    window = _count(file, flags, 'sliding_window', 1)
    if flags['model_type'] == 'mistral':
        return window, None
    kinds = flags.get('layer_types')
    if kinds is None:
        full = flags['max_window_layers']
        if type(full) is not int or full < 0:
            raise CheckpointError(f'{file}: max_window_layers is {full!r}; it must be a number, not below 0.')
        kinds = ['full_attention' if n < full else 'sliding_attention' for n in range(num_layers)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or any(kind not in ('full_attention', 'sliding_attention') for kind in kinds)
    ):
        raise CheckpointError(
            f'{file}: layer_types is {kinds!r}; it must have full_attention or sliding_attention for each of '
            f'{num_layers} layers.'
        )
    layers = tuple(n for n, kind in enumerate(kinds) if kind == 'sliding_attention')
    return (window, layers) if layers else (None, None)


def said(directory: Directory) -> chat.Said:
    """What the files of a directory say of its text.

    Raises:
        CheckpointError: no tokenizer, or files that mean nothing.
    """
    path, flags = directory.path, directory.config
    file, settings_file, generation_file = (
        path / name for name in (foundations.TOKENIZER_JSON, 'tokenizer_config.json', 'generation_config.json')
    )
    if not file.is_file():
        raise CheckpointError(
            f'{path} has no {file.name}. If it has a SentencePiece file, or vocab.json and merges.txt, let '
            'transformers write one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).'
        )
    settings, generation, special = (
        read_json(name) if name.is_file() else {}
        for name in (settings_file, generation_file, path / 'special_tokens_map.json')
    )
    content = file.read_bytes()
    tokenizer = chat.open_tokenizer(file, content).tokenizer
    tokens = {}
    for key, token in {**special, **settings}.items():
        token = token.get('content') if isinstance(token, dict) else token
        if key.endswith('_token') and isinstance(token, str):
            tokens[key] = token
    config_file = path / 'config.json'
    pads = [*_ids(generation_file, generation, 'pad_token_id'), *_ids(config_file, flags, 'pad_token_id')]
    ends = _ids(generation_file, generation, 'eos_token_id') or _ids(config_file, flags, 'eos_token_id')
    own_pad, own_end = (tokenizer.token_to_id(tokens.get(name, '')) for name in ('pad_token', 'eos_token'))
    check_types(settings_file, settings, {bool: ('add_bos_token',)})
    template_file, template = _template(path, settings_file, settings)
    return chat.Said(
        file=file,
        content=content,
        template=template,
        template_file=template_file,
        tokens=tokens,
        ends=tuple(ends or ([] if own_end is None else [own_end])),
        pads=tuple(pads if own_pad is None else [own_pad, *pads]),
        begins=settings.get('add_bos_token'),
    )


def _ids(file: pathlib.Path, values: Mapping[str, Any], key: str) -> list[int]:
    found = values.get(key)
    found = [] if found is None else found if isinstance(found, list) else [found]
    if any(type(number) is not int for number in found):
        raise CheckpointError(f'{file}: {key} is {found!r}; it must be a number, or a list of numbers.')
    return found


def _template(path: pathlib.Path, file: pathlib.Path, settings: Mapping[str, Any]) -> tuple[pathlib.Path, str | None]:
    """The chat template and its file: one of its own, or a setting of the tokenizer, of several the default."""
    own = path / 'chat_template.jinja'
    if own.is_file():
        return own, own.read_text(encoding='utf-8')
    template = settings.get('chat_template')
    if isinstance(template, list):
        named = {entry.get('name'): entry.get('template') for entry in template if isinstance(entry, dict)}
        template = named.get('default')
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f'{file}: chat_template is {template!r}; it must be a text.')
    return file, template


def _params(
    path: pathlib.Path, cfg: DecoderOnlyConfig, found: Mapping[str, Tensor], names: Names, rows: Mapping[int, int]
) -> dict[str, Any]:
    """The parameters of `cfg`, each leaf to be read from the tensors that it is made of.

    Args:
        path: the checkpoint.
        cfg: whose parameters are wanted.
        found: tensors by name, the head among them if it is not tied.
        names: see `Names`.
        rows: see `chat.Text`.
    """
    left = {name: tensor for name, tensor in found.items() if not name.endswith('.rotary_emb.inv_freq')}
    whole = {'token_embedder': names.embedding, 'decoder/logits_dense': names.head}
    first, leaves = found[names.embedding], {}
    for leaf_path, leaf in importers_decoder_only.shapes(cfg).items():
        module, _, kind = leaf_path.rpartition('/')
        stacked = leaf_path.startswith('decoder/layers/')
        if module in whole:
            name = whole[module]
        else:
            name = f'{names.prefix}{names.modules[module]}.{"bias" if kind == "bias" else "weight"}'
        made_of = {}
        for layer in range(leaf.shape[0] if stacked else 1):
            numbered = name.format(layer)
            if numbered not in left:
                raise CheckpointError(f'{path}: the weights have no tensor {numbered}, which {leaf_path} is made of.')
            tensor = made_of[numbered] = left.pop(numbered)
            if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype != first.dtype:
                raise CheckpointError(
                    f'{tensor.file}: tensor {numbered} is {tensor.dtype}, {names.embedding} is {first.dtype}. Save the '
                    'model in one floating-point type.'
                )
        if module in whole:
            leaves[leaf_path] = _embedding(leaf.shape, *made_of.popitem(), name == names.head, rows, 0)
        elif kind == 'embedding':
            leaves[leaf_path] = _embedding(leaf.shape, *made_of.popitem(), False, {}, _POSITIONS)
        else:
            leaves[leaf_path] = speech.blocks(leaf_path, leaf.shape, made_of, stacked)
    if left:
        name, tensor = next(iter(left.items()))
        raise CheckpointError(
            f'{tensor.file}: {len(left)} tensors have no place in the {cfg.num_layers} layers that its sizes describe, '
            f'the first is {name}.'
        )
    return foundations.unflatten(leaves)


def _embedding(
    shape: tuple[int, ...], name: str, tensor: Tensor, head: bool, moved: Mapping[int, int], skipped: int
) -> foundations.Blocks:
    """An embedding, or a head (turned), with rows in other places, and some at its beginning left out."""
    rows, width = shape[::-1] if head else shape
    if tensor.shape != (rows + skipped, width):
        raise CheckpointError(
            f'{tensor.file}: tensor {name} is {list(tensor.shape)}; by config.json it is {[rows + skipped, width]}.'
        )

    def read_rows(start: int, stop: int, columns: slice = slice(None)) -> np.ndarray:
        source = tensor.open()
        block = np.array(source[start + skipped : stop + skipped][:, columns])
        for ours, theirs in moved.items():
            if start <= ours < stop:
                block[ours - start] = source[theirs : theirs + 1][0, columns]
        return finite(block, f'{tensor.file}: tensor {name}')

    def read_head(start: int, stop: int) -> np.ndarray:
        parts = range(0, rows, _ROWS)
        return np.concatenate([read_rows(n, min(n + _ROWS, rows), slice(start, stop)).T for n in parts], axis=1)

    return foundations.Blocks(shape, tensor.dtype, read_head if head else read_rows)
