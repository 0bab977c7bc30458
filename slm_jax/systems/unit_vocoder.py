"""Trains a vocoder of units: the waveform by spectra of several resolutions, durations by their logarithm.

Without an adversary: the loss is that of spectra alone.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding
from slm_jax.codebooks.codebook import runs
from slm_jax.codebooks.vocoder_model import Vocoder
from slm_jax.systems import Batch, Metrics, Params

_RESOLUTIONS = ((512, 128), (1024, 256), (256, 64))  # window and hop, in samples
_LEAST = 1e-3  # of a magnitude, below which nothing is told apart
_MEL_FFT, _MEL_HOP, _MELS = 1024, 256, 80


@dataclasses.dataclass(frozen=True)
class UnitVocoder:
    """A batch brings units, one a frame, as `decoder_target_tokens` (unit + 1, 0 beyond a clip's own), and the samples.

    The samples of a clip are those of its frames, so many each. `spectral`, `mel` and `duration` are weights.
    """

    vocoder: Vocoder
    spectral: float = 1.0
    mel: float = 2.0
    duration: float = 0.2

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        del batch  # no shape depends on it
        given = jnp.zeros((1, 4), jnp.int32), jnp.full((1,), 4, jnp.int32)

        def all_of(vocoder: Vocoder, *given: Any) -> Any:
            return vocoder(*given), vocoder.log_durations(*given)

        return {'vocoder': self.vocoder.init(rng, *given, method=all_of)['params']}

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Log-magnitudes at three resolutions, mel, and durations; means over what is heard in the global batch."""
        del rng  # there is no dropout, and crops are the loader's
        tokens = batch['decoder_target_tokens']
        units, lengths = jnp.maximum(tokens - 1, 0), jnp.sum(tokens > 0, axis=1)
        variables = {'params': params['vocoder']}
        said = self.vocoder.apply(variables, units, lengths)
        count = lengths * self.vocoder.config.samples
        heard = jnp.arange(said.shape[1]) < count[:, None]
        samples = batch['speech_samples']
        wanted = jnp.pad(samples, ((0, 0), (0, said.shape[1] - samples.shape[1]))).astype(jnp.float32) / 32768
        said, wanted = jnp.where(heard, said, 0.0), jnp.where(heard, wanted, 0.0)
        metrics = {'spectral': _spectral(said, wanted, count), 'mel': _mel(said, wanted, count)}
        metrics['duration'] = self._duration(variables, units, lengths)
        loss = jnp.zeros(())
        for name, (total, weight) in metrics.items():
            loss += getattr(self, name) * total / jnp.maximum(weight, 1.0)
        seconds = jnp.sum(count) / 16_000
        return loss, metrics | {'loss': (loss * seconds, seconds)}

    def _duration(self, variables: Params, units: Int[Array, 'b t'], lengths: Int[Array, ' b']) -> tuple[Any, Any]:
        """Squared error of log-durations; the first and last unit of a crop may have been cut."""
        single, durations, counts = runs(units, lengths)
        told = self.vocoder.apply(variables, single, counts, method='log_durations')
        place = jnp.arange(single.shape[1])
        whole = (place > 0) & (place < counts[:, None] - 1)
        error = jnp.square(told - jnp.log(jnp.maximum(durations, 1).astype(jnp.float32)))
        return jnp.sum(jnp.where(whole, error, 0.0)), jnp.sum(whole).astype(jnp.float32)

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """There is no text to generate.

        Raises:
            TypeError: always.
        """
        raise TypeError('a vocoder writes no text: hear it, slm-jax codebook decode, or evaluate its loss')


def _magnitudes(x: Float[Array, 'b n'], window: int, hop: int) -> Float[Array, 'b t f']:
    x = jnp.pad(x, ((0, 0), (window // 2, window // 2)))
    count = (x.shape[1] - window) // hop + 1
    frames = x[:, np.arange(count)[:, None] * hop + np.arange(window)]
    spectrum = jnp.fft.rfft(frames * np.hanning(window).astype(np.float32))
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-9)


def _error(said: Float[Array, 'b t f'], wanted: Float[Array, 'b t f'], count: Int[Array, ' b'], hop: int) -> Any:
    """(sum, weight) of the differences of logarithms, over the frames of the clips."""
    valid = (jnp.arange(said.shape[1]) <= (count // hop)[:, None]) & (count > 0)[:, None]
    difference = jnp.abs(jnp.log(jnp.maximum(said, _LEAST)) - jnp.log(jnp.maximum(wanted, _LEAST)))
    return jnp.sum(jnp.where(valid, difference.mean(axis=-1), 0.0)), jnp.sum(valid).astype(jnp.float32)


def _spectral(said: Float[Array, 'b n'], wanted: Float[Array, 'b n'], count: Int[Array, ' b']) -> Any:
    """The mean over resolutions of `_error`, with that of the magnitudes themselves beside it."""
    total, weight = jnp.zeros(()), jnp.zeros(())
    for window, hop in _RESOLUTIONS:
        own, theirs = _magnitudes(said, window, hop), _magnitudes(wanted, window, hop)
        error, frames = _error(own, theirs, count, hop)
        # Spectral convergence: what is loud counts by its loudness.
        distance = jnp.sqrt(jnp.sum(jnp.square(own - theirs)) / jnp.maximum(jnp.sum(jnp.square(theirs)), 1e-6))
        seconds = jnp.sum(count) / 16_000
        total += (error / jnp.maximum(frames, 1.0) + distance) * seconds
        weight += seconds
    return total, weight


def _mel(said: Float[Array, 'b n'], wanted: Float[Array, 'b n'], count: Int[Array, ' b']) -> Any:
    filters = _filters()
    own, theirs = (_magnitudes(x, _MEL_FFT, _MEL_HOP) @ filters for x in (said, wanted))
    return _error(own, theirs, count, _MEL_HOP)


def _filters() -> Float[np.ndarray, 'f mel']:
    """Triangles on HTK's mel scale, 0 to 8000 Hz."""
    points = 700.0 * (10.0 ** (np.linspace(0.0, 2595.0 * np.log10(1.0 + 8000.0 / 700.0), _MELS + 2) / 2595.0) - 1.0)
    bins = np.arange(_MEL_FFT // 2 + 1)[:, None] * 16_000 / _MEL_FFT
    rising = (bins - points[:-2]) / (points[1:-1] - points[:-2])
    falling = (points[2:] - bins) / (points[2:] - points[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
