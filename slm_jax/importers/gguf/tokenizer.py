"""The tokenizer in the metadata of a GGUF file, as the `tokenizer.json` that it was made of."""

import json
from collections.abc import Mapping
from typing import Any

from slm_jax.importers import CheckpointError, chat
from slm_jax.importers.gguf.container import File

_KEY = 'tokenizer.ggml.'
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
# Tokens by which any of these models ends a turn or a text, though a file states but one of its own.
_ENDS = {
    '<|eot_id|>', '<|eom_id|>', '<|im_end|>', '<|end|>', '<|endoftext|>', '<|end_of_text|>', '<end_of_turn>', '<EOT>',
}  # fmt: skip

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORDS = r'[^\r\n\p{L}\p{N}]?\p{L}+|'
_REST = r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_CASED = (
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|'
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|'
)
# Where texts are cut before merges, by `tokenizer.ggml.pre`: one expression after the other.
_CUTS = {
    'gpt-2': (_GPT2,),
    'smollm': (r'\p{N}', _GPT2),
    'qwen2': (_CONTRACTIONS + _WORDS + r'\p{N}' + _REST,),
    'llama-bpe': (_CONTRACTIONS + _WORDS + r'\p{N}{1,3}' + _REST,),
    'tekken': (_CASED + r'\p{N}' + _REST.replace(r'[\r\n]*', r'[\r\n/]*', 1),),
    'default': (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', '[0-9][0-9][0-9]'),
}
_SAME = {'llama3': 'llama-bpe', 'llama-v3': 'llama-bpe', 'deepseek-r1-qwen': 'qwen2'}
_WHOLE_WORDS = {'llama-bpe', 'tekken'}  # a word that is a token is not made by merges, and texts begin with bos
_NORMALIZED = {'qwen2'}


def said(file: File) -> chat.Said:
    """What a file says of its text.

    Raises:
        CheckpointError: no tokenizer, or one of a kind that is not known; names the key.
    """
    path, own = file.path, {k.removeprefix(_KEY): v for k, v in file.metadata.items() if k.startswith(_KEY)}
    for key, kind in (('model', str), ('tokens', list), ('token_type', list)):
        if not isinstance(own.get(key), kind):
            raise CheckpointError(f'{path} has no {_KEY}{key}, so nobody knows its tokenizer. Convert the model again.')
    tokens, types = own['tokens'], own['token_type']
    if len(tokens) != len(types) or len({*tokens}) != len(tokens):
        raise CheckpointError(f'{path}: {_KEY}tokens has the same token twice, or not one for each of its types.')
    ids = {token: number for number, token in enumerate(tokens) if types[number] != _UNUSED}
    if own['model'] == 'gpt2':
        content, begins = _byte_level(file, own, ids)
    elif own['model'] == 'llama':
        content, begins = _sentencepiece(file, own, ids)
    else:
        raise CheckpointError(f"{path}: {_KEY}model is {own['model']!r}; there are 'gpt2' and 'llama'.")
    content['added_tokens'] = [
        {
            'id': number, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
            'special': types[number] != _USER_DEFINED,
        }
        for token, number in ids.items()
        if types[number] in (_CONTROL, _USER_DEFINED) or (types[number] == _UNKNOWN and own['model'] == 'llama')
    ]  # fmt: skip
    known = {name: own.get(f'{name}_token_id') for name in ('eos', 'eot', 'eom', 'bos', 'unknown', 'padding')}
    for name, number in known.items():
        if number is not None and not (type(number) is int and 0 <= number < len(tokens)):
            raise CheckpointError(f'{path}: {_KEY}{name}_token_id is {number!r}; there are {len(tokens)} tokens.')
    stated = [number for name in ('eos', 'eot', 'eom') if (number := known[name]) is not None]
    usual = [number for token, number in ids.items() if token in _ENDS and types[number] == _CONTROL]
    named = {'eos_token': 'eos', 'bos_token': 'bos', 'unk_token': 'unknown', 'pad_token': 'padding'}
    template = file.metadata.get('tokenizer.chat_template')
    return chat.Said(
        file=path,
        content=json.dumps(content, ensure_ascii=False).encode(),
        template=template if isinstance(template, str) else None,
        template_file=path,
        tokens={key: tokens[known[name]] for key, name in named.items() if known[name] is not None},
        ends=tuple(dict.fromkeys(stated + usual)),
        pads=() if known['padding'] is None else (known['padding'],),
        begins=bool(own.get('add_bos_token', begins)) and known['bos'] is not None,
    )


def _byte_level(file: File, own: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[dict[str, Any], bool]:
    """BPE over bytes, and whether its texts begin with bos where nothing says so."""
    pre = own.get('pre', 'default')
    kind = _SAME.get(pre, pre)
    if kind not in _CUTS:
        raise CheckpointError(
            f'{file.path}: {_KEY}pre is {pre!r}; there are {", ".join([*_CUTS, *_SAME])}. Import the model from its '
            'Hugging Face directory.'
        )
    if not isinstance(own.get('merges'), list):
        raise CheckpointError(
            f'{file.path} has no {_KEY}merges, so nobody knows its tokenizer. Convert the model again.'
        )
    cuts = [
        {'type': 'Split', 'pattern': {'Regex': cut}, 'behavior': 'Isolated', 'invert': False} for cut in _CUTS[kind]
    ]
    level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
    merges = [merge.split(' ', 1) for merge in own['merges']]
    normalizer = {'type': 'NFC'} if kind in _NORMALIZED else None
    pre_tokenizer = {'type': 'Sequence', 'pretokenizers': [*cuts, level]}
    whole = kind in _WHOLE_WORDS
    return _json(ids, merges, normalizer, pre_tokenizer, level, ignore_merges=whole), whole


def _sentencepiece(file: File, own: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[dict[str, Any], bool]:
    """SentencePiece's BPE, which merges by the scores of what comes out; what it lacks is written in bytes."""
    scores, types, tokens = own.get('scores'), own['token_type'], own['tokens']
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(
            f'{file.path} has no {_KEY}scores, so nobody knows its tokenizer. Convert the model again.'
        )
    plain = {token: number for token, number in ids.items() if types[number] not in (_UNKNOWN, _CONTROL, _BYTE)}
    merges = [
        ((-scores[number], number), token[:cut], token[cut:])
        for token, number in plain.items()
        for cut in range(1, len(token))
        if token[:cut] in plain and token[cut:] in plain
    ]
    space = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
    first = [{'type': 'Prepend', 'prepend': '▁'}] if own.get('add_space_prefix', True) else []
    strip = [{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if first else []
    decoder = [
        {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}, {'type': 'ByteFallback'}, {'type': 'Fuse'},
        *strip,
    ]  # fmt: skip
    unknown = next((token for token, number in ids.items() if types[number] == _UNKNOWN), None)
    content = _json(
        ids,
        [[left, right] for _, left, right in sorted(merges)],
        {'type': 'Sequence', 'normalizers': [*first, space]},
        None,
        {'type': 'Sequence', 'decoders': decoder},
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    return content, True


def _json(
    ids: Mapping[str, int],
    merges: list[list[str]],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    **model: Any,
) -> dict[str, Any]:
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [],
        'normalizer': normalizer,
        'pre_tokenizer': pre_tokenizer,
        'post_processor': None,
        'decoder': decoder,
        'model': {'type': 'BPE', 'unk_token': None, **model, 'vocab': dict(ids), 'merges': merges},
    }
