"""The likeliest path that spells a text, against all paths."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    aligned = jax.jit(align)
    wide = aligned(noisy, lengths, jnp.pad(labels, ((0, 0), (0, 4))))
    for found, expected in zip(wide, aligned(logits, lengths, labels)):
        np.testing.assert_array_equal(found[:, :3] if found.ndim > 1 else found, expected)
    assert aligned(logits, jnp.array([2, 3, 0]), labels)[2].tolist() == [False, True, False]
    timed = jax.jit(times, static_argnums=3)
    seconds = np.asarray(timed(logits, jnp.array([2, 9, 4]), labels, lambda seconds: 25 * seconds + 1))
    assert np.isnan(seconds[:, [0, 2]]).all()
    np.testing.assert_allclose(seconds[:, 1], np.array(wide[:2])[:, 1, :3] / 25, rtol=1e-6)


def best_score(log_probs, text):
    """Of the likeliest path that spells a text, state by state."""
    labels = [0, *(each for label in text for each in (label, 0))]
    best = np.full(len(labels), -np.inf)
    best[:2] = log_probs[0, labels[:2]]
    for frame in log_probs[1:]:
        before = best.copy()
        for state, label in enumerate(labels):
            ways = [before[state], *before[max(state - 1, 0) : state]]
            if state > 1 and label and label != labels[state - 2]:
                ways.append(before[state - 2])
            best[state] = max(ways) + frame[label]
    return best[-2:].max()


def score(log_probs, text, starts, stops):
    """Of the path that has each label at these frames."""
    path = np.zeros(len(log_probs), int)
    for label, start, stop in zip(text, starts, stops):
        path[start:stop] = label
    assert spells(path.tolist(), list(text)) == list(zip(starts.tolist(), stops.tolist()))
    return log_probs[np.arange(len(path)), path].sum()


def test_long_texts_have_the_best_path_of_a_plain_search():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 60, 20)).astype(np.float32)
    labels, lengths = np.zeros((6, 24), int), np.array([60, 60, 50, 41, 60, 30])
    for row, count in enumerate([24, 12, 20, 24, 1, 7]):
        labels[row, :count] = rng.integers(1, 4 if row % 2 else 20, count)
    starts, stops, fits = map(np.asarray, align(jnp.array(logits), jnp.array(lengths), jnp.array(labels)))
    assert fits.all()
    for row, length in enumerate(lengths):
        log_probs = np.asarray(jax.nn.log_softmax(logits[row, :length]))
        text = labels[row][labels[row] > 0]
        found = score(log_probs, text, starts[row, : len(text)], stops[row, : len(text)])
        np.testing.assert_allclose(found, best_score(log_probs, text), rtol=1e-5)


@pytest.mark.slow
def test_real_speech_has_the_best_path_of_a_plain_search():
    from slm_jax.audio import waveforms
    from slm_jax.data import ctc_text
    from slm_jax.inference import model as model_lib

    model = model_lib.load('usm_tiny')
    samples = waveforms.read_waveform(pathlib.Path(__file__).parents[1] / 'testdata/speech/en_685023.ogg')
    batch = {'speech_samples': jnp.array(samples)[None], 'speech_lengths': jnp.array([len(samples)])}
    logits, lengths = jax.jit(model.system.ctc_logits)(model.params, batch)
    said = model.answers(batch)[0].text
    text = np.array(model.vocabulary.encode(ctc_text.normalize(said)))
    starts, stops, fits = map(np.asarray, align(logits, lengths, jnp.array(text)[None]))
    log_probs = np.asarray(jax.nn.log_softmax(logits[0, : int(lengths[0])]))
    assert fits[0] and len(text) > 10
    np.testing.assert_allclose(score(log_probs, text, starts[0], stops[0]), best_score(log_probs, text), rtol=1e-5)
