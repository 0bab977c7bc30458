"""CTC against sums over all alignments, and its greedy reading."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.encoders.ctc import ctc_fits, ctc_greedy, ctc_loss, ctc_loss_of_many, ctc_runs


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


def test_labels_picked_first_give_the_same_loss_and_gradient():
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 9, 30))
    labels = jnp.array([[3, 3, 17, 3, 0], [29, 1, 0, 0, 0], [5, 6, 5, 6, 5], [0, 0, 0, 0, 0]])
    lengths = jnp.array([9, 4, 9, 3])
    losses, gradients = [], []
    for loss in (ctc_loss, ctc_loss_of_many):

        @functools.partial(jax.grad, has_aux=True)
        def gradient(logits, loss=loss):
            found = loss(logits, lengths, labels)
            return found.sum(), found

        for all_of, found in zip((gradients, losses), jax.jit(gradient)(logits)):
            all_of.append(found)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(gradients[1], gradients[0], atol=1e-5)
    padded = jax.jit(ctc_loss_of_many)(logits.at[1, 4:].set(1e4), lengths, jnp.pad(labels, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded, losses[0], rtol=1e-5)


def test_a_label_that_is_not_known_may_be_any_but_blank():
    logits = jax.random.normal(jax.random.key(1), (1, 5, 4))
    log_probs = np.asarray(jax.nn.log_softmax(logits))[0]

    def spells(path, rest=(2, -1, -1)):
        """In how many ways a path of labels goes along: it may stay on what is not known as long as it likes."""
        states = {(-1, True): 1}  # (label last begun, whether blank came since)
        for k in path:
            after = {}
            for (place, blank), ways in states.items():
                here, there = rest[place] if place >= 0 else None, rest[place + 1] if place + 1 < 3 else None
                steps = [(place, True)] if k == 0 else []
                steps += [(place, False)] if k and not blank and here in (k, -1) else []
                steps += [(place + 1, False)] if k and there in (k, -1) else []
                for step in steps:
                    after[step] = after.get(step, 0) + ways
            states = after
        return sum(ways for (place, _), ways in states.items() if place == 2)

    total = sum(
        spells(p) * np.exp(sum(log_probs[t, k] for t, k in enumerate(p))) for p in itertools.product(range(4), repeat=5)
    )
    found = ctc_loss_of_many(logits, jnp.array([5]), jnp.array([[2, -1, -1, 0]]))
    np.testing.assert_allclose(found[0], -np.log(total), rtol=1e-5)
    assert ctc_fits(jnp.array([3, 2]), jnp.array([[2, -1, -1], [2, -1, -1]])).tolist() == [True, False]


def test_fits_counts_blanks_between_equal_labels():
    labels = jnp.array([[2, 2, 1], [2, 2, 1], [2, 1, 0], [0, 0, 0]])
    assert ctc_fits(jnp.array([4, 3, 2, 0]), labels).tolist() == [True, False, True, True]


def test_greedy():
    best = jnp.array([[0, 3, 3, 0, 3, 2, 2, 5], [4, 4, 0, 0, 4, 7, 7, 7]])
    logits = jax.nn.one_hot(best, 9)
    found = ctc_greedy(logits, jnp.array([8, 5]))
    assert found.tolist() == [[3, 3, 2, 5, 0, 0, 0, 0], [4, 4, 0, 0, 0, 0, 0, 0]]


def test_runs_are_where_greedy_labels_stand():
    best = np.random.default_rng(0).integers(0, 3, (5, 12))
    lengths = np.array([12, 9, 1, 0, 12])
    found = ctc_runs(jax.nn.one_hot(best, 4), jnp.array(lengths))
    for row, length in enumerate(lengths):
        runs, place = [], 0
        for label, group in itertools.groupby(best[row, :length].tolist()):
            start, place = place, place + len(list(group))
            runs += [(label, start, place)] if label else []
        assert [tuple(int(each[row, n]) for each in found) for n in range(len(runs))] == runs
        assert not any(np.any(each[row, len(runs) :]) for each in found)
