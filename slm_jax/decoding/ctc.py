"""Writing together with CTC: a language model's next token weighed against what the frames can still spell."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from slm_jax.decoding.search import Cache, TokensToLogProbs


def frame_log_probs(ctc_logits: Float[Array, 'b f l'], frame_lengths: Int[Array, ' b']) -> Float[Array, 'b f l']:
    """What `with_ctc` reads of the logits of a CTC head, whose label 0 is blank: all but blank is over at the end."""
    frames, num_labels = ctc_logits.shape[1:]
    # Sums over frames stay exact enough in float32 if no frame counts for more than this.
    log_probs = jnp.maximum(jax.nn.log_softmax(ctc_logits.astype(jnp.float32)), -30.0)
    silence = jnp.where(jnp.arange(num_labels) == 0, 0.0, -1e4)
    log_probs = jnp.where((jnp.arange(frames) < frame_lengths[:, None])[:, :, None], log_probs, silence)
    # Labels are few, and each step looks some up: whole on every device. Tokens are many.
    return nn.with_logical_constraint(log_probs, ('batch', 'length', 'labels'))


def with_ctc(
    tokens_to_log_probs: TokensToLogProbs,
    cache: Cache,
    log_probs: Float[Array, 'b f l'],
    frame_lengths: Int[Array, ' b'],
    token_labels: Int[Array, ' v'],
    weight: float,
    eos_id: int = 1,
    *,
    cache_batch_axis: int = 0,
) -> tuple[TokensToLogProbs, Cache]:
    """(tokens_to_log_probs, cache) whose log-probabilities are `weight` parts CTC's, the rest the model's.

    CTC's part of a token is log p(text token ...) - log p(text ...), where p(text ...) is the probability that the
    frames spell something that begins with the text (hybrid CTC/attention decoding, 10.1109/JSTSP.2017.2763455). It
    keeps a model that writes characters from losing its place in the audio, from skipping and repeating.

    Args:
        log_probs: of the frames, see `frame_log_probs`.
        frame_lengths: rows of none are the model's alone.
        token_labels: the label of each token; 0 for those that are not heard, such as a comma; the negative label for
            what stands between words and is not heard before the first. CTC's part of a token that is not heard is
            minus the number of such tokens right before it: one costs nothing, and a loop of them does not pay.
    """
    batch, _, num_labels = log_probs.shape
    never = jnp.float32(-1e9)
    blank = log_probs[:, None, :, 0]
    token_labels, between = jnp.abs(token_labels), token_labels < 0

    def before(x, first):
        return jnp.concatenate([jnp.broadcast_to(first[..., None], (*x.shape[:-1], 1)), x[..., :-1]], axis=-1)

    def forward(entering, log_p):
        """X with x[f] = (x[f - 1] + entering[f]) * p[f], in logarithms."""
        total = jnp.cumsum(log_p, axis=-1)
        return total + lax.cumlogsumexp(entering - before(total, jnp.zeros(())), axis=entering.ndim - 1)

    def extended(state, label):
        """The state of a text that `label` [b, k] is added to."""
        on_label, on_blank, last, *_ = state
        reached = jnp.where((last == label)[..., None], on_blank, jnp.logaddexp(on_label, on_blank))
        reached = before(reached, jnp.where(last == 0, 0.0, never))
        log_p = jnp.take_along_axis(log_probs, label[:, None, :], axis=2).swapaxes(1, 2)
        on_label = forward(reached, log_p)
        on_blank = forward(before(on_label, never), jnp.broadcast_to(blank, on_label.shape))
        text = jax.nn.logsumexp(reached + log_p, axis=-1)
        return on_label, on_blank, label, text, jnp.zeros_like(text)

    def heard(label, between, last):
        return (label > 0) & ~(between & (last == 0))

    def scores(state):
        """Log p(text token ...) - log p(text ...) of every token, [b, k, v]."""
        on_label, on_blank, last, text, unheard = state
        reached = jnp.logaddexp(on_label, on_blank)
        ended = reached[..., -1]
        reached = before(reached, jnp.where(last == 0, 0.0, never))
        most = jnp.max(reached, axis=-1, keepdims=True)
        labels = most + jnp.log(jnp.exp(reached - most) @ jnp.exp(log_probs) + 1e-37)
        log_p = jnp.take_along_axis(log_probs, last[:, None, :], axis=2).swapaxes(1, 2)
        again = jax.nn.logsumexp(before(on_blank, never) + log_p, axis=-1)  # a blank has to lie between
        labels = jnp.where(jnp.arange(num_labels) == last[..., None], again[..., None], labels) - text[..., None]
        tokens = jnp.where(
            heard(token_labels, between, last[..., None]),
            labels[..., token_labels],
            -unheard[..., None],
        )
        place = jnp.arange(len(token_labels))
        tokens = jnp.where(place == eos_id, (ended - text)[..., None], tokens)
        tokens = jnp.where(place == 0, never, tokens)  # padding is not text
        return nn.with_logical_constraint(tokens, ('batch', 'beams', 'vocab'))

    def stored(state):
        return [jnp.expand_dims(x.reshape(-1, *x.shape[2:]), tuple(range(cache_batch_axis))) for x in state]

    def step(tokens, both):
        cache, state = both
        log_p, cache = tokens_to_log_probs(tokens, cache)
        state = [x.reshape(batch, -1, *x.shape[cache_batch_axis + 1 :]) for x in state]
        label = token_labels[tokens].reshape(batch, -1)
        grows = heard(label, between[tokens].reshape(batch, -1), state[2])
        state[-1] += tokens.reshape(batch, -1) > 0
        state = [
            jnp.where(grows.reshape(grows.shape + (1,) * (new.ndim - 2)), new, old)
            for new, old in zip(extended(state, label), state, strict=True)
        ]
        joint = (1 - weight) * log_p.reshape(batch, -1, log_p.shape[-1]) + weight * scores(state)
        spoken = jnp.repeat(frame_lengths > 0, log_p.shape[0] // batch)
        return jnp.where(spoken[:, None], joint.reshape(log_p.shape), log_p), (cache, stored(state))

    nothing = jnp.cumsum(blank, axis=-1)
    zeros = jnp.zeros((batch, 1))
    state = (jnp.full_like(nothing, never), nothing, zeros.astype(jnp.int32), zeros, zeros)
    return step, (cache, stored(state))
