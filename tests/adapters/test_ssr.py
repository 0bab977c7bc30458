"""The compressor: what each mask lets a token's vector depend on, and invariance to padding and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.adapters import ssr

FRAMES, WIDTH, OUTPUT = 24, 6, 12
LENGTHS = jnp.array([24, 13, 0])
BOUNDARIES = jnp.array([[3, 9, 15, 21], [4, 12, 0, 0], [0, 0, 0, 0]])
TOKENS = jnp.array([4, 2, 0])
SIZES = dict(output_dim=OUTPUT, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24)


@pytest.fixture(scope='module')
def frames():
    return jnp.asarray(np.random.default_rng(0).normal(size=(len(LENGTHS), FRAMES, WIDTH)), jnp.float32)


@pytest.fixture(scope='module')
def params(frames):
    module = ssr.SsrCompressor(ssr.SsrConfig(**SIZES))
    fresh = nn.unbox(jax.jit(module.init)(jax.random.key(0), frames, LENGTHS, BOUNDARIES, TOKENS))['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype('f'), fresh)


def compressed(params, frames, *given, **changes):
    module = ssr.SsrCompressor(ssr.SsrConfig(**(SIZES | changes)))
    given = given or (LENGTHS, BOUNDARIES, TOKENS)
    return np.asarray(jax.jit(module.apply)({'params': params}, frames, *given))


def test_one_vector_a_token_and_none_behind_them(params, frames):
    vectors = compressed(params, frames)
    assert vectors.shape == (3, 4, OUTPUT)
    norms = np.linalg.norm(vectors, axis=-1)
    assert (norms[0] > 0).all() and (norms[1, :2] > 0).all() and (norms[1, 2:] == 0).all() and (norms[2] == 0).all()


@pytest.mark.parametrize(
    ('mask', 'depends'),
    [('blockwise', range(10, 16)), ('causal', range(16)), ('full', range(24))],
)
def test_the_third_token_depends_on(mask, depends, params, frames):
    """Its segment are the frames 10 to 15."""
    gradient = jax.grad(lambda x: jnp.sum(_third(params, x, mask)))(frames)
    moved = np.flatnonzero(np.abs(np.asarray(gradient)[0]).max(axis=-1))
    assert moved.tolist() == list(depends)
    assert (np.asarray(gradient)[1:] == 0).all()


def _third(params, frames, mask):
    module = ssr.SsrCompressor(ssr.SsrConfig(**SIZES, mask=mask))
    return module.apply({'params': params}, frames, LENGTHS, BOUNDARIES, TOKENS)[0, 2]


@pytest.mark.parametrize('mask', ssr.MASKS)
def test_neither_padding_nor_the_batch_changes_a_vector(mask, params, frames):
    vectors = compressed(params, frames, mask=mask)
    noise = np.where(np.arange(FRAMES)[:, None] < LENGTHS[:, None, None], frames, 1e3)
    behind = np.where(np.arange(4) < TOKENS[:, None], BOUNDARIES, 23)
    np.testing.assert_array_equal(compressed(params, noise, LENGTHS, behind, TOKENS, mask=mask), vectors)
    alone = compressed(params, frames[1:2, :13], LENGTHS[1:2], BOUNDARIES[1:2, :2], TOKENS[1:2], mask=mask)
    np.testing.assert_allclose(alone, vectors[1:2, :2], atol=1e-5)


def test_fewer_slots_than_frames_keep_the_segments(params, frames):
    half = compressed(params, frames, reduction_factor=2)
    noise = frames.at[0, 16:].add(100.0)  # behind the third segment
    np.testing.assert_allclose(compressed(params, noise, reduction_factor=2)[0, :3], half[0, :3], atol=1e-5)
    assert np.abs(compressed(params, noise, reduction_factor=2)[0, 3] - half[0, 3]).max() > 1e-3


def test_it_begins_as_long_as_it_is_told(frames):
    module = ssr.SsrCompressor(ssr.SsrConfig(**SIZES, output_scale=0.05))
    params = nn.unbox(module.init(jax.random.key(1), frames, LENGTHS, BOUNDARIES, TOKENS))['params']
    rms = np.sqrt(np.mean(np.square(compressed(params, frames, output_scale=0.05)[0])))
    assert 0.03 < rms < 0.08


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'mask': 'block'}, r"SsrConfig.mask is 'block'; choose one of \('blockwise', 'causal', 'full'\)\."),
        ({'reduction': 'ctc_blank'}, "SsrConfig.reduction is 'ctc_blank'; choose one of a fixed rate"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ssr.SsrConfig(**SIZES, **changes)
