"""CTC on the speech encoder's 25 Hz frames: supervised pretraining, and the recogniser that SLM is compared with."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding
from slm_jax.encoders import alignment
from slm_jax.encoders.ctc import ctc_fits, ctc_greedy, ctc_loss
from slm_jax.systems import Batch, Metrics, Params
from slm_jax.systems.speech_encoder import SpeechEncoder, frames_of, stored


@dataclasses.dataclass(frozen=True)
class EncoderCtc:
    """Labels are `decoder_target_tokens` of the CTC vocabulary, without an end token."""

    speech_encoder: SpeechEncoder

    def __post_init__(self):
        if self.speech_encoder.ctc_vocab_size is None:
            raise ValueError(
                'The speech encoder has no CTC head, so it writes nothing by itself. Train one '
                '(SpeechEncoder.ctc_vocab_size), or an adapter to a language model.'
            )

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.speech_encoder.max_seconds

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        variables = self.speech_encoder.init(rng, batch['speech_samples'], batch['speech_lengths'])
        return {'speech_encoder': variables['params']}

    def _logits(self, params: Params, batch: Batch, rng: Key[Array, ''] | None):
        _, lengths, logits = self.speech_encoder.apply(
            {'params': params['speech_encoder']},
            batch['speech_samples'],
            batch['speech_lengths'],
            rng is None,
            **stored(batch),
            rngs=None if rng is None else {'dropout': rng},
        )
        return logits, lengths

    def ctc_logits(self, params: Params, batch: Batch) -> tuple[Float[Array, 'b f l'], Int[Array, ' b']]:
        """What the CTC head says of recordings, and their number of frames."""
        return self._logits(params, batch, None)

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """CTC loss per label, see `mean_ctc`."""
        logits, lengths = self._logits(params, batch, rng)
        labels = batch['decoder_target_tokens']
        return mean_ctc(ctc_loss(logits, lengths, labels), lengths, labels)

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """Greedy reading of the frames; `decode` does not apply."""
        del decode
        return ctc_greedy(*self._logits(params, batch, None))

    def times(self, params: Params, batch: Batch, labels: Int[Array, 'b l']) -> Float[Array, '2 b l']:
        """Seconds at which each label of the encoder's tokenizer begins and ends; see `alignment.times`."""
        count = frames_of(lambda batch: self._logits(params, batch, None)[0])
        logits, lengths = self._logits(params, batch, None)
        return alignment.times(logits, lengths, labels, count)


def mean_ctc(
    losses: Float[Array, ' b'], lengths: Int[Array, ' b'], labels: Int[Array, 'b l']
) -> tuple[Float[Array, ''], Metrics]:
    """The mean of rows' CTC losses over the labels of the global batch, and the metrics of it.

    Rows with more labels than frames can spell are left out and counted in `too_many_labels`.
    """
    present = jnp.any(labels != 0, axis=1)
    fits = ctc_fits(lengths, labels) & present
    total = jnp.sum(jnp.where(fits, losses, 0.0))
    count = jnp.sum(jnp.where(fits[:, None], labels != 0, False)).astype(jnp.float32)
    rows = jnp.sum(present).astype(jnp.float32)
    metrics = {
        'loss': (total, count),
        'too_many_labels': (rows - jnp.sum(fits), rows),
    }
    return total / jnp.maximum(count, 1.0), metrics
