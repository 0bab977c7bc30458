"""The vocoder's transform, its losses, and that padding and neighbours change nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.codebooks import vocoder_model
from slm_jax.codebooks.vocoder_model import Vocoder, VocoderConfig
from slm_jax.systems.unit_vocoder import UnitVocoder

CONFIG = VocoderConfig(num_units=5, frames_per_second=25, emb_dim=8, mlp_dim=12, num_layers=2)
SYSTEM = UnitVocoder(Vocoder(CONFIG))


@functools.cache
def params():
    return nn.unbox(jax.jit(SYSTEM.init)(jax.random.key(0), {}))


@jax.jit
def gradient_of(params, batch):
    return jax.value_and_grad(lambda params: SYSTEM.loss(params, batch, None), has_aux=True)(params)


def batch():
    """Two clips and an empty row."""
    rng = np.random.default_rng(0)
    tokens = np.array([[1, 1, 2, 2, 2, 4], [5, 5, 3, 0, 0, 0], [0] * 6], np.int32)
    samples = (3000 * rng.standard_normal((3, 6 * 640))).astype(np.int16)
    samples[1, 3 * 640 :] = samples[2] = 0
    return {'decoder_target_tokens': tokens, 'speech_samples': samples}


def test_the_inverse_gives_back_what_was_transformed():
    samples = np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    padded = np.pad(samples, (240, 240))
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(640) / 640))
    spectrum = np.fft.rfft(np.stack([padded[160 * t : 160 * t + 640] for t in range(10)]) * window)[None]
    found = vocoder_model._inverse(jnp.array(spectrum.real), jnp.array(spectrum.imag))[0]
    assert found.shape == (1600,)
    np.testing.assert_allclose(found[480:-480], samples[480:-480], atol=1e-4)  # where four windows overlap


def test_a_clip_says_the_same_alone_and_whatever_follows_it():
    def said(units, lengths):
        given = {'params': params()['vocoder']}, jnp.array(units), jnp.array(lengths)
        return SYSTEM.vocoder.apply(*given), SYSTEM.vocoder.apply(*given, method='log_durations')

    wave, durations = said([[1, 2, 3, 3, 0, 0], [4, 4, 1, 0, 1, 2]], [4, 6])
    other, told = said([[1, 2, 3, 3, 4, 4]], [4])
    assert wave.shape == (2, 6 * 640) and np.abs(wave[0, : 4 * 640]).max() > 0
    np.testing.assert_allclose(wave[0, : 4 * 640], other[0, : 4 * 640], atol=1e-5)
    np.testing.assert_allclose(durations[0, :4], told[0, :4], atol=1e-5)


def test_an_empty_row_and_what_is_in_the_padding_change_no_loss():
    (loss, metrics), gradient = gradient_of(params(), batch())
    noisy = batch()
    noisy['speech_samples'][1, 3 * 640 :] = 999
    noisy['speech_samples'][2] = 999
    (padded, _), _ = gradient_of(params(), noisy)
    np.testing.assert_allclose(padded, loss, rtol=1e-4)
    assert {*metrics} == {'spectral', 'mel', 'duration', 'loss'}
    assert metrics['loss'][1] == pytest.approx((6 + 3) / 25)  # seconds
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_durations_of_units_that_a_crop_may_have_cut_do_not_count():
    """Of the first row only the middle run of three is whole, of the second none."""
    (_, metrics), _ = gradient_of(params(), batch())
    assert metrics['duration'][1] == 1
    told = SYSTEM.vocoder.apply(
        {'params': params()['vocoder']}, jnp.array([[0, 1, 3, 0, 0, 0]]), jnp.array([3]), method='log_durations'
    )
    np.testing.assert_allclose(metrics['duration'][0], np.square(told[0, 1] - np.log(3)), rtol=1e-4)


def test_what_was_said_right_has_no_loss():
    tokens = batch()['decoder_target_tokens']
    lengths = (tokens > 0).sum(axis=1)
    wave = SYSTEM.vocoder.apply({'params': params()['vocoder']}, jnp.maximum(tokens - 1, 0), jnp.array(lengths))
    given = {'decoder_target_tokens': tokens, 'speech_samples': np.round(np.asarray(wave) * 32768).astype(np.int16)}
    (_, metrics), _ = gradient_of(params(), given)
    (_, others), _ = gradient_of(params(), batch())
    for name in ('spectral', 'mel'):
        own, other = (float(each[name][0] / each[name][1]) for each in (metrics, others))
        assert own < 0.05 * other, name


def test_a_rate_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match='VocoderConfig.frames_per_second is 12; a divisor of 100 was expected'):
        VocoderConfig(num_units=5, frames_per_second=12)
