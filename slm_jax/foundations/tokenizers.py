"""Tokenizers of foundations: the ids and texts of SeqIO's vocabularies, without TensorFlow."""

import functools
import json
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slm_jax import paths

BYTES = 256
_NONE: Mapping[str, int] = types.MappingProxyType({})
_SPECIAL = 3  # 0 padding, 1 end, 2 unknown; bytes follow


class SentencePiece:
    """A SentencePiece model and `extra_ids` sentinels behind its pieces, as `seqio.SentencePieceVocabulary`.

    Attributes:
        tokenizer: the SentencePiece processor, which knows the sentinels.
        serialized: the serialised model with them: texts are encoded alike where this is the same.
        extra_ids: number of sentinels; the last piece is the first of them, `<extra_id_0>`.
        languages: ids of the codes with which texts of a language begin, which are control pieces.
    """

    def __init__(self, file: str | os.PathLike, extra_ids: int = 0, languages: Mapping[str, int] = _NONE):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        schema: Any = sentencepiece_model_pb2
        model = schema.ModelProto.FromString(paths.path(file).read_bytes())
        for number in reversed(range(extra_ids)):
            model.pieces.add(piece=f'▁<extra_id_{number}>', score=0.0, type=model.SentencePiece.USER_DEFINED)
        self.extra_ids, self.serialized, self.languages = extra_ids, model.SerializeToString(), languages
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids, sentinels included."""
        return self.tokenizer.get_piece_size()

    @property
    def bos_id(self) -> int | None:
        """Token that begins a text, -1 where there is none."""
        return self.tokenizer.bos_id()

    @property
    def eos_id(self) -> int | None:
        """Token that ends a text."""
        return self.tokenizer.eos_id()

    @property
    def unk_id(self) -> int:
        """Token for what cannot be written."""
        return self.tokenizer.unk_id()

    def special(self, piece: str) -> int | None:
        """The id of a piece that no text has; None where there is none."""
        token = self.tokenizer.piece_to_id(piece)
        return None if token == self.unk_id else token

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first end; ids that no piece has are unknown."""
        ids = [int(token) if token < self.vocab_size else self.unk_id for token in ids]
        return self.tokenizer.decode(ids[: ids.index(self.eos_id) + 1] if self.eos_id in ids else ids)


class Bytes:
    """UTF-8 bytes behind padding, end and unknown, as `seqio.ByteVocabulary` and ByT5 have them."""

    serialized = b'bytes'
    bos_id, eos_id, unk_id, languages = None, 1, 2, _NONE

    def __init__(self, extra_ids: int = 0):
        self.extra_ids = extra_ids
        self.vocab_size = _SPECIAL + BYTES + extra_ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end."""
        return [_SPECIAL + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first end; what is no byte is left out."""
        ids = [int(token) for token in ids]
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return bytes(token - _SPECIAL for token in ids if 0 <= token - _SPECIAL < BYTES).decode(errors='ignore')


class HuggingFace:
    """A `tokenizer.json`, its ids rearranged so that 0 pads and 1 ends a text.

    Attributes:
        tokenizer: of the library `tokenizers`, which knows nothing of the rearrangement.
        serialized: file and rearrangement: texts are encoded alike where this is the same.
        languages: ids of the codes with which texts of a language begin, which are special tokens.
    """

    bos_id = None  # a prompt's template writes what begins it
    eos_id = 1

    def __init__(self, content: bytes, swapped: Sequence[Sequence[int]] = (), languages: Mapping[str, int] = _NONE):
        """Opens a tokenizer.

        Args:
            content: of `tokenizer.json`.
            swapped: pairs of ids that change places, one pair after the other, see `rearranged`.
            languages: see above.

        Raises:
            ValueError: the file means nothing.
        """
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_buffer(content)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.serialized = content + json.dumps([list(pair) for pair in swapped]).encode()
        self._theirs = rearranged(swapped)
        self._ours = {theirs: ours for ours, theirs in self._theirs.items()}
        self._content, self.languages = content, languages

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids; some below it may be without a token."""
        return 1 + max([*self.tokenizer.get_vocab(with_added_tokens=True).values(), *self._theirs])

    @functools.cached_property
    def unk_id(self) -> int | None:
        """Token for what cannot be written; None where everything can."""
        model = json.loads(self._content)['model']
        token = model['vocab'][model['unk_id']][0] if model.get('unk_id') is not None else model.get('unk_token')
        unknown = None if token is None else self.tokenizer.token_to_id(token)
        return None if unknown is None else self._ours.get(unknown, unknown) or None

    @functools.cached_property
    def parts(self) -> dict[int, tuple[int, int]]:
        """The two tokens that BPE merges into each token, in the order of the merges; {} of another kind."""
        model, result = json.loads(self._content)['model'], {}
        for merge in model.get('merges', ()):
            pair = merge.split(' ') if isinstance(merge, str) else merge
            ids = [model['vocab'][text] for text in (''.join(pair), *pair)]
            token, left, right = (self._ours.get(each, each) for each in ids)
            result.setdefault(token, (left, right))
        return result

    def special(self, piece: str) -> int | None:
        """The id of a token that no text has; None where there is none."""
        token = self.tokenizer.token_to_id(piece)
        return None if token is None else self._ours.get(token, token)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without what a model wants around it; the token that pads has no place in a text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [token for token in (self._ours.get(token, token) for token in ids) if token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first end, without special tokens; ids without a token are left out."""
        ids = [int(token) for token in ids]
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return self.tokenizer.decode([self._theirs.get(token, token) for token in ids])


def rearranged(swapped: Iterable[Sequence[int]]) -> dict[int, int]:
    """The ids of a checkpoint that stand in other places here, by these places: pairs change places one by one."""
    theirs: dict[int, int] = {}
    for a, b in swapped:
        theirs[a], theirs[b] = theirs.get(b, b), theirs.get(a, a)
    return theirs
