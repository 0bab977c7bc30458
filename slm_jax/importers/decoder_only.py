"""What a foundation of a decoder-only LLM needs whatever layout it was read from: its shapes and its model file."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax import foundations
from slm_jax.llms import decoder_only

_FREQUENT = 8192  # rows; a vocabulary begins with its most frequent pieces
_SIZES = {'vocab_size', 'emb_dim', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim'}
_ADAPTER_HEAD_DIM = 64
_GIN = """\
# {source}: {parameters:,} parameters, as `slm-jax import` found them. The tasks' text is encoded with its vocabulary.
from __gin__ import dynamic_registration
from slm_jax.data import prompts
from slm_jax.data import vocabularies
from slm_jax.llms import decoder_only

LLM = {out!r}
LLM_MODULE = @decoder_only.DecoderOnly()
# What stands around a user's text, as its chat template has it.
CHAT_TEMPLATE = {chat!r}
# Of an adapter's layers: as wide as the embeddings, and twice that within.
EMBED_DIM = {width}
NUM_HEADS = {heads}
HEAD_DIM = {head_dim}
MLP_DIM = {mlp_dim}
# Root mean square of the embeddings of its most frequent pieces: where an adapter's output starts.
EMBED_SCALE = {scale:.4g}

decoder_only.DecoderOnlyConfig:
{config}
decoder_only.DecoderOnly.config = @decoder_only.DecoderOnlyConfig()
vocabularies.names.llm = %LLM
prompts.Prompt.chat = %CHAT_TEMPLATE
"""


def shapes(cfg: decoder_only.DecoderOnlyConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of `cfg` by path, abstract."""

    def init():
        llm, tokens = decoder_only.DecoderOnly(cfg), jnp.zeros((1, 1), jnp.int32)
        return llm.init(jax.random.key(0), tokens, tokens)['params']

    return foundations.flatten(nn.unbox(jax.eval_shape(init)))


def model_file(
    cfg: decoder_only.DecoderOnlyConfig, params: dict[str, Any], chat: str, source: str, out: pathlib.Path
) -> str:
    """Text of the model file of a decoder-only LLM that will stand at `out`."""
    fields = [
        f'  {field.name} = {getattr(cfg, field.name)!r}'
        for field in dataclasses.fields(cfg)
        if field.name in _SIZES or getattr(cfg, field.name) != field.default
    ]
    embedding = params['token_embedder']['embedding']
    rows, width = embedding.shape
    frequent = np.asarray(embedding.read(0, min(rows, _FREQUENT)), np.float32)
    heads = max(1, width // _ADAPTER_HEAD_DIM)
    return _GIN.format(
        source=source,
        parameters=sum(math.prod(leaf.shape) for leaf in foundations.flatten(params).values()),
        out=str(out),
        chat=chat,
        width=width,
        heads=heads,
        head_dim=width // heads,
        mlp_dim=2 * width,
        scale=np.sqrt(np.mean(np.square(frequent))),
        config='\n'.join(fields),
    )
