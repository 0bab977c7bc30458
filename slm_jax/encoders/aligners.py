"""Aligners: where in a speech encoder's frames each of a language model's tokens is said.

All have one interface, that of `Aligner`: frames and, where there is one, a transcript in the language model's tokens
in; for every token the last frame of its segment out. Segments follow each other and are all of a row's frames: silence
at the beginning is the first token's, a pause is part of the token before it, and silence at the end of the last one.
Each has one frame at least.

    params = initial_params(aligner, rng, frames, frame_lengths, tokens, token_lengths)
    aligner.apply({'params': params}, frames, frame_lengths, tokens, token_lengths)     with the transcript
    aligner.apply({'params': params}, frames, frame_lengths)                            the aligner writes the tokens

Shape names: b batch, f frames, d frame width, t tokens, l labels of CTC or characters, v how many kinds of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from slm_jax.encoders import alignment, whisper
from slm_jax.encoders.ctc import CtcHead, ctc_fits, ctc_loss_of_many, ctc_runs
from slm_jax.encoders.layers import FRAMES, conv, layer_norm
from slm_jax.encoders.spelling import Spelling, Spelt, at, front

# As in word times: a label is written within its sound, so half of the gap before it is its token's, up to so many
# frames of 20 ms.
_EARLIER = 4


class Alignment(NamedTuple):
    """Segments of frames, one for each token.

    Attributes:
        boundaries: the last frame of each token's segment, strictly rising, the last one the row's last frame; a
            segment begins after the boundary before it. 0 after `lengths`.
        lengths: how many tokens a row has. 0 where nothing is said, where there is no speech, and where there are more
            tokens than frames can hold: such a row is told by a transcript of more than 0 tokens.
        tokens: the transcript's as they were given, or those that the aligner writes; 0 after `lengths`.
    """

    boundaries: Int32[Array, 'b t']
    lengths: Int32[Array, ' b']
    tokens: Int32[Array, 'b t']


def check_fits(found: Alignment, token_lengths: Int[Array, ' b'], names: Sequence[str]) -> None:
    """Refuses transcripts that have more tokens, or labels of them, than frames; where answers are waited for.

    Args:
        found: of the transcripts.
        token_lengths: of these.
        names: of the recordings.

    Raises:
        ValueError: names those.
    """
    unfit = np.flatnonzero((np.asarray(found.lengths) == 0) & (np.asarray(token_lengths) > 0))
    if len(unfit):
        listed = ', '.join(f'{names[row]} ({int(token_lengths[row])} tokens)' for row in unfit[:3])
        raise ValueError(
            f'{listed}{" …" if len(unfit) > 3 else ""}: the speech is too short for its transcript. Give the '
            'transcript of this recording, or the whole recording.'
        )


class Aligner(Protocol):
    """What a system needs of an aligner, a Flax module; one that is not trained has no `losses`.

    Attributes:
        needs_tokens: it does not write tokens itself: a call without them is a ValueError.
    """

    needs_tokens: bool

    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'] | None = None,
        token_lengths: Int[Array, ' b'] | None = None,
        token_ends: Float[Array, 'b t'] | None = None,
    ) -> Alignment:
        """Aligns; what stands after the lengths changes nothing, nor what else is in the batch. No dropout.

        Args:
            frames: a speech encoder's, and `frame_lengths` the valid ones of each row.
            tokens: the transcript, without its end; `token_lengths` of them are valid. None: the aligner writes them,
                and there are as many places for them as frames.
            token_ends: seconds at which each token ends, of a file that says so; minus that where it is an estimate,
                within a word; 0 where it says nothing. Only `ExternalAligner` reads them.

        Raises:
            ValueError: it needs `tokens` or `token_ends`, and they are None.
        """

    def losses(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'],
        token_lengths: Int[Array, ' b'],
        deterministic: bool = True,
    ) -> tuple[Bool[Array, ' b'], dict[str, Float[Array, ' b']]]:
        """What it is trained by: which rows' transcripts fit into their frames, and sums over each row's tokens.

        `loss` among them is to be made small; the others are told.
        """


def initial_params(
    aligner: nn.Module,
    rng: Key[Array, ''],
    frames: Float[Array, 'b f d'],
    frame_lengths: Int[Array, ' b'],
    tokens: Int[Array, 'b t'],
    token_lengths: Int[Array, ' b'],
) -> dict[str, Any]:
    """Fresh parameters; {} of an aligner that has none."""
    if not hasattr(aligner, 'losses'):
        return {}
    return aligner.init(rng, frames, frame_lengths, tokens, token_lengths, method='losses')['params']


def partition(
    ends: Int[Array, 'b t'], lengths: Int[Array, ' b'], frame_lengths: Int[Array, ' b']
) -> tuple[Int32[Array, 'b t'], Int32[Array, ' b']]:
    """Boundaries as `Alignment` has them, and their number, of those that an aligner thinks of.

    Args:
        ends: the last frame of each token; they may be equal, fall, or lie outside.
        lengths: number of tokens.
        frame_lengths: valid frames of each row.
    """
    place = jnp.arange(ends.shape[1])
    lengths = jnp.where(lengths <= frame_lengths, lengths, 0).astype(jnp.int32)
    last = place == lengths[:, None] - 1
    ends = jnp.where(last, frame_lengths[:, None] - 1, jnp.maximum(ends, 0))
    # Each is one more than the one before it at least, and leaves a frame for each that comes.
    rising = lax.cummax(ends - place, axis=1) + place
    rising = jnp.minimum(rising, (frame_lengths - lengths)[:, None] + place)
    return jnp.where(place < lengths[:, None], rising, 0).astype(jnp.int32), lengths


def within(
    starts: Int[Array, 'b t'],
    stops: Int[Array, 'b t'],
    heard: Bool[Array, 'b t'],
    lengths: Int[Array, ' b'],
    frame_lengths: Int[Array, ' b'],
) -> tuple[Int32[Array, 'b t'], Int32[Array, ' b']]:
    """Boundaries where it is known when tokens are said; see `partition`.

    Args:
        starts, stops: the first frame of each token that is `heard`, and the one after its last. Tokens that are not,
            as a comma, have the pause behind the token before them.
        lengths: number of tokens.
        frame_lengths: valid frames of each row.
    """
    heard &= jnp.arange(starts.shape[1]) < lengths[:, None]
    end = frame_lengths[:, None]
    following = lax.cummin(jnp.where(heard, starts, end), axis=1, reverse=True)
    following = jnp.concatenate([following[:, 1:], end], axis=1)
    said = lax.cummax(jnp.where(heard, stops, 0), axis=1)
    gap = jnp.minimum(_EARLIER, jnp.maximum(following - said, 0) // 2)
    paused = heard & ~jnp.pad(heard[:, 1:], ((0, 0), (0, 1)))
    return partition(jnp.where(paused, stops, following - gap) - 1, lengths, frame_lengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignerConfig:
    """Sizes of an aligner.

    Attributes:
        spelling: of the language model's tokens.
        emb_dim, num_layers: of its layers.
        dropout_rate: of the frames that it reads.
        dtype: of activations; parameters are float32.
    """

    spelling: Spelling
    emb_dim: int
    num_layers: int
    dropout_rate: float = 0.0
    dtype: Any = 'float32'

    def __post_init__(self):
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f'{type(self).__name__}.dropout_rate is {self.dropout_rate!r}; it must be in [0, 1).')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(AlignerConfig):
    """Of an aligner whose layers are a Transformer's."""

    num_heads: int
    mlp_dim: int


def fit(token_lengths: Int[Array, ' b'], frame_lengths: Int[Array, ' b']) -> Bool[Array, ' b']:
    """Whether each row has a transcript, and a frame for each of its tokens."""
    return (token_lengths > 0) & (token_lengths <= frame_lengths)


class Trunk(nn.Module):
    """A convolution over an encoder's frames, then a Transformer; frames again, 0 beyond each row's own."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, frames: Float[Array, 'b f d'], frame_lengths: Int[Array, ' b'], deterministic: bool
    ) -> Float[Array, 'b f e']:
        cfg = self.config
        valid = (jnp.arange(frames.shape[1]) < frame_lengths[:, None])[..., None]
        x = normalized(frames, valid, cfg.dtype)
        x = nn.Dropout(cfg.dropout_rate, deterministic=deterministic)(x)
        x = nn.with_logical_constraint(conv(cfg.emb_dim, 3, 1, 1, cfg.dtype, 'conv')(x), FRAMES)
        x = jnp.where(valid, nn.gelu(x), 0)
        if cfg.num_layers:
            sizes = whisper.WhisperConfig(cfg.num_layers, cfg.emb_dim, cfg.num_heads, cfg.mlp_dim, dtype=cfg.dtype)
            x = whisper.layers(sizes, x, jnp.maximum(frame_lengths, 1))
        return jnp.where(valid, layer_norm(1e-5, cfg.dtype, 'layer_norm')(x), 0)


def normalized(frames: Float[Array, 'b f d'], valid: Bool[Array, 'b f 1'], dtype: Any) -> Float[Array, 'b f d']:
    """Frames of mean 0 and variance 1 each: encoders differ in their scale."""
    norm = nn.LayerNorm(1e-5, dtype, use_bias=False, use_scale=False, use_fast_variance=False)
    return jnp.where(valid, norm(frames), 0)


def wants(aligner: str, what: str) -> ValueError:
    """What is wrong where an aligner was not given `what`."""
    return ValueError(
        f'{aligner} finds where a known transcript is said, and was given no {what}. Give it, or use an aligner that '
        'writes the transcript: CtcAligner or CifAligner.'
    )


class CtcAligner(nn.Module):
    """Frames -> CTC labels, single characters or parts of words; the likeliest path that spells a transcript.

    Without a transcript its tokens are those that the greedily read labels spell.
    """

    config: TransformerConfig
    needs_tokens = False

    def setup(self):
        self.trunk = Trunk(self.config)
        self.head = CtcHead(self.config.spelling.num_labels)

    def logits(
        self, frames: Float[Array, 'b f d'], frame_lengths: Int[Array, ' b'], deterministic: bool = True
    ) -> Float[Array, 'b f v']:
        """Of each frame's label."""
        return self.head(self.trunk(frames, frame_lengths, deterministic))

    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'] | None = None,
        token_lengths: Int[Array, ' b'] | None = None,
        token_ends: Float[Array, 'b t'] | None = None,
    ) -> Alignment:
        """See `Aligner`."""
        logits, spelling = self.logits(frames, frame_lengths), self.config.spelling
        if tokens is None or token_lengths is None:
            labels, starts, stops = ctc_runs(logits, frame_lengths)
            labels, starts, stops = _tidied(spelling.between, labels, starts, stops)
            tokens, lengths, spelt = spelling.read(labels)
        else:
            spelt = spelling.spell(tokens, token_lengths, frames.shape[1] + 1)
            starts, stops, fits = alignment.align(logits, frame_lengths, spelt.labels)
            lengths = jnp.where(fits, token_lengths, 0)
        return found(tokens, lengths, spelt, starts, stops, frame_lengths)

    def losses(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'],
        token_lengths: Int[Array, ' b'],
        deterministic: bool = True,
    ) -> tuple[Bool[Array, ' b'], dict[str, Float[Array, ' b']]]:
        """CTC's loss; see `Aligner`."""
        labels = self.config.spelling.spell(tokens, token_lengths, frames.shape[1] + 1).labels
        logits = self.logits(frames, frame_lengths, deterministic)
        fits = ctc_fits(frame_lengths, labels) & fit(token_lengths, frame_lengths)
        return fits, {'loss': ctc_loss_of_many(logits, frame_lengths, labels)}


def _tidied(between: int, labels: Int[Array, 'b l'], *times: Int[Array, 'b l']) -> list[Int[Array, 'b l']]:
    """Labels, and times of each, without marks between words that nothing follows, or another mark, or that begin."""
    following = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)))
    first = jnp.arange(labels.shape[1]) == 0
    void = (labels == between) & (first | (following == 0) | (following == between))
    return front((labels != 0) & ~void, labels, *times)


def found(
    tokens: Int[Array, 'b t'],
    lengths: Int[Array, ' b'],
    spelt: Spelt,
    starts: Int[Array, 'b l'],
    stops: Int[Array, 'b l'],
    frame_lengths: Int[Array, ' b'],
) -> Alignment:
    """The alignment of tokens of whose labels the frames are known."""
    times = at(starts, spelt.firsts), at(stops, spelt.lasts)
    boundaries, lengths = within(*times, spelt.heard, lengths, frame_lengths)
    return Alignment(boundaries, lengths, until(tokens, lengths))


def until(tokens: Int[Array, 'b t'], lengths: Int[Array, ' b']) -> Int32[Array, 'b t']:
    """Tokens, 0 after `lengths`."""
    return jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None], tokens, 0).astype(jnp.int32)


class ExternalAligner(nn.Module):
    """Boundaries that a file says: of MFA, UnitY2's own aligner or any other; see `slm_jax.data.alignments`.

    Attributes:
        frames_per_second: of the speech encoder.
    """

    frames_per_second: float
    needs_tokens = True

    def __call__(
        self,
        frames: Float[Array, 'b f d'],
        frame_lengths: Int[Array, ' b'],
        tokens: Int[Array, 'b t'] | None = None,
        token_lengths: Int[Array, ' b'] | None = None,
        token_ends: Float[Array, 'b t'] | None = None,
    ) -> Alignment:
        """See `Aligner`; rows of which no end is known have no tokens."""
        if tokens is None or token_lengths is None:
            raise wants('ExternalAligner', 'transcript')
        if token_ends is None:
            raise wants('ExternalAligner', 'token_ends, which manifests with "alignment" have')
        lengths = jnp.where(jnp.any(token_ends != 0, axis=1), token_lengths, 0)
        ends = jnp.round(jnp.abs(token_ends) * self.frames_per_second).astype(jnp.int32) - 1
        boundaries, lengths = partition(ends, lengths, frame_lengths)
        return Alignment(boundaries, lengths, until(tokens, lengths))
