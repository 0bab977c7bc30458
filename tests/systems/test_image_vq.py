"""The autoencoder of images: gradients pass the codes by, empty rows are none, dead codes come back."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.codebooks.image_model import ImageVq as Model
from slm_jax.codebooks.image_model import ImageVqConfig
from slm_jax.systems.image_vq import ImageVq

SYSTEM = ImageVq(Model(ImageVqConfig(image_size=8, num_codes=6, code_dim=3, channels=(4, 4))))


@functools.cache
def params():
    return nn.unbox(jax.jit(SYSTEM.init)(jax.random.key(0), {}))


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(system, params, batch, rng=None):
    return jax.value_and_grad(lambda params: system.loss(params, batch, rng), has_aux=True)(params)


def batch(rows=3):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    empty = np.full((rows - 3, 8, 8, 3), 200, np.uint8)
    return {'images': np.concatenate([images, empty]), 'image_lengths': np.array([1] * 3 + [0] * (rows - 3))}


def test_gradients_pass_the_codes_by_and_reach_all_parameters():
    (loss, metrics), gradient = gradient_of(SYSTEM, params(), batch(), jax.random.key(0))
    assert np.isfinite(loss) and {*metrics} == {'loss', 'square_error', 'absolute_error', 'code_bits'}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path


def test_empty_rows_change_no_loss_and_no_gradient():
    (loss, metrics), gradient = gradient_of(SYSTEM, params(), batch())
    (padded, more), other = gradient_of(SYSTEM, params(), batch(5))
    np.testing.assert_allclose(loss, padded, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], more[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_code_that_nothing_has_is_drawn_to_what_there_is():
    """All codes but the first are far from all vectors."""
    variables = {'params': params()['image_codebook']}
    vectors = SYSTEM.model.apply(variables, batch()['images'] / 127.5 - 1.0, method='vectors').reshape(-1, 3)
    middle = np.asarray(vectors.mean(axis=0))
    codes = np.concatenate([[middle], 0.1 * np.eye(3) - middle, -0.1 * np.eye(3)[:2] - middle])
    start = {'image_codebook': params()['image_codebook'] | {'codes': jnp.array(codes, jnp.float32)}}
    tokens = SYSTEM.model.apply({'params': start['image_codebook']}, batch()['images'] / 127.5 - 1.0, method='encode')
    unused = np.setdiff1d(np.arange(6), np.asarray(tokens))
    assert len(unused)
    moved = {}
    for system in (SYSTEM, dataclasses.replace(SYSTEM, revival=0.0)):
        _, gradient = gradient_of(system, start, batch(), jax.random.key(0))
        moved[system.revival] = np.abs(gradient['image_codebook']['codes']).max(axis=1)[unused]
    assert (moved[0.0] == 0).all() and (moved[0.1] > 0).all()


def test_tokens_are_the_images_again():
    variables = {'params': params()['image_codebook']}
    images = batch()['images'] / 127.5 - 1.0
    again, _, _, tokens = SYSTEM.model.apply(variables, images)
    np.testing.assert_array_equal(tokens, SYSTEM.model.apply(variables, images, method='encode'))
    np.testing.assert_allclose(again, SYSTEM.model.apply(variables, tokens, method='decode'), atol=1e-5)
    assert tokens.shape == (3, 2, 2) and again.shape == images.shape


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match='ImageVqConfig.image_size is 10; 2 channels .*, so a multiple of 4'):
        ImageVqConfig(image_size=10)
