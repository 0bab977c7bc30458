"""Rotary positions (arXiv 2104.09864), and how they are stretched for texts longer than those of the pretraining."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

# What each type of scaling in config.json needs to have stated.
SCALINGS: Mapping[str, Sequence[str]] = {
    'default': (),
    'linear': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
}


def scaling_type(scaling: Mapping[str, Any] | None) -> str:
    """By either of the names that config.json has for it."""
    scaling = scaling or {}
    return scaling.get('rope_type', scaling.get('type', 'default'))


def frequencies(theta: float, head_dim: int, scaling: Mapping[str, Any] | None) -> Float32[np.ndarray, ' half']:
    """Radians a position of each pair of a head's dimensions, in float32 as in the reference."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    found = 1 / np.float32(theta) ** exponents
    kind, scaling = scaling_type(scaling), scaling or {}
    if kind == 'linear':
        found = found / np.float32(scaling['factor'])
    if kind == 'llama3':  # what hardly turns within the context of the pretraining is slowed down
        low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
        turns = scaling['original_max_position_embeddings'] * found / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        found = (1 - kept) * found / scaling['factor'] + kept * found
    return found.astype(np.float32)


def rotation(
    positions: Int[Array, 'b l'], frequencies: Float32[np.ndarray, ' half']
) -> tuple[Float[Array, 'b l 1 half'], Float[Array, 'b l 1 half']]:
    """Cosines and sines of what the heads at these positions are turned by."""
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotated(x: Float[Array, 'b l h d'], turn: tuple[Array, Array] | None) -> Float[Array, 'b l h d']:
    """Heads after a `rotation`, in float32: dimension i goes with i + d / 2. None: as they are."""
    if turn is None:
        return x
    cos, sin = turn
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
