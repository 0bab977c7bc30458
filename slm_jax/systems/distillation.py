"""Distillation: towards the distributions of a teacher over the tokens of an answer."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from slm_jax.systems import Metrics


def distillation_loss(
    logits: Float[Array, 'b t v'], teacher: Float[Array, 'b t v'], weights: Float[Array, 'b t'], temperature: float
) -> tuple[Float[Array, ''], Metrics]:
    """Mean KL divergence of the teacher from the student over the weighted tokens of the global batch.

    Both are softened by `temperature`, and the divergence is multiplied by its square, so that gradients keep their
    size (Hinton et al., arXiv 1503.02531). The sum is over the whole vocabulary, in float32.

    Returns:
        It, and the metric `distil`.
    """

    @jax.checkpoint  # for the gradient, nothing of the logits' size is kept beside them
    def divergence(logits, teacher):
        said, taught = (jax.nn.log_softmax(each.astype(jnp.float32) / temperature) for each in (logits, teacher))
        return temperature**2 * optax.losses.kl_divergence_with_log_targets(said, taught)

    divergences, total = divergence(logits, teacher), jnp.sum(weights)
    loss = jnp.sum(divergences * weights)
    return loss / jnp.maximum(total, 1.0), {'distil': (loss, total)}
