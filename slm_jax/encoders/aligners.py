"""Aligners: where in a speech encoder's frames each of a language model's tokens is said.

All have one interface, that of `Aligner`: frames and, where there is one, a transcript in the language model's tokens
in; for every token the last frame of its segment out. Segments follow each other and are all of a row's frames: silence
at the beginning is the first token's, a pause is part of the token before it, and silence at the end of the last one.
Each has one frame at least.

    aligner.init(rng, frames, frame_lengths, tokens, token_lengths)
    aligner.apply({'params': params}, frames, frame_lengths, tokens, token_lengths)     with the transcript
    aligner.apply({'params': params}, frames, frame_lengths)                            the aligner writes the tokens

Shape names: b batch, f frames, d frame width, t tokens, l labels of CTC or characters, v how many kinds of them.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int32


class Alignment(NamedTuple):
    """Segments of frames, one for each token.

    Attributes:
        boundaries: the last frame of each token's segment, strictly rising, the last one the row's last frame; a
            segment begins after the boundary before it. 0 after `lengths`.
        lengths: how many tokens a row has. 0 where nothing is said, where there is no speech, and where there are more
            tokens than frames can hold: such a row is told by a transcript of more than 0 tokens.
        tokens: the transcript's as they were given, or those that the aligner writes; 0 after `lengths`.
    """

    boundaries: Int32[Array, 'b t']
    lengths: Int32[Array, ' b']
    tokens: Int32[Array, 'b t']


class Aligner(Protocol):
    """What a system needs of an aligner, a Flax module.

    Attributes:
        needs_tokens: it does not write tokens itself: a call without them is a ValueError.
    """

    needs_tokens: bool

    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'] | None = None,
        token_lengths: Int[Array, ' b'] | None = None,
        token_ends: Float[Array, 'b t'] | None = None,
    ) -> Alignment:
        """Aligns; what stands after the lengths changes nothing, nor what else is in the batch. No dropout.

        Args:
            frames: a speech encoder's, and `frame_lengths` the valid ones of each row.
            tokens: the transcript, without its end; `token_lengths` of them are valid. None: the aligner writes them,
                and there are as many places for them as frames.
            token_ends: seconds at which each token ends, of a file that says so; only `ExternalAligner` reads them.

        Raises:
            ValueError: it needs `tokens` or `token_ends`, and they are None.
        """


def partition(
    ends: Int[Array, 'b t'], lengths: Int[Array, ' b'], frame_lengths: Int[Array, ' b']
) -> tuple[Int32[Array, 'b t'], Int32[Array, ' b']]:
    """Boundaries as `Alignment` has them, and their number, of those that an aligner thinks of.

    Args:
        ends: the last frame of each token; they may be equal, fall, or lie outside.
        lengths: number of tokens.
        frame_lengths: valid frames of each row.
    """
    place = jnp.arange(ends.shape[1])
    lengths = jnp.where(lengths <= frame_lengths, lengths, 0).astype(jnp.int32)
    last = place == lengths[:, None] - 1
    ends = jnp.where(last, frame_lengths[:, None] - 1, jnp.maximum(ends, 0))
    # Each is one more than the one before it at least, and leaves a frame for each that comes.
    rising = lax.cummax(ends - place, axis=1) + place
    rising = jnp.minimum(rising, (frame_lengths - lengths)[:, None] + place)
    return jnp.where(place < lengths[:, None], rising, 0).astype(jnp.int32), lengths
