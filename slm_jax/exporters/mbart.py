"""An mBART-50 in the layout of `transformers`, with its tokenizer."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slm_jax import foundations
from slm_jax.exporters import ExportError, safetensors
from slm_jax.foundations import tokenizers
from slm_jax.importers import mbart as importers_mbart
from slm_jax.importers.hugging_face import mbart as layout
from slm_jax.importers.hugging_face.tensors import Tensor
from slm_jax.llms import mbart

_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(layout.NAMED_ACTIVATIONS.items())}


def config(cfg: mbart.MBartConfig) -> dict[str, Any]:
    """The `config.json` of an mBART.

    Raises:
        ExportError: an activation that transformers does not have.
    """
    if cfg.activation not in _ACTIVATIONS:
        raise ExportError(
            f'MBartConfig.activation is {cfg.activation!r}: transformers has mBARTs with one of '
            f'{", ".join(_ACTIVATIONS)}. Others it cannot run.'
        )
    return {
        'architectures': ['MBartForConditionalGeneration'],
        'model_type': 'mbart',
        **{name: getattr(cfg, field) for name, field in (layout.SIZES | layout.DROPOUTS).items()},
        'decoder_attention_heads': cfg.num_heads,
        'decoder_ffn_dim': cfg.mlp_dim,
        'activation_function': _ACTIVATIONS[cfg.activation],
        'scale_embedding': cfg.scale_embedding,
        'is_encoder_decoder': True,
        'tie_word_embeddings': True,
        **layout.IDS,
        'forced_eos_token_id': layout.IDS['eos_token_id'],
    }


def tensors(leaves: Mapping[str, jax.Array], swapped: list[list[int]]) -> dict[str, Tensor]:
    """The tensors of a `model.safetensors`.

    Args:
        leaves: parameters by path.
        swapped: rows that change places, by the card.
    """
    found = {}
    order = np.arange(leaves['token_embedder/embedding'].shape[0])
    for ours, theirs in tokenizers.rearranged(swapped).items():
        order[theirs] = ours
    for path, leaf in leaves.items():
        if path == 'decoder/logits_bias':
            found[layout.BIAS] = _tensor(path, lambda leaf=leaf: np.asarray(leaf)[order][None], leaf, (1, len(leaf)))
            continue
        name = f'model.{layout.tensor_name(path)}'
        if path == 'token_embedder/embedding':
            found[name] = _tensor(path, lambda leaf=leaf: np.asarray(leaf)[order], leaf, leaf.shape)
        elif '{}' in name:
            for layer in range(leaf.shape[0]):
                own, kernel = leaf.shape[1:], path.endswith('kernel')
                read = lambda leaf=leaf, layer=layer, kernel=kernel: _turned(np.asarray(leaf[layer]), kernel)
                found[name.format(layer)] = _tensor(path, read, leaf, own[::-1] if kernel else own)
        else:
            found[name] = _tensor(path, lambda leaf=leaf: np.asarray(leaf), leaf, leaf.shape)
    return found


def _turned(array: np.ndarray, kernel: bool) -> np.ndarray:
    return array.T if kernel else array


def _tensor(path: str, read: Any, leaf: jax.Array, shape: tuple[int, ...]) -> Tensor:
    return Tensor(pathlib.Path(path), shape, np.dtype(leaf.dtype), read)


def write(
    directory: pathlib.Path, cfg: mbart.MBartConfig, leaves: Mapping[str, jax.Array], vocabulary: pathlib.Path
) -> None:
    """Writes config.json, model.safetensors and the tokenizer.

    Args:
        directory: which is there.
        cfg: of the model.
        leaves: parameters of `cfg` by path.
        vocabulary: directory of the foundation whose vocabulary the mBART was trained with.

    Raises:
        ExportError: transformers has no such mBART, or the vocabulary is none of an mBART.
    """
    said = foundations.card(vocabulary)
    languages, added = said.get('languages'), said.get('added_languages', {})
    if not languages or said.get('swapped') != [list(pair) for pair in importers_mbart.SWAPPED]:
        raise ExportError(
            f'{vocabulary} has no codes of languages: its vocabulary is none of an mBART, as `slm-jax import` or '
            '`python -m slm_jax.corpora.tokenizers` makes it.'
        )
    described = config(cfg) | {'tokenizer_class': 'MBart50Tokenizer'}
    settings: dict[str, Any] = {
        'tokenizer_class': 'MBart50Tokenizer', 'src_lang': None, 'tgt_lang': None,
        'additional_special_tokens': [*languages], 'bos_token': '<s>', 'eos_token': '</s>', 'sep_token': '</s>',
        'cls_token': '<s>', 'unk_token': '<unk>', 'pad_token': '<pad>', 'mask_token': importers_mbart.MASK,
    }  # fmt: skip
    if (file := vocabulary / foundations.TOKENIZER).is_file():
        content = importers_mbart.reference_file(file.read_bytes(), len(languages) + 1)
        (directory / importers_mbart.TOKENIZERS[0]).write_bytes(content)
        settings['added_tokens_decoder'] = {
            str(languages[code]): {
                'content': code, 'normalized': False, 'lstrip': False, 'rstrip': False, 'single_word': False,
                'special': True,
            }
            for code in languages
            if code in added or code not in importers_mbart.CODES
        }  # fmt: skip
    elif (file := vocabulary / foundations.TOKENIZER_JSON).is_file():
        (directory / file.name).write_bytes(file.read_bytes())
    for name, value in (('config.json', described), ('tokenizer_config.json', settings)):
        (directory / name).write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
    safetensors.write(directory / 'model.safetensors', tensors(leaves, said['swapped']), {'format': 'pt'})
