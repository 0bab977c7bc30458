"""Tokenizers of the foundations that gin names, and what one has of the other's pieces.

    from slm_jax.data import vocabularies
    vocabularies.names.llm = 't5_tiny'
    vocabularies.names.speech_encoder = 'usm_tiny'

Tasks find them through `output_features`; what only answers needs no more than this.
"""

import collections
import functools
import unicodedata
from collections.abc import Mapping
from typing import Any

import gin
from slm_jax import foundations
from slm_jax.data import ctc_text, modalities
from slm_jax.foundations import tokenizers

_LONGEST_SPELLING = 12
_SPACE = 1  # of characters
_MOST_CHARACTERS = 24  # of a token
_WITHOUT_PIECES = (tokenizers.Bytes, tokenizers.HuggingFace)


@gin.configurable
def names(llm: str = 't5_tiny', speech_encoder: str = 'usm_tiny') -> dict[str, str]:
    """The foundations (names or directories) whose tokenizers the tasks are encoded with."""
    return {'llm': llm, 'speech_encoder': speech_encoder}


def of(part: str) -> Any:
    """The tokenizer of a part, 'llm' or 'speech_encoder', as `names` gives it (see `foundations.vocabulary`).

    Where the language model's table has grown, it knows the units too; see `modalities`.
    """
    name = names()[part]
    try:
        found = _load(name)
    except foundations.FoundationError as error:
        raise foundations.FoundationError(f'vocabularies.names.{part}, whose tokenizer is read: {error}') from error
    return modalities.vocabulary(found) if part == 'llm' else found


@functools.lru_cache(maxsize=8)
def _load(name: str) -> Any:
    return foundations.vocabulary(name)


@gin.configurable
def mask_token() -> int:
    """The language model's token that stands for a masked one, such as mBART's.

    Raises:
        FoundationError: its tokenizer has none.
    """
    vocabulary, token = of('llm'), None
    if not isinstance(vocabulary, tokenizers.Bytes):
        token = vocabulary.special('<mask>')
    if token is None:
        raise foundations.FoundationError(
            f'the tokenizer of {names()["llm"]} has no <mask>; give ComSlConfig.mask_token another id that no text has.'
        )
    return token


@gin.configurable
def label_tokens() -> tuple[int, ...]:
    """The language model's token for each label of the speech encoder's tokenizer, -1 where it has no such piece.

    Both are SentencePiece models; end and unknown have none. Blank has the token with which the language model's texts
    begin, the mark of a word's beginning.

    Raises:
        FoundationError: the language model's tokenizer is not SentencePiece.
    """
    if isinstance(of('llm'), _WITHOUT_PIECES):
        raise foundations.FoundationError(
            f'{names()["llm"]} reads bytes or has a tokenizer.json, and only SentencePiece has labels of CTC. Choose '
            'another reduction than ctc_blank.'
        )
    labels, tokens = of('speech_encoder').tokenizer, of('llm').tokenizer
    pieces = [labels.id_to_piece(label) for label in range(labels.get_piece_size())]
    ids = [tokens.piece_to_id(piece) for piece in pieces]
    special = [labels.is_control(label) or labels.is_unknown(label) for label in range(len(ids))]
    known = [-1 if none or token == tokens.unk_id() else token for none, token in zip(special, ids, strict=True)]
    return (tokens.piece_to_id('▁'), *known[1:])


@gin.configurable
def token_labels() -> tuple[int, ...] | None:
    """The speech encoder's label for each of the language model's tokens, as `decoding.with_ctc` wants them.

    0 is for what is not heard, as a comma; large letters have the label of the small ones, which are what CTC writes;
    the mark of a word's beginning has the negative of its own. None for a language model whose tokenizer is not
    SentencePiece, or that writes pieces of more than one character.
    """
    vocabulary = of('llm')
    if isinstance(vocabulary, _WITHOUT_PIECES):
        return None
    labels, tokens = of('speech_encoder').tokenizer, vocabulary.tokenizer
    result = []
    for token in range(vocabulary.vocab_size - vocabulary.extra_ids):
        piece, label = tokens.id_to_piece(token), 0
        if not (tokens.is_control(token) or tokens.is_unknown(token) or tokens.is_byte(token)):
            if len(piece) > 1:
                return None
            label = labels.piece_to_id(piece if piece == '▁' else ctc_text.normalize(piece))
            label = 0 if label == labels.unk_id() else -label if piece == '▁' else label
        result.append(label)
    return tuple(result)


@gin.configurable
def counted_tokens(labels: str) -> tuple[int, ...]:
    """The language model's tokens that are labels of an adapter's CTC head, after blank, which has none (-1).

    Args:
        labels: 'TOKEN:COUNT,TOKEN:COUNT,...', as `python -m slm_jax.corpora.token_counts` writes them.
    """
    return (-1, *(token for token, _ in _counted(labels)))


@gin.configurable
def label_counts(labels: str) -> tuple[int, ...]:
    """How often each of `counted_tokens` but blank was met, of the same `labels`."""
    return tuple(count for _, count in _counted(labels))


@gin.configurable
def spellings(labels: str) -> tuple[tuple[int, ...], ...]:
    """The labels that together spell each of the language model's tokens, of the same `labels`; () where none do.

    A token that is no label is spelt by the two that BPE merges into it, and each of these, if it is none, in turn; by
    no more than a dozen labels.
    """
    vocabulary = of('llm')
    parts = getattr(vocabulary, 'parts', {})
    found: list[tuple[int, ...]] = [()] * vocabulary.vocab_size
    for label, (token, _) in enumerate(_counted(labels), 1):
        if token >= len(found):
            raise ValueError(
                f'LABELS has the token {token} and the tokenizer of {names()["llm"]} has {len(found)}: they are of '
                'another tokenizer (vocabularies.names.llm).'
            )
        found[token] = (label,)
    for token, (left, right) in parts.items():  # which stand before what is merged of them
        if not found[token] and found[left] and found[right] and len(found[left] + found[right]) <= _LONGEST_SPELLING:
            found[token] = (*found[left], *found[right])
    return tuple(found)


@gin.configurable
def token_spellings(labels: str) -> tuple[tuple[int, ...], ...]:
    """`spellings` for an aligner: a token that no label spells is any label, -1; padding and end are not heard."""
    found = [spelt or (-1,) for spelt in spellings(labels)]
    return ((), (), *found[2:])


@gin.configurable
def character_spellings(characters: str) -> tuple[tuple[int, ...], ...]:
    """The characters of each of the language model's tokens, in small letters, as labels of an aligner.

    Label 1 is the space between words, and from 2 on come `characters`. What is not heard has none: punctuation,
    special tokens, spaces but for a single one. -1 are letters and digits that are none of them, and parts of a letter.

    Raises:
        ValueError: a character twice, a space, or a large letter.
    """
    if len(set(characters)) < len(characters) or characters != characters.lower() or ' ' in characters:
        raise ValueError(
            f'CHARACTERS is {characters!r}; small letters, digits and an apostrophe were expected, each once. The '
            'space is there by itself.'
        )
    vocabulary, labels = of('llm'), {c: label for label, c in enumerate(characters, 2)}
    before = vocabulary.encode('a')
    return tuple(_characters(vocabulary.decode([*before, token])[1:], labels) for token in range(vocabulary.vocab_size))


def _characters(text: str, labels: Mapping[str, int]) -> tuple[int, ...]:
    found: list[int] = []
    text = unicodedata.normalize('NFC', text).lower().replace('’', "'")
    for place, c in enumerate(text):
        if c.isspace():
            found += [_SPACE] if found[-1:] != [_SPACE] else []
        elif c in labels and (c != "'" or text[place + 1 :][:1].isalpha()):
            found.append(labels[c])
        elif c == '\N{REPLACEMENT CHARACTER}' or unicodedata.category(c)[0] in 'LMN':
            found.append(-1)
    if found == [_SPACE] and text != ' ':
        return ()
    return (-1,) if len(found) > _MOST_CHARACTERS else tuple(found)


def _counted(labels: str) -> list[tuple[int, int]]:
    pairs = [pair.partition(':') for pair in labels.split(',')]
    remedy = 'Write the file again with `python -m slm_jax.corpora.token_counts`.'
    for token, colon, count in pairs:
        if not (token.isdecimal() and count.isdecimal() and int(token) > 1):
            raise ValueError(
                f'LABELS: {token + colon + count!r} is no TOKEN:COUNT, two whole numbers, the first above 1. {remedy}'
            )
    found = [(int(token), int(count)) for token, _, count in pairs]
    if twice := [token for token, number in collections.Counter(token for token, _ in found).items() if number > 1]:
        raise ValueError(f'LABELS has the token {twice[0]} twice. {remedy}')
    return found
