"""A decoder-only model whose table has grown: rows for other tokens behind those of its texts.

The model it was keeps its parameters, with their names and shapes, so a foundation still gives them and its fingerprint
still names them. What has grown is beside them: `grown/embedding` and, where the head is not tied to it,
`grown_logits/kernel`.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from slm_jax.llms.decoder_only import INIT, DecoderOnly
from slm_jax.llms.layers import Dense, Embedding


class Grown(DecoderOnly):
    """A `LanguageModel` of `config.vocab_size` tokens and `rows` more; logits of the former are what they were.

    Attributes:
        rows: how many more.
        tied: whether the head of these shares their embeddings; None: as the head of the former does.
    """

    rows: int
    tied: bool | None = None

    def setup(self):
        super().setup()
        cfg = self.config
        width = cfg.emb_dim if cfg.embed_dim is None else cfg.embed_dim
        self.grown = Embedding(self.rows, width, cfg.dtype, INIT)
        if not (cfg.logits_via_embedding if self.tied is None else self.tied):
            self.grown_logits = Dense((width,), (self.rows,), ('embed', 'vocab'), cfg.dtype, out_dtype=jnp.float32)

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        """Embeddings of tokens; see `LanguageModel`."""
        first = self.config.vocab_size
        old = tokens < first
        texts, others = self.token_embedder(jnp.where(old, tokens, 0)), self.grown(jnp.where(old, 0, tokens - first))
        return self.decoder.projected(jnp.where(old[..., None], texts, others))

    def head(self, x: Float[Array, 'b l _']) -> Float[Array, 'b l v']:
        """Logits of both, the former's first: two products, so that theirs have the bits that they had."""
        tied = self.config.logits_via_embedding if self.tied is None else self.tied
        axes = ('batch', 'length', 'vocab')
        others = self.grown.logits(x) if tied else nn.with_logical_constraint(self.grown_logits(x), axes)
        return nn.with_logical_constraint(jnp.concatenate([super().head(x), others], axis=-1), axes)
