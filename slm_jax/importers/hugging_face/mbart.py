"""mBART-50, pretrained alone or fine-tuned, with its tokenizer and the codes of its languages.

Logits are those of `MBartForConditionalGeneration` of `transformers` 5. mBART-25 is refused: it has the code of a
language behind the text.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from slm_jax import foundations
from slm_jax.importers import CheckpointError, Imported, finite
from slm_jax.importers import mbart as importers_mbart
from slm_jax.importers.hugging_face import speech
from slm_jax.importers.hugging_face.directory import Directory, check_types
from slm_jax.importers.hugging_face.t5 import ACTIVATIONS, equal
from slm_jax.importers.hugging_face.tensors import Tensor, prefix, read_json, tensors
from slm_jax.llms.mbart import MBartConfig

MODEL_TYPES = {'mbart': 'MBart'}
FILES = (
    'generation_config.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    (*importers_mbart.TOKENIZERS, 'tokenizer.json'),
)  # fmt: skip
SIZES = {
    'vocab_size': 'vocab_size', 'd_model': 'emb_dim', 'encoder_attention_heads': 'num_heads',
    'encoder_layers': 'num_encoder_layers', 'decoder_layers': 'num_decoder_layers', 'encoder_ffn_dim': 'mlp_dim',
    'max_position_embeddings': 'max_positions',
}  # fmt: skip
DROPOUTS = {
    'dropout': 'dropout_rate', 'attention_dropout': 'attention_dropout_rate',
    'activation_dropout': 'activation_dropout_rate',
}  # fmt: skip
_DROPOUT_DEFAULTS = {'dropout': 0.1}  # of transformers
# Activations of config.json by our names.
NAMED_ACTIVATIONS = ACTIVATIONS | {'gelu': 'gelu_exact'}
IDS = {'bos_token_id': 0, 'pad_token_id': 1, 'eos_token_id': 2, 'decoder_start_token_id': 2}
_FIXED = IDS | {
    'is_encoder_decoder': True, 'tie_word_embeddings': True, 'add_final_layer_norm': True, 'normalize_before': True,
    'normalize_embedding': True, 'static_position_embeddings': False, 'add_bias_logits': False,
}  # fmt: skip
# Of training, and of heads of other tasks.
_WITHOUT_EFFECT = {
    'classifier_dropout', 'classif_dropout', 'encoder_layerdrop', 'decoder_layerdrop', 'num_hidden_layers',
    '_num_labels', 'output_past', 'extra_pos_embeddings', 'language_codes',
}  # fmt: skip
_TOKENIZERS = (None, 'MBart50Tokenizer', 'MBart50TokenizerFast', 'PreTrainedTokenizerFast', 'TokenizersBackend')

SHARED, HEAD, BIAS = 'shared.weight', 'lm_head.weight', 'final_logits_bias'
_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_BLOCKS = {
    'pre_attention_layer_norm': 'self_attn_layer_norm', 'attention': 'self_attn',
    'pre_self_attention_layer_norm': 'self_attn_layer_norm', 'self_attention': 'self_attn',
    'pre_cross_attention_layer_norm': 'encoder_attn_layer_norm', 'encoder_decoder_attention': 'encoder_attn',
    'pre_mlp_layer_norm': 'final_layer_norm', 'position_embedder': 'embed_positions',
    'embedding_layer_norm': 'layernorm_embedding', 'encoder_norm': 'layer_norm', 'decoder_norm': 'layer_norm',
}  # fmt: skip
_PROJECTIONS = {
    'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'out_proj', 'wi': 'fc1', 'wo': 'fc2',
}  # fmt: skip


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Makes an mBART of a Hugging Face directory.

    Args:
        directory: whose `model_type` is one of `MODEL_TYPES`; `languages` of it are added.
        out: where it will stand; the model file says so.

    Raises:
        CheckpointError: a flag that cannot be honoured, a tensor that is missing, of another shape or of no use, no
            tokenizer, or a language that cannot be added; names it.
    """
    cfg = config(directory)
    stated = _stated(directory)
    text = importers_mbart.vocabulary(directory.path, stated, cfg.vocab_size, directory.languages)
    params = _params(directory.path, cfg, text)
    cfg = dataclasses.replace(cfg, vocab_size=text.rows)
    gin = importers_mbart.model_file(cfg, params, directory.source, out)
    return Imported('llm', params, gin, text.card, text.file)


def config(directory: Directory) -> MBartConfig:
    """The sizes and numerics that config.json gives.

    Raises:
        CheckpointError: a flag that is unknown, missing, or at a value that cannot be honoured.
    """
    flags, file = _plain(directory.config), directory.path / 'config.json'
    alike = {f'decoder_{name}': flags.get(f'encoder_{name}') for name in ('attention_heads', 'ffn_dim')}
    read = {'activation_function', 'scale_embedding', *DROPOUTS} | _WITHOUT_EFFECT
    check_types(file, flags, {bool: ('scale_embedding',), str: ('activation_function',)})
    sizes = speech.check_flags(file, flags, SIZES, _FIXED | alike, read)
    generation = directory.path / 'generation_config.json'
    if generation.is_file():
        speech.check_fixed(generation, _plain(read_json(generation)), IDS)
    activation = flags.get('activation_function') or 'gelu'
    if activation not in NAMED_ACTIVATIONS:
        raise CheckpointError(
            f'{file}: activation_function is {activation!r}; there are {", ".join(NAMED_ACTIVATIONS)}.'
        )
    if sizes['emb_dim'] % sizes['num_heads']:
        raise CheckpointError(
            f'{file}: encoder_attention_heads {sizes["num_heads"]} do not divide d_model {sizes["emb_dim"]}.'
        )
    rates: dict[str, Any] = {}
    for key, name in DROPOUTS.items():
        rate = flags.get(key)
        rate = _DROPOUT_DEFAULTS.get(key, 0.0) if rate is None else rate
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            raise CheckpointError(f'{file}: {key} is {rate!r}; it must be in [0, 1).')
        rates[name] = float(rate)
    return MBartConfig(
        **sizes,
        **rates,
        activation=NAMED_ACTIVATIONS[activation],
        scale_embedding=flags.get('scale_embedding') or False,
    )


def _plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags, of which an id may come in a list."""
    return {
        key: value[0] if key in IDS and isinstance(value, list) and value else value for key, value in flags.items()
    }


def _stated(directory: Directory) -> dict[str, int | None]:
    """Special tokens that files beside the tokenizer's name, with their ids where they give them.

    Raises:
        CheckpointError: the tokenizer is another model's, or what a file says means nothing.
    """
    path, stated = directory.path, dict[str, int | None]()
    file, plain = path / 'tokenizer_config.json', path / 'added_tokens.json'
    settings = read_json(file) if file.is_file() else {}
    kind = settings.get('tokenizer_class') or directory.config.get('tokenizer_class')
    if kind not in _TOKENIZERS:
        raise CheckpointError(
            f"{file}: tokenizer_class is {kind!r}; an mBART-50's is {_TOKENIZERS[1]}. An mBART-25 cannot be imported: "
            'it has the code of the language behind the text.'
        )
    try:
        for number, entry in (settings.get('added_tokens_decoder') or {}).items():
            stated[entry['content']] = int(number)
        for content, number in (read_json(plain) if plain.is_file() else {}).items():
            stated[content] = int(number)
        for key in ('additional_special_tokens', 'extra_special_tokens'):
            named = settings.get(key) or []
            for entry in named.values() if isinstance(named, dict) else named:
                stated.setdefault(entry['content'] if isinstance(entry, dict) else entry, None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f'{file}: what it says of added tokens means nothing ({error!r}).') from error
    return stated


def _params(path: pathlib.Path, cfg: MBartConfig, text: importers_mbart.Text) -> dict[str, Any]:
    """The parameters of `cfg`, each leaf to be read from the tensors that it is made of."""
    found = tensors(path)
    part = prefix(found, SHARED, path)
    left, shared = dict(found), found[part + SHARED]
    for name in (*(part + alias for alias in _ALIASES), HEAD):
        alias = left.pop(name, None)
        if alias is not None and not equal(alias, shared):
            raise CheckpointError(f'{alias.file}: {name} differs from {part}{SHARED}; in an mBART they are one tensor.')
    leaves, bias = {}, left.pop(BIAS, None)
    for leaf_path, leaf in importers_mbart.shapes(cfg).items():
        if leaf_path == 'decoder/logits_bias':
            leaves[leaf_path] = _bias(bias, shared, cfg.vocab_size, text)
            continue
        name = part + tensor_name(leaf_path)
        stacked = '{}' in name
        made_of = {}
        for numbered in (name.format(layer) for layer in range(leaf.shape[0] if stacked else 1)):
            if numbered not in left:
                raise CheckpointError(f'{path}: the weights have no tensor {numbered}, which {leaf_path} is made of.')
            tensor = made_of[numbered] = left.pop(numbered)
            if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype != shared.dtype:
                raise CheckpointError(
                    f'{tensor.file}: tensor {numbered} is {tensor.dtype}, {part}{SHARED} is {shared.dtype}. Save the '
                    'model in one floating-point type.'
                )
        leaves[leaf_path] = speech.blocks(leaf_path, leaf.shape, made_of, stacked)
        if leaf_path == 'token_embedder/embedding':
            leaves[leaf_path] = _rows(leaves[leaf_path], shared, f'{shared.file}: tensor {name}', text)
    if left:
        name, tensor = next(iter(left.items()))
        raise CheckpointError(
            f'{tensor.file}: {len(left)} tensors have no place in the mBART of this config.json, the first is {name}.'
        )
    return foundations.unflatten(leaves)


def _bias(bias: Tensor | None, shared: Tensor, rows: int, text: importers_mbart.Text) -> foundations.Blocks:
    """The bias of the logits, zero where the checkpoint has none."""
    if bias is None:
        return foundations.Blocks((text.rows,), shared.dtype, lambda start, stop: np.zeros(stop - start, shared.dtype))
    if bias.shape != (1, rows):
        raise CheckpointError(f'{bias.file}: tensor {BIAS} is {list(bias.shape)}; by config.json it is {[1, rows]}.')
    flat = dataclasses.replace(bias, shape=(rows,), open=lambda: bias.open()[0])
    return _rows(foundations.Blocks((rows,), bias.dtype, lambda a, b: flat.open()[a:b]), flat, BIAS, text)


def _rows(blocks: foundations.Blocks, tensor: Tensor, what: str, text: importers_mbart.Text) -> foundations.Blocks:
    """A leaf with a row for each token, some of which stand in other places, or are new."""
    sources: Mapping[int, tuple[int, ...]] = {
        **{ours: (theirs,) for ours, theirs in importers_mbart.moved().items()}, **text.grown,
    }  # fmt: skip
    known = tensor.shape[0]

    def read(start: int, stop: int) -> np.ndarray:
        source = tensor.open()
        block = np.zeros((stop - start, *tensor.shape[1:]), tensor.dtype)
        block[: max(0, min(stop, known) - start)] = source[start : min(stop, known)]
        for ours, theirs in sources.items():
            if start <= ours < stop:
                rows = np.stack([np.asarray(source[row], np.float32) for row in theirs])
                block[ours - start] = rows.mean(axis=0).astype(tensor.dtype)
        return finite(block, what)

    return dataclasses.replace(blocks, shape=(text.rows, *tensor.shape[1:]), read=read)


def tensor_name(path: str) -> str:
    """The name of the tensor of the leaf at `path` in `MBartModel`, {} in the place of the layer's number."""
    stack, *module, kind = path.split('/')
    if stack == 'token_embedder':
        return SHARED
    if module[0] == 'layers':
        module[0] = 'layers.{}'
    module = [_BLOCKS.get(name, _PROJECTIONS.get(name, name)) for name in module if name != 'mlp']
    return '.'.join([stack, *module, 'bias' if kind == 'bias' else 'weight'])
