"""An aligner by itself, over a frozen speech encoder: how it is trained, and how far its boundaries are off."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding
from slm_jax.encoders import alignment
from slm_jax.encoders.aligners import Alignment, CtcAligner, initial_params
from slm_jax.encoders.spelling import Spelling
from slm_jax.systems import Batch, Metrics, Params
from slm_jax.systems.speech_encoder import SpeechEncoder, frames_of, stored

_EOS = 1


@dataclasses.dataclass(frozen=True)
class SpeechAligner:
    """`decoder_target_tokens` are the transcript in the language model's tokens.

    Parameters: `speech_encoder` and `aligner`.
    """

    speech_encoder: SpeechEncoder
    aligner: nn.Module
    token_ends = True  # see `System`
    writes_llm_tokens = True

    def __post_init__(self):
        if not hasattr(self.aligner, 'losses'):
            raise ValueError(
                f'{type(self.aligner).__name__} has nothing to be trained: it goes by what files say. Train another '
                '(models/ssr_aligner_characters.gin, …_subwords, …_cif, …_monotonic), or give this one to SSR as it is.'
            )

    @property
    def answers(self) -> bool:
        """See `System`."""
        return not self.aligner.needs_tokens

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.speech_encoder.max_seconds

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        encoder_rng, aligner_rng = jax.random.split(rng)
        (frames, lengths, _), encoder = self.speech_encoder.init_with_output(
            encoder_rng, batch['speech_samples'], batch['speech_lengths'], **stored(batch)
        )
        fresh = initial_params(self.aligner, aligner_rng, frames, lengths, *transcript(batch))
        return {'speech_encoder': encoder.get('params', {}), 'aligner': fresh}

    def _frames(
        self, params: Params, batch: Batch, rng: Key[Array, ''] | None
    ) -> tuple[Float[Array, 'b f d'], Int[Array, ' b']]:
        frames, lengths, _ = self.speech_encoder.apply(
            {'params': params.get('speech_encoder', {})},
            batch['speech_samples'],
            batch['speech_lengths'],
            rng is None,
            **stored(batch),
            rngs=None if rng is None else {'dropout': rng},
        )
        return frames, lengths

    def align(self, params: Params, batch: Batch, written: bool = False) -> Alignment:
        """The segments of each row's tokens: of its target, or of what the aligner writes (`written`)."""
        given = () if written else (*transcript(batch), batch.get('token_ends'))
        return self.aligner.apply({'params': params['aligner']}, *self._frames(params, batch, None), *given)

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """The aligner's loss per token. Rows whose tokens do not fit into their frames are left out.

        Metrics beside it: what its loss consists of; `too_many_tokens`, the share of rows that were left out; and of an
        evaluation `boundary_ms`, how far boundaries of the known transcript are from where words end by `token_ends`.
        """
        tokens, lengths = transcript(batch)
        frames, frame_lengths = self._frames(params, batch, rng)
        fits, sums = self.aligner.apply(
            {'params': params['aligner']},
            frames,
            frame_lengths,
            tokens,
            lengths,
            rng is None,
            rngs=None if rng is None else {'dropout': jax.random.fold_in(rng, 1)},
            method='losses',
        )
        count = jnp.sum(jnp.where(fits, lengths, 0)).astype(jnp.float32)
        metrics = {name: (jnp.sum(jnp.where(fits, each, 0.0)), count) for name, each in sums.items()}
        rows = jnp.sum(lengths > 0).astype(jnp.float32)
        metrics['too_many_tokens'] = rows - jnp.sum(fits), rows
        if rng is None and 'token_ends' in batch:
            metrics['boundary_ms'] = boundary_error(self.align(params, batch), batch['token_ends'], self.frame_rate())
        return metrics['loss'][0] / jnp.maximum(count, 1.0), metrics

    @property
    def spelling(self) -> Spelling | None:
        """How words are spelt in the labels of `times`; None of an aligner without CTC."""
        return spelling_of(self.aligner)

    def times(self, params: Params, batch: Batch, labels: Int[Array, 'b l']) -> Float[Array, '2 b l']:
        """Seconds at which each label begins and ends; see `alignment.times`."""
        return label_times(self, params, *self._frames(params, batch, None), labels)

    def frame_rate(self) -> float:
        """Frames a second."""
        return frame_rate(self.speech_encoder)

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """The tokens that the aligner writes, and their end; `decode` does not apply.

        Raises:
            ValueError: it writes none, see `Aligner.needs_tokens`.
        """
        del decode
        found = self.align(params, batch, written=True)
        tokens = jnp.pad(found.tokens, ((0, 0), (0, 1)))
        return jnp.where(jnp.arange(tokens.shape[1]) == found.lengths[:, None], _EOS, tokens)


def spelling_of(aligner: nn.Module) -> Spelling | None:
    """The labels of an aligner whose head tells where each of them is; None of any other."""
    return aligner.config.spelling if isinstance(aligner, CtcAligner) else None


def label_times(
    system: Any, params: Params, frames: Float[Array, 'b f d'], lengths: Int[Array, ' b'], labels: Int[Array, 'b l']
) -> Float[Array, '2 b l']:
    """Seconds at which each label of a system's aligner begins and ends in the frames; see `alignment.times`."""
    logits = system.aligner.apply({'params': params['aligner']}, frames, lengths, method='logits')
    return alignment.times(logits, lengths, labels, _counted(system.speech_encoder))


def frame_rate(speech_encoder: nn.Module) -> float:
    """Frames a second."""
    return 1 / alignment.frame_seconds(_counted(speech_encoder))


def _counted(speech_encoder: nn.Module) -> Callable[[int], int]:
    """How many frames so many seconds have."""
    key = jax.random.key(0)  # by shapes alone: parameters of the encoder are not there where frames are stored

    def frames(batch):
        (found, *_), _ = speech_encoder.init_with_output(key, batch['speech_samples'], batch['speech_lengths'])
        return found

    return frames_of(frames)


def transcript(batch: Batch) -> tuple[Int[Array, 'b t'], Int[Array, ' b']]:
    """The target's tokens without their end, and their number; none of a row without speech."""
    tokens = batch['decoder_target_tokens']
    tokens = jnp.where((tokens > _EOS) & (batch['speech_lengths'] > 0)[:, None], tokens, 0)
    return tokens, jnp.sum(tokens > 0, axis=1)


def boundary_error(
    found: Alignment, token_ends: Float[Array, 'b t'], rate: float
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Milliseconds between boundaries and known ends, and of how many: those of words, but for each row's last.

    Args:
        found: of the transcript.
        token_ends: see `slm_jax.encoders.aligners.Aligner`.
        rate: frames a second.
    """
    inner = jnp.arange(token_ends.shape[1]) < found.lengths[:, None] - 1
    known = inner & (token_ends > 0)
    off = jnp.abs((found.boundaries + 1) / rate - token_ends)
    return 1000 * jnp.sum(jnp.where(known, off, 0.0)), jnp.sum(known).astype(jnp.float32)
