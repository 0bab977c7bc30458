"""T5 1.1 encoder-decoder (arXiv 2002.05202), with T5X's parameter names, shapes and numerics.

Two layouts of the same model, as T5X has them:
- unscanned (`t5x/examples/t5`): `encoder/layers_0/...`, attention kernels [embed, heads * kv], one
  `relpos_bias` per stack;
- scanned (`t5x/examples/scalable_t5`): `encoder/encoder/...`, every array with the layer axis at 1,
  attention kernels [embed, layers, heads, kv], one `relpos_bias` per layer.

Shape names: b batch, l input length, t target length, e embedding width, v vocabulary, h heads,
d head width, n = b * beams.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from slm_jax.llms import Heads, cache, chosen, mimetic
from slm_jax.llms.layers import (
    REMAT_POLICIES,
    STREAM,
    Attention,
    Dense,
    Embedding,
    LayerNorm,
    RelativePositionBias,
    rematerialised,
)

_MASKED = -1e10


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and numerics of one T5.

    Attributes:
        dtype: dtype of activations; parameters are created in float32 and cast where they are used.
        logits_via_embedding: share the embedding with the output layer (T5 1.0) or not (T5 1.1).
        scan_layers: which of T5X's two parameter layouts.
        remat_policy: 'none' keeps every activation, 'minimal' the results of matrix products with
            weights, 'full' only the input of each layer.
        float32_attention_logits: compute attention logits in float32 whatever `dtype` is.
        mimetic_attention: fresh parameters are arranged by `llms/mimetic.py`, for a small model that is to
            learn copying soon.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    head_dim: int
    mlp_dim: int
    mlp_activations: tuple[str, ...] = ('gelu', 'linear')
    dropout_rate: float = 0.0
    logits_via_embedding: bool = False
    scan_layers: bool = False
    remat_policy: str = 'none'
    dtype: Any = 'float32'
    float32_attention_logits: bool = False
    mimetic_attention: bool = False

    def __post_init__(self):
        if self.remat_policy not in REMAT_POLICIES:
            raise ValueError(f'T5Config.remat_policy is {self.remat_policy!r}; choose one of {REMAT_POLICIES}.')
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f'T5Config.dropout_rate is {self.dropout_rate!r}; it must be in [0, 1).')
        if self.mimetic_attention and (self.scan_layers or self.num_heads < 8):
            raise ValueError('T5Config.mimetic_attention is for scan_layers = False and 8 heads or more.')

    @property
    def cache_batch_axis(self) -> int:
        """The batch axis of the arrays in the decoding cache (scanned layers come before it)."""
        return 1 if self.scan_layers else 0


class Mlp(nn.Module):
    """Feed-forward block: the product of one activated projection per entry of mlp_activations."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, 'b l e'], deterministic: bool) -> Float[Array, 'b l e']:
        cfg = self.config
        branches = []
        for i, activation in enumerate(cfg.mlp_activations):
            name = 'wi' if len(cfg.mlp_activations) == 1 else f'wi_{i}'
            dense = Dense((cfg.emb_dim,), (cfg.mlp_dim,), ('embed', 'mlp'), cfg.dtype, name=name)
            branch = nn.with_logical_constraint(dense(x), ('llm_batch', 'length', 'mlp'))
            branches.append(branch if activation == 'linear' else getattr(nn, activation)(branch))
        y = functools.reduce(operator.mul, branches)
        y = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(y, deterministic)
        y = nn.with_logical_constraint(y, ('llm_batch', 'length', 'mlp'))
        return Dense((cfg.mlp_dim,), (cfg.emb_dim,), ('mlp', 'embed'), cfg.dtype, name='wo')(y)


def _finish(config: T5Config, residual: Array, update: Array, deterministic: bool) -> Array:
    """Drops out a block's output, adds the residual and names the axes for partitioning."""
    update = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(update, deterministic)
    return nn.with_logical_constraint(residual + update, STREAM)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each pre-normalised. Returns (output, None) for nn.scan."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(self, x, relative_bias, mask_bias):
        cfg = self.config
        if cfg.scan_layers:
            relative = RelativePositionBias(cfg.num_heads, cfg.dtype, True, name='relpos_bias')
            relative_bias = relative(x.shape[1])
        y = LayerNorm(cfg.dtype, name='pre_attention_layer_norm')(x)
        bias = relative_bias + mask_bias
        y = Attention(cfg, name='attention')(y, y, bias, self.deterministic)
        x = _finish(cfg, x, y, self.deterministic)
        y = LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
        y = Mlp(cfg, name='mlp')(y, self.deterministic)
        return _finish(cfg, x, y, self.deterministic), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward; (output, None) for nn.scan.

    `position` is None for a whole sequence. In a cached step it is the index of the tokens in x, of which there is
    one for each beam of a sequence, and `encoded` is not read.
    """

    config: T5Config
    deterministic: bool
    max_decode_length: int | None

    @nn.compact
    def __call__(self, x, relative_bias, mask_bias, encoded, encoded_bias, position):
        cfg = self.config
        if cfg.scan_layers:
            relative = RelativePositionBias(cfg.num_heads, cfg.dtype, False, name='relpos_bias')
            relative_bias = _decoder_bias(relative, x, position, self.max_decode_length)
        y = LayerNorm(cfg.dtype, name='pre_self_attention_layer_norm')(x)
        attention = Attention(cfg, name='self_attention')
        if position is None:
            y = attention(y, y, relative_bias + mask_bias, self.deterministic)
        else:
            written = (position + 1) * x.shape[1]
            cached = cache.append(self, attention.keys_values(y), position, self.max_decode_length)
            y = attention.attend(y, *cached, relative_bias, mask_bias, written=written)
        x = _finish(cfg, x, y, self.deterministic)

        y = LayerNorm(cfg.dtype, name='pre_cross_attention_layer_norm')(x)
        attention = Attention(cfg, name='encoder_decoder_attention')
        if position is None:
            y = attention(y, encoded, encoded_bias, self.deterministic)
        else:
            cross = self.variable('cross', 'keys_values', lambda: attention.keys_values(encoded))
            y = attention.attend(y, *cross.value, encoded_bias)
        x = _finish(cfg, x, y, self.deterministic)

        y = LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
        y = Mlp(cfg, name='mlp')(y, self.deterministic)
        return _finish(cfg, x, y, self.deterministic), None


def _decoder_bias(relative, x, position, max_decode_length):
    if position is None:
        return relative(x.shape[1])
    return jnp.repeat(relative.at(position, max_decode_length), x.shape[1], axis=3)


def _mask_bias(mask: Bool[Array, '*shape'], dtype) -> Float[Array, '*shape']:
    return jnp.where(mask, 0.0, _MASKED).astype(dtype)


def _run_layers(layer, cfg: T5Config, num_layers: int, scanned_name: str, x, *shared):
    """Applies a stack of `layer()`s, looped or scanned; must be called in a compact method."""
    kept: Any = rematerialised(layer.func, cfg.remat_policy, cfg.scan_layers)
    layer = functools.partial(kept, **layer.keywords)
    if not cfg.scan_layers:
        for i in range(num_layers):
            x, _ = layer(name=f'layers_{i}')(x, *shared)
        return x
    stack = nn.scan(
        layer.func,
        variable_axes={'params': 1, 'cache': 0, 'cross': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=nn.broadcast,
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    return stack(**layer.keywords, name=scanned_name)(x, *shared)[0]


class Encoder(nn.Module):
    """The encoder's layers and final norm."""

    config: T5Config

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        cfg = self.config
        relative_bias = None
        if not cfg.scan_layers:
            relative = RelativePositionBias(cfg.num_heads, cfg.dtype, True, name='relpos_bias')
            relative_bias = relative(x.shape[1])
        x = nn.with_logical_constraint(x, STREAM)
        x = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic)
        mask_bias = _mask_bias(mask[:, None, :, None] & mask[:, None, None, :], cfg.dtype)
        layer = functools.partial(EncoderLayer, config=cfg, deterministic=deterministic)
        x = _run_layers(
            layer, cfg, cfg.num_encoder_layers, 'encoder', x.astype(cfg.dtype),
            relative_bias, mask_bias,
        )  # fmt: skip
        x = LayerNorm(cfg.dtype, name='encoder_norm')(x)
        return nn.Dropout(cfg.dropout_rate)(x, deterministic)


class Decoder(nn.Module):
    """The decoder's layers and final norm, over a whole sequence or one token of it."""

    config: T5Config

    @nn.compact
    def __call__(self, x, mask, encoded, encoded_mask, deterministic, decode, max_decode_length):
        cfg = self.config
        position = None
        rows = x.shape[:2]
        if decode:
            # The encoder's mask is kept beside its keys, so that a step needs neither.
            encoded_mask = self.variable('cross', 'mask', lambda: encoded_mask).value
            # The beams of one sequence are so many queries to the same keys: nothing is tiled.
            x = x.reshape(encoded_mask.shape[0], -1, cfg.emb_dim)
            position, own = cache.own(self, x.shape[1], encoded_mask.shape[0], max_decode_length, cfg.cache_batch_axis)
            max_decode_length = own.shape[-1] // x.shape[1]
            mask_bias = _mask_bias(own, cfg.dtype)[:, None]
            encoded_bias = _mask_bias(encoded_mask[:, None, None, :], cfg.dtype)
        else:
            causal = np.tri(x.shape[1], dtype=bool)
            mask_bias = _mask_bias(causal & mask[:, None, :, None] & mask[:, None, None, :], cfg.dtype)
            encoded_bias = _mask_bias(mask[:, None, :, None] & encoded_mask[:, None, None, :], cfg.dtype)
        relative_bias = None
        if not cfg.scan_layers:
            relative = RelativePositionBias(cfg.num_heads, cfg.dtype, False, name='relpos_bias')
            relative_bias = _decoder_bias(relative, x, position, max_decode_length)
        x = nn.with_logical_constraint(x, STREAM)
        x = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic)
        layer = functools.partial(
            DecoderLayer,
            config=cfg,
            deterministic=deterministic,
            max_decode_length=max_decode_length,
        )
        x = _run_layers(
            layer, cfg, cfg.num_decoder_layers, 'decoder', x.astype(cfg.dtype),
            relative_bias, mask_bias, encoded, encoded_bias, position,
        )  # fmt: skip
        x = LayerNorm(cfg.dtype, name='decoder_norm')(x)
        x = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic)
        x = x.reshape(*rows, cfg.emb_dim)
        if cfg.logits_via_embedding:
            return x
        logits = Dense((cfg.emb_dim,), (cfg.vocab_size,), ('embed', 'vocab'), 'float32', name='logits_dense')
        return nn.with_logical_constraint(logits(x), ('batch', 'length', 'vocab'))


class T5(nn.Module):
    """T5 whose encoder reads embeddings, so that adapted speech can stand beside token embeddings.

    Dropout acts only when `deterministic=False` and an rng named 'dropout' is given.
    """

    config: T5Config

    def setup(self):
        cfg = self.config
        self.token_embedder = Embedding(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        """Embeddings of tokens; an id outside the vocabulary gives NaN."""
        return self.token_embedder(tokens)

    def encode(
        self,
        embeddings: Float[Array, 'b l e'],
        mask: Bool[Array, 'b l'],
        deterministic: bool = True,
    ) -> Float[Array, 'b l e']:
        """Encodes a sequence of embeddings.

        Relative positions are differences of indices: the caller moves padding out from between
        valid positions (speech, then text) before it calls this. What stands in masked positions
        never changes a valid one.
        """
        return self.encoder(embeddings, mask, self._no_dropout(deterministic))

    def decode(
        self,
        encoded: Float[Array, 'b l e'] | None,
        encoded_mask: Bool[Array, 'b l'] | None,
        decoder_input_tokens: Int[Array, 'n t'],
        decoder_target_tokens: Int[Array, 'n t'] | None = None,
        deterministic: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        decoder_inputs: Float[Array, 'n t e'] | None = None,
    ) -> Float[Array, 'n t v']:
        """Next-token logits in float32.

        Args:
            encoded: output of `encode`, and `encoded_mask` its mask. Not read when `decode`.
            decoder_input_tokens: targets shifted right; one token per row when `decode`.
            decoder_target_tokens: 0 marks padding, which is masked; None means no padding.
            decode: one cached step, after `start`: apply with {'params', 'cache', 'cross'} and
                mutable=['cache']. Rows may be n = b * beams, the beams of a sequence adjacent.
            max_decode_length: only for `start`; a step knows it from its cache.
            decoder_inputs: see `LanguageModel`.
        """
        x = self.embed(decoder_input_tokens)
        if decoder_inputs is not None:
            x = jnp.concatenate([x[:, :1], decoder_inputs[:, 1:].astype(x.dtype)], axis=1)
        mask = None
        if not decode:
            mask = jnp.ones(decoder_input_tokens.shape, bool)
            if decoder_target_tokens is not None:
                mask = decoder_target_tokens > 0
        elif decoder_input_tokens.shape[1] != 1:
            raise ValueError(
                'T5.decode(decode=True) takes one token per call, but decoder_input_tokens is '
                f'{decoder_input_tokens.shape}; pass [rows, 1].'
            )
        deterministic = self._no_dropout(deterministic)
        x = self.decoder(x, mask, encoded, encoded_mask, deterministic, decode, max_decode_length)
        if not self.config.logits_via_embedding:
            return x
        return self.token_embedder.logits(x.astype(jnp.float32), self.config.emb_dim**-0.5)  # as T5 1.0 does

    def logits(
        self,
        prompt: Float[Array, 'b p e'],
        mask: Bool[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        deterministic: bool = True,
        decoder_inputs: Float[Array, 'b t e'] | None = None,
    ) -> Float[Array, 'b t v']:
        """See `LanguageModel`: what the decoder writes after the encoder has read the prompt."""
        encoded, targets = self.encode(prompt, mask, deterministic), decoder_target_tokens
        return self.decode(encoded, mask, decoder_input_tokens, targets, deterministic, decoder_inputs=decoder_inputs)

    def attention(
        self,
        prompt: Float[Array, 'b p e'],
        mask: Bool[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        heads: Heads | None = None,
    ) -> Float[Array, 'h b t p']:
        """See `LanguageModel`: of the decoder's attention to the encoder's output."""
        self.logits(prompt, mask, decoder_input_tokens, decoder_target_tokens)
        kept = self.decoder.variables['intermediates']
        if self.config.scan_layers:
            [weights] = kept['decoder']['encoder_decoder_attention']['weights']  # [layers, b, heads, t, p]
        else:
            layers = [kept[f'layers_{number}'] for number in range(self.config.num_decoder_layers)]
            weights = jnp.stack([layer['encoder_decoder_attention']['weights'][0] for layer in layers])
        layers, wanted = chosen(heads, *weights.shape[:3:2])
        return weights[layers, :, wanted].astype(jnp.float32)

    def start(
        self, prompt: Float[Array, 'b p e'], mask: Bool[Array, 'b p'], max_decode_length: int, beams: int = 1
    ) -> None:
        """See `LanguageModel`.

        'cache' then holds empty self-attention keys and values for all beams, the position, and which beam wrote what;
        'cross' the keys and values of the encoder's output, computed here once per sequence and not once per step.
        """
        tokens = jnp.zeros((prompt.shape[0] * beams, 1), jnp.int32)
        self.decode(self.encode(prompt, mask), mask, tokens, decode=True, max_decode_length=max_decode_length)

    def step(self, tokens: Int[Array, 'n 1']) -> Float[Array, 'n v']:
        """See `LanguageModel`."""
        return self.decode(None, None, tokens, decode=True)[:, 0]

    @nn.nowrap
    def init(self, *args, **kwargs) -> Any:
        """Fresh parameters, arranged where `mimetic_attention` is set."""
        variables = super().init(*args, **kwargs)
        if self.config.mimetic_attention:
            return {**variables, 'params': mimetic.arrange(variables['params'], self.config)}
        return variables

    def __call__(
        self,
        encoder_input_tokens: Int[Array, 'b l'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'],
        deterministic: bool = True,
    ) -> Float[Array, 'b t v']:
        """Logits of text to text, as T5X computes them; token 0 is padding."""
        prompt, mask = self.embed(encoder_input_tokens), encoder_input_tokens > 0
        return self.logits(prompt, mask, decoder_input_tokens, decoder_target_tokens, deterministic)

    def _no_dropout(self, deterministic: bool) -> bool:
        return deterministic or self.config.dropout_rate == 0.0 or not self.has_rng('dropout')
