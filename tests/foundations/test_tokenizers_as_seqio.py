"""Tokenizers of foundations: id for id and text for text those of SeqIO."""

import pytest
import seqio

from slm_jax.foundations import tokenizers

TEXTS = [
    '',
    ' ',
    'Please hold the line.',
    "L'été, ça va ?",
    '数 and ß and 🙂',
    'a▁b <extra_id_0> c',
    '¿Qué?\n\tNo.',
    '…',
]


@pytest.fixture(params=['sentencepiece', 'sentencepiece with sentinels', 'bytes'])
def pair(request, sentencepiece_model):
    """(ours, SeqIO's)."""
    if request.param == 'bytes':
        return tokenizers.Bytes(125), seqio.ByteVocabulary(125)
    extra_ids = 7 * ('sentinels' in request.param)
    theirs = seqio.SentencePieceVocabulary(sentencepiece_model, extra_ids)
    return tokenizers.SentencePiece(sentencepiece_model, extra_ids), theirs


def test_texts_and_ids(pair):
    ours, theirs = pair
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == list(theirs.encode(text))
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode([*ids, 1, *ids]) == theirs.decode([*ids, 1, *ids])
    every = [token for token in range(ours.vocab_size + 3) if token != ours.eos_id]
    assert ours.decode(every) == theirs.decode(every)
    for token in every:
        assert ours.decode([token]) == theirs.decode([token])


def test_special_ids(pair):
    ours, theirs = pair
    for field in ('bos_id', 'eos_id', 'unk_id', 'vocab_size', 'extra_ids'):
        assert getattr(ours, field) == getattr(theirs, field), field
