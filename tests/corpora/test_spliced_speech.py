"""Spliced speech: words are cut where the recording is quiet, and say what is written."""

import random

import numpy as np
import pytest
import soundfile

from slm_jax.corpora import spliced_speech
from slm_jax.data import json_lines

_PIECES = ['<pad>', '</s>', '<unk>', '▁', 'o', 'n', 'e', 't', 'w']
_FRAME = 640  # samples


def _labels(text):
    return np.array([_PIECES.index(piece) if piece != '.' else 0 for piece in text])


def test_words_and_the_frames_of_their_characters():
    labels = _labels('..▁▁o.nnne..▁.two.')
    spelt = [('one', (4, 6, 9)), ('two', (14, 15, 16))]
    assert spliced_speech.spelt(labels, _PIECES) == spelt
    assert spliced_speech.spelt(_labels('on.e'), _PIECES) == [('one', (0, 1, 3))]
    assert spliced_speech.spelt(_labels('...'), _PIECES) == []


def test_words_that_are_read_rightly_are_cut_in_the_silence_between_them():
    labels = _labels('.▁one...▁two...▁ten...')
    samples = np.full(labels.size * _FRAME, 0.1, np.float32)
    quiet = 6 * _FRAME
    samples[quiet - 200 : quiet + 200] = 0
    read = spliced_speech.spelt(labels, _PIECES)
    one, two = spliced_speech.rightly_read('one two five', read, samples, labels.size)
    assert [(w.text, w.follows) for w in (one, two)] == [('one', False), ('two', True)]
    assert abs(one.cuts[-1] - quiet) < 60 and one.cuts[-1] == two.cuts[0]
    assert list(two.cuts) == sorted(two.cuts) and len(two.cuts) == 4 and two.cuts[-1] < samples.size
    ten = spliced_speech.rightly_read('one two ten', read, samples, labels.size)[-1]
    assert ten.cuts[0] == two.cuts[-1]
    alone = spliced_speech.rightly_read('four two five', read, samples, labels.size)
    assert [(w.text, w.follows) for w in alone] == [('two', False)]


# A recording in which the n-th letter of the alphabet sounds for 0.1 s at level n / 50.
_LEVELS = {letter: (n + 1) / 50 for n, letter in enumerate('abcdefghijklmnopqrstuvwxyz')}


def _clip(*runs):
    words, levels = [], []
    for run in runs:
        for place, word in enumerate(run.split()):
            cuts = [1600 * n for n in range(len(levels), len(levels) + len(word) + 1)]
            words.append(spliced_speech.Word(word, tuple(cuts), place > 0))
            levels += [_LEVELS[letter] for letter in word]
        levels.append(0.0)
    return np.repeat(np.array(levels, np.float32), 1600), words


def _heard(sound):
    """The letters that sound, each for at least 0.05 s."""
    letters = []
    for level in sound[np.abs(sound - np.roll(sound, 400)) < 1e-6]:
        letter = next((x for x, y in _LEVELS.items() if abs(y - level) < 1e-4), '')
        if letter and letters[-1:] != [letter]:
            letters.append(letter)
    return ''.join(letters)


def test_runs_of_words_sound_as_written():
    voice = spliced_speech.Voice([_clip('abc de', 'fgh'), _clip('ij')])
    for seed in range(20):
        text, sound = voice.runs(random.Random(seed))
        assert 2 <= len(text.split()) <= 10 and {*text.split()} <= {'abc', 'de', 'fgh', 'ij'}
        assert _heard(sound) == text.replace(' ', '')
        assert sound.size > 0.95 * 1600 * len(text.replace(' ', ''))
    first, again = (voice.runs(random.Random(0)) for _ in range(2))
    assert first[0] == again[0] and np.array_equal(first[1], again[1])


@pytest.mark.parametrize('text', ['abc de', 'de fgh', 'abcde', 'fghij abc de'])
def test_texts_are_said_in_words_and_parts_of_words(text):
    voice = spliced_speech.Voice([_clip('abc de', 'fgh'), _clip('ij')])
    assert _heard(voice.say(text, random.Random(0))) == text.replace(' ', '')


def test_a_text_with_what_nobody_said_is_not_said():
    assert spliced_speech.Voice([_clip('abc de')]).say('abxyz', random.Random(0)) is None


def test_as_few_pieces_as_it_takes():
    """'ab cd' was said in one breath; no other clip with these words is used."""
    other = [(samples * -1, words) for samples, words in [_clip('ab', 'cd')] * 9]
    voice = spliced_speech.Voice([*other, _clip('ab cd')])
    for seed in range(5):
        assert voice.say('ab cd', random.Random(seed)).min() >= 0


def test_a_corpus_is_written_from_recordings(tmp_path):
    clips = {'en': [_clip('one two')]}
    hours = spliced_speech.write(clips, tmp_path / 'out', 0.005, texts={'en': ['two one', 'three']})
    rows = json_lines.read(tmp_path / 'out/manifest.jsonl')
    assert sum(row['duration'] for row in rows) / 3600 == pytest.approx(hours['en'])
    assert {'two one'} <= {row['text'] for row in rows}
    for row in rows:
        assert {*row['text'].split()} <= {'one', 'two'} and row['lang'] == 'en'
        duration = soundfile.info(tmp_path / 'out' / row['audio']).duration
        assert duration == pytest.approx(row['duration'], abs=1e-3)


def test_a_foundation_without_a_ctc_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match='t5_tiny is no speech encoder with a CTC head'):
        spliced_speech.read_words(tmp_path / 'manifest.jsonl', 't5_tiny')
