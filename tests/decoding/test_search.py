"""Decoding against T5X's beam search, brute force and the statistics of what is sampled."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scanned_t5 import stack_layers

from slm_jax import decoding, llms
from slm_jax.llms import t5

GOLDEN = pathlib.Path(__file__).parent.parent / 'testdata' / 't5x_goldens' / 'beam_search.npz'
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
            step, cache = llms.cached_step(
                module, variables['params'], embedded, mask, config.max_decode_length, config.beams
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
    tokens, scores = make_generate(golden, scan_layers=True)(golden['encoder_input_tokens'], config, all_beams=True)
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


def test_beams_end_when_nothing_can_become_better_than_the_best():
    """The third token ends it, by 0.9. After five nothing else can become the best, though it could the fourth."""

    def step(tokens, cache):
        probabilities = jnp.where(cache['count'] < 2, jnp.array([0, 0, 0.7, 0.3]), jnp.array([0, 0.9, 0.06, 0.04]))
        return jnp.maximum(jnp.log(probabilities), -50), {'count': cache['count'] + 1}

    search = decoding.search.search(step, {'count': jnp.zeros((1, 1))}, 1, decoding.DecodeConfig('beam', 60, alpha=1.0))
    state = jax.lax.while_loop(search.going, search.step, search.state)
    assert int(state[0]) == 5
    assert search.result(state)[0][0, :4].tolist() == [2, 2, 1, 0]


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
        logits = jnp.where(cache['count'] >= at[:, None], jnp.array([0.0, 9, 0, 0]), jnp.array([0.0, -9, 1, 2]))
        return jax.nn.log_softmax(logits), {'count': cache['count'] + 1}

    limited, cache = decoding.limited(step, {'count': jnp.zeros((3, 1), jnp.int32)}, jnp.array([4, 6, 9]))
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
        return jnp.tile(table[cache['position']], (len(tokens), 1)), {'position': cache['position'] + 1}

    return step, {'position': jnp.int32(0)}


def test_nothing_follows_the_end_and_the_loop_stops_early():
    calls = []
    table = np.zeros((10, 4))
    table[:, 3], table[2, 1] = 5, 9
    tokens, scores = decoding.decode(*table_step(table, calls), 2, decoding.DecodeConfig('greedy', 10))
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
        return jax.nn.log_softmax(jnp.asarray(table, jnp.float32))[cache['position'], tokens[:, 0]], {
            'position': cache['position'] + 1
        }

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


@pytest.mark.parametrize('field, value', [('method', 'best'), ('temperature', 0.0), ('top_p', 0.0), ('beam_size', 0)])
def test_errors_name_the_field(field, value):
    with pytest.raises(ValueError, match=f'DecodeConfig.{field}.*must be'):
        decoding.DecodeConfig(**{field: value})
