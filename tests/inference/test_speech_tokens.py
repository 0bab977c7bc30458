"""What CTC hears at what time, against what it writes, and where a clip is put into silence."""

import pathlib
import types

import numpy as np
import pytest

from slm_jax.audio import waveforms
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries, speech_tokens

CLIPS = sorted((pathlib.Path(__file__).parents[1] / 'testdata' / 'speech').glob('*.ogg'))


@pytest.fixture(scope='module')
def models():
    """The packaged speech encoder by itself, and beneath a language model."""
    return [model_lib.load(name) for name in ('usm_tiny', 'slm_tiny')]


def test_tokens_are_what_is_written(models):
    for clip in CLIPS[::3]:
        samples = waveforms.read_waveform(clip)
        alone, beneath = (speech_tokens.heard(model, samples) for model in models)
        assert [token[:1] for token in alone] == [token[:1] for token in beneath] and len(alone) > 5
        query = queries.Query((), samples)
        [written] = models[0].answers(queries.batch_of([query], queries.shape_of(query), 1))
        assert ''.join(token.text for token in alone).strip() == written.text.strip()
        times = [time for token in alone for time in (token.start, token.end)]
        assert times == sorted(times) and 0 <= times[0] and times[-1] <= round(len(samples) / 16_000, 3)
        assert all(0 < token.probability <= 1 for token in alone)


def test_tokens_come_when_they_are_said(models):
    samples = waveforms.read_waveform(CLIPS[0])
    later = np.concatenate([np.zeros(16_000, np.int16), samples])
    first, second = (speech_tokens.heard(models[0], each) for each in (samples, later))
    assert second[0].start == pytest.approx(first[0].start + 1, abs=0.2)


def test_which_models_tell(models):
    assert all(map(speech_tokens.are_known, models))
    for system in (types.SimpleNamespace(), types.SimpleNamespace(speech_encoder=types.SimpleNamespace())):
        assert not speech_tokens.are_known(types.SimpleNamespace(system=system))
    without = types.SimpleNamespace(speech_encoder=types.SimpleNamespace(ctc_vocab_size=None), ctc_tokens=None)
    assert not speech_tokens.are_known(types.SimpleNamespace(system=without))
