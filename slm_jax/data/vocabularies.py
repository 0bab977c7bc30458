"""Vocabularies of the foundations, found when they are first used.

Tasks are registered before anybody has chosen a language model. `LLM` and `CTC` stand in their
output features and become the tokenizers of the foundations that gin names:

    from slm_jax.data import vocabularies
    vocabularies.names.llm = 't5_tiny'
    vocabularies.names.speech_encoder = 'usm_tiny'
"""

from slm_jax.data import ctc_text

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import functools
import hashlib

import seqio

import gin
from slm_jax import foundations


@gin.configurable
def names(llm: str = 't5_tiny', speech_encoder: str = 'usm_tiny') -> dict[str, str]:
    """The foundations (names or directories) whose `tokenizer.model` the tasks are encoded with."""
    return {'llm': llm, 'speech_encoder': speech_encoder}


@functools.lru_cache(maxsize=8)
def _load(name: str) -> seqio.Vocabulary:
    return foundations.vocabulary(name)


class FoundationVocabulary(seqio.Vocabulary):
    """The tokenizer of one part, 'llm' or 'speech_encoder', as `names` gives it at the time."""

    def __init__(self, part: str):
        super().__init__(extra_ids=0)  # the foundation's own vocabulary counts its extra ids
        self._part = part

    @property
    def vocabulary(self) -> seqio.Vocabulary:
        return _load(names()[self._part])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SentencePiece model: texts encode alike where this is the same."""
        in_bytes = isinstance(self.vocabulary, seqio.ByteVocabulary)
        return hashlib.sha256(b'bytes' if in_bytes else self.vocabulary.sp_model).hexdigest()

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.vocab_size

    def _encode(self, s):
        return self.vocabulary.encode(s)

    def _decode(self, ids):
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s):
        return self.vocabulary.encode_tf(s)

    def _decode_tf(self, ids):
        return self.vocabulary.decode_tf(ids)

    def __eq__(self, other) -> bool:
        return isinstance(other, FoundationVocabulary) and other._part == self._part

    def __hash__(self) -> int:
        return hash((FoundationVocabulary, self._part))

    def __repr__(self) -> str:
        return f'FoundationVocabulary({self._part!r})'


@gin.configurable
def label_tokens() -> tuple[int, ...]:
    """The language model's token for each label of the speech encoder's tokenizer, -1 where it has no such piece.

    Both are SentencePiece models; end and unknown have none. Blank has the token with which the language model's texts
    begin, the mark of a word's beginning.

    Raises:
        FoundationError: the language model reads bytes, and a label is none.
    """
    if isinstance(LLM.vocabulary, seqio.ByteVocabulary):
        raise foundations.FoundationError(
            f'{names()["llm"]} reads bytes, which are no labels of CTC. Choose another reduction than ctc_blank.'
        )
    labels, tokens = CTC.vocabulary.tokenizer, LLM.vocabulary.tokenizer
    pieces = [labels.id_to_piece(label) for label in range(labels.get_piece_size())]
    ids = [tokens.piece_to_id(piece) for piece in pieces]
    special = [labels.is_control(label) or labels.is_unknown(label) for label in range(len(ids))]
    known = [-1 if none or token == tokens.unk_id() else token for none, token in zip(special, ids, strict=True)]
    return (tokens.piece_to_id('▁'), *known[1:])


@gin.configurable
def token_labels() -> tuple[int, ...] | None:
    """The speech encoder's label for each of the language model's tokens, as `decoding.with_ctc` wants them.

    0 is for what is not heard, as a comma; large letters have the label of the small ones, which are what CTC writes;
    the mark of a word's beginning has the negative of its own. None for a language model that reads bytes or writes
    pieces of more than one character.
    """
    if isinstance(LLM.vocabulary, seqio.ByteVocabulary):
        return None
    labels, tokens = CTC.vocabulary.tokenizer, LLM.vocabulary.tokenizer
    result = []
    for token in range(LLM.vocab_size - LLM.vocabulary.extra_ids):
        piece, label = tokens.id_to_piece(token), 0
        if not (tokens.is_control(token) or tokens.is_unknown(token) or tokens.is_byte(token)):
            if len(piece) > 1:
                return None
            label = labels.piece_to_id(piece if piece == '▁' else ctc_text.normalize(piece))
            label = 0 if label == labels.unk_id() else -label if piece == '▁' else label
        result.append(label)
    return tuple(result)


LLM = FoundationVocabulary('llm')
CTC = FoundationVocabulary('speech_encoder')


def output_features(part: str = 'llm') -> dict[str, seqio.Feature]:
    """What every task gives: speech (which a text-only task may lack), inputs and targets.

    Args:
        part: 'llm', or 'speech_encoder' for CTC, whose targets have no EOS.
    """
    vocabulary = {'llm': LLM, 'speech_encoder': CTC}[part]
    tokens = seqio.Feature(vocabulary, add_eos=part == 'llm', dtype=tf.int32)
    speech = seqio.ContinuousFeature(dtype=tf.int16, rank=1, required=False)
    return {'speech': speech, 'inputs': tokens, 'targets': tokens}
