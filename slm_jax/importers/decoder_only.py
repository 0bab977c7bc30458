"""What a foundation of a decoder-only LLM needs whatever layout it was read from: its shapes and its model file."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from slm_jax import foundations, llms
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
    init = functools.partial(llms.initial_params, decoder_only.DecoderOnly(cfg))
    return foundations.flatten(nn.unbox(jax.eval_shape(init, jax.random.key(0))))


def model_file(
    cfg: decoder_only.DecoderOnlyConfig, params: dict[str, Any], chat: str, source: str, out: pathlib.Path
) -> str:
    """Text of the model file of a decoder-only LLM that will stand at `out`."""
    fields = [
        f'  {field.name} = {_plain(getattr(cfg, field.name))!r}'
        for field in dataclasses.fields(cfg)
        if field.name in _SIZES or getattr(cfg, field.name) != field.default
    ]
    embedding = params['token_embedder']['embedding']
    frequent = np.asarray(embedding.read(0, min(embedding.shape[0], _FREQUENT)), np.float32)
    if cfg.embed_dim is not None:  # as they stand in a prompt
        frequent = frequent @ np.asarray(params['decoder']['project_in']['kernel'].read(0, cfg.embed_dim), np.float32)
    width = cfg.emb_dim
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


def _plain(value: Any) -> Any:
    """As gin reads it."""
    return dict(value) if isinstance(value, Mapping) else value
