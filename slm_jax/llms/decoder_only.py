"""Decoder-only language models (Llama, Mistral, Qwen, OPT and their like): one module, the families as configuration.

Reference: `transformers`. Parameters have the names of T5X's decoder, and the axis of the layers comes first. Queries
are grouped by the head of keys that they share.

A prompt and the target after it are one text without a gap: the target's first input, token 0, stands for the last
position of the prompt, so the logits of a target are those from there on. Positions count from the start of a row,
whatever the batch.

Shape names: b batch, p prompt, t target, l positions, e embedding width, v vocabulary, h heads, d head width, k beams,
n = b * k, s positions that are seen.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from slm_jax.llms import Heads, cache, chosen, rotary
from slm_jax.llms.layers import (
    ACTIVATIONS,
    CACHED,
    HEADS,
    REMAT_POLICIES,
    STREAM,
    Dense,
    Embedding,
    LayerNorm,
    Mlp,
    dot_product_attention,
    layer_norm,
    rematerialised,
)

_BANNED = -1e10
_PADDING, _END = 0, 1
INIT = 0.02  # standard deviation, in all families


@dataclasses.dataclass(frozen=True)
class DecoderOnlyConfig:
    """Sizes, family and numerics of one model; the defaults are Llama's.

    Attributes:
        num_kv_heads: heads of keys and values, each shared by as many of `num_heads`.
        mlp_activations: two: a gated MLP, the product of two projections; one: a plain one.
        norm: 'rms', or 'layer' with mean and bias.
        norm_first: before a block, or (False) after its residual is added.
        final_norm: whether a norm comes before the output layer.
        positions: 'rotary', or 'learned' for `max_positions`.
        rope_scaling: as in config.json: `rope_type` ('default', 'linear' or 'llama3') and what belongs to it.
        qkv_bias, out_bias, mlp_bias: whether the projections into attention, out of it, and those of the MLP have one.
        qk_norm: normalise the heads of queries and keys.
        logits_via_embedding: share the embedding with the output layer.
        sliding_window: how many positions, itself included, are seen in the layers `sliding_layers` (None: in all).
        embed_dim: width of the token embeddings where it is another: they are projected to `emb_dim` and back.
        other_ends: tokens that end a text beside token 1; a step writes the end in their place.
        remat_policy: 'none' keeps every activation, 'minimal' the results of matrix products with weights, 'full' only
            the input of each layer.
        dtype: dtype of activations; parameters are created in float32 and cast where they are used.
    """

    vocab_size: int
    emb_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    mlp_activations: tuple[str, ...] = ('silu', 'linear')
    norm: str = 'rms'
    norm_epsilon: float = 1e-6
    norm_first: bool = True
    final_norm: bool = True
    positions: str = 'rotary'
    max_positions: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    logits_via_embedding: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    embed_dim: int | None = None
    other_ends: tuple[int, ...] = ()
    remat_policy: str = 'none'
    dtype: Any = 'float32'

    def __post_init__(self):
        if self.rope_scaling is not None:
            object.__setattr__(self, 'rope_scaling', flax.core.freeze(dict(self.rope_scaling)))  # can be hashed
        scaling = rotary.scaling_type(self.rope_scaling)
        missing = [key for key in rotary.SCALINGS.get(scaling, ()) if key not in (self.rope_scaling or ())]
        activations = self.mlp_activations
        layers, sliding = self.num_layers, self.sliding_layers or ()
        for field, valid, remedy in (
            ('remat_policy', self.remat_policy in REMAT_POLICIES, f'one of {REMAT_POLICIES}'),
            ('norm', self.norm in ('rms', 'layer'), "'rms' or 'layer'"),
            ('positions', self.positions in ('rotary', 'learned'), "'rotary' or 'learned'"),
            ('max_positions', self.positions != 'learned' or (self.max_positions or 0) > 0, 'stated for learned ones'),
            ('mlp_activations', len(activations) in (1, 2) and set(activations) <= set(ACTIVATIONS), 'one or two of'
             f' {[*ACTIVATIONS]}'),
            ('num_kv_heads', self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0, 'a divisor of the'
             f' {self.num_heads} heads'),
            ('head_dim', self.positions != 'rotary' or self.head_dim % 2 == 0, 'even, as positions are rotations'),
            ('rope_scaling', scaling in rotary.SCALINGS, f'of one of the types {[*rotary.SCALINGS]}'),
            ('rope_scaling', not missing, f'with {missing}'),
            ('sliding_window', self.sliding_window is None or self.sliding_window > 0, 'at least 1, or None'),
            ('sliding_layers', all(0 <= layer < layers for layer in sliding), f'of 0 to {layers - 1}'),
            ('other_ends', all(token in range(self.vocab_size) and token != _END for token in self.other_ends),
             'of other tokens'),
        ):  # fmt: skip
            if not valid:
                raise ValueError(f'DecoderOnlyConfig.{field} is {getattr(self, field)!r}; it must be {remedy}.')

    @property
    def cache_batch_axis(self) -> int:
        """The batch axis of the arrays in the decoding cache, after that of the layers."""
        return 1

    def windows(self) -> Int[np.ndarray, ' layers'] | None:
        """How far each layer sees; None: everything, in all of them."""
        if self.sliding_window is None or self.sliding_layers == ():
            return None
        all_of_them = np.full(self.num_layers, np.iinfo(np.int32).max)
        all_of_them[slice(None) if self.sliding_layers is None else [*self.sliding_layers]] = self.sliding_window
        return all_of_them


def _norm(config: DecoderOnlyConfig, name: str | None = None) -> nn.Module:
    if config.norm == 'rms':
        return LayerNorm(config.dtype, config.norm_epsilon, name=name)
    return layer_norm(config.norm_epsilon, config.dtype, name)


class Attention(nn.Module):
    """Grouped-query attention to what comes before: of a whole text, or of a cached step to what was kept of it.

    `room`, (maximum length, beams), is given where a cache is allocated.
    """

    config: DecoderOnlyConfig
    room: tuple[int, int] | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b l e'],
        rotation: tuple[Array, Array] | None,
        seen: Bool[Array, '#b l s'],
        position: Int[Array, ''] | None,
    ) -> Float[Array, 'b l e']:
        """Attends from `x` to what is `seen`; in a step, from the beams of a row at the same `position` of a target."""
        cfg = self.config
        queries = rotary.rotated(self._heads('query', cfg.num_heads, x), rotation)
        keys = rotary.rotated(self._heads('key', cfg.num_kv_heads, x), rotation)
        values = self._heads('value', cfg.num_kv_heads, x)
        if position is None:
            y = dot_product_attention(queries, keys, values, seen)
            self.sow('intermediates', 'queries', queries)
            self.sow('intermediates', 'keys', keys)
        if position is not None or self.room is not None:
            keys_values = [nn.with_logical_constraint(jnp.transpose(y, (0, 2, 3, 1)), CACHED) for y in (keys, values)]
            prompt = self.variable('cross', 'keys_values', lambda: keys_values).value
            if position is not None:
                length = (seen.shape[-1] - prompt[0].shape[-1]) // x.shape[1]
                written = cache.append(self, keys_values, position, length)
                y = self._step(queries, seen, prompt, written, (position + 1) * x.shape[1])
            elif self.room is not None:
                length, beams = self.room
                empty = [jnp.zeros((*y.shape[:-1], beams), y.dtype) for y in keys_values]
                cache.append(self, empty, jnp.int32(0), length)
        y = nn.with_logical_constraint(y, ('llm_batch', *HEADS[1:]))
        out = (cfg.num_heads, cfg.head_dim), (cfg.emb_dim,), ('joined_kv', 'embed'), cfg.dtype
        return Dense(*out, use_bias=cfg.out_bias, name='out')(y)

    def _heads(self, name: str, count: int, x: Float[Array, 'b l e']) -> Float[Array, 'b l h d']:
        cfg = self.config
        dense = (cfg.emb_dim,), (count, cfg.head_dim), ('embed', 'joined_kv'), cfg.dtype
        y = nn.with_logical_constraint(Dense(*dense, use_bias=cfg.qkv_bias, name=name)(x), HEADS)
        if cfg.qk_norm and name != 'value':
            y = LayerNorm(cfg.dtype, cfg.norm_epsilon, 'kv', name=f'{name}_norm')(y)
        return y

    def _step(self, queries, seen, prompt, written, count) -> Float[Array, 'b k h d']:
        """From the beams' queries to `prompt` and the first `count` keys and values of `written`."""
        (prompt_keys, prompt_values), (keys, values) = prompt, written
        size = prompt_keys.shape[-1]

        def attended(length, queries):
            product = functools.partial(jnp.einsum, 'bqhgd,bhdk->bhgqk', queries, preferred_element_type=jnp.float32)
            logits = jnp.concatenate([product(prompt_keys), product(keys[..., :length])], axis=-1)
            logits *= self.config.head_dim**-0.5
            logits = jnp.where(seen[:, None, None, :, : size + length], logits, _BANNED)
            weights = jax.nn.softmax(logits).astype(values.dtype)
            return sum(
                jnp.einsum('bhgqk,bhdk->bqhgd', some, its_values)
                for some, its_values in (
                    (weights[..., :size], prompt_values),
                    (weights[..., size:], values[..., :length]),
                )
            )

        grouped = queries.reshape(*queries.shape[:2], keys.shape[1], -1, queries.shape[-1])
        return cache.read(attended, grouped, count, keys.shape[-1]).reshape(queries.shape)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, with a norm before each or after its residual. (output, None) for nn.scan.

    `window` is how many of the `distances` to what is seen count in this layer.
    """

    config: DecoderOnlyConfig
    room: tuple[int, int] | None

    @nn.compact
    def __call__(self, x, window, rotation, seen, distances, position):
        cfg = self.config
        if window is not None:
            seen = seen & (distances < window)
        blocks = (
            ('pre_self_attention_layer_norm', lambda y: Attention(cfg, self.room, name='self_attention')(
                y, rotation, seen, position)),
            ('pre_mlp_layer_norm', Mlp(cfg, name='mlp')),
        )  # fmt: skip
        for norm_name, block in blocks:
            norm = _norm(cfg, norm_name)
            y = x + block(norm(x) if cfg.norm_first else x)
            x = nn.with_logical_constraint(y if cfg.norm_first else norm(y), STREAM)
        return x, None


class Decoder(nn.Module):
    """What comes after the embeddings, for a whole text or one token of it."""

    config: DecoderOnlyConfig

    def setup(self):
        cfg = self.config
        if cfg.embed_dim is not None:
            self.project_in = Dense((cfg.embed_dim,), (cfg.emb_dim,), ('embed', 'mlp'), cfg.dtype)
            self.project_out = Dense((cfg.emb_dim,), (cfg.embed_dim,), ('mlp', 'embed'), cfg.dtype)
        if cfg.positions == 'learned':
            self.position_embedder = Embedding(cfg.max_positions, cfg.emb_dim, cfg.dtype, INIT, rows='abspos_buckets')
        if not cfg.logits_via_embedding:
            width = cfg.emb_dim if cfg.embed_dim is None else cfg.embed_dim
            axes = ('embed', 'vocab')
            self.logits_dense = Dense((width,), (cfg.vocab_size,), axes, cfg.dtype, out_dtype=jnp.float32)
        if cfg.final_norm:
            self.decoder_norm = _norm(cfg)

    def projected(self, embeddings: Float[Array, 'b l _']) -> Float[Array, 'b l e']:
        """Token embeddings in the width of the layers."""
        if self.config.embed_dim is None:
            return embeddings
        return nn.with_logical_constraint(self.project_in(embeddings), STREAM)

    def finished(self, x: Float[Array, 'b l e']) -> Float[Array, 'b l _']:
        """The last layer's output as the output layer reads it."""
        if self.config.final_norm:
            x = self.decoder_norm(x)
        if self.config.embed_dim is None:
            return x
        return nn.with_logical_constraint(self.project_out(x), STREAM)

    def logits(self, x: Float[Array, 'b l _']) -> Float[Array, 'b l v']:
        """By an output layer of its own."""
        return nn.with_logical_constraint(self.logits_dense(x), ('batch', 'length', 'vocab'))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'n l e'],
        lengths: Int[Array, ' b'] | None = None,
        room: tuple[int, int] | None = None,
        step: bool = False,
        texts: tuple[Int[Array, 'n l'], Int[Array, 'n l']] | None = None,
    ) -> Float[Array, 'n l e']:
        """The last layer's output.

        Args:
            x: a text, or one token of each beam.
            lengths: of the prompts in x, where they are kept in a cache with `room` for (maximum length, beams).
            room: None: nothing is kept.
            step: of the text that a cache is of.
            texts: number and position of each place's text, where a row holds several; None: it is one.
        """
        cfg = self.config
        rows, position = x.shape[:2], None
        if step:
            x, position, positions, seen, distances = self._next(x)
        else:
            positions = np.arange(x.shape[1])[None]
            place = jnp.arange(x.shape[1])  # no constant, which of a long text would be larger than the model
            distances = place[None, :, None] - place
            seen = distances >= 0
            if texts is not None:
                numbers, positions = texts
                seen = seen & (numbers[:, :, None] == numbers[:, None])
            if room is not None:
                self._keep(x, lengths, room)
        positions, rotation = jnp.asarray(positions), None
        if cfg.positions == 'rotary':
            frequencies = rotary.frequencies(cfg.rope_theta, cfg.head_dim, cfg.rope_scaling)
            rotation = rotary.rotation(positions, frequencies)
        else:
            x += self.position_embedder(positions)
        windows = cfg.windows()
        layers = nn.scan(
            rematerialised(DecoderLayer, cfg.remat_policy, scanned=True),
            variable_axes={'params': 0, 'cache': 0, 'cross': 0, 'intermediates': 0},
            split_rngs={'params': True},
            in_axes=(nn.broadcast if windows is None else 0, *[nn.broadcast] * 4),
            length=cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(cfg, room, name='layers')
        x = nn.with_logical_constraint(x.astype(cfg.dtype), STREAM)
        x, _ = layers(x, None if windows is None else jnp.asarray(windows), rotation, seen, distances, position)
        return x.reshape(*rows, cfg.emb_dim)

    def _keep(self, x, lengths, room):
        """What a step has to know of the prompt: which keys are seen, and the last embedding, which comes again."""
        max_decode_length, beams = room
        self.variable('cross', 'mask', lambda: jnp.arange(x.shape[1]) < lengths[:, None] - 1)
        self.variable('cross', 'last', lambda: _at(x, lengths[:, None] - 1))
        cache.own(self, beams, x.shape[0], max_decode_length, self.config.cache_batch_axis)

    def _next(self, x: Float[Array, 'n 1 e']):
        """(x [b, k, e], position of the target, positions in the row, what is seen, how far it is away)."""
        mask, last = (self.get_variable('cross', name) for name in ('mask', 'last'))
        batch, size = mask.shape
        x = x.reshape(batch, -1, x.shape[-1])
        beams = x.shape[1]
        position, own = cache.own(self, beams, batch, None, self.config.cache_batch_axis)
        x = jnp.where(position == 0, last.astype(x.dtype), x)
        positions = jnp.sum(mask, axis=1, keepdims=True) + position
        seen = jnp.concatenate([jnp.broadcast_to(mask[:, None], (batch, beams, size)), own], axis=-1)
        back = jnp.repeat(position - jnp.arange(own.shape[-1] // beams), beams)
        back = jnp.broadcast_to(back, (batch, len(back)))
        distances = jnp.concatenate([positions - jnp.arange(size), back], axis=1)[:, None]
        return x, position, positions, seen, distances


class DecoderOnly(nn.Module):
    """A `LanguageModel` that continues its prompt. There is no dropout: `deterministic` changes nothing.

    With `embed_dim`, embeddings are projected to `emb_dim` before they stand in a prompt.
    """

    config: DecoderOnlyConfig

    def setup(self):
        cfg = self.config
        width = cfg.emb_dim if cfg.embed_dim is None else cfg.embed_dim
        self.token_embedder = Embedding(cfg.vocab_size, width, cfg.dtype, INIT)
        self.decoder = Decoder(cfg)

    def embed(self, tokens: Int[Array, 'b l']) -> Float[Array, 'b l e']:
        """Embeddings of tokens; an id outside the vocabulary gives NaN."""
        return self.decoder.projected(self.token_embedder(tokens))

    def logits(
        self,
        prompt: Float[Array, 'b p e'],
        mask: Bool[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        deterministic: bool = True,
        decoder_inputs: Float[Array, 'b t e'] | None = None,
    ) -> Float[Array, 'b t v']:
        """Logits of a target after a prompt; see `LanguageModel`.

        The first input is not read, and nor are the targets: no token sees the padding after it.
        """
        prompt, lengths = _valid(prompt, mask)
        target = self.embed(decoder_input_tokens[:, 1:]) if decoder_inputs is None else decoder_inputs[:, 1:]
        target = target.astype(prompt.dtype)
        size, count = prompt.shape[1], decoder_input_tokens.shape[1]
        self._check(size + count - 1)
        place = jnp.arange(size + count - 1)
        source = jnp.where(place < lengths[:, None], place, size + place - lengths[:, None])
        x = self.decoder(_at(jnp.concatenate([prompt, target], axis=1), source))
        return self._logits(_at(x, lengths[:, None] - 1 + jnp.arange(count)))

    def attention(
        self,
        prompt: Float[Array, 'b p e'],
        mask: Bool[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
        heads: Heads | None = None,
    ) -> Float[Array, 'h b t p']:
        """See `LanguageModel`: of self-attention."""
        cfg = self.config
        self.logits(prompt, mask, decoder_input_tokens)
        kept = self.decoder.variables['intermediates']['layers']['self_attention']
        [queries], [keys] = kept['queries'], kept['keys']  # [layers, b, l, heads, d]
        places = _valid(prompt, mask)[1][:, None] - 1 + jnp.arange(decoder_input_tokens.shape[1])
        queries = jnp.take_along_axis(queries, places[None, :, :, None, None], axis=2)
        distances = places[:, :, None] - jnp.arange(keys.shape[2])
        far = np.full(cfg.num_layers, np.iinfo(np.int32).max)
        layers, wanted = chosen(heads, cfg.num_layers, cfg.num_heads)
        read, which = np.unique(layers, return_inverse=True)

        def of_layer(layer):
            queries, keys, window = layer
            grouped = queries.reshape(*queries.shape[:2], cfg.num_kv_heads, -1, cfg.head_dim)
            logits = jnp.einsum('bqhgd,bkhd->hgbqk', grouped, keys, preferred_element_type=jnp.float32)
            seen = (distances >= 0) & (distances < window)
            weights = jax.nn.softmax(jnp.where(seen, logits * cfg.head_dim**-0.5, _BANNED))
            return weights[..., : prompt.shape[1]].reshape(-1, *weights.shape[2:4], prompt.shape[1])

        windows = far if (its := cfg.windows()) is None else its
        found = jax.lax.map(of_layer, (queries[read], keys[read], jnp.array(windows)[read]))
        return found[which, wanted]

    def outputs(
        self, x: Float[Array, 'b l e'], numbers: Int[Array, 'b l'], positions: Int[Array, 'b l']
    ) -> Float[Array, 'b l _']:
        """What `head` reads at each place of rows that hold several texts, none of which sees another.

        Args:
            x: embeddings.
            numbers: of the text that each place belongs to; 0 where it belongs to none.
            positions: of each place in its text.
        """
        self._check(x.shape[1])
        return self.decoder.finished(self.decoder(x, texts=(numbers, positions)))

    def head(self, x: Float[Array, 'b l _']) -> Float[Array, 'b l v']:
        """Logits in float32 of `outputs`."""
        return self.token_embedder.logits(x) if self.config.logits_via_embedding else self.decoder.logits(x)

    def start(
        self, prompt: Float[Array, 'b p e'], mask: Bool[Array, 'b p'], max_decode_length: int, beams: int = 1
    ) -> None:
        """Reads the prompt and allocates a cache; see `LanguageModel`.

        'cross' then holds keys and values of the prompt, 'cache' has room for those of the beams' tokens.
        """
        self._check(prompt.shape[1] + max_decode_length - 1)
        prompt, lengths = _valid(prompt, mask)
        self.decoder(prompt, lengths, (max_decode_length, beams))

    def step(self, tokens: Int[Array, 'n 1']) -> Float[Array, 'n v']:
        """Logits after `tokens`; see `LanguageModel`.

        Padding is never written. The end has the highest of the logits of all `other_ends`, which are not written.
        """
        logits = self._logits(self.decoder(self.embed(tokens), step=True))[:, 0]
        others = self.config.other_ends
        end = jnp.max(logits[:, (_END, *others)], axis=1, keepdims=True)
        ids = jnp.arange(logits.shape[-1])
        logits = jnp.where(ids == _END, end, logits)
        return jnp.where(jnp.isin(ids, jnp.array((_PADDING, *others))), _BANNED, logits)

    def __call__(
        self,
        prompt_tokens: Int[Array, 'b p'],
        decoder_input_tokens: Int[Array, 'b t'],
        decoder_target_tokens: Int[Array, 'b t'] | None = None,
    ) -> Float[Array, 'b t v']:
        """Logits of text after text; token 0 is padding."""
        prompt = self.embed(prompt_tokens)
        return self.logits(prompt, prompt_tokens > 0, decoder_input_tokens, decoder_target_tokens)

    def _logits(self, x: Float[Array, 'b l e']) -> Float[Array, 'b l v']:
        return self.head(self.decoder.finished(x))

    def _check(self, length: int) -> None:
        if self.config.positions == 'learned' and length > (self.config.max_positions or 0):
            raise ValueError(
                f'The language model has {self.config.max_positions} positions (DecoderOnlyConfig.max_positions), '
                f'and a prompt with its answer may have {length}: give it shorter audio, text or answers '
                '(DecodeConfig.max_decode_length, TASK_FEATURE_LENGTHS).'
            )


def _valid(prompt: Float[Array, 'b p e'], mask: Bool[Array, 'b p']) -> tuple[Float[Array, 'b p e'], Int[Array, ' b']]:
    """A prompt that is zero in masked positions, and its lengths; one without any position has one of zero."""
    return jnp.where(mask[..., None], prompt, 0), jnp.maximum(jnp.sum(mask, axis=1), 1)


def _at(x: Float[Array, 'b l e'], places: Int[Array, 'b q']) -> Float[Array, 'b q e']:
    return jnp.take_along_axis(x, places[..., None], axis=1, mode='clip')
