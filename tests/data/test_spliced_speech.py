"""Spliced speech: words are cut where the recording is quiet, and say what is written."""

import random

import numpy as np
import pytest
import soundfile

from slm_jax.data import spliced_speech, text_corpora

_PIECES = ['<pad>', '</s>', '<unk>', '▁', 'o', 'n', 'e', 't', 'w']
_FRAME = 640  # samples


def _labels(text):
    return np.array([_PIECES.index(piece) if piece != '.' else 0 for piece in text])


def test_words_and_their_frames():
    labels = _labels('..▁▁o.nnne..▁.two.')
    assert spliced_speech.spelt(labels, _PIECES) == [('one', 4, 9), ('two', 14, 16)]
    assert spliced_speech.spelt(_labels('on.e'), _PIECES) == [('one', 0, 3)]
    assert spliced_speech.spelt(_labels('...'), _PIECES) == []


def test_words_that_are_read_rightly_are_cut_in_the_silence_between_them():
    labels = _labels('.▁one...▁two...▁ten...')
    samples = np.full(labels.size * _FRAME, 0.1, np.float32)
    quiet = 6 * _FRAME
    samples[quiet - 200 : quiet + 200] = 0
    read = spliced_speech.spelt(labels, _PIECES)
    one, two = spliced_speech.rightly_read('one two five', read, samples, labels.size)
    assert [(w.text, w.follows) for w in (one, two)] == [('one', False), ('two', True)]
    assert abs(one.end - quiet) < 60 and one.end == two.start < two.end < samples.size
    ten = spliced_speech.rightly_read('one two ten', read, samples, labels.size)[-1]
    assert ten.start == two.end
    alone = spliced_speech.rightly_read('four two five', read, samples, labels.size)
    assert [(w.text, w.follows) for w in alone] == [('two', False)]


def test_sentences_are_runs_of_words_and_their_sound():
    word = spliced_speech.Word
    samples = np.repeat(np.array([0.1, 0.2, 0.3], np.float32), 1600)
    words = [word('a', 0, 1600, False), word('b', 1600, 3200, True), word('c', 3200, 4800, False)]
    heard = {'a': 0.1, 'b': 0.2, 'c': 0.3}
    for seed in range(20):
        text, sound = spliced_speech.sentence([(samples, words)], random.Random(seed))
        levels = sound[sound > 0.05]
        expected = [level for spoken in text.split() for level in [heard[spoken]] * 1600]
        assert 2 <= len(text.split()) <= 10
        assert 0.85 < levels.size / len(expected) <= 1  # The rest fades at the cuts.
        assert abs(levels.mean() - np.mean(expected)) < 0.02
    first = spliced_speech.sentence([(samples, words)], random.Random(0))
    again = spliced_speech.sentence([(samples, words)], random.Random(0))
    assert first[0] == again[0] and np.array_equal(first[1], again[1])


def test_a_corpus_is_written_from_recordings(tmp_path):
    tone = np.sin(np.arange(16000) / 5).astype(np.float32) * 0.3
    clips = {'en': [(tone, [spliced_speech.Word('one', 1000, 9000, False)])]}
    hours = spliced_speech.write(clips, tmp_path / 'out', 0.005)
    rows = text_corpora.read_jsonl(tmp_path / 'out/manifest.jsonl')
    assert sum(row['duration'] for row in rows) / 3600 == pytest.approx(hours['en'])
    for row in rows:
        assert {*row['text'].split()} == {'one'} and row['lang'] == 'en'
        assert soundfile.info(tmp_path / 'out' / row['audio']).duration == pytest.approx(row['duration'], abs=1e-3)


def test_a_foundation_without_a_ctc_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match='t5_tiny is no speech encoder with a CTC head'):
        spliced_speech.read_words(tmp_path / 'manifest.jsonl', 't5_tiny')
