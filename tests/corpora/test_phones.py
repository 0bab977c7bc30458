"""espeak-ng's phones and when they are said."""

import ctypes.util

import numpy as np
import pytest

from slm_jax.corpora import phones

pytestmark = pytest.mark.skipif(not ctypes.util.find_library('espeak-ng'), reason='libespeak-ng1 is not installed')


def test_phones_follow_one_another_and_pauses_are_silent():
    ((samples, said),) = phones.spoken('en-us', ['Hello, world.'])
    names = [phone.name for phone in said]
    assert names[:4] == ['h', '@', 'l', 'oU'] and phones.PAUSE in names
    assert all(a.end == b.start for a, b in zip(said, said[1:])) and said[-1].end == len(samples) / 16_000
    loudness = {
        kind: np.sqrt(np.mean(np.concatenate([
            np.square(samples[int(phone.start * 16_000) : int(phone.end * 16_000)].astype(float))
            for phone in said if (phone.name == phones.PAUSE) == kind
        ])))
        for kind in (True, False)
    }  # fmt: skip
    assert loudness[True] < 0.2 * loudness[False]


def test_a_voice_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="espeak-ng has no voice 'xx-none': `espeak-ng --voices` lists them"):
        next(phones.spoken('xx-none', ['a']))
