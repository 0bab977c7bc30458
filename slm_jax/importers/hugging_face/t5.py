"""The T5 family: T5 1.0 and 1.1, FLAN-T5, mT5, mT0, UMT5 and ByT5, with their tokenizers.

Parameters get T5X's names and shapes (`slm_jax.llms.t5`). The unscanned layout is used, and the scanned one for
models of more than 12 layers, which would else compile slowly, and for UMT5, because only there has each layer a
relative position bias of its own.

Logits are those of `transformers` 5, but for one case: some of its versions (5.17, no longer 5.24) scale UMT5's by
d_model ** -0.5 even where config.json says `tie_word_embeddings: false`, which neither T5X, where UMT5 was trained, nor
transformers 4 does, nor we.
"""

import dataclasses
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from slm_jax import foundations
from slm_jax.importers import CheckpointError, Imported, finite
from slm_jax.importers import t5 as importers_t5
from slm_jax.importers.hugging_face.directory import Directory, check_types
from slm_jax.importers.hugging_face.tensors import Tensor, read_json, tensors
from slm_jax.llms import t5

MODEL_TYPES = {'t5': 'T5', 'mt5': 'MT5', 'umt5': 'UMT5'}
FILES = (
    'generation_config.json', 'tokenizer_config.json', 'added_tokens.json', 'tokenizer.json', importers_t5.TOKENIZERS,
)  # fmt: skip
_MAX_UNSCANNED_LAYERS = 12
_ROWS = 8192  # of an embedding, compared at a time

SIZES = {
    'vocab_size': 'vocab_size', 'd_model': 'emb_dim', 'num_heads': 'num_heads', 'd_kv': 'head_dim', 'd_ff': 'mlp_dim',
    'num_layers': 'num_encoder_layers', 'num_decoder_layers': 'num_decoder_layers',
}  # fmt: skip
# Activations of config.json by the names of flax.linen, whose gelu is the approximation by tanh.
ACTIVATIONS = {'relu': 'relu', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'silu': 'silu', 'swish': 'silu'}
# Flags that are taken at one value alone: this model, or the decoding of it, has no other.
_FIXED = {
    'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-6,
    'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0, 'is_encoder_decoder': True,
    'is_decoder': False, 'add_cross_attention': False, 'tie_encoder_decoder': False, 'pruned_heads': {},
    'quantization_config': None,
}  # fmt: skip
_READ = {
    'model_type', 'dropout_rate', 'feed_forward_proj', 'dense_act_fn', 'is_gated_act', 'tie_word_embeddings',
    'scale_decoder_outputs', 'tokenizer_class',
}  # fmt: skip
_TYPES = {
    bool: ('is_gated_act', 'tie_word_embeddings', 'scale_decoder_outputs'), str: ('feed_forward_proj', 'dense_act_fn'),
}  # fmt: skip
# What transformers writes and no number depends on: names, initialisation, heads of other tasks, how to generate.
_WITHOUT_EFFECT = set(
    """
    _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_factor
    label2id length_penalty max_length min_length n_positions no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate scalable_attention
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache
    """.split()
)

_BLOCKS = {
    'encoder': {
        'pre_attention_layer_norm': 'layer.0.layer_norm', 'attention': 'layer.0.SelfAttention',
        'pre_mlp_layer_norm': 'layer.1.layer_norm', 'mlp': 'layer.1.DenseReluDense',
    },
    'decoder': {
        'pre_self_attention_layer_norm': 'layer.0.layer_norm', 'self_attention': 'layer.0.SelfAttention',
        'pre_cross_attention_layer_norm': 'layer.1.layer_norm', 'encoder_decoder_attention': 'layer.1.EncDecAttention',
        'pre_mlp_layer_norm': 'layer.2.layer_norm', 'mlp': 'layer.2.DenseReluDense',
    },
}  # fmt: skip
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_BIAS = '{}.block.{}.layer.0.SelfAttention.relative_attention_bias.weight'
# T5 1.0 was saved with it, and no code reads it.
_UNUSED = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
_SHARED, HEAD = 'shared.weight', 'lm_head.weight'
_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Makes a T5 of a Hugging Face directory.

    Args:
        directory: whose `model_type` is one of `MODEL_TYPES`.
        out: where it will stand; the model file says so.

    Raises:
        CheckpointError: a flag that cannot be honoured, a tensor that is missing, of another shape or of no use, or
            no tokenizer; names it.
    """
    cfg = config(directory)
    tokenizer_config = directory.path / 'tokenizer_config.json'
    settings = read_json(tokenizer_config) if tokenizer_config.is_file() else {}
    if directory.config.get('tokenizer_class') == importers_t5.BYTES:
        settings['tokenizer_class'] = importers_t5.BYTES
    added = _added_tokens(directory.path, settings)
    card, tokenizer = importers_t5.vocabulary(directory.path, settings, cfg.vocab_size, added)
    found = _weights(directory.path)
    head, scaled = found.pop(HEAD, None), _scaled(directory.config)
    if head is None and directory.config.get('tie_word_embeddings') is False:
        raise CheckpointError(f'{directory.path}: {HEAD} is missing, and config.json says that it is not tied.')
    if head is not None and equal(head, found[_SHARED]):
        head = None
    cfg = dataclasses.replace(cfg, logits_via_embedding=scaled and head is None)
    params = _params(cfg, found, head, cfg.emb_dim**-0.5 if scaled else 1.0, directory.config['model_type'] == 'umt5')
    gin = importers_t5.model_file(cfg, params, directory.source, out)
    return Imported('llm', params, gin, card, tokenizer)


def config(directory: Directory) -> t5.T5Config:
    """The sizes and numerics that config.json gives, `logits_via_embedding` left open.

    Raises:
        CheckpointError: a flag that is unknown, missing, or at a value that cannot be honoured.
    """
    flags, file = directory.config, directory.path / 'config.json'
    if unknown := sorted(flags.keys() - SIZES.keys() - _FIXED.keys() - _READ - _WITHOUT_EFFECT):
        raise CheckpointError(
            f'{file}: unknown flag {unknown[0]!r} = {flags[unknown[0]]!r}. Whether numbers depend on it nobody here '
            'knows; if they do not, delete it from config.json.'
        )
    generation = directory.path / 'generation_config.json'
    for path, values in ((file, flags), (generation, read_json(generation) if generation.is_file() else {})):
        for key, expected in _FIXED.items():
            # Absent and null mean the default, which is the expected value; an end token may come in a list.
            if values.get(key) not in (None, expected, [expected]):
                raise CheckpointError(f'{path}: {key} is {values[key]!r}; only {expected!r} is supported.')
    check_types(file, flags, _TYPES)
    sizes: dict[str, Any] = {'num_decoder_layers': flags.get('num_layers')} | {
        k: v for k, v in flags.items() if v is not None
    }
    for key in SIZES:
        if type(sizes.get(key)) is not int or sizes[key] < 1:
            raise CheckpointError(f'{file}: {key} is {sizes.get(key)!r}; it must be a positive number.')
    projection = sizes.get('feed_forward_proj', 'relu' if flags['model_type'] == 't5' else 'gated-gelu')
    gate, _, activation = projection.rpartition('-')
    if gate not in ('', 'gated'):
        raise CheckpointError(f'{file}: feed_forward_proj is {projection!r}; it must be NAME or gated-NAME.')
    activation = sizes.get('dense_act_fn', 'gelu_new' if projection == 'gated-gelu' else activation)
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f'{file}: by feed_forward_proj and dense_act_fn the activation is {activation!r}; there are '
            f'{", ".join(ACTIVATIONS)}.'
        )
    dropout_rate = sizes.get('dropout_rate', 0.1)
    if not isinstance(dropout_rate, (int, float)) or not 0 <= dropout_rate < 1:
        raise CheckpointError(f'{file}: dropout_rate is {dropout_rate!r}; it must be in [0, 1).')
    layers = max(sizes['num_layers'], sizes['num_decoder_layers'])
    return t5.T5Config(
        **{name: sizes[key] for key, name in SIZES.items()},
        mlp_activations=(ACTIVATIONS[activation], *['linear'] * sizes.get('is_gated_act', gate == 'gated')),
        dropout_rate=float(dropout_rate),
        scan_layers=flags['model_type'] == 'umt5' or layers > _MAX_UNSCANNED_LAYERS,
    )


def _added_tokens(path: pathlib.Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What files say of tokens other than sentinels that are not in the SentencePiece file, see `vocabulary`.

    Raises:
        CheckpointError: they contradict each other, or mean nothing.
    """
    found: dict[str, dict[str, Any]] = {}

    def add(file: pathlib.Path, content: str, number: Any, entry: dict[str, Any]) -> None:
        if not isinstance(content, str) or not (number is None or str(number).isdecimal()):
            raise TypeError(f'{content!r}: {number!r}')
        known = found.setdefault(
            content,
            {
                'file': file,
                'id': None if number is None else int(number),
                'normalized': bool(entry.get('normalized', True)),
                'single_word': bool(entry.get('single_word', False)),
            },
        )
        if number is not None and known['id'] != int(number):
            raise CheckpointError(
                f'{file}: the token {content!r} has the id {number}, {known["file"].name} says {known["id"]}. Keep '
                'the file that the model was trained with.'
            )

    whole, plain, config = (path / name for name in ('tokenizer.json', 'added_tokens.json', 'tokenizer_config.json'))
    file = whole
    try:
        for entry in read_json(whole).get('added_tokens') or () if whole.is_file() else ():
            add(whole, entry['content'], entry['id'], entry)
        file = config
        for number, entry in (settings.get('added_tokens_decoder') or {}).items():
            add(config, entry['content'], number, entry)
        file = plain
        for content, number in (read_json(plain) if plain.is_file() else {}).items():
            add(plain, content, number, {})
        file = config
        for key in ('additional_special_tokens', 'extra_special_tokens'):
            named = settings.get(key) or []
            for entry in named.values() if isinstance(named, dict) else named:
                add(config, entry['content'] if isinstance(entry, dict) else entry, None, {'normalized': False})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{file}: what it says of added tokens means nothing ({error!r}).') from error
    return {content: said for content, said in found.items() if not importers_t5.SENTINEL.fullmatch(content)}


def _weights(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors that count, all of one type, `shared.weight` among them."""
    found = tensors(path)
    found.pop(_UNUSED, None)
    aliases = [name for name in (_SHARED, *_ALIASES) if name in found]
    if not aliases:
        raise CheckpointError(f'{path}: {_SHARED} is missing.')
    first = found[aliases[0]]
    for name, tensor in found.items():
        kept = name.endswith('.wo.weight') and tensor.dtype == np.float32  # as transformers keeps it beside float16
        if not jnp.issubdtype(tensor.dtype, jnp.floating) or (tensor.dtype != first.dtype and not kept):
            raise CheckpointError(
                f'{tensor.file}: tensor {name} is {tensor.dtype}, {aliases[0]} is {first.dtype}. Save the model in one '
                'floating-point type.'
            )
    for name in aliases[1:]:
        if not equal(found[name], first):
            raise CheckpointError(f'{found[name].file}: {name} differs from {aliases[0]}; in a T5 they are one tensor.')
    return {name: tensor for name, tensor in found.items() if name not in _ALIASES} | {_SHARED: first}


def _scaled(flags: dict[str, Any]) -> bool:
    """Whether the decoder's output is scaled by d_model ** -0.5 before it meets the head."""
    tied = flags.get('tie_word_embeddings') is not False
    if flags['model_type'] == 'mt5':
        return False
    return flags.get('scale_decoder_outputs', tied)


def _params(
    cfg: t5.T5Config, found: dict[str, Tensor], head: Tensor | None, head_scale: float, own_biases: bool
) -> dict[str, Any]:
    """The parameters of `cfg`, each leaf to be read from the tensors that it is made of.

    Args:
        found: by their names in the checkpoint.
        head: the output layer's; None: the shared embedding is.
        head_scale: what a separate output layer is multiplied by.
        own_biases: whether each layer has a relative position bias, or all of a stack that of its first.
    """
    leaves, unused = {}, dict(found)
    for path, leaf in importers_t5.shapes(cfg).items():
        if path == 'decoder/logits_dense/kernel':
            leaves[path] = _leaf(path, leaf.shape, [(HEAD, head or found[_SHARED])], False, head_scale)
            continue
        made_of = names(path, cfg, own_biases)
        if missing := [name for name in made_of if name not in found]:
            raise CheckpointError(f'the weights have no tensor {missing[0]}, which {path} is made of.')
        for name in made_of:
            unused.pop(name, None)
        leaves[path] = _leaf(path, leaf.shape, [(name, found[name]) for name in made_of], scanned(path, cfg))
    if unused:
        name, tensor = next(iter(unused.items()))
        raise CheckpointError(
            f'{tensor.file}: {len(unused)} tensors have no place in the T5 of this config.json, the first is {name}.'
        )
    return foundations.unflatten(leaves)


def names(path: str, cfg: t5.T5Config, own_biases: bool) -> list[str]:
    """Names of the tensors that the leaf at `path` is made of: one, or one a layer."""
    stack, *rest = path.split('/')
    if stack == 'token_embedder':
        return [_SHARED]
    if rest[0] == f'{stack}_norm':
        return [f'{stack}.final_layer_norm.weight']
    if rest[0] == 'relpos_bias':
        return [_BIAS.format(stack, 0)]
    layers = [int(rest[0].removeprefix('layers_'))] if rest[0] != stack else range(getattr(cfg, f'num_{stack}_layers'))
    if rest[1] == 'relpos_bias':
        return [_BIAS.format(stack, layer if own_biases else 0) for layer in layers]
    module = [_BLOCKS[stack][rest[1]], *(_PROJECTIONS.get(name, name) for name in rest[2:-1])]
    return [f'{stack}.block.{layer}.{".".join(module)}.weight' for layer in layers]


def scanned(path: str, cfg: t5.T5Config) -> bool:
    """Whether the leaf at `path` has the layers at axis 1."""
    return cfg.scan_layers and path.split('/')[0] == path.split('/')[1]


def transposed(path: str) -> bool:
    """Whether the leaf at `path` is stored as [outputs, inputs], which linear maps and biases are."""
    return path.endswith(('/kernel', '/rel_embedding'))


def stored_shape(path: str, own: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor that holds the leaf at `path`, or one layer of it, of the shape `own`."""
    inputs = math.prod(own[:-1]) if path.endswith('/out/kernel') else own[0]
    return (math.prod(own) // inputs, inputs) if transposed(path) else own


def _leaf(
    path: str, shape: tuple[int, ...], made_of: list[tuple[str, Tensor]], stacked: bool, scale: float = 1.0
) -> foundations.Blocks:
    """A leaf that reads its tensors: linear maps and biases transposed, layers side by side at axis 1 if `stacked`."""
    own = shape[:1] + shape[2:] if stacked else shape  # of one layer
    expected = stored_shape(path, own)
    for name, tensor in made_of:
        if tensor.shape != expected:
            raise CheckpointError(
                f'{tensor.file}: tensor {name} is {list(tensor.shape)}; by config.json it is {list(expected)}.'
            )

    def rows(name, tensor, start, stop):
        array = tensor.open()
        block = (array.T if transposed(path) else array).reshape(own)[start:stop]
        return finite(block, f'{tensor.file}: tensor {name}')

    def read(start: int, stop: int) -> np.ndarray:
        if not stacked:
            block = rows(*made_of[0], start, stop)
            return block if scale == 1.0 else block.astype(np.float32) * np.float32(scale)
        block = np.empty((stop - start, *shape[1:]), made_of[0][1].dtype)
        for layer, (name, tensor) in enumerate(made_of):
            block[:, layer] = rows(name, tensor, start, stop)
        return block

    return foundations.Blocks(shape, made_of[0][1].dtype, read)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, compared a part at a time."""
    rows = range(0, a.shape[0] if a.shape else 0, _ROWS)
    return a.shape == b.shape and all(
        np.array_equal(a.open()[start : start + _ROWS], b.open()[start : start + _ROWS]) for start in rows
    )
