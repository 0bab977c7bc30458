"""SpecAugment (arXiv 1904.08779): random bands of mel bins and spans of time are silenced."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks a clip: `num_*_masks` of a width drawn up to `max_mel_bins` bins, or up to `max_time_share` of the clip."""

    num_frequency_masks: int = 2
    max_mel_bins: int = 27
    num_time_masks: int = 2
    max_time_share: float = 0.05


def _masks(rng: Key[Array, ''], count: int, max_width: Float[Array, 'b'], extent: Int[Array, 'b'], size: int) -> Bool[Array, 'b size']:
    """Union of `count` masks of uniform width in [0, max_width] at uniform places in [0, extent)."""
    width_rng, start_rng = jax.random.split(rng)
    shape = (extent.shape[0], count)
    width = jax.random.uniform(width_rng, shape) * max_width[:, None]
    start = jax.random.uniform(start_rng, shape) * jnp.maximum(extent[:, None] - width, 0)
    place = jnp.arange(size)
    inside = (place >= jnp.floor(start)[..., None]) & (place < jnp.floor(start + width)[..., None])
    return jnp.any(inside, axis=1)


def spec_augment(
    rng: Key[Array, ''], features: Float[Array, 'b t mel'], lengths: Int[Array, 'b'], config: SpecAugmentConfig
) -> Float[Array, 'b t mel']:
    """Sets what the masks cover to the clip's mean feature; what lies beyond `lengths` stays zero."""
    frequency_rng, time_rng = jax.random.split(rng)
    b, t, mel = features.shape
    bins = jnp.full((b,), mel)
    in_frequency = _masks(frequency_rng, config.num_frequency_masks, jnp.full((b,), config.max_mel_bins + 1.0), bins, mel)
    in_time = _masks(time_rng, config.num_time_masks, config.max_time_share * lengths, lengths, t)
    valid = (jnp.arange(t) < lengths[:, None])[..., None]
    mean = jnp.sum(features, axis=(1, 2), keepdims=True) / jnp.maximum(lengths, 1)[:, None, None] / mel
    masked = (in_frequency[:, None, :] | in_time[:, :, None]) & valid
    return jnp.where(masked, mean, features)
