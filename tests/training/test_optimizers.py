"""Schedules and optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.training import optimizers

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


@pytest.mark.parametrize('decay, final', [('cosine', 0.0), ('linear', 0.0), ('constant', 2.0)])
def test_schedules_warm_up_then_decay(decay, final):
    rate = optimizers.schedule(2.0, 10, decay, 100)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(100)], [0, 1, 2, final], atol=1e-6)


def test_decays_with_an_end_need_one():
    with pytest.raises(ValueError, match="decay='cosine' needs total_steps"):
        optimizers.schedule(1.0, 10, 'cosine')
