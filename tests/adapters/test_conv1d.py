"""The adapter of two convolutions: against its definition in numpy, and what padding and neighbours do not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.adapters.conv1d import Conv1dAdapter, Conv1dConfig

LENGTHS = np.array([21, 13, 8, 1, 0])


@pytest.fixture(scope='module')
def adapted():
    """Frames, parameters none of which is what it was at the start, and the jitted adapter."""
    frames = jax.random.normal(jax.random.key(0), (5, 21, 6))
    module = Conv1dAdapter(Conv1dConfig(output_dim=10))
    fresh = nn.unbox(jax.jit(module.init)(jax.random.key(1), frames, LENGTHS))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten([x + 0.2 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)])
    return frames, params, jax.jit(module.apply)


def feed_forward(x, params):
    hidden = np.maximum(x @ params['wi']['kernel'] + params['wi']['bias'], 0)
    x = x + 0.5 * (hidden @ params['wo']['kernel'] + params['wo']['bias'])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params['norm']['scale'] + params['norm']['bias']


def halved(x, params):
    padded = np.pad(x, ((1, 1), (0, 0)))
    rows = [
        np.einsum('ki,kigo->go', padded[2 * i : 2 * i + 3], params['kernel']) + params['bias']
        for i in range((len(x) + 1) // 2)
    ]
    return np.array([value / (1 + np.exp(-gate)) for value, gate in rows])


def test_each_clip_is_what_the_definition_makes_of_it_alone(adapted):
    frames, params, apply = adapted
    found, lengths = apply(params, frames, LENGTHS)
    np.testing.assert_array_equal(lengths, [6, 4, 2, 1, 0])
    weights = jax.tree.map(np.asarray, params['params'])
    for row, (frame_length, length) in enumerate(zip(LENGTHS, lengths)):
        if frame_length:
            x = halved(feed_forward(np.asarray(frames[row, :frame_length]), weights['before']), weights['conv_1'])
            expected = halved(feed_forward(x, weights['after']), weights['conv_2'])
            np.testing.assert_allclose(found[row, :length], expected, rtol=1e-5, atol=1e-5)
        assert not np.any(found[row, length:])


def test_noise_in_padding_changes_nothing(adapted):
    frames, params, apply = adapted
    padding = (jnp.arange(21) >= LENGTHS[:, None])[..., None]
    clean = apply(params, frames, LENGTHS)[0]
    for noise in (1e3, jnp.nan):
        np.testing.assert_array_equal(apply(params, jnp.where(padding, noise, frames), LENGTHS)[0], clean)


def test_a_size_that_cannot_be():
    with pytest.raises(ValueError, match='Conv1dConfig.output_dim is 0; it must be at least 1'):
        Conv1dConfig(output_dim=0)
