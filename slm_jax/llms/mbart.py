"""mBART-50 (arXiv 2008.00401), an encoder-decoder with learned positions, as `MBartForConditionalGeneration` has it.

Norms come first and have a mean and a bias; embeddings are scaled, take positions and are normalised, within `encode`
and `decode`; the head is the token embedding. Parameters have T5X's names, and the axis of the layers comes first.

A target begins with the code of its language: it is the first token that is written, after token 0, which here is read
as the end token, as that is what mBART's decoder begins with.

Shape names: b batch, n positions that the encoder reads, t target, e embedding width, v vocabulary, h heads,
d head width, k beams, r = b * k rows.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from slm_jax.llms import Heads, cache, chosen, layers
from slm_jax.llms.layers import ACTIVATIONS, REMAT_POLICIES, STREAM, Dense, Embedding, rematerialised

_MASKED = -1e10
_PADDING, _END = 0, 1
POSITION_OFFSET = 2  # rows of a position embedding that no position has
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class MBartConfig:
    """Sizes and numerics of one mBART.

    Attributes:
        max_positions: of what the encoder reads, and of a target.
        activation: of the feed-forward blocks.
        scale_embedding: multiply token embeddings by sqrt(emb_dim) where they are read.
        dropout_rate: of embeddings and of what each block adds.
        attention_dropout_rate, activation_dropout_rate: of attention weights, and within the feed-forward blocks.
        remat_policy: 'none' keeps every activation, 'minimal' the results of matrix products with weights, 'full' only
            the input of each layer.
        dtype: dtype of activations; parameters are created in float32 and cast where they are used.
        float32_attention_logits: compute attention logits in float32 whatever `dtype` is.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_dim: int
    max_positions: int = 1024
    activation: str = 'gelu_exact'
    scale_embedding: bool = True
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    remat_policy: str = 'none'
    dtype: Any = 'float32'
    float32_attention_logits: bool = False

    def __post_init__(self):
        rates = {f: getattr(self, f) for f in ('dropout_rate', 'attention_dropout_rate', 'activation_dropout_rate')}
        for field, valid, remedy in (
            ('remat_policy', self.remat_policy in REMAT_POLICIES, f'one of {REMAT_POLICIES}'),
            ('activation', self.activation in ACTIVATIONS, f'one of {[*ACTIVATIONS]}'),
            ('num_heads', self.num_heads > 0 and self.emb_dim % self.num_heads == 0, f'a divisor of {self.emb_dim}'),
            ('max_positions', self.max_positions > 0, 'at least 1'),
            *((field, 0 <= rate < 1, 'in [0, 1)') for field, rate in rates.items()),
        ):
            if not valid:
                raise ValueError(f'MBartConfig.{field} is {getattr(self, field)!r}; it must be {remedy}.')

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.emb_dim // self.num_heads

    @property
    def cache_batch_axis(self) -> int:
        """The batch axis of the arrays in the decoding cache, after that of the layers."""
        return 1


def _norm(config: MBartConfig, name: str) -> nn.Module:
    return layers.layer_norm(_EPSILON, config.dtype, name)


class Attention(layers.Attention):
    """That of T5 with biases, and with queries that are scaled here and not in the initial kernel."""

    def setup(self):
        cfg = self.config
        heads = (cfg.num_heads, cfg.head_dim)
        inward = (cfg.emb_dim,), heads, ('embed', 'joined_kv'), cfg.dtype
        self.query, self.key, self.value = (Dense(*inward, use_bias=True) for _ in range(3))
        self.out = Dense(heads, (cfg.emb_dim,), ('joined_kv', 'embed'), cfg.dtype, use_bias=True)
        self.dropout = nn.Dropout(cfg.attention_dropout_rate)

    def _weights(self, product, queries, keys, bias) -> Float[Array, 'b h q k']:
        return super()._weights(product, queries * self.config.head_dim**-0.5, keys, bias)


class Mlp(nn.Module):
    """Feed-forward block."""

    config: MBartConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b l e'], deterministic: bool) -> Float[Array, 'b l e']:
        cfg = self.config
        y = Dense((cfg.emb_dim,), (cfg.mlp_dim,), ('embed', 'mlp'), cfg.dtype, use_bias=True, name='wi')(x)
        y = nn.with_logical_constraint(y, ('llm_batch', 'length', 'mlp'))
        y = nn.Dropout(cfg.activation_dropout_rate)(ACTIVATIONS[cfg.activation](y), deterministic)
        return Dense((cfg.mlp_dim,), (cfg.emb_dim,), ('mlp', 'embed'), cfg.dtype, use_bias=True, name='wo')(y)


def _finish(config: MBartConfig, residual: Array, update: Array, deterministic: bool) -> Array:
    """Drops out a block's output, adds the residual and names the axes for partitioning."""
    update = nn.Dropout(config.dropout_rate)(update, deterministic)
    return nn.with_logical_constraint(residual + update, STREAM)


def _begun(config: MBartConfig, x: Array, positions: Array, deterministic: bool) -> Array:
    """What the layers of a stack read: embeddings with their positions, normalised; in its compact method."""
    table = Embedding(
        config.max_positions + POSITION_OFFSET, config.emb_dim, config.dtype, config.emb_dim**-0.5,
        rows='abspos_buckets', name='position_embedder',
    )  # fmt: skip
    x = x.astype(config.dtype) + table(positions + POSITION_OFFSET)
    x = _norm(config, 'embedding_layer_norm')(x)
    return nn.with_logical_constraint(nn.Dropout(config.dropout_rate)(x, deterministic), STREAM)


def _mask_bias(mask: Bool[Array, '*shape'], dtype) -> Float[Array, '*shape']:
    return jnp.where(mask, 0.0, _MASKED).astype(dtype)


def _keys_bias(mask: Bool[Array, 'b n'] | None, length: int, dtype) -> Float[Array, '_ 1 1 n']:
    """What is added to the logits of keys; without a mask, nothing."""
    return jnp.zeros((1, 1, 1, length), dtype) if mask is None else _mask_bias(mask[:, None, None, :], dtype)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each pre-normalised. Returns (output, output if `kept`) for nn.scan."""

    config: MBartConfig
    deterministic: bool
    kept: bool

    @nn.compact
    def __call__(self, x, bias):
        cfg = self.config
        y = _norm(cfg, 'pre_attention_layer_norm')(x)
        y = Attention(cfg, name='attention')(y, y, bias, self.deterministic)
        x = _finish(cfg, x, y, self.deterministic)
        y = Mlp(cfg, name='mlp')(_norm(cfg, 'pre_mlp_layer_norm')(x), self.deterministic)
        x = _finish(cfg, x, y, self.deterministic)
        return x, x if self.kept else None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward; (output, None) for nn.scan.

    `position` is None for a whole sequence. In a cached step it is the index of the tokens in x, of which there is
    one for each beam of a sequence, and `encoded` is not read.
    """

    config: MBartConfig
    deterministic: bool
    max_decode_length: int | None

    @nn.compact
    def __call__(self, x, bias, encoded, encoded_bias, position):
        cfg = self.config
        y = _norm(cfg, 'pre_self_attention_layer_norm')(x)
        attention = Attention(cfg, name='self_attention')
        if position is None:
            y = attention(y, y, bias, self.deterministic)
        else:
            written = (position + 1) * x.shape[1]
            cached = cache.append(self, attention.keys_values(y), position, self.max_decode_length)
            y = attention.attend(y, *cached, bias, written=written)
        x = _finish(cfg, x, y, self.deterministic)

        y = _norm(cfg, 'pre_cross_attention_layer_norm')(x)
        attention = Attention(cfg, name='encoder_decoder_attention')
        if position is None:
            y = attention(y, encoded, encoded_bias, self.deterministic)
        else:
            cross = self.variable('cross', 'keys_values', lambda: attention.keys_values(encoded))
            y = attention.attend(y, *cross.value, encoded_bias)
        x = _finish(cfg, x, y, self.deterministic)

        y = Mlp(cfg, name='mlp')(_norm(cfg, 'pre_mlp_layer_norm')(x), self.deterministic)
        return _finish(cfg, x, y, self.deterministic), None


def _stack(layer: type[nn.Module], config: MBartConfig, length: int) -> Any:
    """`length` layers, scanned."""
    return nn.scan(
        rematerialised(layer, config.remat_policy, scanned=True),
        variable_axes={'params': 0, 'cache': 0, 'cross': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=nn.broadcast,
        length=length,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )


class Encoder(nn.Module):
    """The encoder from embeddings to its final norm; what all layers gave where `hidden_states`."""

    config: MBartConfig

    @nn.compact
    def __call__(self, x, mask, positions, deterministic: bool, hidden_states: bool):
        cfg = self.config
        first = _begun(cfg, x, positions, deterministic)
        bias = _keys_bias(mask, x.shape[1], cfg.dtype)
        stack = _stack(EncoderLayer, cfg, cfg.num_encoder_layers)(cfg, deterministic, hidden_states, name='layers')
        x, states = stack(first, bias)
        x = _norm(cfg, 'encoder_norm')(x)
        return x, jnp.concatenate([first[None], states[:-1], x[None]]) if hidden_states else None


class Decoder(nn.Module):
    """The decoder from embeddings to its final norm, over a whole sequence or one token of it; and the logits' bias."""

    config: MBartConfig

    @nn.compact
    def __call__(self, x, encoded, encoded_mask, deterministic: bool, step: bool, max_decode_length: int | None):
        cfg = self.config
        position, rows = None, x.shape[:2]
        if step:
            # The encoder's mask is kept beside its keys, so that a step needs neither.
            encoded_mask = self.variable('cross', 'mask', lambda: encoded_mask).value
            # The beams of one sequence are so many queries to the same keys: nothing is tiled.
            x = x.reshape(encoded_mask.shape[0], -1, cfg.emb_dim)
            position, own = cache.own(self, x.shape[1], encoded_mask.shape[0], max_decode_length, cfg.cache_batch_axis)
            max_decode_length = own.shape[-1] // x.shape[1]
            positions, bias = jnp.broadcast_to(position, (1, 1)), _mask_bias(own, cfg.dtype)[:, None]
            length = encoded_mask.shape[1]
        else:
            positions, length = jnp.arange(x.shape[1])[None], encoded.shape[1]
            bias = _mask_bias(jnp.asarray(np.tri(x.shape[1], dtype=bool))[None, None], cfg.dtype)
        x = _begun(cfg, x, positions, deterministic)
        stack = _stack(DecoderLayer, cfg, cfg.num_decoder_layers)(cfg, deterministic, max_decode_length, name='layers')
        x, _ = stack(x, bias, encoded, _keys_bias(encoded_mask, length, cfg.dtype), position)
        x = _norm(cfg, 'decoder_norm')(x).reshape(*rows, cfg.emb_dim)
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
        return x, self.param('logits_bias', bias, (cfg.vocab_size,), jnp.float32)


def _arranged(params: Any, config: MBartConfig) -> Any:
    """Fresh `params`, such that the decoder soon finds where it is in what it translates.

    Positions are the Transformer's sinusoids in both stacks, as large as tokens; what a block adds is small, as in
    GPT-2, so that both are still there at the end; and the attention to the encoder looks for what is like its query.
    """
    for part, num_layers in (('encoder', config.num_encoder_layers), ('decoder', config.num_decoder_layers)):
        stack, share = params[part], (2 * num_layers) ** -0.5
        stack['position_embedder']['embedding'] = jax.tree.map(_sinusoids, stack['position_embedder']['embedding'])
        for block in stack['layers'].values():
            if last := block.get('out', block.get('wo')):
                last['kernel'] = jax.tree.map(functools.partial(jnp.multiply, share), last['kernel'])
    attention = params['decoder']['layers']['encoder_decoder_attention']
    attention['query']['kernel'] = attention['key']['kernel']
    return params


def _sinusoids(table: Float[Array, 'n e']) -> Float[Array, 'n e']:
    """As large a table of the Transformer's sinusoids (arXiv 1706.03762): all sines, then all cosines."""
    rows, width = table.shape
    angles = np.arange(rows)[:, None] / 10000.0 ** (2 * np.arange(width // 2) / width)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return jnp.asarray(np.pad(waves, ((0, 0), (0, width % 2))), table.dtype)


class MBart(nn.Module):
    """A `LanguageModel` whose encoder reads embeddings, so that adapted speech can stand beside those of tokens.

    Dropout acts only when `deterministic=False` and an rng named 'dropout' is given.
    """

    config: MBartConfig

    def setup(self):
        cfg = self.config
        self.token_embedder = Embedding(cfg.vocab_size, cfg.emb_dim, cfg.dtype, cfg.emb_dim**-0.5)
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    @nn.nowrap
    def init(self, *args, **kwargs) -> Any:
        """Fresh parameters, arranged by `_arranged`."""
        variables = super().init(*args, **kwargs)
        return {**variables, 'params': _arranged(variables['params'], self.config)}

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        """Embeddings of tokens, scaled, without positions; an id outside the vocabulary gives NaN."""
        x = self.token_embedder(tokens)
        return x * math.sqrt(self.config.emb_dim) if self.config.scale_embedding else x

    def encode(
        self,
        embeddings: Float[Array, 'b n e'],
        mask: Bool[Array, 'b n'] | None,
        *,
        deterministic: bool = True,
        positions: Int[Array, '#b n'] | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Encodes a sequence of embeddings as `embed` gives them.

        Args:
            embeddings: without positions, which are added here.
            mask: which of them is valid; what stands elsewhere never changes a valid one. None: all are.
            deterministic: False: drops out, with an rng named 'dropout'.
            positions: of the embeddings, from 0; None: those in the sequence.
            hidden_states: whether to return all layers' outputs too.

        Returns:
            The last layer's output after the final norm [b, n, e]; with `hidden_states` also an array
            [layers + 1, b, n, e]: what the first layer reads (0), then what each layer gives, the last after the final
            norm, as in transformers.
        """
        self._check(embeddings.shape[1], 'what its encoder reads')
        if positions is None:
            positions = jnp.arange(embeddings.shape[1])[None]
        encoded, states = self.encoder(embeddings, mask, positions, self._no_dropout(deterministic), hidden_states)
        return (encoded, states) if hidden_states else encoded

    def decode(
        self,
        decoder_input_tokens: Int[Array, 'b t'],
        encoded: Float[Array, 'b n e'],
        encoder_mask: Bool[Array, 'b n'] | None,
        *,
        deterministic: bool = True,
        decoder_inputs: Float[Array, 'b t e'] | None = None,
    ) -> Float[Array, 'b t v']:
        """Next-token logits in float32; no token sees those after it, so padding needs no mask.

        Args:
            decoder_input_tokens: targets shifted right; 0 is read as the end token.
            encoded: what `encode` gave, and `encoder_mask` its mask; None: all of it is valid.
            deterministic: as of `encode`.
            decoder_inputs: see `LanguageModel`.
        """
        self._check(decoder_input_tokens.shape[1], 'a target')
        given = encoded, encoder_mask, self._no_dropout(deterministic)
        return self._decode(decoder_input_tokens, *given, inputs=decoder_inputs)

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
        encoded = self.encode(prompt, mask, deterministic=deterministic)
        given = decoder_input_tokens, encoded, mask
        return self.decode(*given, deterministic=deterministic, decoder_inputs=decoder_inputs)

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
        kept = self.decoder.variables['intermediates']['layers']['encoder_decoder_attention']
        [weights] = kept['weights']  # [layers, b, heads, t, p]
        layers, wanted = chosen(heads, *weights.shape[:3:2])
        return weights[layers, :, wanted].astype(jnp.float32)

    def start(
        self, prompt: Float[Array, 'b p e'], mask: Bool[Array, 'b p'], max_decode_length: int, beams: int = 1
    ) -> None:
        """See `LanguageModel`: 'cross' then holds the keys and values of what the encoder made of the prompt."""
        self._check(max_decode_length, 'an answer')
        tokens = jnp.zeros((prompt.shape[0] * beams, 1), jnp.int32)
        self._decode(tokens, self.encode(prompt, mask), mask, True, True, max_decode_length)

    def step(self, tokens: Int[Array, 'r 1']) -> Float[Array, 'r v']:
        """See `LanguageModel`. Padding is never written."""
        logits = self._decode(tokens, None, None, True, True)[:, 0]
        return jnp.where(jnp.arange(self.config.vocab_size) == _PADDING, _MASKED, logits)

    def __call__(
        self,
        encoder_input_tokens: Int[Array, 'b l'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, 'b t v']:
        """Logits of text to text; token 0 is padding."""
        prompt, mask = self.embed(encoder_input_tokens), encoder_input_tokens > 0
        return self.logits(prompt, mask, decoder_input_tokens, decoder_target_tokens, deterministic)

    def _decode(self, tokens, encoded, encoder_mask, deterministic, step=False, max_decode_length=None, inputs=None):
        x = self.embed(jnp.where(tokens == _PADDING, _END, tokens))
        if inputs is not None:
            x = jnp.concatenate([x[:, :1], inputs[:, 1:].astype(x.dtype)], axis=1)
        x, bias = self.decoder(x, encoded, encoder_mask, deterministic, step, max_decode_length)
        # A buffer in the reference: no training changes it.
        return self.token_embedder.logits(x) + lax.stop_gradient(bias)

    def _no_dropout(self, deterministic: bool) -> bool:
        return deterministic or not self.has_rng('dropout')

    def _check(self, length: int, what: str) -> None:
        if length > self.config.max_positions:
            raise ValueError(
                f'The language model has {self.config.max_positions} positions (MBartConfig.max_positions), and {what} '
                f'may have {length}: give it shorter audio, text or answers (DecodeConfig.max_decode_length, '
                'TASK_FEATURE_LENGTHS).'
            )
