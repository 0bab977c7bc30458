"""The compressor of SSR-Connector (arXiv 2410.00168): one vector for each text token that is said.

Frames are mapped to the LLM's width and go through a Transformer; what stands at the last frame of a token's segment is
its vector. The boundaries are an aligner's. The paper's best mask is blockwise: a boundary attends to its segment. That
frames between boundaries do so too, relative positions, and the linear map at the end, which is scaled to start with
vectors as long as the LLM's embeddings, are choices of this project.

Shape names: b batch, f frames, d frame width, s = ceil(f / reduction_factor) slots, t tokens, e adapter width, o width
of the LLM's embeddings.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from slm_jax.adapters import slm

MASKS = ('blockwise', 'causal', 'full')


@dataclasses.dataclass(frozen=True)
class SsrConfig(slm.AdapterConfig):
    """Sizes as of the other adapters; the paper has `emb_dim` = `output_dim`.

    Attributes:
        reduction, reduction_factor: of frames to the slots that the Transformer sees; the paper's has all of them.
        mask: what a slot attends to: 'blockwise', those of its segment; 'causal', itself and all before; 'full', all.
        output_scale: initial root mean square of the output; that of the LLM's embeddings is best.
    """

    reduction: str = 'mean'
    reduction_factor: int = 1
    mask: str = 'blockwise'
    output_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.reduction == 'ctc_blank':
            raise ValueError("SsrConfig.reduction is 'ctc_blank'; choose one of a fixed rate, such as 'stack'.")
        if self.mask not in MASKS:
            raise ValueError(f'SsrConfig.mask is {self.mask!r}; choose one of {MASKS}.')


class SsrCompressor(nn.Module):
    """Frames of a speech encoder to embeddings for an LLM, one for each token.

    Dropout acts only when `deterministic=False` and an rng named 'dropout' is given.
    """

    config: SsrConfig

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        boundaries: Int[Array, 'b t'],
        num_tokens: Int[Array, ' b'],
        deterministic: bool = True,
    ) -> Float[Array, 'b t o']:
        """Compresses frames; what stands at and after `frame_lengths` and `num_tokens` changes nothing.

        Args:
            frames: the encoder's output, and `frame_lengths` the valid frames of each row.
            boundaries: the last frame of each token's segment, which begins after that of the token before; they do not
                descend. What is said after the last belongs to none. Tokens of one boundary get the same vector.
            num_tokens: of each row.
            deterministic: no dropout.

        Returns:
            The embedding of each token, 0 after a row's last.
        """
        cfg = self.config
        deterministic = deterministic or not self.has_rng('dropout')
        valid = jnp.arange(frames.shape[1]) < frame_lengths[:, None]
        frames = slm.RmsNorm(cfg.dtype, axis='speech_embed', name='frames_norm')(jnp.where(valid[..., None], frames, 0))
        said = jnp.arange(boundaries.shape[1]) < num_tokens[:, None]
        last = jnp.where(said, boundaries // cfg.reduction_factor, 0)
        x = slm.reduced(frames, frame_lengths, cfg)
        lengths = -(-frame_lengths // cfg.reduction_factor)
        x = slm.transformed(x, lengths, cfg, deterministic, seen(cfg.mask, x.shape[1], last, said))
        x = jnp.take_along_axis(x, last[..., None], axis=1, mode='clip')
        x = slm.Linear(cfg.output_dim, ('embed', 'llm_embed'), cfg.dtype, name='output_projection')(x)
        x = jnp.where(said[..., None], x * cfg.output_scale, 0).astype(cfg.dtype)
        return nn.with_logical_constraint(x, ('batch', 'length', 'llm_embed'))


def seen(mask: str, slots: int, last: Int[Array, 'b t'], said: Bool[Array, 'b t']) -> Bool[Array, '#b s s'] | None:
    """Which slots each of them attends to, by one of `MASKS`; None: to all.

    Args:
        mask: which.
        slots: their number.
        last: of each token's segment.
        said: which of the tokens there are.
    """
    place = jnp.arange(slots)
    if mask == 'full':
        return None
    if mask == 'causal':
        return (place[:, None] >= place)[None]
    segment = jnp.sum((last[:, None] < place[:, None]) & said[:, None], axis=2)
    return segment[:, :, None] == segment[:, None]
