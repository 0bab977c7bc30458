"""SpecAugment: what it masks, what it leaves, and the two warps."""

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.spec_augment import SpecAugmentConfig, spec_augment

FEATURES = 1.0 + jax.random.uniform(jax.random.key(0), (8, 200, 64))
LENGTHS = jnp.full(8, 150)
FEATURES = jnp.where(jnp.arange(200)[:, None] < 150, FEATURES, 0.0)


def test_masks_are_bands_and_padding_stays_zero():
    config = SpecAugmentConfig(num_frequency_masks=1, max_mel_bins=20, num_time_masks=1, max_time_share=0.2)
    found, lengths = spec_augment(jax.random.key(1), FEATURES, LENGTHS, config)
    changed = np.asarray(found != FEATURES)
    assert not changed[:, 150:].any() and lengths.tolist() == [150] * 8
    for row in changed[:, :150]:
        frames, bins = row.all(axis=1), row.all(axis=0)
        np.testing.assert_array_equal(row, frames[:, None] | bins[None, :])
        assert frames.sum() <= 30 and bins.sum() <= 21
    assert changed.any(axis=(1, 2)).sum() >= 7
    assert len(np.unique(changed.sum(axis=(1, 2)))) > 4  # every clip has its own


def test_time_warp_changes_length_and_keeps_the_order():
    ramp = jnp.where(jnp.arange(200) < 150, jnp.arange(200.0), 0.0)[None, :, None] * jnp.ones((8, 1, 4))
    config = SpecAugmentConfig(num_frequency_masks=0, num_time_masks=0, max_time_warp=0.2)
    found, lengths = spec_augment(jax.random.key(1), ramp, LENGTHS, config)
    assert len(set(lengths.tolist())) > 3
    for row, length in zip(found[..., 0], lengths):
        assert abs(150 / int(length) - 1) < 0.26
        steps = np.diff(row[: int(length)])
        np.testing.assert_allclose(steps[:-2], steps[0], atol=1e-2)
        assert not np.any(row[int(length) :])


def test_frequency_warp_moves_a_peak():
    peak = jnp.zeros((8, 10, 64)).at[:, :, 40].set(1.0)
    config = SpecAugmentConfig(num_frequency_masks=0, num_time_masks=0, max_frequency_warp=0.1)
    found, _ = spec_augment(jax.random.key(1), peak, jnp.full(8, 10), config)
    places = np.asarray(found[:, 0] @ jnp.arange(64) / jnp.maximum(found[:, 0].sum(-1), 1e-9))
    assert np.all(np.abs(places - 40) < 5) and np.ptp(places) > 2
