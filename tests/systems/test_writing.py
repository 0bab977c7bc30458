"""What is written in steps is what is written at once, whatever the method, the limits and who leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax import llms
from slm_jax.decoding import DecodeConfig
from slm_jax.llms import decoder_only, t5
from slm_jax.systems import text_to_text

ROWS, LENGTH = 4, 12
TOKENS = np.random.default_rng(0).integers(2, 24, (ROWS, 6)).astype(np.int32) * (np.arange(6) < [[6], [4], [0], [2]])
T5 = t5.T5(t5.T5Config(24, 16, 2, 1, 1, 8, 32))
LLAMA = decoder_only.DecoderOnly(decoder_only.DecoderOnlyConfig(24, 16, 1, 2, 1, 8, 32))
LABELS = jnp.arange(24) % 5
CTC = {
    'log_probs': 3 * np.random.default_rng(1).normal(size=(ROWS, 9, 5)).astype(np.float32),
    'frame_lengths': jnp.array([9, 0, 5, 7]),
    'token_labels': LABELS,
}
CASES = {
    'greedy': (T5, DecodeConfig('greedy', LENGTH), None),
    'sample': (LLAMA, DecodeConfig('sample', LENGTH, max_length_ratio=1.5, temperature=2.0), None),
    'beam': (T5, DecodeConfig('beam', LENGTH, max_length_ratio=1.5, beam_size=3, ctc_weight=0.4), CTC),
}


@functools.cache
def programs(case):
    """(written at once, state of the beginning, the step), compiled."""
    llm, config, ctc = CASES[case]
    shapes = nn.unbox(jax.eval_shape(lambda: llms.initial_params(llm, jax.random.key(0))))
    # Large ones: an untrained model is to be sure of something, and to end.
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: np.float32(4 * rng.normal(size=x.shape) / x.shape[0] ** 0.5), shapes)
    prompt, mask = llm.apply({'params': params}, TOKENS, method='embed'), jnp.asarray(TOKENS > 0)
    given = params, prompt, mask
    whole = jax.jit(lambda *given: text_to_text.generate(llm, *given, config, ctc))(*given)
    begun = jax.jit(lambda *given: text_to_text.begin(llm, *given, config, ctc))(*given)
    proceed = jax.jit(lambda *now: text_to_text.proceed(llm, params, now[0], config, *now[1:]))
    return np.asarray(whole), begun, proceed


@pytest.mark.parametrize('case', CASES)
def test_in_steps_as_at_once(case):
    whole, begun, proceed = programs(case)
    assert len({len(row[row != 0]) for row in whole}) > 1 and list(whole[2][:2]) == [1, 0], 'no input, no answer'
    for steps in (1, 5, 100):
        state, over, calls = begun, np.zeros(ROWS, bool), 0
        while not over.all():
            before = over
            state, (tokens, sure, over) = proceed(state, steps, np.zeros(ROWS, bool))
            calls += 1
            for row in range(ROWS):
                end = LENGTH if over[row] else int(sure[row])
                np.testing.assert_array_equal(tokens[row][:end], whole[row][:end])
            assert (over | ~before).all(), 'what is over stays so'
            assert calls <= LENGTH
        np.testing.assert_array_equal(tokens, whole)
        assert calls == 1 or steps < LENGTH


@pytest.mark.parametrize('case', ['greedy', 'beam'])
def test_who_leaves_changes_nothing_for_others(case):
    whole, begun, proceed = programs(case)
    gone = np.array([False, True, True, False])
    state, (tokens, _, over) = proceed(begun, 2, np.zeros(ROWS, bool))
    while not over.all():
        state, (tokens, _, over) = proceed(state, 3, gone)
        assert over[1] and over[2]
    np.testing.assert_array_equal(np.asarray(tokens)[[0, 3]], whole[[0, 3]])
    _, (_, _, over) = proceed(begun, 1, np.ones(ROWS, bool))
    assert over.all()


def test_sure_tokens_come_while_a_search_goes_on():
    _, begun, proceed = programs('beam')
    state, sures = begun, []
    for _ in range(LENGTH):
        state, (_, sure, over) = proceed(state, 1, np.zeros(ROWS, bool))
        sures.append(np.where(over, LENGTH, sure))
    assert (np.diff(sures, axis=0) >= 0).all() and any(0 < value < LENGTH for value in np.ravel(sures))
