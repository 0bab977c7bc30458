"""Whisper's attention as a CPU computes it, and its windows."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.audio.frontends import WhisperFrontend
from slm_jax.encoders import whisper

SIZES = dict(num_layers=2, emb_dim=8, num_heads=2, mlp_dim=12)
CONFIG = whisper.WhisperConfig(**SIZES)


@pytest.mark.parametrize('windows', [None, (50, 7)])
def test_attention_by_head_is_attention(windows):
    """Values and gradients, with scores so large that their exponentials overflow."""
    query, key, value, weights = 4 * jax.random.normal(jax.random.key(0), (4, 2, 50, 3, 8))

    query = 10 * query

    def values_and_gradients(attend):
        attend = jax.jit(functools.partial(attend, windows=windows and jnp.array(windows)))
        gradients = jax.grad(lambda *inputs: jnp.sum(attend(*inputs) * weights), (0, 1, 2))
        return attend(query, key, value), *gradients(query, key, value)

    assert jnp.einsum('bqhk,bshk->bhqs', query, key).max() > 100 * np.sqrt(8)
    found, expected = map(values_and_gradients, (whisper._attend_by_head, whisper._attend))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_on_a_cpu_the_scores_of_one_head_are_in_memory_and_not_those_of_a_batch():
    encoder = whisper.WhisperEncoder(whisper.WhisperConfig(num_layers=1, emb_dim=4, num_heads=2, mlp_dim=4))
    inputs = jnp.zeros((8, 3000, 2)), jnp.full(8, 3000)
    params = jax.eval_shape(encoder.init, jax.random.key(0), *inputs)
    compiled = jax.jit(encoder.apply).lower(params, *inputs).compile()
    scores = 4 * 1500**2  # bytes of one head's
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * scores  # all have 16


@functools.cache
def params():
    """Parameters far from their initial values, so that nothing can be left out unseen."""
    features = jnp.zeros((1, 16, 80)), jnp.array([16])
    fresh = nn.unbox(jax.jit(whisper.WhisperEncoder(CONFIG).init)(jax.random.key(0), *features)['params'])
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)])


@functools.cache
def encode(window_seconds):
    encoder = whisper.WhisperEncoder(dataclasses.replace(CONFIG, window_seconds=window_seconds))
    return jax.jit(lambda params, *audio: encoder.apply({'params': params}, *WhisperFrontend()(*audio)))


def frames_of(window_seconds, clips, seconds):
    """The frames of each of some clips, in a batch of so many seconds with noise behind them."""
    samples = np.random.default_rng(1).integers(-9000, 9000, (len(clips), round(16_000 * seconds))).astype(np.int16)
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip)] = clip
    frames, lengths = encode(window_seconds)(params(), samples, jnp.array([len(clip) for clip in clips]))
    for row, length in zip(frames, lengths, strict=True):
        assert not np.any(row[length:])
    return [row[:length] for row, length in zip(frames, lengths, strict=True)]


def clips(*seconds):
    return [np.random.default_rng(0).normal(0, 3000, round(16_000 * each)).astype(np.int16) for each in seconds]


def test_a_window_does_not_depend_on_the_batch():
    found = clips(0.5, 2.0, 2.01, 0.0, 7.3)
    together = frames_of(2.0, found, 7.3)
    for seconds in (2.0, 4.5):
        for clip, expected in zip(found, together, strict=True):
            if len(clip) <= 16_000 * seconds:
                (alone,) = frames_of(2.0, [clip], seconds)
                np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)


def test_a_window_of_30_seconds_is_the_reference():
    found = clips(0.5, 7.3)
    for windowed, reference in zip(frames_of(30, found, 7.3), frames_of(None, found, 7.3), strict=True):
        np.testing.assert_allclose(windowed, reference, rtol=0, atol=1e-5)
    (windowed,), (reference,) = frames_of(5, found[:1], 0.5), frames_of(None, found[:1], 0.5)
    assert np.abs(windowed - reference).max() > 1e-3  # else nothing was looked at


def test_a_window_is_the_reference_with_another_length(monkeypatch):
    clip = clips(1.2)[0]
    (found,) = frames_of(1.5, [clip], 4.0)
    monkeypatch.setattr(whisper, '_WINDOW', 125)  # 1.5 s and one of silence
    features = WhisperFrontend()(clip[None], jnp.array([len(clip)]))
    shorter = params() | {'embed_positions': params()['embed_positions'][:125]}
    expected, lengths = jax.jit(whisper.WhisperEncoder(CONFIG).apply)({'params': shorter}, *features)
    assert lengths[0] == len(found) == 60
    np.testing.assert_allclose(found, expected[0, :60], rtol=0, atol=1e-5)


def test_one_window_is_that_of_a_clip_with_its_length():
    """Of 4 s: as in steps of 3 s, and one of silence. All of it is given of a clip that fills it; no clip is longer."""
    one = whisper.OneWindowConfig(**SIZES, seconds=4.0)
    encode_one = jax.jit(
        lambda *audio: whisper.WhisperEncoder(one).apply({'params': params()}, *WhisperFrontend()(*audio))
    )
    clip = clips(2.6)[0]
    (expected,) = frames_of(3.0, [clip], 4.0)
    padded = np.pad(clip, (0, 64_000 - len(clip)))[None]
    frames, lengths = encode_one(padded, jnp.array([len(clip)]))
    np.testing.assert_allclose(frames[0, : lengths[0]], expected, rtol=0, atol=1e-5)
    frames, lengths = encode_one(padded, jnp.array([64_000]))
    assert frames.shape[1] == lengths[0] == 200 and whisper.encoder_seconds(one) == 4.0
    with pytest.raises(
        ValueError, match=r'The speech encoder computes 4 s \(OneWindowConfig.seconds\), and a clip has 4.'
    ):
        jax.eval_shape(encode_one, np.zeros((1, 66_000), np.int16), jnp.array([66_000]))
    with pytest.raises(ValueError, match='OneWindowConfig: window_seconds is 2.0 and seconds 30.0'):
        whisper.OneWindowConfig(**SIZES, window_seconds=2.0)


def test_a_batch_costs_what_its_longest_window_does():
    def flops(window_seconds):
        config = dataclasses.replace(CONFIG, num_layers=1, window_seconds=window_seconds)
        inputs = jnp.zeros((2, 303, 80)), jnp.array([300, 20])  # of 3 s, as the frontend makes them
        params = jax.eval_shape(whisper.WhisperEncoder(config).init, jax.random.key(0), *inputs)
        return jax.jit(whisper.WhisperEncoder(config).apply).lower(params, *inputs).cost_analysis()['flops']

    assert flops(1.0) < flops(None) * 4 / 30
    assert flops(3.0) == flops(1.0) < flops(5.0) < flops(None)


@pytest.mark.parametrize(
    ('window_seconds', 'seconds'), [(None, 30.0), (1.0, 2.0), (5.0, 6.0), (30, 30.0), (0.02, 1.02), (0.05, 1.04)]
)
def test_seconds_that_are_computed_of_any_clip(window_seconds, seconds):
    assert whisper.encoder_seconds(dataclasses.replace(CONFIG, window_seconds=window_seconds)) == seconds


@pytest.mark.parametrize('window_seconds', [0, 0.0, -5.0, 30.5, float('nan'), True, '5'])
def test_windows_that_cannot_be(window_seconds):
    with pytest.raises(ValueError, match='WhisperConfig.window_seconds is .*must be None.*0.02 to 30'):
        dataclasses.replace(CONFIG, window_seconds=window_seconds)
