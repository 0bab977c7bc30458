"""Frontends against the reference feature extractors, and against their own padding."""

import pathlib

import jax
import numpy as np
import pytest

from slm_jax.audio.frontends import Gemma4Frontend, UsmFrontend, W2vBertFrontend, WhisperFrontend

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / 'testdata/transformers_goldens/frontends.npz')
SAMPLES = GOLDENS['samples']


def padded(extra: int, noise: bool) -> np.ndarray:
    rng = np.random.default_rng(1)
    tail = rng.integers(-9000, 9000, extra) if noise else np.zeros(extra)
    return np.concatenate([SAMPLES, tail.astype(np.int16)])[None]


@pytest.mark.parametrize('extra', [0, 1, 6001])
def test_usm_equals_gemma3n(extra):
    features, lengths = jax.jit(UsmFrontend())(padded(extra, noise=True), np.array([len(SAMPLES)]))
    expected = GOLDENS['usm']
    assert lengths[0] == len(expected)
    np.testing.assert_allclose(features[0, : lengths[0]], expected, atol=1e-4)
    assert not np.any(features[0, lengths[0] :])


@pytest.mark.parametrize(
    'name, frontend', [('usm', UsmFrontend()), ('gemma4', Gemma4Frontend()), ('w2v_bert', W2vBertFrontend())]
)
def test_bins_far_below_a_tone(name, frontend):
    features, lengths = jax.jit(frontend)(GOLDENS['tone'][None], np.array([8000]))
    expected = GOLDENS[f'tone_{name}']
    assert lengths[0] == len(expected)
    np.testing.assert_allclose(features[0], expected, atol=1e-4)


@pytest.mark.parametrize('length', [7999, 7841, 7840])
def test_gemma4_counts_frames_that_end_before_the_clip(length):
    samples = np.pad(GOLDENS['tone'][:length], (0, 2000), constant_values=9000)
    features, lengths = jax.jit(Gemma4Frontend())(samples[None], np.array([length]))
    assert lengths[0] == (length - 1) // 160
    np.testing.assert_allclose(features[0, : lengths[0]], GOLDENS['tone_gemma4'][: lengths[0]], atol=1e-4)
    assert not np.any(features[0, lengths[0] :])


@pytest.mark.parametrize('platform, dtype', [('cpu', 'f64'), ('cuda', 'f64'), ('tpu', 'f32')])
@pytest.mark.parametrize('frontend', [UsmFrontend(), Gemma4Frontend(), W2vBertFrontend()])
def test_float64_where_xla_transforms_it(frontend, platform, dtype):
    traced = jax.jit(frontend).trace(np.zeros((1, 8000), np.int16), np.array([8000]))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    (transform,) = (line for line in program.splitlines() if 'stablehlo.fft' in line)
    assert f'x{dtype}>' in transform


@pytest.mark.parametrize('bins', [80, 128])
def test_whisper_equals_reference(bins):
    features, lengths = jax.jit(WhisperFrontend(bins))(padded(6001, noise=True), np.array([len(SAMPLES)]))
    assert features.shape == (1, 191, bins) and lengths[0] == 150
    np.testing.assert_allclose(features[0, :170], GOLDENS[f'whisper_{bins}'], atol=1e-4)


@pytest.mark.parametrize('length', [479_519, 479_521, 479_840, 480_000])
def test_whisper_ends_with_silence_or_with_the_window(length):
    samples = np.random.default_rng(0).integers(-9000, 9000, (1, length)).astype(np.int16)
    whole, lengths = WhisperFrontend()(np.pad(samples, ((0, 0), (0, 480_000 - length))), np.array([length]))
    features, _ = WhisperFrontend()(samples, np.array([length]))
    assert whole.shape[1] == 3000 and lengths[0] == -(-length // 160)
    repeated = np.pad(features, ((0, 0), (0, 3000 - features.shape[1]), (0, 0)), mode='edge')
    np.testing.assert_array_equal(repeated, whole)


def test_what_is_taken_at_once_is_stated():
    assert UsmFrontend().max_seconds is Gemma4Frontend().max_seconds is W2vBertFrontend().max_seconds is None
    assert WhisperFrontend(128).max_seconds == 30.0


def test_whisper_refuses_to_cut():
    with pytest.raises(ValueError, match='30 s'):
        WhisperFrontend()(np.zeros((1, 480_001), np.int16), np.array([480_001]))


@pytest.mark.parametrize('frontend, samples', [(UsmFrontend(), 400), (Gemma4Frontend(), 320)])
def test_short_and_empty_clips(frontend, samples):
    features, lengths = frontend(np.ones((3, samples), np.int16), np.array([samples, 1, 0]))
    assert features.shape == (3, 1, 128)
    assert lengths.tolist() == [1, 1, 0]
    assert np.all(np.isfinite(features)) and not np.any(features[2])
