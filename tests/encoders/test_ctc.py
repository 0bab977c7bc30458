"""CTC against sums over all alignments, and its greedy reading."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.encoders.ctc import ctc_fits, ctc_greedy, ctc_loss


def collapse(path):
    return tuple(label for label, _ in itertools.groupby(path) if label)


def test_loss_is_the_sum_over_alignments():
    logits = jax.random.normal(jax.random.key(0), (1, 5, 4))
    log_probs = np.asarray(jax.nn.log_softmax(logits))[0]
    labels = (2, 2, 1)
    paths = [p for p in itertools.product(range(4), repeat=5) if collapse(p) == labels]
    expected = -np.log(sum(np.exp(sum(log_probs[t, k] for t, k in enumerate(p))) for p in paths))
    found = ctc_loss(logits, jnp.array([5]), jnp.array([[2, 2, 1, 0]]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_loss_does_not_see_padding():
    logits = jax.random.normal(jax.random.key(0), (2, 9, 6))
    labels = jnp.array([[3, 1, 0], [3, 1, 0]])
    noisy = logits.at[:, 6:].set(99.0)
    long = ctc_loss(noisy, jnp.array([6, 6]), labels)
    short = ctc_loss(logits[:, :6], jnp.array([6, 6]), labels[:, :2])
    np.testing.assert_allclose(long, short, rtol=1e-5)


def test_fits_counts_blanks_between_equal_labels():
    labels = jnp.array([[2, 2, 1], [2, 2, 1], [2, 1, 0], [0, 0, 0]])
    assert ctc_fits(jnp.array([4, 3, 2, 0]), labels).tolist() == [True, False, True, True]


def test_greedy():
    best = jnp.array([[0, 3, 3, 0, 3, 2, 2, 5], [4, 4, 0, 0, 4, 7, 7, 7]])
    logits = jax.nn.one_hot(best, 9)
    found = ctc_greedy(logits, jnp.array([8, 5]))
    assert found.tolist() == [[3, 3, 2, 5, 0, 0, 0, 0], [4, 4, 0, 0, 0, 0, 0, 0]]
