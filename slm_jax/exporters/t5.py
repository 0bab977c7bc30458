"""A T5 in the layout of `transformers`: T5 1.0 (tied) or T5 1.1 (an output layer of its own), with its tokenizer."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slm_jax import foundations
from slm_jax.exporters import ExportError, safetensors
from slm_jax.importers import t5 as importers_t5
from slm_jax.importers.hugging_face import t5 as layout
from slm_jax.importers.hugging_face.tensors import Tensor
from slm_jax.llms import t5

# Those of flax.linen by the names of transformers; 'gated-gelu' is its name of the gated approximation by tanh.
_ACTIVATIONS = {'relu': 'relu', 'gelu': 'gelu_new', 'silu': 'silu', 'swish': 'silu'}


def config(cfg: t5.T5Config) -> dict[str, Any]:
    """The `config.json` of a T5.

    Raises:
        ExportError: activations that transformers has no T5 with.
    """
    activation, *gate = cfg.mlp_activations
    if activation not in _ACTIVATIONS or gate not in ([], ['linear']):
        raise ExportError(
            f'T5Config.mlp_activations is {cfg.mlp_activations}: transformers has T5s with one of '
            f"{', '.join(_ACTIVATIONS)}, alone or followed by 'linear'. Others it cannot run."
        )
    projection = 'gated-gelu' if gate and activation == 'gelu' else 'gated-' * len(gate) + _ACTIVATIONS[activation]
    return {
        'architectures': ['T5ForConditionalGeneration'],
        'model_type': 't5',
        **{name: getattr(cfg, field) for name, field in layout.SIZES.items()},
        'feed_forward_proj': projection,
        'dropout_rate': cfg.dropout_rate,
        'tie_word_embeddings': cfg.logits_via_embedding,
        'relative_attention_num_buckets': 32,
        'relative_attention_max_distance': 128,
        'layer_norm_epsilon': 1e-6,
        'is_encoder_decoder': True,
        'pad_token_id': 0,
        'eos_token_id': 1,
        'decoder_start_token_id': 0,
    }


def tensors(cfg: t5.T5Config, leaves: Mapping[str, jax.Array]) -> dict[str, Tensor]:
    """The tensors of a `model.safetensors`.

    Args:
        leaves: parameters of `cfg` by path.

    Raises:
        ExportError: layers of one stack have different relative position biases.
    """
    found = {}
    for path, leaf in leaves.items():
        if path == 'decoder/logits_dense/kernel':
            names, stacked = [layout.HEAD], False
        else:
            names, stacked = layout.names(path, cfg, own_biases=False), layout.scanned(path, cfg)
        if stacked and path.endswith('rel_embedding') and np.any(leaf != leaf[:, :1]):
            raise ExportError(
                f'{path}: the layers have relative position biases of their own; in a T5 of transformers all layers '
                'of a stack have those of the first, and its UMT5 scales logits by another rule. Train with a '
                'TRAINABLE that matches no relpos_bias, or in the unscanned layout (T5Config.scan_layers = False).'
            )
        for layer, name in enumerate(names):
            found[name] = _tensor(path, leaf, layer if stacked else None)
    return found


def _tensor(path: str, leaf: jax.Array, layer: int | None) -> Tensor:
    own = leaf.shape if layer is None else leaf.shape[:1] + leaf.shape[2:]
    shape = layout.stored_shape(path, own)

    def read() -> np.ndarray:
        array = np.asarray(leaf if layer is None else leaf[:, layer])
        return array.reshape(shape[::-1]).T if layout.transposed(path) else array

    return Tensor(pathlib.Path(path), shape, np.dtype(leaf.dtype), read)


def write(directory: pathlib.Path, cfg: t5.T5Config, leaves: Mapping[str, jax.Array], vocabulary: pathlib.Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer.

    Args:
        directory: which is there.
        leaves: parameters of `cfg` by path.
        vocabulary: directory of the foundation whose vocabulary the T5 was trained with.

    Raises:
        ExportError: transformers has no such T5, or the vocabulary has no file.
    """
    said = foundations.card(vocabulary)
    settings = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': said.get('extra_ids', 0)}
    if said.get('added_tokens'):
        settings['added_tokens_decoder'] = {
            str(token['id']): {
                'content': token['content'], 'normalized': token['normalized'], 'lstrip': False, 'rstrip': False,
                'single_word': False, 'special': False,
            }
            for token in said['added_tokens']
        }  # fmt: skip
    described = config(cfg)
    if said.get('vocabulary') == 'bytes':
        described['tokenizer_class'] = settings['tokenizer_class'] = importers_t5.BYTES
    elif (vocabulary / foundations.TOKENIZER).is_file():
        (directory / importers_t5.TOKENIZERS[0]).write_bytes((vocabulary / foundations.TOKENIZER).read_bytes())
    elif (vocabulary / foundations.TOKENIZER_JSON).is_file():
        (directory / foundations.TOKENIZER_JSON).write_bytes((vocabulary / foundations.TOKENIZER_JSON).read_bytes())
        del settings['extra_ids']  # which the file has
    else:
        raise ExportError(
            f'{vocabulary} has no {foundations.TOKENIZER} and no {foundations.TOKENIZER_JSON}. Put the one of the '
            'training there.'
        )
    for name, value in (('config.json', described), ('tokenizer_config.json', settings)):
        (directory / name).write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
    safetensors.write(directory / 'model.safetensors', tensors(cfg, leaves), {'format': 'pt'})
