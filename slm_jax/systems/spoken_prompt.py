"""Speech among the tokens of a prompt: how recordings are heard, where their embeddings stand, and when there is none.

A prompt may have several recordings: the embeddings of the k-th stand at its k-th mark (`prompts.SPEECH`), or in front
of it all where there is no mark. A batch may bring embeddings that a system made before (`listen`) in the place of
samples, as long recordings do, which are heard piece by piece:

    speech_embeddings         [batch, s, width]         of all recordings of a row, one after the other
    speech_embedding_lengths  [batch, recordings]       how many each of them has

Shape names: b batch, l tokens, s embeddings of speech, r recordings, p = s + l places, e width of the LLM's embeddings.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from slm_jax.data.prompts import SPEECH
from slm_jax.systems import Batch, Params
from slm_jax.systems.speech_encoder import SpeechEncoder, stored


def hear(
    speech_encoder: SpeechEncoder | nn.Module, params: Params, batch: Batch, rng: Key[Array, ''] | None
) -> tuple[Any, ...] | None:
    """Frames, their number, and the speech encoder's CTC logits, if it has a head; None of a batch of texts."""
    if batch.get('speech_frames', batch['speech_samples']).shape[1] == 0:
        return None
    return speech_encoder.apply(
        {'params': params.get('speech_encoder', {})},
        batch['speech_samples'],
        batch['speech_lengths'],
        rng is None,
        **stored(batch),
        rngs=None if rng is None else {'dropout': rng},
    )


def made_before(batch: Batch) -> tuple[Float[Array, 'b s e'], Int[Array, 'b r']] | None:
    """The embeddings that a batch brings, and their numbers; None of any other."""
    if 'speech_embeddings' not in batch:
        return None
    return batch['speech_embeddings'], batch['speech_embedding_lengths']


def silent(batch: Batch) -> Bool[Array, ' b']:
    """Which rows have recordings of which a batch brings no embedding, as nothing was heard in any."""
    before = made_before(batch)
    if before is None:
        return jnp.zeros(len(batch['speech_lengths']), bool)
    return (batch['speech_lengths'] > 0) & ~jnp.any(before[1] > 0, axis=1)


def joined(
    tokens: Int[Array, 'b l'], text: Float[Array, 'b l e'], speech: Float[Array, 'b s e'], lengths: Int[Array, 'b r']
) -> tuple[Float[Array, 'b p e'], Bool[Array, 'b p']]:
    """Text and speech without a gap, in the order of the prompt, and which of it is valid.

    Args:
        tokens: of the prompt, marks among them.
        text: their embeddings; what a mark has is not read.
        speech: embeddings of the recordings, one after the other.
        lengths: how many each recording has.
    """
    # A row without a mark has one before its first token.
    marks = jnp.concatenate([~jnp.any(tokens == SPEECH, axis=1, keepdims=True), tokens == SPEECH], axis=1)
    number = jnp.cumsum(marks, axis=1) - 1
    of_mark = jnp.take_along_axis(lengths, jnp.clip(number, 0, lengths.shape[1] - 1), axis=1)
    of_mark = jnp.where(marks & (number < lengths.shape[1]), of_mark, 0)
    widths = jnp.where(marks, of_mark, jnp.pad(tokens > 0, ((0, 0), (1, 0))))
    ends = jnp.cumsum(widths, axis=1)
    place = jnp.arange(speech.shape[1] + text.shape[1])
    # The token that each place belongs to: as many as have ended before.
    token = jnp.sum(ends[:, None] <= place[:, None], axis=2)
    token = jnp.minimum(token, tokens.shape[1])

    def at(values: Array) -> Array:
        return jnp.take_along_axis(values, token, axis=1)

    spoken = jnp.cumsum(of_mark, axis=1) - of_mark  # embeddings of recordings before
    source = jnp.where(at(marks), at(spoken) + place - at(ends - widths), speech.shape[1] + token - 1)
    both = jnp.concatenate([speech.astype(text.dtype), text], axis=1)
    both = jnp.take_along_axis(both, source[..., None], axis=1, mode='clip')
    return nn.with_logical_constraint(both, ('batch', 'length', 'llm_embed')), place < ends[:, -1:]
