"""Where in the frames a known text stands: the likeliest path of CTC that spells it (Viterbi).

Shape names: b batch, t frames, v CTC labels, of which 0 is blank, l labels of a text. The path goes through 2 l + 1
states: a blank before each label and after the last.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_NEVER = -1e30


def times(
    logits: Float[Array, 'b t v'],
    frame_lengths: Int[Array, ' b'],
    labels: Int[Array, 'b l'],
    frames_of: Callable[[int], int],
) -> Float[Array, '2 b l']:
    """Seconds at which each label begins and ends, NaN of padding and where nothing fits; arguments as of `align`.

    Args:
        frames_of: how many frames so many seconds of audio have; what they have at their ends does not count.
    """
    starts, stops, fits = align(logits, frame_lengths, labels)
    seconds = frame_seconds(frames_of) * jnp.stack([starts, stops])
    return jnp.where(fits[:, None] & (labels != 0), seconds, jnp.nan)


def frame_seconds(frames_of: Callable[[int], int]) -> float:
    """Seconds of audio that a frame stands for; `frames_of` as of `times`."""
    return 16 / (frames_of(24) - frames_of(8))


def align(
    logits: Float[Array, 'b t v'], frame_lengths: Int[Array, ' b'], labels: Int[Array, 'b l']
) -> tuple[Int[Array, 'b l'], Int[Array, 'b l'], Bool[Array, ' b']]:
    """The frames of each label.

    Args:
        logits: of a CTC head.
        frame_lengths: valid frames of each row.
        labels: of each row's text; padding, 0, comes after it. -1 stands for any label but blank.

    Returns:
        The first frame of each label, the one after its last (0 and 0 of padding), and whether the row's frames can
        spell its labels; what stands in a row that cannot means nothing.
    """
    batch, frames, _ = logits.shape
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    any_label = jax.nn.logsumexp(log_probs[..., 1:], axis=-1, keepdims=True)
    own = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[:, None, :], axis=2)
    own = jnp.where(labels[:, None, :] < 0, any_label, own)
    blank = jnp.broadcast_to(log_probs[..., :1], own.shape)
    scores = jnp.stack([blank, own], axis=3).reshape(batch, frames, -1)
    scores = jnp.concatenate([scores, log_probs[..., :1]], axis=2)
    states = scores.shape[2]
    place = jnp.arange(states)
    count = jnp.sum(labels != 0, axis=1, keepdims=True)
    # A blank may be left out between two labels that differ, as those that may be any do.
    differs = (labels[:, 1:] != labels[:, :-1]) | (labels[:, 1:] < 0)
    differs = jnp.pad(differs, ((0, 0), (1, 0)), constant_values=True)
    skips = jnp.pad(jnp.stack([jnp.zeros_like(differs), differs], axis=2).reshape(batch, -1), ((0, 0), (0, 1)))
    skips &= place > 1

    def shifted(x, by):
        return jnp.pad(x, ((0, 0), (by, 0)), constant_values=_NEVER)[:, :states]

    def forward(best, frame):
        score, valid = frame
        ways = jnp.stack([best, shifted(best, 1), jnp.where(skips, shifted(best, 2), _NEVER)])
        came = jnp.argmax(ways, axis=0).astype(jnp.int8)  # by how many states
        after = jnp.max(ways, axis=0) + score
        return jnp.where(valid[:, None], after, best), jnp.where(valid[:, None], came, 0)

    first = jnp.where(place < 2, scores[:, 0], _NEVER)
    valid = (jnp.arange(frames) < frame_lengths[:, None]).T
    best, came = lax.scan(forward, first, (scores.swapaxes(0, 1)[1:], valid[1:]))
    ends = jnp.take_along_axis(best, jnp.concatenate([2 * count, jnp.maximum(2 * count - 1, 0)], axis=1), axis=1)
    last = 2 * count[:, 0] - jnp.argmax(ends, axis=1)

    def backward(state, came):
        before = state - jnp.take_along_axis(came, state[:, None], axis=1)[:, 0]
        return before, state

    state, path = lax.scan(backward, last, came, reverse=True)
    path = jnp.concatenate([state[None], path]).T  # of each frame, the state
    here = (path[:, :, None] == 2 * jnp.arange(labels.shape[1]) + 1) & valid.T[:, :, None]
    starts = jnp.argmax(here, axis=1)
    stops = jnp.where(jnp.any(here, axis=1), frames - jnp.argmax(here[:, ::-1], axis=1), 0)
    fits = (jnp.max(ends, axis=1) > 0.5 * _NEVER) & (frame_lengths > 0)
    return starts, stops, fits
