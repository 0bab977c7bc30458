"""BEST-RQ (arXiv 2202.01855) with USM's 16 codebooks (2303.01037, section 3.2).

Predict, at masked frames, the codes that frozen random projections and codebooks give to the clean features.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class BestRqConfig:
    """BEST-RQ's defaults.

    `mask_frames` counts 40 ms frames (10: spans of 400 ms), and `mask_probability` is the chance of a span to start at
    each 10 ms in the paper, hence four times that per frame here.
    """

    num_codebooks: int = 16
    codebook_size: int = 8192
    codebook_dim: int = 16
    mask_probability: float = 0.04
    mask_frames: int = 10
    noise_std: float = 0.1
    seed: int = 0


def span_mask(
    rng: Key[Array, ''], lengths: Int[Array, ' b'], num_frames: int, config: BestRqConfig
) -> Bool[Array, 'b t']:
    """Frames to hide: spans of `mask_frames` from random starts, inside each clip; at least one span a clip."""
    start_rng, one_rng = jax.random.split(rng)
    starts = jax.random.bernoulli(start_rng, config.mask_probability, (lengths.shape[0], num_frames))
    one = jax.random.randint(one_rng, lengths.shape, 0, jnp.maximum(lengths, 1))
    starts = starts | (jnp.arange(num_frames) == one[:, None])
    padded = jnp.pad(starts, ((0, 0), (config.mask_frames - 1, 0)))
    masked = jnp.any(jnp.stack([padded[:, i : i + num_frames] for i in range(config.mask_frames)]), axis=0)
    return masked & (jnp.arange(num_frames) < lengths[:, None])


def codes(features: Float[Array, 'b t mel'], lengths: Int[Array, ' b'], config: BestRqConfig) -> Int[Array, 'b u n']:
    """Targets: four 10 ms frames, normalised over the clip, projected and matched to each codebook by cosine."""
    valid = (jnp.arange(features.shape[1]) < lengths[:, None])[..., None]
    count = jnp.maximum(lengths, 1)[:, None, None]
    mean = jnp.sum(features * valid, axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.square(features - mean) * valid, axis=1, keepdims=True) / count
    normal = jnp.where(valid, (features - mean) * jax.lax.rsqrt(variance + 1e-5), 0.0)
    normal = jnp.pad(normal, ((0, 0), (0, -normal.shape[1] % 4), (0, 0)))
    stacked = normal.reshape(normal.shape[0], -1, 4 * normal.shape[2])
    projection_rng, codebook_rng = jax.random.split(jax.random.key(config.seed))
    projection = jax.nn.initializers.xavier_uniform(in_axis=1, out_axis=2, batch_axis=0)(
        projection_rng, (config.num_codebooks, stacked.shape[-1], config.codebook_dim)
    )
    codebooks = jax.random.normal(codebook_rng, (config.num_codebooks, config.codebook_size, config.codebook_dim))
    codebooks /= jnp.linalg.norm(codebooks, axis=-1, keepdims=True)
    # The nearest by cosine does not depend on the length of the projected vector.
    projected = jnp.einsum('btf,nfd->btnd', stacked, projection)
    likeness = jnp.einsum('btnd,nkd->btnk', projected, codebooks)
    likeness = nn.with_logical_constraint(likeness, ('batch', 'length', 'codebooks', 'codes'))
    return jnp.argmax(likeness, axis=-1).astype(jnp.int32)


class BestRqHead(nn.Module):
    """One softmax for each codebook."""

    config: BestRqConfig

    @nn.compact
    def __call__(self, frames: Float[Array, 'b t d']) -> Float[Array, 'b t n k']:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ('embed', 'vocab'))
        shape = (self.config.num_codebooks, self.config.codebook_size)
        logits = nn.Dense(shape[0] * shape[1], use_bias=False, dtype=jnp.float32, kernel_init=init)(frames)
        logits = nn.with_logical_constraint(logits, ('batch', 'length', 'vocab'))
        return logits.reshape(*frames.shape[:-1], *shape)
