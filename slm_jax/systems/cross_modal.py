"""What is learnt between speech and its text (ComSL, arXiv 2305.14838): masked tokens, distributions, hidden states.

Shape names: b batch, l tokens of a transcript, t target tokens, s vectors of speech, e width, v vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

_EOS = 1


def mask_tokens(key: Key[Array, ''], text: Int[Array, 'b l'], rate: float) -> Bool[Array, 'b l']:
    """Which tokens are masked: each with probability `rate`, all drawn again in rows where none is.

    Never the first token (the language), the end, or padding. A row's are a function of the key and its number alone:
    neither the padding nor the number of rows changes them.
    """
    allowed = (text > _EOS) & (jnp.arange(text.shape[1]) > 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(text)))

    def drawn(state):
        turn, masked = state
        turn_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, turn)
        again = jax.vmap(lambda key: jax.random.uniform(key, text.shape[1:]))(turn_keys) < rate
        return turn + 1, jnp.where(jnp.any(masked, axis=1)[:, None], masked, again & allowed)

    def lacking(state):
        return jnp.any(jnp.any(allowed, axis=1) & ~jnp.any(state[1], axis=1))

    return jax.lax.while_loop(lacking, drawn, (jnp.int32(0), jnp.zeros_like(allowed)))[1]


def matched(
    logits: Float[Array, 'b t v'],
    teacher: Float[Array, 'b t v'] | None,
    targets: Int[Array, 'b t'],
    weights: Float[Array, 'b t'],
    alpha: Any,
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """(1 - alpha) · cross-entropy of targets + alpha · that of what a teacher says, summed; and the sum of weights.

    Args:
        logits: of the targets.
        teacher: other logits of them, which get no gradient; None: alpha counts as 0.
        targets, weights: their ids, and what each counts.
        alpha: of all, or of each row [b, 1].
    """

    @jax.checkpoint  # for the gradient, nothing of the logits' size is kept beside them
    def losses(logits, teacher):
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        hard = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        if teacher is None:
            return hard
        soft = -jnp.sum(jax.nn.softmax(teacher.astype(jnp.float32)) * log_probs, axis=-1)
        return alpha * soft + (1.0 - alpha) * hard

    teacher = None if teacher is None else jax.lax.stop_gradient(teacher)
    return jnp.sum(losses(logits, teacher) * weights), jnp.sum(weights)


def unit_distance(
    one: Float[Array, 'b s e'], other: Float[Array, 'b s e'], valid: Bool[Array, 'b s']
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """The Euclidean distances of vectors of length one in the directions of both, summed; and their number.

    Of equal ones the gradient is 0, not the NaN of a root at 0.
    """

    def unit(x):
        x = jnp.where(valid[..., None], x.astype(jnp.float32), 1.0)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    square = jnp.sum(jnp.square(unit(one) - unit(other)), axis=-1)
    apart = valid & (square > 0)
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
    return jnp.sum(distances), jnp.sum(valid).astype(jnp.float32)
