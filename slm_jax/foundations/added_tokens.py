"""Tokens that somebody added to a finished tokenizer, as for T5s that were taught to write `{` and `}`."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_SENTINEL = r'<extra_id_\d+>'


class AddedTokens:
    """A SentencePiece vocabulary and more tokens, which its file does not have, as `transformers` 5 encodes them.

    A text is cut where they stand, and what is between them is a text of its own: 'a{b' becomes ▁a { ▁b. Those that are
    `normalized` are looked for after SentencePiece's normalisation, so that a wide brace is one, too.
    """

    def __init__(self, vocabulary: Any, tokens: Sequence[Mapping[str, Any]]):
        """Adds `tokens`: `content`, `id` and `normalized` of each, as cards have them."""
        self._vocabulary, self._tokens = vocabulary, tokens
        self._raw = {token['content']: token['id'] for token in tokens if not token['normalized']}
        self._normalized = {self._normalize(token['content']): token['id'] for token in tokens if token['normalized']}
        self._contents = {token: content for content, token in (self._raw | self._normalized).items()}

    @property
    def tokenizer(self) -> Any:
        """The SentencePiece processor, which knows none of the added tokens."""
        return self._vocabulary.tokenizer

    @property
    def serialized(self) -> bytes:
        """What decides how texts are encoded: the SentencePiece model, then the added tokens."""
        return self._vocabulary.serialized + json.dumps(list(self._tokens), sort_keys=True).encode()

    @property
    def extra_ids(self) -> int:
        return self._vocabulary.extra_ids

    @property
    def languages(self) -> Mapping[str, int]:
        return self._vocabulary.languages

    @property
    def vocab_size(self) -> int:
        return max(self._vocabulary.vocab_size, 1 + max(self._contents))

    @property
    def bos_id(self) -> int | None:
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        return self._vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        return self._vocabulary.unk_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end."""
        ids: list[int] = []
        for part in _cut(text, self._raw):
            parts: Iterable[str | int] = [part]
            if self._normalized and isinstance(part, str):
                parts = _cut(self._normalize(part), self._normalized)
            for inner in parts:
                ids += self._vocabulary.encode(inner) if isinstance(inner, str) else [inner]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first end."""
        known, text = [int(token) for token in ids], ''
        if self.eos_id in known:
            known = known[: known.index(self.eos_id) + 1]
        for added, group in itertools.groupby(known, self._contents.__contains__):
            run = list(group)
            if added:
                text += ''.join(self._contents[token] for token in run)
            else:
                word = run[0] < self.tokenizer.get_piece_size() and self.tokenizer.id_to_piece(run[0]).startswith('▁')
                text += ' ' * bool(word and text) + self._vocabulary.decode(run)
        return text

    def _normalize(self, text: str) -> str:
        return self.tokenizer.normalize(text).replace('▁', ' ').strip()


def _cut(text: str, tokens: Mapping[str, int]) -> Iterator[str | int]:
    """The ids of tokens and the texts between them; sentinels stay in these, even where `<` is a token."""
    start, longest_first = 0, sorted(tokens, key=len, reverse=True)
    for match in re.finditer('|'.join([_SENTINEL, *map(re.escape, longest_first)]), text):
        if match[0] in tokens:
            yield text[start : match.start()]
            yield tokens[match[0]]
            start = match.end()
    yield text[start:]
