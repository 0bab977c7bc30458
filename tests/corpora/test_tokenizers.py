"""The tokenizers of the tiny foundations: characters, and labels that stand for the same characters as tokens."""

import json

import pytest

from slm_jax.corpora import tokenizers
from slm_jax.data import ctc_text, json_lines, vocabularies
from slm_jax.foundations.tokenizers import Bytes, SentencePiece

LINES = [
    'Please hold the line.',
    "L'été, ça va ?",
    'Не кладите, не надо!',
    '¿Qué? 10 % de más…',
] * 5


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Directory with both tokenizers, made of a small corpus."""
    corpora, out = tmp_path_factory.mktemp('corpora'), tmp_path_factory.mktemp('tokenizers')
    json_lines.write(
        corpora / 'text_train.jsonl',
        [{'text': line, 'lang': 'en', 'source': 'x'} for line in LINES],
    )
    json_lines.write(corpora / 'speech.jsonl', [{'text': line, 'lang': 'en'} for line in LINES])
    tokenizers.main([str(corpora), str(out)])
    return out


def test_the_llm_reads_characters_and_any_text_comes_back(models):
    card = json.loads((models / 't5_tiny/card.json').read_text())
    vocabulary = SentencePiece(models / 't5_tiny/tokenizer.model', card['extra_ids'])
    assert len(vocabulary.encode('hold')) == len('▁hold')
    for text in (*LINES, '数 and ß and 🙂'):
        assert vocabulary.decode(vocabulary.encode(text)) == text.replace('…', '...')
    assert (vocabulary.eos_id, vocabulary.unk_id) == (1, 2)


def test_labels_and_tokens_stand_for_the_same_characters(models, monkeypatch):
    loaded = {
        part: SentencePiece(models / name / 'tokenizer.model', extra)
        for part, name, extra in (('llm', 't5_tiny', 32), ('speech_encoder', 'usm_tiny', 0))
    }
    monkeypatch.setattr(vocabularies, 'names', lambda: {'llm': 'llm', 'speech_encoder': 'speech_encoder'})
    monkeypatch.setattr(vocabularies, '_load', loaded.__getitem__)
    tokens = vocabularies.label_tokens()
    labels = loaded['speech_encoder'].encode(ctc_text.normalize(LINES[2]))
    assert (
        tokens[:3] == (loaded['llm'].tokenizer.piece_to_id('▁'), -1, -1)
        and len(tokens) == loaded['speech_encoder'].vocab_size
    )
    assert loaded['llm'].decode([tokens[label] for label in labels]) == ctc_text.normalize(LINES[2])

    heard = vocabularies.token_labels()
    written = [heard[token] for token in loaded['llm'].encode(LINES[2])]
    assert len(heard) == loaded['llm'].vocab_size - 32 and written[0] == heard[tokens[0]] < 0
    assert [abs(label) for label in written[1:] if label] == labels  # its comma and its large letter notwithstanding

    monkeypatch.setitem(loaded, 'llm', Bytes())
    assert vocabularies.token_labels() is None
