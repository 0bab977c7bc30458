"""An adapter that writes the LLM's own tokens by CTC, and gives the LLM what it writes as a mean of token embeddings.

A CTC head over a language model's tokens whose weights are the model's embeddings needs no language model in the loop
to be trained; segments then go to the language model as means of its embeddings under CTC's probabilities (LegoSLM,
arXiv 2505.11352). Cosine, centring, unigram bias and the start from zero are choices of this project.

Shape names: b batch, t frames, d frame width, s = ceil(t / reduction_factor) slots, e adapter width, o width of the
LLM's embeddings, v CTC labels, of which the first is blank.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int32

from slm_jax.adapters import slm

_LLM_SLOTS = ('batch', 'length', 'llm_embed')


@dataclasses.dataclass(frozen=True)
class TokenCtcConfig(slm.AdapterConfig):
    """Sizes and reduction, of a fixed rate, as of the other adapter.

    Attributes:
        label_counts: how often each label but blank occurs in the texts that are trained on. The adapter starts by
            giving the labels their share of these, and blank one half, at every frame.
        initial_logit_scale: by which the cosine with an embedding is multiplied at first; it is learnt.
    """

    reduction: str = 'stack'
    label_counts: tuple[int, ...] = ()
    initial_logit_scale: float = 30.0

    def __post_init__(self):
        super().__post_init__()
        if self.reduction == 'ctc_blank':
            raise ValueError("TokenCtcConfig.reduction is 'ctc_blank'; choose one of a fixed rate, such as 'stack'.")
        if not self.label_counts or min(self.label_counts) < 0:
            raise ValueError(
                'TokenCtcConfig.label_counts needs a count, 0 or more, for every label but blank: '
                '@vocabularies.label_counts(), of what `python -m slm_jax.corpora.token_counts` writes.'
            )


class TokenCtcAdapter(nn.Module):
    """Frames of a speech encoder to embeddings for an LLM, one for each segment of its own CTC labels.

    Dropout acts only when `deterministic=False` and an rng named 'dropout' is given.
    """

    config: TokenCtcConfig

    def __call__(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int32[Array, ' b'],
        ctc_logits: Float[Array, 'b t l'] | None = None,
        deterministic: bool = True,
        label_embeddings: Float[Array, 'v o'] | None = None,
    ) -> tuple[Float[Array, 'b s o'], Int32[Array, ' b']]:
        """Adapts frames; what stands at and after `frame_lengths` changes nothing.

        Args:
            frames: the encoder's output, and `frame_lengths` the valid frames of each row.
            ctc_logits: of the encoder; not read.
            deterministic: no dropout.
            label_embeddings: the LLM's embedding of each label; the first, in the place of blank's, is not read.

        Returns:
            embeddings, 0 after their length, and their lengths: at most ceil(frame_lengths / reduction_factor). Slots
            of one uninterrupted run of a label are one segment; see `slm.ctc_segments`.

        Raises:
            ValueError: no `label_embeddings`, or not one for each of the config's labels and blank.
        """
        labels = self._without_blank(label_embeddings)
        logits, lengths, residual = self._heard(frames, frame_lengths, deterministic, labels)
        probabilities = jax.nn.softmax(logits[..., 1:]).astype(residual.dtype)
        spelt = probabilities @ labels.astype(residual.dtype) + residual
        segments, lengths = slm.ctc_segments(jnp.argmax(logits, axis=-1), lengths, 1)
        x = slm.mean_of_slots(spelt, segments, logits.shape[1])
        return nn.with_logical_constraint(x, _LLM_SLOTS), lengths.astype(jnp.int32)

    def label_logits(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int32[Array, ' b'],
        ctc_logits: Float[Array, 'b t l'] | None = None,
        deterministic: bool = True,
        label_embeddings: Float[Array, 'v o'] | None = None,
    ) -> tuple[Float[Array, 'b s v'], Int32[Array, ' b']]:
        """CTC logits in float32 and the number of valid slots of each row; arguments as of `__call__`."""
        return self._heard(frames, frame_lengths, deterministic, self._without_blank(label_embeddings))[:2]

    def spans(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int32[Array, ' b'],
        ctc_logits: Float[Array, 'b t l'] | None = None,
        deterministic: bool = True,
        label_embeddings: Float[Array, 'v o'] | None = None,
    ) -> Int32[Array, '2 b s']:
        """The first frame of each embedding that `__call__` gives, and the one after its last; arguments as there."""
        logits, lengths = self.label_logits(frames, frame_lengths, None, deterministic, label_embeddings)
        segments, _ = slm.ctc_segments(jnp.argmax(logits, axis=-1), lengths, 1)
        spans = slm.spans_of_slots(segments, logits.shape[1])
        return jnp.minimum(self.config.reduction_factor * spans, frame_lengths[:, None])

    def _without_blank(self, label_embeddings: Float[Array, 'v o'] | None) -> Float[Array, 'v-1 o']:
        counts, given = len(self.config.label_counts), 0 if label_embeddings is None else len(label_embeddings) - 1
        if label_embeddings is None or given != counts:
            raise ValueError(
                f'{counts} TokenCtcConfig.label_counts and the embeddings of {given} labels besides blank: '
                'SLM.label_tokens and label_counts have to be of the same labels (as in models/slm_base.gin).'
            )
        return label_embeddings[1:]

    @nn.compact
    def _heard(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int32[Array, ' b'],
        deterministic: bool,
        labels: Float[Array, 'v-1 o'],
    ) -> tuple[Float[Array, 'b s v'], Int32[Array, ' b'], Float[Array, 'b s o']]:
        """`label_logits`, and what is added to the mean of the embeddings."""
        cfg = self.config
        deterministic = deterministic or not self.has_rng('dropout')
        valid = jnp.arange(frames.shape[1]) < frame_lengths[:, None]
        x = slm.RmsNorm(cfg.dtype, axis='speech_embed', name='frames_norm')(jnp.where(valid[:, :, None], frames, 0))
        lengths = -(-frame_lengths // cfg.reduction_factor)
        x = slm.transformed(slm.reduced(x, frame_lengths, cfg), lengths, cfg, deterministic)
        to_llm = ('embed', 'llm_embed')
        query = _from_zero(cfg.output_dim, to_llm, cfg.dtype, 'query_projection')(x)
        query = nn.with_logical_constraint(query, _LLM_SLOTS).astype(jnp.promote_types(query.dtype, jnp.float32))
        # One more than its length: the cosine once it is long, and from zero it has a way to go.
        query = query / jnp.sqrt(1.0 + jnp.sum(jnp.square(query), axis=-1, keepdims=True))
        labels = _directions(labels.astype(query.dtype))
        cosine = jnp.einsum(
            'bso,vo->bsv', query.astype(cfg.dtype), labels.astype(cfg.dtype), preferred_element_type=query.dtype
        )
        scale = self.param(
            'logit_scale',
            nn.with_logical_partitioning(nn.initializers.constant(np.log(cfg.initial_logit_scale)), ('scale',)),
            (1,),
            jnp.float32,
        )
        logits = jnp.exp(scale) * cosine + _log_shares(cfg.label_counts)
        blank = _from_zero(1, ('embed', 'blank'), jnp.float32, 'blank', use_bias=True)(x)
        logits = jnp.concatenate([blank.astype(logits.dtype), logits], axis=-1)
        logits = nn.with_logical_constraint(logits, ('batch', 'length', 'vocab'))
        residual = _from_zero(cfg.output_dim, to_llm, cfg.dtype, 'residual_projection')(x)
        return logits, lengths, nn.with_logical_constraint(residual, _LLM_SLOTS)


def _directions(embeddings: Float[Array, 'v o']) -> Float[Array, 'v o']:
    """Embeddings about their mean, of length 1: what all have in common would be most of each cosine."""
    x = embeddings - jnp.mean(embeddings, axis=0)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    return nn.with_logical_constraint(x, ('vocab', 'llm_embed'))


def _log_shares(counts: Sequence[int]) -> np.ndarray:
    """Logarithms of shares, as if each label had occurred once more."""
    smoothed = np.array(counts, np.float64) + 1.0
    return np.log(smoothed / smoothed.sum()).astype(np.float32)


def _from_zero(features: int, axes: tuple[str, str], dtype: Any, name: str, use_bias: bool = False) -> nn.Dense:
    """A linear map that begins by giving 0."""
    return nn.Dense(
        features,
        use_bias,
        dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.zeros, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )
