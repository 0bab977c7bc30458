"""Measures of a codebook that tells phones, and of one that tells nothing."""

import dataclasses
import types

import numpy as np
import pytest

from slm_jax.codebooks import measures
from slm_jax.codebooks.codebook import Codebook
from slm_jax.corpora.phones import PAUSE, Phone

PHONES = 'aeiou'
CENTROIDS = np.eye(len(PHONES), 8, dtype=np.float32)


def sentences(voices=('one', 'two')):
    """Samples of a phone are its number times 1000, so that an encoder can know it. 40 ms a frame."""
    for voice in voices:
        for text in range(6):
            numbers = np.random.default_rng(text).permutation(5).repeat(3)
            phones = [Phone(PHONES[n], 0.12 * i, 0.12 * i + 0.12) for i, n in enumerate(numbers[::3])]
            samples = np.repeat(1000 * (numbers + 1), 640).astype(np.int16)
            yield measures.Sentence(str(text), voice, samples, phones)


def book(centroids):
    return Codebook(centroids, {'frames_per_second': 25.0, 'name': 'c', 'encoder': {}})


def knows(samples):
    """One frame per 640 samples, of the phone that they are."""
    loud = samples[: len(samples) // 640 * 640].reshape(-1, 640).astype(np.float32).mean(axis=1)
    return np.eye(8, dtype=np.float32)[np.clip(np.round(loud / 1000).astype(int) - 1, 0, 7)]


def test_a_codebook_that_tells_phones():
    told = measures.measure(book(CENTROIDS), knows, [*sentences()])
    assert told['purity'] == 1 and told['PNMI'] == pytest.approx(1)
    assert told['ABX error'] == told['ABX error of frames'] == 0
    assert told['unit error, another voice'] == 0 and told['unit error, 5 ms later'] < 0.3
    assert told['unit error, 12 dB quieter'] > 0.5  # it goes by the loudness
    assert told['units/s'] == pytest.approx(5 / 0.6) and told['bits/s'] == pytest.approx(5 / 0.6 * np.log2(5))
    assert told['bits/s with durations'] == pytest.approx(told['bits/s'])  # all last as long


def test_a_codebook_that_tells_nothing():
    told = measures.measure(book(CENTROIDS[:, ::-1].copy()), lambda samples: 0 * knows(samples), [*sentences()])
    assert told['ABX error'] == 0.5 and told['PNMI'] == pytest.approx(0, abs=1e-9) and told['bits/s'] == 0
    assert told['purity'] == pytest.approx(0.2)


def test_phones_that_are_shorter_than_frames_tell_nothing_of_abx():
    short = [dataclasses.replace(each, phones=each.phones[:1]) for each in sentences(('one',))]
    encoder = lambda samples: knows(samples)[:1]
    told = measures.measure(book(CENTROIDS), encoder, short)
    assert np.isnan(told['ABX error']) and np.isnan(told['ABX error of frames']) and told['purity'] <= 1


def test_a_vocoder_is_measured_by_encoding_what_it_says():
    silent = types.SimpleNamespace(speak=lambda units, durations: np.zeros(640 * durations.sum(), np.int16))
    right = types.SimpleNamespace(
        speak=lambda units, durations: np.repeat(1000 * (units + 1), 640 * durations).astype(np.int16)
    )
    for vocoder, error in ((right, 0.0), (silent, 0.8)):
        told = measures.measure(book(CENTROIDS), knows, [*sentences(('one',))], vocoder)
        assert told['unit error, said by the vocoder'] == pytest.approx(error)
    assert 'unit error, another voice' not in told and PAUSE not in PHONES
