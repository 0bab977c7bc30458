"""What all aligners promise, and whether each learns where tokens are said."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slm_jax.encoders import aligners
from slm_jax.encoders.aligners import CtcAligner, ExternalAligner, TransformerConfig, check_fits, partition, within
from slm_jax.encoders.cif import CifAligner, CifConfig
from slm_jax.encoders.monotonic import MonotonicAligner, MonotonicConfig
from slm_jax.encoders.spelling import Spelling

# Letters 2 … 6 with a mark between words, 1: tokens 2 … 6 are one letter each, 7 ' ' + 2 + 3, 8 a comma.
LETTERS = Spelling(((), (), (2,), (3,), (4,), (5,), (6,), (1, 2, 3), ()), between=1)
TOKENS = Spelling(vocab_size=9)
SIZES = dict(emb_dim=32, dropout_rate=0.0)
TRANSFORMER = SIZES | dict(num_layers=1, num_heads=2, mlp_dim=64)
ALIGNERS = {
    'characters': CtcAligner(TransformerConfig(spelling=LETTERS, **TRANSFORMER)),
    'subwords': CtcAligner(TransformerConfig(spelling=TOKENS, **TRANSFORMER)),
    'cif': CifAligner(CifConfig(spelling=TOKENS, initial_weight=0.2, **TRANSFORMER)),
    'monotonic': MonotonicAligner(MonotonicConfig(spelling=LETTERS, num_layers=2, **SIZES)),
}
# Of CTC the one way is tried each time; both are the same but for how tokens are spelt.
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] * (kind == 'subwords')) for kind in ALIGNERS]
FRAMES, WIDTH, LONGEST = 40, 24, 8


def speech(rng, rows=16):
    """Frames in which each token of a transcript sounds for a while, and the last frame of each."""
    sounds = np.random.default_rng(7).normal(size=(9, WIDTH))
    frames = np.zeros((rows, FRAMES, WIDTH), np.float32)
    tokens, ends = np.zeros((rows, LONGEST), np.int32), np.zeros((rows, LONGEST), np.int32)
    lengths, frame_lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row in range(rows):
        place, text = 0, rng.integers(2, 7, rng.integers(3, LONGEST + 1))
        text = text[np.diff(text, prepend=0) != 0]  # one sound that goes on is one token
        for number, token in enumerate(text):
            stop = place + rng.integers(2, 6)
            frames[row, place:stop] = sounds[token]
            place = stop
            ends[row, number] = stop - 1
        tokens[row, : len(text)], lengths[row], frame_lengths[row] = text, len(text), place
        frames[row, :place] += 0.1 * rng.normal(size=(place, WIDTH))
    return [jnp.array(each) for each in (frames, frame_lengths, tokens, lengths, ends)]


@functools.lru_cache
def trained(kind):
    """(parameters, the compiled aligner) after some steps."""
    aligner, rng = ALIGNERS[kind], np.random.default_rng(0)
    fresh = jax.jit(lambda *batch: aligners.initial_params(aligner, jax.random.key(0), *batch))(*speech(rng)[:4])
    params = {'params': nn.unbox(fresh)}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, *batch):
        def loss(params):
            fits, sums = aligner.apply(params, *batch, method='losses')
            return jnp.sum(jnp.where(fits, sums['loss'], 0)) / jnp.sum(batch[3])

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state, *speech(rng)[:4])
    return params, jax.jit(aligner.apply)


def losses_of(kind):
    return jax.jit(functools.partial(ALIGNERS[kind].apply, method='losses'))


@pytest.mark.parametrize('kind', KINDS)
def test_it_learns_where_tokens_are_said(kind):
    params, apply = trained(kind)
    frames, frame_lengths, tokens, lengths, ends = speech(np.random.default_rng(1))
    found = apply(params, frames, frame_lengths, tokens, lengths)
    valid = np.arange(LONGEST) < np.array(lengths)[:, None]
    np.testing.assert_array_equal(found.lengths, lengths)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert np.abs(np.array(found.boundaries) - ends)[valid].mean() < 0.75
    fits, sums = losses_of(kind)(params, frames, frame_lengths, tokens, lengths)
    assert fits.all() and all(np.isfinite(each).all() for each in sums.values())
    if ALIGNERS[kind].needs_tokens:
        with pytest.raises(ValueError, match='MonotonicAligner finds where a known transcript is said'):
            ALIGNERS[kind].apply(params, frames, frame_lengths)
        return
    written = apply(params, frames, frame_lengths)
    assert np.abs(np.array(written.lengths) - np.array(lengths)).mean() < 0.6
    right = np.array(written.lengths) == lengths
    assert np.mean(np.array(written.tokens)[right, :LONGEST] == tokens[right]) > 0.9
    # CIF's weights are then scaled by a little.
    assert np.abs(np.array(written.boundaries)[right, :LONGEST] - np.array(found.boundaries)[right]).mean() < 0.3


@pytest.mark.parametrize('kind', KINDS)
def test_neither_padding_nor_other_rows_change_anything(kind):
    params, apply = trained(kind)
    batch, others = speech(np.random.default_rng(2))[:4], speech(np.random.default_rng(3))[:4]
    mixed = [each.at[:8].set(other[8:]) for each, other in zip(batch, others)]
    frames, frame_lengths, tokens, lengths = mixed
    behind = np.arange(FRAMES) >= np.array(frame_lengths)[:, None]
    noisy = jnp.where(behind[..., None], 99.0, frames), frame_lengths
    garbage = jnp.where(np.arange(LONGEST) >= np.array(lengths)[:, None], 5, tokens), lengths
    for ours, theirs in [((*noisy, *garbage), batch)] + [(noisy, batch[:2])] * (not ALIGNERS[kind].needs_tokens):
        for found, expected in zip(apply(params, *ours), apply(params, *theirs), strict=True):
            np.testing.assert_array_equal(found[8:], expected[8:])


@pytest.mark.parametrize('kind', KINDS)
def test_segments_are_all_of_the_frames_and_what_does_not_fit_is_told(kind):
    params, apply = trained(kind)
    rng = np.random.default_rng(4)
    frames = jnp.array(rng.normal(size=(16, FRAMES, WIDTH)), jnp.float32)  # never heard
    frame_lengths = jnp.array([0, 1, 5, 7, 8, *[FRAMES] * 11], jnp.int32)
    tokens = jnp.array([[2, 3, 2, 2, 8, 3, 8, 5]] * 16, jnp.int32)
    lengths = jnp.array([3, 1, 6, 8, 8, 0, 1, *[8] * 9], jnp.int32)
    found = apply(params, frames, frame_lengths, tokens, lengths)
    fits = losses_of(kind)(params, frames, frame_lengths, tokens, lengths)[0]
    cases = [found] if ALIGNERS[kind].needs_tokens else [found, apply(params, frames, frame_lengths)]
    for boundaries, count, written in cases:
        for row, (n, frames_of_row) in enumerate(zip(count.tolist(), frame_lengths.tolist())):
            own = boundaries[row, :n].tolist()
            assert not n or (own[-1] == frames_of_row - 1 and own[0] >= 0 and own == sorted(set(own)))
            assert not np.any(boundaries[row, n:]) and not np.any(written[row, n:]) and np.all(written[row, :n])
    n = found.lengths.tolist()
    assert n[0] == n[2] == n[3] == n[5] == 0 and n[7:] == [8] * 9 and not np.any(fits[np.array([0, 2, 3, 5])])
    assert np.all(fits[7:])
    names = [f'{row}.wav' for row in range(16)]
    # A token of two labels does not fit into one frame.
    with pytest.raises(ValueError, match=r'0.wav \(3 tokens\), (1.wav \(1 tokens\), )?2.wav \(6 t.*: the speech is'):
        check_fits(found, lengths, names)
    check_fits(aligners.Alignment(*(each[7:] for each in found)), lengths[7:], names[7:])


def test_boundaries_rise_and_leave_a_frame_for_each():
    ends = jnp.array([[3, 3, 3, 3], [9, 9, 9, 9], [-5, 2, 1, 8], [0, 0, 0, 0], [1, 1, 1, 1]])
    found, lengths = partition(ends, jnp.array([4, 4, 3, 4, 0]), jnp.array([8, 4, 8, 3, 5]))
    assert found.tolist() == [[3, 4, 5, 7], [0, 1, 2, 3], [0, 2, 7, 0], [0] * 4, [0] * 4]
    assert lengths.tolist() == [4, 4, 3, 0, 0]


def test_a_pause_is_part_of_the_token_before_it():
    starts, stops = jnp.array([[2, 5, 0, 20, 0]] * 2), jnp.array([[4, 8, 0, 24, 0]] * 2)
    heard = jnp.array([[True, True, False, True, False]] * 2)
    # One frame between the first two; a comma has the pause, but for what the next is written late by.
    found, _ = within(starts, stops, heard, jnp.array([5, 4]), jnp.array([30, 30]))
    assert found.tolist() == [[4, 7, 15, 23, 29], [4, 7, 15, 29, 0]]


def test_what_a_file_says():
    aligner = ExternalAligner(frames_per_second=50.0)
    ends = jnp.array([[-0.21, 0.5, 0.5, 2.0], [0.0] * 4])
    given = jnp.zeros((2, 60, 4)), jnp.array([60, 60]), jnp.full((2, 4), 7), jnp.array([4, 4])
    assert aligners.initial_params(aligner, jax.random.key(0), *given) == {}
    found = aligner.apply({}, *given, ends)
    assert found.boundaries.tolist() == [[9, 24, 25, 59], [0] * 4] and found.lengths.tolist() == [4, 0]
    with pytest.raises(ValueError, match='given no token_ends, which manifests with "alignment" have'):
        aligner.apply({}, *given)
    with pytest.raises(ValueError, match='given no transcript'):
        aligner.apply({}, *given[:2])
    with pytest.raises(ValueError, match=r'CifConfig.dropout_rate is 1; it must be in \[0, 1\).'):
        CifConfig(spelling=TOKENS, **TRANSFORMER | dict(dropout_rate=1))
