"""Monotonic attention between frames and the text of a transcript, as an aligner.

Shape names: b batch, f frames, d frame width, t tokens, l labels of the text.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from slm_jax.encoders import aligners, alignment
from slm_jax.encoders.ctc import ctc_loss
from slm_jax.encoders.layers import FRAMES, conv
from slm_jax.encoders.spelling import Spelt

_NEVER = -1e4  # a logit


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonotonicConfig(aligners.AlignerConfig):
    """Of `MonotonicAligner`, whose layers are convolutions: `num_layers` over frames, of a half-width of one frame.

    Attributes:
        prior_width: of the diagonal that attention starts from, as a share of the text; standard deviation.
        binarisation_weight: of the cross-entropy of the best path, beside the sum over all.
    """

    prior_width: float = 0.2
    binarisation_weight: float = 0.1


class MonotonicAligner(nn.Module):
    """Attention of frames to the labels of a transcript, trained to go through it once from its beginning to its end.

    As UnitY2's aligner (arXiv 2312.05187): nearness of what convolutions make of frames and of text, the forward sum
    over all monotonic paths (arXiv 2108.10447) as loss, and the best path for use. Silence around the text is that of
    marks between words.
    """

    config: MonotonicConfig
    needs_tokens = True

    @nn.compact
    def _attention(
        self, frames: Float[Array, 'b f d'], frame_lengths: Int[Array, ' b'], spelt: Spelt, deterministic: bool
    ) -> tuple[Float[Array, 'b f l'], Int[Array, ' b']]:
        """Logits of the label that each frame attends to, and the number of labels."""
        cfg = self.config
        labels, count = spelt.labels, jnp.sum(spelt.labels != 0, axis=1)
        heard = jnp.arange(labels.shape[1]) < count[:, None]
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('labels', 'embed'))
        table = self.param('labels', init, (cfg.spelling.num_labels + 1, cfg.emb_dim), jnp.float32)
        y = jnp.where(heard[..., None], table[labels].astype(cfg.dtype), 0)  # -1, any, is the last
        y = nn.gelu(nn.with_logical_constraint(conv(cfg.emb_dim, 3, 1, 1, cfg.dtype, 'text_0')(y), FRAMES))
        y = nn.with_logical_constraint(conv(cfg.emb_dim, 1, 1, 0, cfg.dtype, 'text_1')(y), FRAMES)

        valid = (jnp.arange(frames.shape[1]) < frame_lengths[:, None])[..., None]
        x = nn.Dropout(cfg.dropout_rate, deterministic=deterministic)(aligners.normalized(frames, valid, cfg.dtype))
        for layer in range(cfg.num_layers):
            x = nn.with_logical_constraint(conv(cfg.emb_dim, 3, 1, 1, cfg.dtype, f'frames_{layer}')(x), FRAMES)
            x = jnp.where(valid, nn.gelu(x), 0)
        x = nn.with_logical_constraint(conv(cfg.emb_dim, 1, 1, 0, cfg.dtype, 'frames_out')(x), FRAMES)

        x, y = (each.astype(jnp.float32) for each in (x, y))
        squares = [jnp.sum(jnp.square(each), axis=-1) for each in (x, y)]
        distance = squares[0][:, :, None] + squares[1][:, None] - 2 * jnp.einsum('bfe,ble->bfl', x, y)
        logits = -distance / math.sqrt(cfg.emb_dim) + _diagonal(frames.shape[1], frame_lengths, heard, cfg.prior_width)
        return jnp.where(heard[:, None], logits, _NEVER), count

    def _texts(self, tokens: Int[Array, 'b t'], token_lengths: Int[Array, ' b'], frames: int) -> Spelt:
        """The transcript with a mark between words at either end, if there is such a label."""
        spelling = self.config.spelling
        spelt = spelling.spell(tokens, token_lengths, frames + 1)
        if not spelling.between:
            return spelt
        labels = jnp.pad(spelt.labels, ((0, 0), (1, 1)), constant_values=((0, 0), (spelling.between, 0)))
        count = jnp.sum(spelt.labels != 0, axis=1)[:, None]
        labels = jnp.where(jnp.arange(labels.shape[1]) == count + 1, spelling.between, labels)
        return spelt._replace(labels=labels, firsts=spelt.firsts + 1, lasts=spelt.lasts + 1)

    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'] | None = None,
        token_lengths: Int[Array, ' b'] | None = None,
        token_ends: Float[Array, 'b t'] | None = None,
    ) -> aligners.Alignment:
        """See `Aligner`."""
        if tokens is None or token_lengths is None:
            raise aligners.wants('MonotonicAligner', 'transcript')
        spelt = self._texts(tokens, token_lengths, frames.shape[1])
        logits, count = self._attention(frames, frame_lengths, spelt, True)
        starts, stops, fits = _best_path(logits, frame_lengths, count)
        return aligners.found(tokens, jnp.where(fits, token_lengths, 0), spelt, starts, stops, frame_lengths)

    def losses(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'],
        token_lengths: Int[Array, ' b'],
        deterministic: bool = True,
    ) -> tuple[Bool[Array, ' b'], dict[str, Float[Array, ' b']]]:
        """The forward sum over all monotonic paths, and the cross-entropy of the best one; see `Aligner`."""
        spelt = self._texts(tokens, token_lengths, frames.shape[1])
        logits, count = self._attention(frames, frame_lengths, spelt, deterministic)
        places = _places(logits.shape[2], count)
        log_p = jax.nn.log_softmax(logits)
        # A frame may also be nobody's, which keeps the sum soft: the blank of CTC, at a logit of -1.
        blank = jnp.full_like(log_p[..., :1], -1.0)
        forward = ctc_loss(jnp.concatenate([blank, log_p], axis=-1), frame_lengths, places)
        starts, stops, fits = _best_path(lax.stop_gradient(logits), frame_lengths, count)
        frame = jnp.arange(frames.shape[1])[:, None]
        here = (frame >= starts[:, None]) & (frame < stops[:, None])
        best = -jnp.sum(jnp.where(here, log_p, 0), axis=(1, 2))
        fits &= aligners.fit(token_lengths, frame_lengths)
        loss = forward + self.config.binarisation_weight * best
        return fits, {'loss': loss, 'forward_sum': forward, 'binarisation': best}


def _places(length: int, count: Int[Array, ' b']) -> Int[Array, 'b l']:
    """Each label of a text as a label of its own."""
    places = jnp.arange(1, length + 1)
    return jnp.where(places <= count[:, None], places, 0)


def _best_path(
    logits: Float[Array, 'b f l'], frame_lengths: Int[Array, ' b'], count: Int[Array, ' b']
) -> tuple[Int[Array, 'b l'], Int[Array, 'b l'], Bool[Array, ' b']]:
    """The frames of each label on the best monotonic path, of which each has one at least; see `alignment.align`."""
    without_blank = jnp.pad(logits, ((0, 0), (0, 0), (1, 0)), constant_values=10 * _NEVER)
    starts, stops, fits = alignment.align(without_blank, frame_lengths, _places(logits.shape[2], count))
    return starts, stops, fits & (count <= frame_lengths)


def _diagonal(
    frames: int, frame_lengths: Int[Array, ' b'], heard: Bool[Array, 'b l'], width: float
) -> Float[Array, 'b f l']:
    """Logarithms of a prior: a frame is where the text is that is as far from its beginning."""
    count = jnp.sum(heard, axis=1)
    along = (jnp.arange(frames) + 0.5) / jnp.maximum(frame_lengths, 1)[:, None]
    text = (jnp.arange(heard.shape[1]) + 0.5) / jnp.maximum(count, 1)[:, None]
    return -0.5 * jnp.square((along[:, :, None] - text[:, None]) / width)
