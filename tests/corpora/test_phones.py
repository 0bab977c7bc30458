"""espeak-ng's phones and when they are said."""

import ctypes.util

import numpy as np
import pytest

from slm_jax.corpora import phones

pytestmark = pytest.mark.skipif(not ctypes.util.find_library('espeak-ng'), reason='libespeak-ng1 is not installed')


def test_phones_follow_one_another_and_pauses_are_silent():
    ((samples, said, words),) = phones.spoken('en-us', ['Hello, world.'])
    names = [phone.name for phone in said]
    assert names[:4] == ['h', '@', 'l', 'oU'] and phones.PAUSE in names
    assert all(a.end == b.start for a, b in zip(said, said[1:])) and said[-1].end == len(samples) / 16_000
    assert len(words) == 2 and words[1] in [phone.start for phone in said]
    loudness = {
        kind: np.sqrt(np.mean(np.concatenate([
            np.square(samples[int(phone.start * 16_000) : int(phone.end * 16_000)].astype(float))
            for phone in said if (phone.name == phones.PAUSE) == kind
        ])))
        for kind in (True, False)
    }  # fmt: skip
    assert loudness[True] < 0.2 * loudness[False]


def test_a_voice_says_the_same_whatever_spoke_before():
    """By the name of a voice, or of a language of which none is called so (en-gb)."""
    sentences = ['Please hold the line.']
    known = {voice: [*phones.spoken(voice, sentences)] for voice in ('en-us', 'en-gb', 'en-us+f3')}
    with pytest.raises(ValueError, match='has no voice'):
        next(phones.spoken('xx-none', sentences))
    for voice, [before] in reversed(known.items()):
        [again] = phones.spoken(voice, sentences)
        assert len(again.words) == 4 and again.words == sorted(again.words)
        np.testing.assert_allclose(again.words, before.words, atol=0.02)
        assert abs(len(again.samples) - len(before.samples)) < 400
    american, british = ([phone.name for phone in known[voice][0].phones] for voice in ('en-us', 'en-gb'))
    assert american != british


def test_a_voice_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="espeak-ng has no voice 'xx-none': `espeak-ng --voices` lists them"):
        next(phones.spoken('xx-none', ['a']))
