"""Tokenizers of foundations: the ids and texts of SeqIO's vocabularies, without TensorFlow."""

import functools
import os
from collections.abc import Iterable
from typing import Any

from slm_jax import paths

BYTES = 256
_SPECIAL = 3  # 0 padding, 1 end, 2 unknown; bytes follow


class SentencePiece:
    """A SentencePiece model and `extra_ids` sentinels behind its pieces, as `seqio.SentencePieceVocabulary`.

    Attributes:
        tokenizer: the SentencePiece processor, which knows the sentinels.
        sp_model: the serialised model with them: texts are encoded alike where this is the same.
        extra_ids: number of sentinels; the last piece is the first of them, `<extra_id_0>`.
    """

    def __init__(self, file: str | os.PathLike, extra_ids: int = 0):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        schema: Any = sentencepiece_model_pb2
        model = schema.ModelProto.FromString(paths.path(file).read_bytes())
        for number in reversed(range(extra_ids)):
            model.pieces.add(piece=f'▁<extra_id_{number}>', score=0.0, type=model.SentencePiece.USER_DEFINED)
        self.extra_ids, self.sp_model = extra_ids, model.SerializeToString()
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=self.sp_model)

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

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first end; ids that no piece has are unknown."""
        ids = [int(token) if token < self.vocab_size else self.unk_id for token in ids]
        return self.tokenizer.decode(ids[: ids.index(self.eos_id) + 1] if self.eos_id in ids else ids)


class Bytes:
    """UTF-8 bytes behind padding, end and unknown, as `seqio.ByteVocabulary` and ByT5 have them."""

    sp_model = b'bytes'
    bos_id, eos_id, unk_id = None, 1, 2

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
