"""Continuous integrate-and-fire (arXiv 1905.11235) as an aligner.

Shape names: b batch, f frames, d frame width, t tokens, e width of the aligner, s slots, v labels.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from slm_jax.encoders import aligners
from slm_jax.encoders.ctc import CtcHead
from slm_jax.encoders.layers import FRAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifConfig(aligners.TransformerConfig):
    """Of `CifAligner`; a token of more than one label is counted and not learnt.

    Attributes:
        quantity_weight: of the quantity loss, beside the cross-entropy of the tokens.
        initial_weight: that each frame has at first; how many tokens a frame has is best.
    """

    quantity_weight: float = 1.0
    initial_weight: float = 0.07


class CifAligner(nn.Module):
    """Frames have weights, and each time that their sum reaches one more whole number a token ends.

    With a transcript the weights are scaled so that their sum is its number of tokens, in training and later. Without,
    what is left over at the end is a token if it is half of one or more. What is less belongs to the last token.
    """

    config: CifConfig
    needs_tokens = False

    def setup(self):
        cfg = self.config
        self.trunk = aligners.Trunk(cfg)
        bias = nn.initializers.constant(math.log(cfg.initial_weight / (1 - cfg.initial_weight)))
        self.weight = nn.Dense(
            1,
            dtype=jnp.float32,
            kernel_init=nn.with_logical_partitioning(nn.initializers.zeros, ('embed', 'weights')),
            bias_init=nn.with_logical_partitioning(bias, ('weights',)),
        )
        self.head = CtcHead(cfg.spelling.num_labels)

    def _weighed(
        self, frames: Float[Array, 'b f d'], frame_lengths: Int[Array, ' b'], deterministic: bool
    ) -> tuple[Float[Array, 'b f e'], Float[Array, 'b f']]:
        x = self.trunk(frames, frame_lengths, deterministic)
        weights = nn.with_logical_constraint(jax.nn.sigmoid(self.weight(x)), ('batch', 'length', 'weights'))[..., 0]
        return x, jnp.where(jnp.arange(x.shape[1]) < frame_lengths[:, None], weights, 0)

    def _written(
        self, x: Float[Array, 'b f e'], weights: Float[Array, 'b f'], slots: int
    ) -> tuple[Float[Array, 'b s v'], Float[Array, 'b f']]:
        """Logits of the label of each token, and the sums of the weights up to each frame."""
        sums = jnp.cumsum(weights, axis=1)
        before = jnp.pad(sums[:, :-1], ((0, 0), (1, 0)))
        slot = jnp.arange(slots)[:, None]
        shares = jnp.minimum(sums[:, None], slot + 1) - jnp.maximum(before[:, None], slot)
        shares = jnp.maximum(shares, 0)
        integrated = jnp.einsum('bsf,bfe->bse', shares.astype(x.dtype), x)
        integrated /= jnp.maximum(jnp.sum(shares, axis=2), 1e-6)[..., None].astype(x.dtype)
        return self.head(nn.with_logical_constraint(integrated, FRAMES)), sums

    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'] | None = None,
        token_lengths: Int[Array, ' b'] | None = None,
        token_ends: Float[Array, 'b t'] | None = None,
    ) -> aligners.Alignment:
        """See `Aligner`."""
        x, weights = self._weighed(frames, frame_lengths, True)
        if tokens is None or token_lengths is None:
            logits, sums = self._written(x, weights, frames.shape[1])
            lengths = jnp.floor(sums[:, -1] + 0.5).astype(jnp.int32)
            labels = 1 + jnp.argmax(logits[..., 1:], axis=-1)
            tokens = jnp.asarray(self.config.spelling.alone)[labels]
        else:
            lengths = token_lengths
            sums = jnp.cumsum(_scaled(weights, lengths), axis=1)
        # Sums of float32 may miss a whole number by a little.
        below = sums[:, None] < jnp.arange(1, tokens.shape[1] + 1)[:, None] - 1e-3
        boundaries, lengths = aligners.partition(jnp.sum(below, axis=2), lengths, frame_lengths)
        return aligners.Alignment(boundaries, lengths, aligners.until(tokens, lengths))

    def losses(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'],
        token_lengths: Int[Array, ' b'],
        deterministic: bool = True,
    ) -> tuple[Bool[Array, ' b'], dict[str, Float[Array, ' b']]]:
        """Cross-entropy of the tokens that the scaled weights make, and how far their number is from the transcript's.

        See `Aligner`.
        """
        x, weights = self._weighed(frames, frame_lengths, deterministic)
        logits, _ = self._written(x, _scaled(weights, token_lengths), tokens.shape[1])
        spelling = self.config.spelling
        labels = jnp.asarray(spelling.label_alone)[tokens]
        known = (jnp.arange(tokens.shape[1]) < token_lengths[:, None]) & (labels > 0)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        entropy = jnp.sum(jnp.where(known, entropy, 0), axis=1)
        quantity = jnp.abs(jnp.sum(weights, axis=1) - token_lengths)
        loss = entropy + self.config.quantity_weight * quantity
        return aligners.fit(token_lengths, frame_lengths), {
            'loss': loss,
            'cross_entropy': entropy,
            'quantity': quantity,
        }


def _scaled(weights: Float[Array, 'b f'], lengths: Int[Array, ' b']) -> Float[Array, 'b f']:
    return weights * (lengths / jnp.maximum(jnp.sum(weights, axis=1), 1e-6))[:, None]
