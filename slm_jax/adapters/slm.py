"""The adapter of SLM (arXiv 2310.00230): fewer frames, a few Transformer layers, the LLM's width.

The paper states a small stack of Transformer layers; the kind of reduction, relative positions and
the norms around the projections are choices of this project.

Shape names: b batch, t frames, d frame width, s = ceil(t / reduction_factor) slots, e adapter
width, o width of the LLM's embeddings, v CTC labels.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

_REDUCTIONS = ('discard', 'stack', 'mean', 'conv', 'ctc_blank')
_REMAT_POLICIES = ('none', 'minimal', 'full')
_NUM_BUCKETS = 32
_MAX_DISTANCE = 128
_SLOTS = ('batch', 'length', 'embed')  # axes of what goes from layer to layer


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Sizes and reduction of an adapter.

    Attributes:
        output_dim: width of the LLM's token embeddings.
        emb_dim, num_heads, head_dim, mlp_dim, num_layers: of the Transformer; 0 layers is allowed.
        reduction: how `reduction_factor` frames become one:
            'discard' keeps the first of them; 'mean' averages them; 'stack' concatenates them;
            'conv' is a strided convolution over twice as many frames, then a GELU;
            'ctc_blank' drops frames whose likeliest CTC label is blank and averages runs of the
            same label, see `ctc_segments`.
        remat_policy: 'none', 'minimal' or 'full': which activations the backward pass recomputes.
        dtype: of activations; parameters are float32.
    """

    output_dim: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int = 2
    reduction: str = 'discard'
    reduction_factor: int = 4
    dropout_rate: float = 0.0
    remat_policy: str = 'none'
    dtype: Any = 'float32'

    def __post_init__(self):
        name = type(self).__name__
        for field, choices in (('reduction', _REDUCTIONS), ('remat_policy', _REMAT_POLICIES)):
            if getattr(self, field) not in choices:
                raise ValueError(f'{name}.{field} is {getattr(self, field)!r}; choose one of {choices}.')
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f'{name}.dropout_rate is {self.dropout_rate!r}; it must be in [0, 1).')
        if self.reduction_factor < 1:
            raise ValueError(f'{name}.reduction_factor is {self.reduction_factor}; use 1 to keep every frame, or more.')


@dataclasses.dataclass(frozen=True)
class SlmAdapterConfig(AdapterConfig):
    """What `SlmAdapter` is, besides.

    Attributes:
        output_scale: initial root mean square of the output; that of the LLM's embeddings is best.
    """

    output_scale: float = 1.0


class RmsNorm(nn.Module):
    """Divides by the root mean square over the last axis, in float32, and scales."""

    dtype: Any
    axis: str = 'embed'
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, '*b e']) -> Float[Array, '*b e']:
        init = nn.initializers.constant(self.initial_scale)
        init = nn.with_logical_partitioning(init, (self.axis,))
        scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.mean(lax.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * scale).astype(self.dtype)


class Linear(nn.Module):
    """A matrix product without bias."""

    features: int
    axes: tuple[str, str]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, '*b i']) -> Float[Array, '*b o']:
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
        init = nn.with_logical_partitioning(init, self.axes)
        kernel = self.param('kernel', init, (x.shape[-1], self.features), jnp.float32)
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class RelativePositionBias(nn.Module):
    """A learned scalar per head and bucket of distances, near ones exact, far ones logarithmic."""

    num_heads: int

    @nn.compact
    def __call__(self, length: int) -> Float[Array, '1 h s s']:
        init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
        table = self.param(
            'rel_embedding',
            nn.with_logical_partitioning(init, ('heads', 'relpos_buckets')),
            (self.num_heads, _NUM_BUCKETS),
            jnp.float32,
        )
        side, exact = _NUM_BUCKETS // 2, _NUM_BUCKETS // 4
        offsets = np.arange(1 - length, length)
        distance = np.abs(offsets)
        far = np.log(np.maximum(distance, exact) / exact) / np.log(_MAX_DISTANCE / exact)
        far = np.minimum(exact + (far * (side - exact)).astype(int), side - 1)
        buckets = np.where(distance < exact, distance, far) + side * (offsets > 0)
        # A Toeplitz matrix: repeating its padded values and cutting rows one shorter shifts each
        # row by one. The gradient then needs no scatter of s ** 2 elements.
        width = 2 * length - 1
        values = jnp.tile(jnp.pad(table[:, buckets], ((0, 0), (0, 1))), (1, length))
        skewed = values[:, : length * width].reshape(self.num_heads, length, width)
        return skewed[None, :, :, length - 1 :]


class Layer(nn.Module):
    """Self-attention and a gated GELU block, each pre-normalised; (output, None) for nn.scan."""

    config: AdapterConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, 'b s e'], bias: Float[Array, 'b h s s']):
        cfg = self.config
        linear, named = functools.partial(Linear, dtype=cfg.dtype), nn.with_logical_constraint
        dropout = nn.Dropout(cfg.dropout_rate, deterministic=self.deterministic)
        joined, to_joined = cfg.num_heads * cfg.head_dim, ('embed', 'joined_kv')

        y = RmsNorm(cfg.dtype, name='pre_attention_norm')(x)
        heads = (*y.shape[:2], cfg.num_heads, cfg.head_dim)
        query, key, value = (
            named(linear(joined, to_joined, name=name)(y).reshape(heads), ('batch', 'length', 'heads', 'kv'))
            for name in ('query', 'key', 'value')
        )
        logits = jnp.einsum('bqhd,bkhd->bhqk', query * cfg.head_dim**-0.5, key)
        weights = dropout(jax.nn.softmax(logits.astype(jnp.float32) + bias).astype(cfg.dtype))
        y = jnp.einsum('bhqk,bkhd->bqhd', weights, value).reshape(*y.shape[:2], joined)
        y = linear(cfg.emb_dim, ('joined_kv', 'embed'), name='out')(named(y, ('batch', 'length', 'joined_kv')))
        x = named(x + dropout(y), _SLOTS)

        y = RmsNorm(cfg.dtype, name='pre_mlp_norm')(x)
        gate = nn.gelu(linear(cfg.mlp_dim, ('embed', 'mlp'), name='wi_0')(y))
        y = dropout(gate * linear(cfg.mlp_dim, ('embed', 'mlp'), name='wi_1')(y))
        y = named(y, ('batch', 'length', 'mlp'))
        x = x + dropout(linear(cfg.emb_dim, ('mlp', 'embed'), name='wo')(y))
        return named(x, _SLOTS), None


class SlmAdapter(nn.Module):
    """Frames of a speech encoder to embeddings for an LLM.

    Dropout acts only when `deterministic=False` and an rng named 'dropout' is given.
    """

    config: SlmAdapterConfig

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int32[Array, ' b'],
        ctc_logits: Float[Array, 'b t v'] | None = None,
        deterministic: bool = True,
        label_embeddings: Float[Array, 'v o'] | None = None,
    ) -> tuple[Float[Array, 'b s o'], Int32[Array, ' b']]:
        """Adapts frames; what stands at and after `frame_lengths` changes nothing.

        Args:
            frames: the encoder's output, and `frame_lengths` the valid frames of each row.
            ctc_logits: for reduction 'ctc_blank' only, frame by frame; label 0 is blank.
            deterministic: no dropout.
            label_embeddings: the LLM's embedding of each CTC label, and in the place of blank's that of the token with
                which a text begins. If given, this stands first, and a slot is the mean of the others under the
                labels' probabilities (LegoSLM, arXiv 2505.11352), to which the Transformer's output is added: with
                a small `output_scale` the LLM reads what CTC writes, from the first step.

        Returns:
            embeddings, 0 after their length, and their lengths: ceil(frame_lengths /
            reduction_factor), or for 'ctc_blank' at most that; with `label_embeddings` one more.

        Raises:
            ValueError: reduction 'ctc_blank' without `ctc_logits`, or `label_embeddings` without it.
        """
        cfg = self.config
        deterministic = deterministic or not self.has_rng('dropout')
        valid = jnp.arange(frames.shape[1]) < frame_lengths[:, None]
        frames = RmsNorm(cfg.dtype, axis='speech_embed', name='frames_norm')(jnp.where(valid[:, :, None], frames, 0))
        if label_embeddings is not None:
            if cfg.reduction != 'ctc_blank':
                raise ValueError(
                    f"label_embeddings need SlmAdapterConfig.reduction 'ctc_blank', not {cfg.reduction!r}."
                )
            if ctc_logits is not None and len(label_embeddings) != ctc_logits.shape[-1]:
                raise ValueError(
                    f'{len(label_embeddings)} label_embeddings for a CTC head of {ctc_logits.shape[-1]} labels: '
                    'vocabularies.names.speech_encoder has to be the foundation that the head belongs to.'
                )
        if cfg.reduction == 'ctc_blank':
            if ctc_logits is None:
                raise ValueError(
                    "SlmAdapterConfig.reduction is 'ctc_blank' but ctc_logits is None; "
                    'give the speech encoder a CTC head or choose another reduction.'
                )
            slots, lengths = ctc_segments(jnp.argmax(ctc_logits, axis=-1), frame_lengths, cfg.reduction_factor)
            num_slots = -(-frames.shape[1] // cfg.reduction_factor)
            x = mean_of_slots(frames, slots, num_slots)
        else:
            lengths = -(-frame_lengths // cfg.reduction_factor)
            x = reduced(frames, frame_lengths, cfg)
        x = transformed(x, lengths, cfg, deterministic)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = Linear(cfg.output_dim, ('embed', 'llm_embed'), cfg.dtype, name='output_projection')(x)
        x = RmsNorm(cfg.dtype, axis='llm_embed', initial_scale=cfg.output_scale, name='output_norm')(x)
        if label_embeddings is not None and ctc_logits is not None:
            labels = jax.nn.softmax(ctc_logits[..., 1:].astype(jnp.float32))
            spelt = jnp.where(slots[:, :, None] >= 0, labels @ label_embeddings[1:], 0).astype(cfg.dtype)
            x = x + mean_of_slots(spelt, slots, num_slots)
            start = jnp.broadcast_to(label_embeddings[0].astype(cfg.dtype), x[:, :1].shape)
            x = jnp.concatenate([start, x], axis=1)
            lengths = jnp.where(lengths > 0, lengths + 1, 0)
            valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = nn.with_logical_constraint(jnp.where(valid[:, :, None], x, 0), ('batch', 'length', 'llm_embed'))
        return x, lengths.astype(jnp.int32)

    def spans(
        self,
        frames: Float[Array, 'b t d'],
        frame_lengths: Int32[Array, ' b'],
        ctc_logits: Float[Array, 'b t v'] | None = None,
        deterministic: bool = True,
        label_embeddings: Float[Array, 'v o'] | None = None,
    ) -> Int32[Array, '2 b s']:
        """The first frame of each embedding that `__call__` gives, and the one after its last; arguments as there."""
        factor = self.config.reduction_factor
        num_slots = -(-frames.shape[1] // factor)
        if self.config.reduction == 'ctc_blank':
            assert ctc_logits is not None, '__call__ says why'
            slots, _ = ctc_segments(jnp.argmax(ctc_logits, axis=-1), frame_lengths, factor)
            spans = spans_of_slots(slots, num_slots)
        else:
            ends = factor * jnp.arange(num_slots + 1)
            spans = jnp.minimum(jnp.stack([ends[:-1], ends[1:]])[:, None], frame_lengths[:, None])
        return spans if label_embeddings is None else jnp.pad(spans, ((0, 0), (0, 0), (1, 0)))


def transformed(
    x: Float[Array, 'b s i'],
    lengths: Int32[Array, ' b'],
    cfg: AdapterConfig,
    deterministic: bool,
    seen: Bool[Array, '#b s s'] | None = None,
) -> Float[Array, 'b s e']:
    """What the Transformer makes of slots, normalised; its modules are those of the adapter that calls this.

    `seen` says which slots (the last axis) each of them attends to; None: to all of its clip.
    """
    x = Linear(cfg.emb_dim, ('speech_embed', 'embed'), cfg.dtype, name='input_projection')(x)
    x = nn.with_logical_constraint(x, _SLOTS)
    if cfg.reduction == 'conv':
        x = nn.gelu(x)
    if cfg.num_layers:
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        bias = RelativePositionBias(cfg.num_heads, name='relpos_bias')(x.shape[1])
        bias = bias + jnp.where(valid, 0.0, -1e10)[:, None, None, :]
        if seen is not None:
            bias = jnp.where(seen[:, None], bias, -1e10)
        x, _ = _stack(cfg)(cfg, deterministic, name='layers')(x, bias)
    return RmsNorm(cfg.dtype, name='final_norm')(x)


def _stack(cfg: AdapterConfig):
    layer = Layer
    if cfg.remat_policy != 'none':
        policy = None
        if cfg.remat_policy == 'minimal':
            policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
        layer = nn.remat(layer, prevent_cse=False, policy=policy)
    return nn.scan(
        layer,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=nn.broadcast,
        length=cfg.num_layers,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )


def reduced(frames: Float[Array, 'b t d'], lengths: Int32[Array, ' b'], cfg: AdapterConfig) -> Float[Array, 'b s i']:
    """The reductions of fixed rate, as far as they have no parameters; padding frames are 0."""
    factor = cfg.reduction_factor
    batch, time, width = frames.shape
    num_slots = -(-time // factor)
    if cfg.reduction == 'discard':
        return frames[:, ::factor]

    def grouped(before, num_groups):
        after = num_groups * factor - time - before
        padded = jnp.pad(frames, ((0, 0), (before, after), (0, 0)))
        return padded.reshape(batch, num_groups, factor * width)

    if cfg.reduction == 'mean':
        sums = grouped(0, num_slots).reshape(batch, num_slots, factor, width).sum(axis=2)
        counts = lengths[:, None] - jnp.arange(num_slots) * factor
        return sums / jnp.clip(counts, 1, factor)[:, :, None].astype(frames.dtype)
    if cfg.reduction == 'stack':
        return grouped(0, num_slots)
    # A convolution is the product of its kernel with windows: here 2 * factor frames, the slot's
    # own and half a slot on either side. XLA is faster at the product than at the convolution.
    groups = grouped(factor // 2, num_slots + 1)
    return jnp.concatenate([groups[:, :-1], groups[:, 1:]], axis=-1)


def ctc_segments(
    labels: Int32[Array, 'b t'], lengths: Int32[Array, ' b'], factor: int
) -> tuple[Int32[Array, 'b t'], Int32[Array, ' b']]:
    """The slot of every frame under CTC-blank filtering, and the number of slots used.

    Blank frames (label 0) are dropped. Frames of one uninterrupted run of a label share a slot, and
    slots follow each other without gaps. A row has ceil(length / factor) slots at most: if it has
    more runs than that, neighbouring runs share a slot, evenly over the row, so no label is lost. A
    row that is all blank keeps all frames, in one slot. Slot -1 marks dropped and padding frames.
    """
    valid = jnp.arange(labels.shape[1]) < lengths[:, None]
    kept = valid & (labels != 0)
    kept = jnp.where(jnp.any(kept, axis=1, keepdims=True), kept, valid)
    previous = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    run = jnp.cumsum(kept & (labels != previous), axis=1) - 1
    num_runs = run[:, -1:] + 1
    # The cap follows the row's own length: it must not depend on the padding of its batch.
    num_slots = jnp.minimum(num_runs, -(-lengths[:, None] // factor))
    slots = run * num_slots // jnp.maximum(num_runs, 1)
    return jnp.where(kept, slots, -1), num_slots[:, 0]


def spans_of_slots(slots: Int32[Array, 'b t'], num_slots: int) -> Int32[Array, '2 b s']:
    """The first frame of each slot and the one after its last; 0 and 0 where there are none."""
    member = slots[:, None, :] == jnp.arange(num_slots)[:, None]
    first, behind = jnp.argmax(member, axis=2), member.shape[2] - jnp.argmax(member[:, :, ::-1], axis=2)
    return jnp.stack([first, jnp.where(jnp.any(member, axis=2), behind, 0)]).astype(jnp.int32)


def mean_of_slots(frames: Float[Array, 'b t d'], slots: Int32[Array, 'b t'], num_slots: int) -> Float[Array, 'b s d']:
    """The mean of the frames of each slot, 0 where there are none."""
    member: Bool[Array, 'b s t'] = slots[:, None, :] == jnp.arange(num_slots)[:, None]
    counts = jnp.sum(member, axis=2)
    sums = jnp.einsum('bst,btd->bsd', member.astype(frames.dtype), frames)
    return sums / jnp.maximum(counts, 1)[:, :, None].astype(frames.dtype)
