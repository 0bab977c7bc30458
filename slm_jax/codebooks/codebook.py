"""A codebook of speech: centroids in the space of an encoder's frames, which make units of them.

A codebook is a foundation's directory (`foundations`) of the kind 'codebook', whose card says of which encoder and
layer it is. Units are 0 to `size` - 1; runs of the same unit are one unit with a duration, in frames.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slm_jax import foundations

KIND = 'codebook'
_DECIDES = ('fingerprint', 'configuration', 'layer', 'format')  # of an encoder's identity


class CodebookError(ValueError):
    """A codebook that is none, or not one of this encoder; the message names both, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Codebook:
    """Centroids, and the card that says what they are of.

    Attributes:
        centroids: on this machine's first device.
        card: of its directory. `encoder` is the identity of the encoder that it was fitted to (see
            `training.frozen_encoder.FrozenEncoder`), `frames_per_second` the rate of that one's frames.
    """

    centroids: Float[Array, 'k d']
    card: Mapping[str, Any]

    @classmethod
    def load(cls, name_or_dir: str | os.PathLike) -> 'Codebook':
        """Reads a directory that `slm-jax codebook fit` wrote.

        Raises:
            ValueError: it is not there, damaged, or no codebook.
        """
        card = foundations.card(name_or_dir)
        if card.get('kind') != KIND:
            raise CodebookError(
                f'{name_or_dir} is no codebook: its kind is {card.get("kind")!r}. Give a directory that '
                '`slm-jax codebook fit` wrote.'
            )
        return cls(foundations.load(name_or_dir)['centroids'], card)

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.centroids)

    @property
    def frames_per_second(self) -> float:
        """Of the encoder's frames: a unit of duration 1 lasts so many of a second."""
        return self.card['frames_per_second']

    @property
    def label(self) -> str:
        """Its name and the beginning of its fingerprint: what files of its units carry."""
        return label(self.card)

    def encode(
        self, frames: Float[Array, 'b t d'], lengths: Int[Array, ' b']
    ) -> tuple[Int[Array, 'b t'], Int[Array, 'b t'], Int[Array, ' b']]:
        """Units of each clip without their repetitions, how many frames each lasts, and how many there are.

        Both are 0 beyond a clip's own; the durations of a clip add up to its length.

        Raises:
            CodebookError: the frames are of another width.
        """
        width = self.centroids.shape[1]
        if frames.shape[-1] != width:
            raise CodebookError(
                f'{self.label} is of frames of {width} numbers ({named(self.card["encoder"])}), and these have '
                f'{frames.shape[-1]}. Give the frames of that encoder and layer.'
            )
        return _encode(self.centroids, frames, lengths)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Whether it is of this encoder, given by its `identity`.

        Raises:
            CodebookError: it is of another encoder, layer or configuration; names both.
        """
        own = self.card['encoder']
        if any(own.get(name) != identity.get(name) for name in _DECIDES):
            alike = named(own) == named(identity)
            raise CodebookError(
                f'{self.label} is a codebook of {named(own)}, and the encoder here is {named(identity)}'
                f'{", configured otherwise" if alike else ""}. Give the encoder that it was fitted to, or fit one to '
                'this encoder (slm-jax codebook fit).'
            )


def label(card: Mapping[str, Any]) -> str:
    """NAME@FINGERPRINT of a card."""
    return f'{card["name"]}@{card["fingerprint"]["content"][:12]}'


def named(identity: Mapping[str, Any]) -> str:
    """An encoder and its layer, for people."""
    layer = identity.get('layer')
    which = 'its output' if layer is None else f'layer {layer}'
    return f'{identity["name"]} ({which}, fingerprint {identity["fingerprint"][:12]})'


def nearest(centroids: Float[Array, 'k d'], frames: Float[Array, '*b t d']) -> Int[Array, '*b t']:
    """The nearest centroid of each frame, by Euclidean distance."""
    frames = frames.astype(jnp.float32)
    likeness = jnp.einsum('...d,kd->...k', frames, centroids, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(centroids), axis=1) - 2 * likeness, axis=-1).astype(jnp.int32)


def runs(
    units: Int[Array, 'b t'], lengths: Int[Array, ' b']
) -> tuple[Int[Array, 'b t'], Int[Array, 'b t'], Int[Array, ' b']]:
    """Units without repetitions, how often each is repeated, and how many there are; 0 beyond these."""
    b, t = units.shape
    valid = jnp.arange(t) < lengths[:, None]
    changed = jnp.concatenate([jnp.ones((b, 1), bool), units[:, 1:] != units[:, :-1]], axis=1)
    place = jnp.where(valid, jnp.cumsum(changed & valid, axis=1) - 1, t)  # t: dropped
    rows = jnp.arange(b)[:, None]
    empty = jnp.zeros((b, t), jnp.int32)
    durations = empty.at[rows, place].add(1, mode='drop')
    single = empty.at[rows, place].set(units, mode='drop')
    return single, durations, jnp.sum(changed & valid, axis=1)


@jax.jit
def _encode(
    centroids: Float[Array, 'k d'], frames: Float[Array, 'b t d'], lengths: Int[Array, ' b']
) -> tuple[Int[Array, 'b t'], Int[Array, 'b t'], Int[Array, ' b']]:
    return runs(nearest(centroids, frames), lengths)
