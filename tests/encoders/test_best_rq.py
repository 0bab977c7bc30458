"""BEST-RQ's targets and masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.encoders.best_rq import BestRqConfig, codes, span_mask

CONFIG = BestRqConfig(num_codebooks=3, codebook_size=32, codebook_dim=8)


def test_codes_do_not_see_padding_loudness_or_offset():
    features = jax.random.normal(jax.random.key(0), (1, 40, 128))
    expected = codes(features, jnp.array([40]), CONFIG)
    padded = jnp.pad(features, ((0, 0), (0, 13), (0, 0)), constant_values=7.0)
    np.testing.assert_array_equal(codes(padded, jnp.array([40]), CONFIG)[:, :10], expected)
    louder = codes(3.0 * features + 2.0, jnp.array([40]), CONFIG)
    assert np.mean(louder == expected) > 0.99


def test_codes_use_the_codebooks():
    features = jax.random.normal(jax.random.key(0), (4, 400, 128))
    found = np.asarray(codes(features, jnp.full(4, 400), CONFIG))
    for book in range(3):
        assert len(np.unique(found[..., book])) > 24
    assert np.mean(found[..., 0] == found[..., 1]) < 0.2  # each codebook has its own projection


def test_masks_are_spans_inside_the_clip():
    lengths = jnp.array([200, 50, 3])
    mask = np.asarray(span_mask(jax.random.key(1), lengths, 200, CONFIG))
    assert not mask[1, 50:].any() and not mask[2, 3:].any()
    assert mask.any(axis=1).all()
    runs = [len(list(g)) for row in mask[:1] for value, g in itertools.groupby(row) if value]
    assert min(runs[:-1]) >= CONFIG.mask_frames
    share = np.mean(span_mask(jax.random.key(2), jnp.full(64, 1000), 1000, CONFIG))
    expected = 1 - (1 - CONFIG.mask_probability) ** CONFIG.mask_frames
    assert abs(share - expected) < 0.02
