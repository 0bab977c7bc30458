"""The likeliest path that spells a text, against all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.encoders.alignment import align, times


def spells(path, labels):
    """The frames of each label where a path of labels spells them, -1 for any; None where it does not."""
    groups = [(label, [t for _, t in group]) for label, group in
              itertools.groupby(zip(path, range(len(path))), key=lambda each: each[0])]  # fmt: skip
    said = [(label, frames) for label, frames in groups if label]
    if len(said) != len(labels) or any(mine not in (-1, label) for (label, _), mine in zip(said, labels)):
        return None
    return [(frames[0], frames[-1] + 1) for _, frames in said]


def test_the_best_of_all_paths():
    logits = 2 * jax.random.normal(jax.random.key(0), (4, 6, 4))
    texts = [(2, 2, 1), (3,), (1, 2, 3, 2), (2, 3)]
    lengths = [6, 6, 5, 3]
    labels = np.zeros((4, 5), int)
    for row, text in enumerate(texts):
        labels[row, : len(text)] = text
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    starts, stops, fits = jax.jit(align)(logits, jnp.array(lengths), labels)
    assert fits.all()
    for row, (text, length) in enumerate(zip(texts, lengths)):
        paths = [path for path in itertools.product(range(4), repeat=length) if spells(path, text)]
        best = max(paths, key=lambda path: sum(log_probs[row, t, label] for t, label in enumerate(path)))
        found = list(zip(starts[row].tolist(), stops[row].tolist()))
        assert found[: len(text)] == spells(best, text) and not np.any(found[len(text) :])


def test_a_label_that_may_be_any_is_where_something_is_said():
    said = np.array([0, 1, 0, 2, 2, 3, 0])
    logits = 9.0 * jax.nn.one_hot(jnp.array([said]), 4)
    starts, stops, fits = align(logits, jnp.array([7]), jnp.array([[1, -1, -1, 0]]))
    assert fits[0] and starts[0, 0] == 1 and stops[0, 0] == 2
    assert starts[0, 1] == 3 and stops[0, 2] == 6 and stops[0, 1] == starts[0, 2] and starts[0, 3] == stops[0, 3] == 0


def test_padding_changes_nothing_and_what_does_not_fit_is_said():
    logits = 2 * jax.random.normal(jax.random.key(1), (3, 9, 5))
    labels, lengths = jnp.array([[3, 3, 0], [1, 2, 1], [0, 0, 0]]), jnp.array([5, 9, 4])
    noisy = jnp.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=7.0).at[0, 5:].set(99.0)
    wide = align(noisy, lengths, jnp.pad(labels, ((0, 0), (0, 4))))
    for found, expected in zip(wide, align(logits, lengths, labels)):
        np.testing.assert_array_equal(found[:, :3] if found.ndim > 1 else found, expected)
    assert align(logits, jnp.array([2, 3, 0]), labels)[2].tolist() == [False, True, False]
    seconds = times(logits, jnp.array([2, 9, 4]), labels, lambda seconds: 25 * seconds + 1)
    assert np.isnan(seconds[:, [0, 2]]).all()
    np.testing.assert_allclose(seconds[:, 1], np.array(wide[:2])[:, 1, :3] / 25, rtol=1e-6)
