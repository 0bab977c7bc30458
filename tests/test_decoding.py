"""Decoding against T5X's beam search, brute force and the statistics of what is sampled."""

import itertools
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scanned_t5 import stack_layers

from slm_jax import decoding
from slm_jax.llms import t5

GOLDEN = pathlib.Path(__file__).parent / 'testdata' / 't5x_goldens' / 'beam_search.npz'
LENGTH = 20


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN) as arrays:
        return {key: jnp.asarray(arrays[key]) for key in arrays.files}


def make_generate(golden, scan_layers):
    """run(inputs, config) decodes by T5; all beams if `all_beams`."""
    flat = {k.removeprefix('params/'): v for k, v in golden.items() if k.startswith('params/')}
    params = traverse_util.unflatten_dict(flat, sep='/')
    variables = {'params': stack_layers(params) if scan_layers else params}
    module = t5.T5(t5.T5Config(24, 32, 2, 2, 3, 16, 64, scan_layers=scan_layers))

    def run(inputs, config, all_beams=False, **options):
        def program(inputs):
            mask = inputs > 0
            embedded = module.apply(variables, inputs, method='embed')
            encoded = module.apply(variables, embedded, mask, method='encode')
            step, cache = t5.cached_step(
                module, variables['params'], encoded, mask, config.max_decode_length, config.beams
            )
            if all_beams:
                return decoding.beam_search(
                    step, cache, len(inputs), config.beam_size, config.alpha,
                    config.max_decode_length, cache_batch_axis=module.config.cache_batch_axis,
                )  # fmt: skip
            return decoding.decode(step, cache, len(inputs), config, **options)

        return jax.jit(program)(inputs)

    return run


@pytest.fixture(scope='module')
def generate(golden):
    return make_generate(golden, scan_layers=False)


def test_beams_over_scanned_layers_are_those_of_t5x(golden):
    config = decoding.DecodeConfig('beam', LENGTH, beam_size=4, alpha=0.6)
    tokens, scores = make_generate(golden, scan_layers=True)(
        golden['encoder_input_tokens'], config, all_beams=True
    )
    np.testing.assert_array_equal(tokens, golden['beam4_alpha0.6/decodes'])
    np.testing.assert_allclose(scores, golden['beam4_alpha0.6/scores'], rtol=1e-5)


@pytest.mark.parametrize('beam_size, alpha', [(1, 0.0), (1, 0.6), (4, 0.0), (4, 0.6)])
def test_beam_search_is_that_of_t5x(golden, generate, beam_size, alpha):
    config = decoding.DecodeConfig('beam', LENGTH, beam_size=beam_size, alpha=alpha)
    tokens, scores = generate(golden['encoder_input_tokens'], config, all_beams=True)
    name = f'beam{beam_size}_alpha{alpha}'
    np.testing.assert_array_equal(tokens, golden[f'{name}/decodes'])
    np.testing.assert_allclose(scores, golden[f'{name}/scores'], rtol=1e-5)
    best, best_scores = generate(golden['encoder_input_tokens'], config)
    np.testing.assert_array_equal(best, tokens[:, -1])
    np.testing.assert_array_equal(best_scores, scores[:, -1])


def test_greedy_is_beam_search_of_one_where_nothing_ends(golden, generate):
    # Once an end is among the two best candidates, T5X's single beam may prefer it.
    inputs = golden['encoder_input_tokens'][:2]
    tokens, scores = generate(inputs, decoding.DecodeConfig('greedy', LENGTH))
    np.testing.assert_array_equal(tokens, golden['beam1_alpha0.0/decodes'][:2, 0])
    np.testing.assert_allclose(scores, golden['beam1_alpha0.0/scores'][:2, 0], rtol=1e-5)


@pytest.mark.parametrize('method', ['greedy', 'beam', 'sample'])
def test_no_more_tokens_than_the_limit(method):
    """A model that never ends by itself is ended; one that ends before its limit is left alone."""
    ends_at = jnp.array([99, 99, 2])

    def step(tokens, cache):
        at = jnp.repeat(ends_at, tokens.shape[0] // 3)
        logits = jnp.where(
            cache['count'] >= at[:, None], jnp.array([0.0, 9, 0, 0]), jnp.array([0.0, -9, 1, 2])
        )
        return jax.nn.log_softmax(logits), {'count': cache['count'] + 1}

    limited, cache = decoding.limited(
        step, {'count': jnp.zeros((3, 1), jnp.int32)}, jnp.array([4, 6, 9])
    )
    tokens, _ = decoding.decode(limited, cache, 3, decoding.DecodeConfig(method, 12))
    assert [int(jnp.argmax(row == 1)) + 1 for row in tokens] == [4, 6, 3]
    assert ((tokens > 0).sum(axis=1) == jnp.array([4, 6, 3])).all()


@pytest.mark.parametrize('method', ['greedy', 'beam', 'sample'])
def test_alone_as_in_a_batch(golden, generate, method):
    config = decoding.DecodeConfig(method, LENGTH, seed=3)
    inputs, ids = golden['encoder_input_tokens'], jnp.array([5, 6, 7])
    tokens, scores = generate(inputs, config, example_ids=ids)
    for i in range(3):
        length = int((inputs[i] > 0).sum())
        alone = generate(inputs[i : i + 1, :length], config, example_ids=ids[i : i + 1])
        np.testing.assert_array_equal(alone[0][0], tokens[i])
        np.testing.assert_allclose(alone[1][0], scores[i], rtol=1e-5)


def table_step(table, calls=None):
    """A step that depends only on the position, by the logits of table [m, v]; its cache is the position."""
    table = jax.nn.log_softmax(jnp.asarray(table, jnp.float32))

    def step(tokens, cache):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(1))
        return jnp.tile(table[cache['position']], (len(tokens), 1)), {
            'position': cache['position'] + 1
        }

    return step, {'position': jnp.int32(0)}


def test_nothing_follows_the_end_and_the_loop_stops_early():
    calls = []
    table = np.zeros((10, 4))
    table[:, 3], table[2, 1] = 5, 9
    tokens, scores = decoding.decode(
        *table_step(table, calls), 2, decoding.DecodeConfig('greedy', 10)
    )
    np.testing.assert_array_equal(tokens, [[3, 3, 1] + [0] * 7] * 2)
    expected = sum(jax.nn.log_softmax(table, axis=-1)[[0, 1, 2], [3, 3, 1]])
    np.testing.assert_allclose(scores, [expected] * 2, rtol=1e-5)
    jax.effects_barrier()
    assert len(calls) == 3


@pytest.mark.parametrize('method', ['greedy', 'beam'])
def test_inactive_rows_do_not_prolong_the_loop(method):
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        endless = jnp.tile(jnp.array([0.0, -9, 9, 0]), (len(tokens), 1))
        ending = jnp.tile(jnp.array([0.0, 9, -9, 0]), (len(tokens), 1))
        return jnp.where(cache['endless'], endless, ending), cache

    cache = {'endless': jnp.array([[False], [True]])}
    config = decoding.DecodeConfig(method, 50, beam_size=1)
    tokens, _ = decoding.decode(step, cache, 2, config, active=jnp.array([True, False]))
    jax.effects_barrier()
    assert len(calls) < 5 and tokens[0, 0] == 1


def test_wide_beam_finds_the_best_of_all_sequences():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 5, 5)) * 2  # Logits by position and previous token.

    def step(tokens, cache):
        return jax.nn.log_softmax(jnp.asarray(table, jnp.float32))[
            cache['position'], tokens[:, 0]
        ], {'position': cache['position'] + 1}

    tokens, scores = decoding.beam_search(step, {'position': jnp.int32(0)}, 1, 80, 0.0, 4)
    log_probs = np.asarray(jax.nn.log_softmax(table, axis=-1))
    best = -np.inf
    for length in range(1, 5):
        for sequence in itertools.product([0, 2, 3, 4], repeat=length - 1):
            score, previous = 0.0, 0
            for position, token in enumerate((*sequence, 1)):
                score += log_probs[position, previous, token]
                previous = token
            if score > best:
                best, winner = score, (*sequence, 1)
    np.testing.assert_array_equal(tokens[0, -1, : len(winner)], winner)
    np.testing.assert_allclose(scores[0, -1], best, rtol=1e-5)


def frequencies(logits, **options):
    config = decoding.DecodeConfig('sample', 1, **options)
    rows = 20000
    tokens, _ = jax.jit(lambda: decoding.decode(*table_step([logits]), rows, config))()
    return np.bincount(tokens[:, 0], minlength=len(logits)) / rows


def test_sampling_follows_the_distribution():
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(frequencies(logits), [0.1, 0.2, 0.3, 0.4], atol=0.015)
    squared = np.array([0.01, 0.04, 0.09, 0.16]) / 0.3
    np.testing.assert_allclose(frequencies(logits, temperature=0.5), squared, atol=0.015)
    np.testing.assert_allclose(frequencies(logits, top_k=2), [0, 0, 3 / 7, 4 / 7], atol=0.015)
    top_p = frequencies(logits, top_p=0.75)  # 0.4 + 0.3 is not enough.
    np.testing.assert_allclose(top_p, [0, 2 / 9, 3 / 9, 4 / 9], atol=0.015)
    np.testing.assert_array_equal(frequencies(logits, top_p=0.01), [0, 0, 0, 1])


def test_sampling_is_a_function_of_seed_and_example():
    table = np.zeros((8, 1000))
    table[:, 1] = -50

    def sample(seed, ids):
        config = decoding.DecodeConfig('sample', 8, seed=seed)
        step, cache = table_step(table)
        return decoding.decode(step, cache, len(ids), config, example_ids=jnp.asarray(ids))[0]

    first, second = sample(0, [4, 9])
    np.testing.assert_array_equal(sample(0, [9])[0], second)
    assert (first != second).any() and (sample(1, [4])[0] != first).any()
    assert len(set(first.tolist())) > 1


@pytest.mark.parametrize(
    'field, value', [('method', 'best'), ('temperature', 0.0), ('top_p', 0.0), ('beam_size', 0)]
)
def test_errors_name_the_field(field, value):
    with pytest.raises(ValueError, match=f'DecodeConfig.{field}.*must be'):
        decoding.DecodeConfig(**{field: value})


# Labels: 0 blank, 1 between words, 2 a, 3 b. Tokens: 0 padding, 1 end, 2 comma, 3 a, 4 A, 5 b, 6 between words.
TOKEN_LABELS = jnp.array([0, 0, 0, 2, 2, 3, -1])


def uniform_step(tokens, cache):
    return jnp.full((len(tokens), 7), -jnp.log(7.0)), cache


def spelt(path):
    """What CTC writes for a label per frame."""
    return tuple(
        label for label, before in zip(path, (0, *path), strict=False) if label not in (0, before)
    )


@pytest.mark.parametrize('axis', [0, 1])
def test_ctc_scores_every_beginning_by_its_probability(axis):
    """Against the sum over all paths; beams of two texts for each of two clips, of 5 and 3 frames."""
    logits = np.random.default_rng(0).normal(size=(2, 5, 4)) * 2
    lengths, texts = (
        [5, 3],
        [[0, 6, 3, 5, 2, 6], [0, 4, 3, 6, 2, 5], [0, 5, 2, 2, 2, 3], [0, 6, 2, 3, 6, 4]],
    )
    noise = jnp.where(
        jnp.arange(5)[:, None] < jnp.array(lengths)[:, None, None], jnp.asarray(logits), 7.0
    )
    step, cache = decoding.with_ctc(
        uniform_step, {}, noise, jnp.array(lengths), TOKEN_LABELS, 1.0, cache_batch_axis=axis
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
            return whole, sum(
                p
                for all_of_it, p in probabilities.items()
                if all_of_it[: len(labels)] == tuple(labels)
            )

        for i in range(6):
            whole, before = beginning(text[: i + 1])
            if before == 0.0:  # more than the frames can spell
                break
            expected = [whole, *(beginning([*text[: i + 1], token])[1] for token in range(2, 7))]
            expected = np.array(expected) / before
            unheard = [
                beginning(text[:j])[1] == beginning(text[: j + 1])[1] for j in range(1, i + 1)
            ]
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

    step, cache = decoding.with_ctc(letters, {}, logits, jnp.array([10, 0]), TOKEN_LABELS, 0.5)
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

    step, cache = decoding.with_ctc(commas, {}, logits, jnp.array([5]), TOKEN_LABELS, 0.3)
    step, cache = decoding.limited(step, cache, jnp.array([20]))
    tokens, _ = decoding.decode(step, cache, 1, decoding.DecodeConfig('beam', 40))
    heard = [abs(int(TOKEN_LABELS[token])) for token in tokens[0] if TOKEN_LABELS[token]]
    assert heard == [2, 3] and 1 in tokens[0].tolist()
