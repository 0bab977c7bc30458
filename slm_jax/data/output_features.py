"""What every task gives, in vocabularies that are found when they are first used.

Tasks are registered before anybody has chosen a language model. `LLM` and `CTC` stand in their output features and
become the tokenizers of the foundations that gin names (`vocabularies.names`).
"""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import hashlib
from collections.abc import Mapping

import numpy as np
import seqio

from slm_jax.data import vocabularies


class FoundationVocabulary(seqio.Vocabulary):
    """The tokenizer of one part, 'llm' or 'speech_encoder', as a SeqIO vocabulary."""

    def __init__(self, part: str):
        super().__init__(extra_ids=0)  # the tokenizer counts its own
        self._part = part

    @property
    def vocabulary(self):
        """The tokenizer, as `vocabularies.names` gives it at the time."""
        return vocabularies.of(self._part)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides how texts are encoded."""
        return hashlib.sha256(self.vocabulary.serialized).hexdigest()

    @property
    def languages(self) -> Mapping[str, int]:
        """Codes with which texts begin, see `languages.begun`."""
        return self.vocabulary.languages

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
        def encode(text):
            return np.array(self.encode(text.decode()), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids):
        def decode(rows):
            texts = [self.decode(row.tolist()).encode() for row in rows.reshape(-1, rows.shape[-1])]
            return np.array(texts, object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other) -> bool:
        return isinstance(other, FoundationVocabulary) and other._part == self._part

    def __hash__(self) -> int:
        return hash((FoundationVocabulary, self._part))

    def __repr__(self) -> str:
        return f'FoundationVocabulary({self._part!r})'


LLM = FoundationVocabulary('llm')
CTC = FoundationVocabulary('speech_encoder')
LETTERS = seqio.ByteVocabulary(extra_ids=0)


def output_features(part: str = 'llm') -> dict[str, seqio.Feature]:
    """Speech (which a text-only task may lack), inputs and targets.

    Args:
        part: 'llm'; 'speech_encoder' for CTC, or 'letters' for phrases, whose targets have no EOS.
    """
    vocabulary = {'llm': LLM, 'speech_encoder': CTC, 'letters': LETTERS}[part]
    tokens = seqio.Feature(vocabulary, add_eos=part == 'llm', dtype=tf.int32)
    speech = seqio.ContinuousFeature(dtype=tf.int16, rank=1, required=False)
    return {'speech': speech, 'inputs': tokens, 'targets': tokens}
