"""Schedules and optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.training import optimizers, state

PARAMS = {'llm': {'relpos_bias': {'rel_embedding': jnp.ones((2, 3))}, 'wo': {'kernel': jnp.ones((3, 3))}}}


def first_update(**options):
    optimizer = optimizers.adamw(0.1, clip_norm=None, **options)
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]['llm']


def test_rate_factors_multiply_what_they_match():
    plain = first_update(weight_decay=0.1)
    update = first_update(weight_decay=0.1, rate_factors={'.*/relpos_bias/.*': 10.0})
    np.testing.assert_allclose(update['relpos_bias']['rel_embedding'], 10 * plain['relpos_bias']['rel_embedding'])
    np.testing.assert_array_equal(update['wo']['kernel'], plain['wo']['kernel'])


def test_a_rate_factor_for_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"adamw.rate_factors: the pattern 'relpos_bias' matches no parameter"):
        first_update(rate_factors={'relpos_bias': 10.0})


def test_norms_and_biases_do_not_decay():
    params = {'norm': {'scale': jnp.ones(3)}, 'wo': {'kernel': jnp.ones((3, 3))}}
    optimizer = optimizers.adamw(0.1, weight_decay=0.5, clip_norm=None)
    update, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(update['norm']['scale'], 0)
    np.testing.assert_allclose(update['wo']['kernel'], -0.05, rtol=1e-6)


@pytest.mark.parametrize('decay, final', [('cosine', 0.0), ('linear', 0.0), ('polynomial', 0.0), ('constant', 2.0)])
def test_schedules_warm_up_then_decay(decay, final):
    rate = optimizers.schedule(2.0, 10, decay, 100)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(100)], [0, 1, 2, final], atol=1e-6)


def test_decays_with_an_end_need_one():
    with pytest.raises(ValueError, match="decay='cosine' needs total_steps"):
        optimizers.schedule(1.0, 10, 'cosine')


def test_a_polynomial_is_that_of_transformers():
    """`get_polynomial_decay_schedule_with_warmup`, as ComSL's authors use it."""
    rate = optimizers.schedule(2e-5, 10, 'polynomial', 110, final=1e-7, power=2.0)
    steps = np.array([0, 5, 10, 35, 60, 109, 110, 200])
    left = np.clip(1 - (steps - 10) / 100, 0, 1)
    expected = np.where(steps < 10, 2e-5 * steps / 10, 1e-7 + (2e-5 - 1e-7) * left**2)
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-5)
    with pytest.raises(ValueError, match='schedule.power is 0; it must be above 0'):
        optimizers.schedule(1.0, 10, 'polynomial', 100, power=0)


def test_own_counts_are_those_of_adam_from_an_array_s_first_update_on():
    options = dict(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1)
    params = {'early': {'kernel': jnp.ones(3)}, 'late': {'kernel': jnp.full(3, 2.0), 'bias': jnp.ones(3)}}
    own = optimizers.adamw(0.1, clip_norm=None, own_counts=True, **options)
    plain = optimizers.adamw(0.1, clip_norm=None, **options)
    gradients = [jax.tree.map(lambda x, step=step: x * (step - 1.5), params) for step in range(5)]
    whole, early = own.init(params), state.optimizer_of(own.init(params), {'early/kernel'})
    for gradient in gradients[:2]:
        part = {'early': gradient['early']}
        _, early = own.update(part, early, {'early': params['early']})
    whole = state.optimizer_with(whole, early, {'early/kernel'})
    expected = {'early': plain.init({'early': params['early']}), 'late': plain.init({'late': params['late']})}
    for gradient in gradients[:2]:
        _, expected['early'] = plain.update({'early': gradient['early']}, expected['early'], {'early': params['early']})
    for gradient in gradients[2:]:
        found, whole = own.update(gradient, whole, params)
        for part in expected:
            one = {part: params[part]}
            update, expected[part] = plain.update({part: gradient[part]}, expected[part], one)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[part], update[part])
