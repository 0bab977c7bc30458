"""CTC: a linear head over 25 Hz frames, its loss and its greedy reading. Token 0 is the blank."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int


class CtcHead(nn.Module):
    """Frames -> logits over the CTC vocabulary."""

    vocab_size: int

    @nn.compact
    def __call__(self, frames: Float[Array, 'b t d']) -> Float[Array, 'b t v']:
        kernel_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ('embed', 'vocab'))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
        logits = nn.Dense(self.vocab_size, dtype=jnp.float32, kernel_init=kernel_init, bias_init=bias_init)(frames)
        return nn.with_logical_constraint(logits, ('batch', 'length', 'vocab'))


def ctc_loss(
    logits: Float[Array, 'b t v'], frame_lengths: Int[Array, ' b'], labels: Int[Array, 'b l']
) -> Float[Array, ' b']:
    """Negative log-likelihood of each row's labels (0 = padding), summed over its frames.

    A row whose labels do not fit into its frames has probability zero: optax then gives a very large loss, so
    the caller leaves such rows out (`ctc_fits`).
    """
    frame_padding = (jnp.arange(logits.shape[1]) >= frame_lengths[:, None]).astype(jnp.float32)
    return optax.ctc_loss(logits, frame_padding, labels, (labels == 0).astype(jnp.float32))


def ctc_loss_of_many(
    logits: Float[Array, 'b t v'], frame_lengths: Int[Array, ' b'], labels: Int[Array, 'b l']
) -> Float[Array, ' b']:
    """`ctc_loss` where labels are thousands: the few of a row are picked out of the logits first.

    The label -1 stands for any label but blank: something is said there, and how it is spelt is not known.
    """
    logits = logits.astype(jnp.float32)
    any_label = jax.nn.logsumexp(logits[..., 1:], axis=-1, keepdims=True)
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None, :], axis=2)
    own = jnp.concatenate([logits[..., :1], jnp.where(labels[:, None, :] < 0, any_label, own)], axis=-1)
    place = jnp.arange(labels.shape[1])
    # A label is called by the place where it first stands, so that equal ones are seen to be equal.
    first = jnp.argmax(labels[:, :, None] == labels[:, None, :], axis=2)
    called = jnp.where(labels == 0, 0, 1 + jnp.where(labels < 0, place, first))
    # What `optax` normalises by is the sum over these labels, as often as they stand there: here is the difference.
    rest = jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(own, axis=-1)
    rest = jnp.where(jnp.arange(logits.shape[1]) < frame_lengths[:, None], rest, 0.0)
    return ctc_loss(own, frame_lengths, called) + jnp.sum(rest, axis=1)


def ctc_fits(frame_lengths: Int[Array, ' b'], labels: Int[Array, 'b l']) -> Array:
    """Whether each row has a frame per label and one per blank between equal neighbours."""
    repeats = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    return frame_lengths >= jnp.sum(labels != 0, axis=1) + jnp.sum(repeats, axis=1)


def ctc_greedy(logits: Float[Array, 'b t v'], frame_lengths: Int[Array, ' b']) -> Int[Array, 'b t']:
    """Best label per frame, repeats merged, blanks dropped, moved to the front and padded with 0."""
    return ctc_runs(logits, frame_lengths)[0]


def ctc_runs(
    logits: Float[Array, 'b t v'], frame_lengths: Int[Array, ' b']
) -> tuple[Int[Array, 'b t'], Int[Array, 'b t'], Int[Array, 'b t']]:
    """`ctc_greedy`, the first frame of each of its labels, and the one after its last; 0 of padding."""
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    frames = best.shape[1]
    best = jnp.where(jnp.arange(frames) < frame_lengths[:, None], best, 0)
    changes = best != jnp.pad(best[:, :-1], ((0, 0), (1, 0)))
    kept = (best != 0) & changes
    order = jnp.argsort(~kept, axis=1, stable=True)
    # The next change after each frame.
    stops = lax.cummin(jnp.where(changes, jnp.arange(frames), frames), axis=1, reverse=True)
    stops = jnp.pad(stops[:, 1:], ((0, 0), (0, 1)), constant_values=frames)
    stops = jnp.minimum(stops, frame_lengths[:, None])

    def moved(x):
        return jnp.take_along_axis(jnp.where(kept, x, 0), order, axis=1)

    return moved(best), moved(jnp.arange(frames)), moved(stops)
