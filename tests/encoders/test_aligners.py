"""What all aligners promise, and whether each learns where tokens are said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slm_jax.encoders.aligners import CtcAligner, TransformerConfig
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
FRAMES, WIDTH, LONGEST = 40, 24, 8


def speech(rng, rows):
    """Frames in which each token of a transcript sounds for a while, and at which frame each ends."""
    sounds = np.random.default_rng(7).normal(size=(9, WIDTH))
    frames = np.zeros((rows, FRAMES, WIDTH), np.float32)
    tokens, ends = np.zeros((rows, LONGEST), np.int32), np.zeros((rows, LONGEST), np.int32)
    lengths, frame_lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row in range(rows):
        n, place = rng.integers(3, LONGEST + 1), 0
        text = rng.permutation(np.tile(np.arange(2, 7), 2))[:n]
        for number, token in enumerate(text):
            stop = place + rng.integers(2, 6)
            frames[row, place:stop] = sounds[token]
            place = stop
            ends[row, number] = stop - 1
        tokens[row, :n], lengths[row], frame_lengths[row] = text, n, place
        frames[row, :place] += 0.1 * rng.normal(size=(place, WIDTH))
    return [jnp.array(each) for each in (frames, frame_lengths, tokens, lengths, ends)]


def trained(aligner, steps, rng):
    batch = speech(rng, 16)[:4]
    params = nn_unboxed(aligner.init(jax.random.key(0), *batch, method='losses'))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, *batch):
        def loss(params):
            fits, sums = aligner.apply(params, *batch, method='losses')
            return jnp.sum(jnp.where(fits, sums['loss'], 0)) / jnp.sum(batch[3])

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(steps):
        params, state, value = step(params, state, *speech(rng, 16)[:4])
    return params


def nn_unboxed(params):
    return jax.tree.map(lambda x: x.unbox(), params, is_leaf=lambda x: hasattr(x, 'unbox'))


@pytest.mark.parametrize('kind', ALIGNERS)
def test_it_learns_where_tokens_are_said(kind):
    aligner, rng = ALIGNERS[kind], np.random.default_rng(0)
    params = trained(aligner, 100, rng)
    frames, frame_lengths, tokens, lengths, ends = speech(rng, 16)
    apply = jax.jit(aligner.apply)
    found = apply(params, frames, frame_lengths, tokens, lengths)
    valid = np.arange(LONGEST) < np.array(lengths)[:, None]
    error = np.abs(np.array(found.boundaries) - ends)[valid]
    print(kind, error.mean(), np.bincount(error))
    np.testing.assert_array_equal(found.lengths, lengths)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert error.mean() < 0.8
    if not aligner.needs_tokens:
        written = apply(params, frames, frame_lengths)
        print((np.array(written.lengths) == lengths).mean(), written.tokens[:2, :9], tokens[:2])
