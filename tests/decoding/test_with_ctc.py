"""Writing together with CTC."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax import decoding

GOLDEN = pathlib.Path(__file__).parent.parent / 'testdata' / 't5x_goldens' / 'beam_search.npz'
LENGTH = 20


# Labels: 0 blank, 1 between words, 2 a, 3 b. Tokens: 0 padding, 1 end, 2 comma, 3 a, 4 A, 5 b, 6 between words.
TOKEN_LABELS = jnp.array([0, 0, 0, 2, 2, 3, -1])


def uniform_step(tokens, cache):
    return jnp.full((len(tokens), 7), -jnp.log(7.0)), cache


def spelt(path):
    """What CTC writes for a label per frame."""
    return tuple(label for label, before in zip(path, (0, *path), strict=False) if label not in (0, before))


@pytest.mark.parametrize('axis', [0, 1])
def test_ctc_scores_every_beginning_by_its_probability(axis):
    """Against the sum over all paths; beams of two texts for each of two clips, of 5 and 3 frames."""
    logits = np.random.default_rng(0).normal(size=(2, 5, 4)) * 2
    lengths, texts = (
        [5, 3],
        [[0, 6, 3, 5, 2, 6], [0, 4, 3, 6, 2, 5], [0, 5, 2, 2, 2, 3], [0, 6, 2, 3, 6, 4]],
    )
    noise = jnp.where(jnp.arange(5)[:, None] < jnp.array(lengths)[:, None, None], jnp.asarray(logits), 7.0)
    log_probs = decoding.frame_log_probs(noise, jnp.array(lengths))
    step, cache = decoding.with_ctc(
        uniform_step, {}, log_probs, jnp.array(lengths), TOKEN_LABELS, 1.0, cache_batch_axis=axis
    )
    cache = jax.tree.map(lambda x: jnp.repeat(x, 2, axis), cache)
    steps = []
    for i in range(6):
        log_probs, cache = step(jnp.array([text[i : i + 1] for text in texts]), cache)
        steps.append(np.asarray(log_probs))
    compared = 0
    for n, text in enumerate(texts):
        log_p = np.asarray(jax.nn.log_softmax(logits[n // 2, : lengths[n // 2]], axis=-1))
        probabilities = {}
        for path in itertools.product(range(4), repeat=len(log_p)):
            probability = np.exp(sum(log_p[frame, label] for frame, label in enumerate(path)))
            probabilities[spelt(path)] = probabilities.get(spelt(path), 0.0) + probability

        def beginning(tokens):
            labels = [abs(int(TOKEN_LABELS[token])) for token in tokens if TOKEN_LABELS[token]]
            while labels[:1] == [1]:
                labels = labels[1:]
            whole = probabilities.get(tuple(labels), 0.0)
            return whole, sum(p for all_of_it, p in probabilities.items() if all_of_it[: len(labels)] == tuple(labels))

        for i in range(6):
            whole, before = beginning(text[: i + 1])
            if before == 0.0:  # more than the frames can spell
                break
            expected = [whole, *(beginning([*text[: i + 1], token])[1] for token in range(2, 7))]
            expected = np.array(expected) / before
            unheard = [beginning(text[:j])[1] == beginning(text[: j + 1])[1] for j in range(1, i + 1)]
            run = sum(1 for _ in itertools.takewhile(bool, unheard[::-1]))
            for token, probability in enumerate(expected[1:], 1):
                if probability == 1:  # Not heard: the more expensive the more of them stand there.
                    expected[token] = np.exp(-run)
            np.testing.assert_allclose(np.exp(steps[i][n, 1:]), expected, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared > 16


@pytest.mark.parametrize('method', ['greedy', 'beam'])
def test_ctc_leads_a_model_that_knows_nothing(method):
    said = [2, 2, 0, 3, 1, 1, 0, 2, 0, 2]
    logits = jnp.stack([8 * jax.nn.one_hot(jnp.array(said), 4)] * 2)

    def letters(tokens, cache):
        log_probs, cache = uniform_step(tokens, cache)
        return log_probs + jnp.array([-9, 0, -9, 0, 0, 0, -1]), cache

    lengths = jnp.array([10, 0])
    log_probs = decoding.frame_log_probs(logits, lengths)
    step, cache = decoding.with_ctc(letters, {}, log_probs, lengths, TOKEN_LABELS, 0.5)
    config = decoding.DecodeConfig(method, 12, alpha=0.0)
    tokens, _ = decoding.decode(step, cache, 2, config, active=jnp.array([True, False]))
    heard = [abs(int(TOKEN_LABELS[token])) for token in tokens[0] if TOKEN_LABELS[token]]
    assert heard == [2, 3, 1, 2, 2]
    log_probs, _ = step(jnp.zeros((2, 1), jnp.int32), cache)
    np.testing.assert_array_equal(log_probs[1], letters(jnp.zeros((1, 1)), None)[0][0])  # no speech


def test_ctc_ends_a_loop_of_what_is_not_heard():
    """A model that is all but sure of another comma after each one; CTC has heard 'ab'."""
    logits = 12 * jax.nn.one_hot(jnp.array([[2, 2, 0, 3, 3]]), 4)

    def commas(tokens, cache):
        after_comma = jnp.log(jnp.array([1e-3, 1e-3, 0.99, 3e-3, 1e-3, 3e-3, 2e-3]))
        other = jnp.log(jnp.array([1e-3, 0.1, 0.3, 0.3, 0.1, 0.1, 0.099]))
        return jnp.where(tokens == 2, after_comma, other), cache

    lengths = jnp.array([5])
    log_probs = decoding.frame_log_probs(logits, lengths)
    step, cache = decoding.with_ctc(commas, {}, log_probs, lengths, TOKEN_LABELS, 0.3)
    step, cache = decoding.limited(step, cache, jnp.array([20]))
    tokens, _ = decoding.decode(step, cache, 1, decoding.DecodeConfig('beam', 40))
    heard = [abs(int(TOKEN_LABELS[token])) for token in tokens[0] if TOKEN_LABELS[token]]
    assert heard == [2, 3] and 1 in tokens[0].tolist()
