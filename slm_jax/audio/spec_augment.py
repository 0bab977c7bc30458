"""SpecAugment (arXiv 1904.08779): random bands of mel bins and spans of time are silenced.

Two warps go before it, for small corpora of few voices: of time, as speed perturbation does, and of frequency, as
vocal tracts of other lengths would.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks a clip: `num_*_masks` of a width drawn up to `max_mel_bins` bins, or up to `max_time_share` of the clip.

    `max_*_warp` is the largest relative change of speed, or of frequency; 0 turns a warp off.
    """

    num_frequency_masks: int = 2
    max_mel_bins: int = 27
    num_time_masks: int = 2
    max_time_share: float = 0.05
    max_time_warp: float = 0.0
    max_frequency_warp: float = 0.0

    def __post_init__(self):
        for field in ('num_frequency_masks', 'max_mel_bins', 'num_time_masks'):
            if getattr(self, field) < 0:
                raise ValueError(f'SpecAugmentConfig.{field} is {getattr(self, field)!r}; it must be at least 0.')
        for field in ('max_time_share', 'max_time_warp', 'max_frequency_warp'):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f'SpecAugmentConfig.{field} is {getattr(self, field)!r}; it must be in [0, 1).')


def _masks(
    rng: Key[Array, ''], count: int, max_width: Float[Array, ' b'], extent: Int[Array, ' b'], size: int
) -> Bool[Array, 'b size']:
    """Union of `count` masks of uniform width in [0, max_width] at uniform places in [0, extent)."""
    width_rng, start_rng = jax.random.split(rng)
    shape = (extent.shape[0], count)
    width = jax.random.uniform(width_rng, shape) * max_width[:, None]
    start = jax.random.uniform(start_rng, shape) * jnp.maximum(extent[:, None] - width, 0)
    place = jnp.arange(size)
    inside = (place >= jnp.floor(start)[..., None]) & (place < jnp.floor(start + width)[..., None])
    return jnp.any(inside, axis=1)


def _stretch(factor: Float[Array, ' b'], size: int) -> Float[Array, 'b size size']:
    """Matrices that read place `i * factor` for output `i`, between its neighbours.

    A product, where a gather is slow. Places beyond the end read the last one.
    """
    place = jnp.minimum(jnp.arange(size) * factor[:, None], size - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - jnp.arange(size)))


def spec_augment(
    rng: Key[Array, ''], features: Float[Array, 'b t mel'], lengths: Int[Array, ' b'], config: SpecAugmentConfig
) -> tuple[Float[Array, 'b t mel'], Int[Array, ' b']]:
    """Warps, then sets what the masks cover to the clip's mean feature.

    Returns the features, zero beyond the new lengths, and these: a faster clip is shorter. A slower one has to fit
    into the `t` frames.
    """
    frequency_rng, time_rng, speed_rng, tract_rng = jax.random.split(rng, 4)
    b, t, mel = features.shape
    if config.max_frequency_warp:
        factor = 1.0 + config.max_frequency_warp * jax.random.uniform(tract_rng, (b,), minval=-1.0)
        features = jnp.einsum('btm,bnm->btn', features, _stretch(factor, mel))
    if config.max_time_warp:
        factor = 1.0 + config.max_time_warp * jax.random.uniform(speed_rng, (b,), minval=-1.0)
        factor = jnp.maximum(factor, lengths / t)
        features = jnp.einsum('bst,btm->bsm', _stretch(factor, t), features)
        lengths = jnp.ceil(lengths / factor).astype(jnp.int32)
    bins = jnp.full((b,), mel)
    widths = jnp.full((b,), config.max_mel_bins + 1.0)
    in_frequency = _masks(frequency_rng, config.num_frequency_masks, widths, bins, mel)
    in_time = _masks(time_rng, config.num_time_masks, config.max_time_share * lengths, lengths, t)
    valid = (jnp.arange(t) < lengths[:, None])[..., None]
    features = jnp.where(valid, features, 0.0)
    mean = jnp.sum(features, axis=(1, 2), keepdims=True) / jnp.maximum(lengths, 1)[:, None, None] / mel
    masked = (in_frequency[:, None, :] | in_time[:, :, None]) & valid
    return jnp.where(masked, mean, features), lengths
