"""Log-mel frontends, computed on the device from padded 16 kHz PCM.

`UsmFrontend` has the settings of Gemma 3n's USM audio tower, `Gemma4Frontend` those of Gemma 4's, `WhisperFrontend`
those of Whisper, `W2vBertFrontend` those of w2v-BERT 2.0. All give what the reference feature extractor gives for each
clip alone, whatever the padding around it holds.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_HOP = 160  # 10 ms at 16 kHz, in all frontends


def _mask_padding(samples: Int[Array, 'b n'], lengths: Int[Array, ' b']) -> Float[Array, 'b n']:
    """PCM to [-1, 1), with zeros after each clip's end."""
    valid = jnp.arange(samples.shape[1]) < lengths[:, None]
    waveform = jnp.where(valid, samples.astype(jnp.float32) / 32768.0, 0.0)
    return nn.with_logical_constraint(waveform, ('batch', 'samples'))


def _frame(waveform: Float[Array, 'b n'], num_frames: int, frame_length: int) -> Float[Array, 'b t f']:
    """Overlapping frames every 10 ms, joined from shifted blocks of one hop: slices, where a gather is slow."""
    blocks_per_frame = math.ceil(frame_length / _HOP)
    needed = (num_frames + blocks_per_frame - 1) * _HOP
    waveform = jnp.pad(waveform[:, :needed], ((0, 0), (0, max(0, needed - waveform.shape[1]))))
    blocks = waveform.reshape(waveform.shape[0], -1, _HOP)
    shifted = [blocks[:, i : i + num_frames] for i in range(blocks_per_frame)]
    return jnp.concatenate(shifted, axis=-1)[..., :frame_length]


def _power(
    waveform: Float[Array, 'b n'], to_frames: Callable[[Array], Array], fft_length: int
) -> Float[Array, 'b t bins']:
    """Power spectra of the frames [b t f] that `to_frames` makes of the waveform, rounded to float32 at the end.

    Until then in float64 in every mode of JAX, as in the references: float32 errs by some 1e-7 of the loudest bin, and
    the logarithm shows that in the weakest. XLA has no FFT in float64 for TPUs; there all is float32.
    """

    def power(dtype, waveform: Float[Array, 'b n']) -> Float[Array, 'b t bins']:
        with jax.enable_x64(dtype == jnp.float64):
            spectrum = jnp.fft.rfft(to_frames(waveform.astype(dtype)).astype(dtype), fft_length)
            return (jnp.square(spectrum.real) + jnp.square(spectrum.imag)).astype(jnp.float32)

    single, double = (functools.partial(power, dtype) for dtype in (jnp.float32, jnp.float64))

    def by_clip(waveform: Float[Array, 'b n']) -> Float[Array, 'b t bins']:
        return jax.lax.map(lambda clip: double(clip[None])[0], waveform)  # A clip's frames fit into a CPU's cache.

    return jax.lax.platform_dependent(waveform, tpu=single, cpu=by_clip, default=double)


def _bins(fft_length: int) -> np.ndarray:
    """Frequencies of a spectrum's bins, in Hz."""
    return np.arange(fft_length // 2 + 1) * (16_000 / fft_length)


def _triangles(points: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Triangular filters [bins, mel] between neighbours of `points` (mel + 2 of them), all on one scale."""
    width = np.diff(points)
    slopes = points[None, :] - bins[:, None]
    return np.maximum(0.0, np.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]))


def _mel(spectrum: Float[Array, 'b t bins'], filters: np.ndarray) -> Float[Array, 'b t mel']:
    """Spectrum by mel bin; accelerators would round a product in float32 to far less."""
    mel = jnp.matmul(spectrum, filters.astype(np.float32), precision='highest')
    return nn.with_logical_constraint(mel, ('batch', 'length', 'mel'))


# Frontends state `max_seconds`, the longest audio that they take; None: any.


@dataclasses.dataclass(frozen=True)
class UsmFrontend:
    """128 log-mel bins, 125-7600 Hz, 32 ms Hann window, 10 ms hop, pre-emphasis.

    Reference: `Gemma3nAudioFeatureExtractor`, which zero-pads a clip to a multiple of 128 samples and takes
    every whole window of 513 samples. It rounds to float32 after each operation before the transform, and so do we: the
    weakest bins show that, too. Its pre-emphasis treats a frame's first sample apart, where the window is 0. `mean` and
    `stddev` normalise every bin alike (its `per_bin_mean` and `per_bin_stddev`); Gemma 3n leaves them at 0 and 1.
    """

    num_mel_bins: int = 128
    min_frequency: float = 125.0
    max_frequency: float = 7600.0
    preemphasis: float = 0.97
    mel_floor: float = 1e-5
    mean: float = 0.0
    stddev: float = 1.0
    max_seconds: ClassVar[float | None] = None

    def num_frames(self, num_samples):
        """Frames of a clip of `num_samples`; works on ints and on arrays. A clip too short for one window has one."""
        whole = (-(-num_samples // 128) * 128 - 513) // _HOP + 1
        if isinstance(num_samples, int):
            return max(whole, 1)
        return jnp.where(num_samples > 0, jnp.maximum(whole, 1), 0)

    def __call__(
        self, samples: Int[Array, 'b n'], lengths: Int[Array, ' b']
    ) -> tuple[Float[Array, 'b t mel'], Int[Array, ' b']]:
        """Returns the features, zero beyond each clip's frames, and the number of frames per clip."""
        window = 0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(512, dtype=np.float32) / 512))

        def to_frames(waveform: Float[Array, 'b n']) -> Float[Array, 'b t 512']:
            waveform, previous = (jnp.pad(waveform, ((0, 0), pad)) for pad in ((0, 1), (1, 0)))
            # Rounded by name: what XLA fuses with the difference after it is not rounded.
            previous = jax.lax.reduce_precision(np.float32(self.preemphasis) * previous, 8, 23)
            return _frame((waveform - previous).astype(jnp.float32), self.num_frames(samples.shape[1]), 512) * window

        magnitude = jnp.sqrt(_power(_mask_padding(samples, lengths), to_frames, 1024))
        points = _htk_points(self.min_frequency, self.max_frequency, self.num_mel_bins + 2)
        filters = _triangles(points, _bins(1024))
        features = jnp.log(jnp.maximum(_mel(magnitude, filters), self.mel_floor))
        features = (features - self.mean) / self.stddev
        feature_lengths = self.num_frames(lengths)
        valid = jnp.arange(features.shape[1]) < feature_lengths[:, None]
        return jnp.where(valid[..., None], features, 0.0), feature_lengths


@dataclasses.dataclass(frozen=True)
class Gemma4Frontend:
    """128 log-mel bins, 0-8000 Hz, 20 ms Hann window around each multiple of 10 ms.

    Reference: `Gemma4AudioFeatureExtractor`, whose frames count where all samples of a window and one after it are the
    clip's. What it cuts off after 30 s is heard here.
    """

    num_mel_bins: int = 128
    mel_floor: float = 1e-3
    max_seconds: ClassVar[float | None] = None

    def num_frames(self, num_samples):
        """Frames of a clip of `num_samples`; works on ints and on arrays. A clip too short for one window has one."""
        if isinstance(num_samples, int):
            return max((num_samples - 1) // _HOP, 1)
        return jnp.where(num_samples > 0, jnp.maximum((num_samples - 1) // _HOP, 1), 0)

    def __call__(
        self, samples: Int[Array, 'b n'], lengths: Int[Array, ' b']
    ) -> tuple[Float[Array, 'b t mel'], Int[Array, ' b']]:
        """Returns the features, zero beyond each clip's frames, and the number of frames per clip."""
        window = (0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(320) / 320))).astype(np.float32)

        def to_frames(waveform: Float[Array, 'b n']) -> Float[Array, 'b t 320']:
            waveform = jnp.pad(waveform.astype(jnp.float32), ((0, 0), (160, 0)))
            return _frame(waveform, self.num_frames(samples.shape[1]), 320) * window

        magnitude = jnp.sqrt(_power(_mask_padding(samples, lengths), to_frames, 512))
        filters = _triangles(_htk_points(0.0, 8000.0, self.num_mel_bins + 2), _bins(512))
        features, feature_lengths = jnp.log(_mel(magnitude, filters) + self.mel_floor), self.num_frames(lengths)
        valid = jnp.arange(features.shape[1]) < feature_lengths[:, None]
        return jnp.where(valid[..., None], features, 0.0), feature_lengths


@dataclasses.dataclass(frozen=True)
class WhisperFrontend:
    """Whisper's log-mel features: 80 bins up to large-v2, 128 from large-v3 on.

    Reference: `WhisperFeatureExtractor`, which fills every clip up to 30 s with silence. Here the output ends with the
    batch, after at least one frame of silence unless the batch has 30 s: all frames that the reference has after it
    are equal to the last. `WhisperEncoder` repeats it.
    """

    num_mel_bins: int = 80
    max_seconds: ClassVar[float] = 30.0

    def __call__(
        self, samples: Int[Array, 'b n'], lengths: Int[Array, ' b']
    ) -> tuple[Float[Array, 'b t mel'], Int[Array, ' b']]:
        """Returns the features and the number of frames that hold the clip.

        Raises:
            ValueError: the batch is longer than the 30 s that Whisper hears; nothing is cut.
        """
        if samples.shape[1] > self.max_seconds * 16_000:
            raise ValueError(
                f'Whisper hears 30 s, and the batch has {samples.shape[1] / 16_000:g} s. Train and evaluate on clips '
                "of 30 s at most: TASK_FEATURE_LENGTHS = {'speech': 480000, …}. `slm-jax infer --chunk_seconds 30` "
                'cuts at pauses.'
            )
        num_frames = min(3000, -(-samples.shape[1] // _HOP) + 3)  # a window of 400 samples ends in the second after
        waveform = jnp.pad(_mask_padding(samples, lengths), ((0, 0), (0, 480_000 - samples.shape[1])))
        waveform = jnp.pad(waveform, ((0, 0), (200, 200)), mode='reflect')
        frames = _frame(waveform, num_frames, 400)
        window = 0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(400) / 400))
        power = jnp.abs(jnp.fft.rfft(frames * window.astype(np.float32))) ** 2
        points = _slaney_mel_to_hz(np.linspace(0.0, _slaney_hz_to_mel(8000.0), self.num_mel_bins + 2))
        filters = _triangles(points, _bins(400)) * (2.0 / (points[2:] - points[:-2]))
        log_mel = jnp.log10(jnp.maximum(_mel(power, filters), 1e-10))
        log_mel = jnp.maximum(log_mel, log_mel.max(axis=(1, 2), keepdims=True) - 8.0)
        return (log_mel + 4.0) / 4.0, -(-lengths // _HOP)


@dataclasses.dataclass(frozen=True)
class W2vBertFrontend:
    """Kaldi's 80 filterbank features, normalised over the clip, two frames in one: 160 features at 50 Hz.

    Reference: `SeamlessM4TFeatureExtractor` for the clip alone. A clip below 560 samples (35 ms) has no frame.
    """

    max_seconds: ClassVar[float | None] = None

    def __call__(
        self, samples: Int[Array, 'b n'], lengths: Int[Array, ' b']
    ) -> tuple[Float[Array, 'b t 160'], Int[Array, ' b']]:
        """Returns the features, zero beyond each clip's frames, and the number of frames per clip."""
        num_frames = jnp.where(lengths < 400, 0, (lengths - 400) // _HOP + 1)
        whole = max((samples.shape[1] - 400) // _HOP + 1, 1)  # an odd last one counts in the mean and variance

        def to_frames(waveform: Float[Array, 'b n']) -> Float[Array, 'b t 400']:
            frames = _frame(waveform, whole + whole % 2, 400)
            frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
            frames = jnp.concatenate([frames[..., :1] * 0.03, frames[..., 1:] - 0.97 * frames[..., :-1]], axis=-1)
            return frames * (np.hanning(400) ** 0.85).astype(frames.dtype)

        power = _power(_mask_padding(samples, lengths) * 32768.0, to_frames, 512)
        points, bins = (1127.0 * np.log(1.0 + hz / 700.0) for hz in (np.array([20.0, 8000.0]), _bins(512)))
        features = jnp.log(jnp.maximum(_mel(power, _triangles(np.linspace(points[0], points[1], 82), bins)), 2.0**-23))
        valid = (jnp.arange(features.shape[1]) < num_frames[:, None])[..., None]
        count = num_frames[:, None, None]
        mean = jnp.sum(jnp.where(valid, features, 0.0), axis=1, keepdims=True) / jnp.maximum(count, 1)
        features = jnp.where(valid, features - mean, 0.0)
        variance = jnp.sum(jnp.square(features), axis=1, keepdims=True) / jnp.maximum(count - 1, 1)
        features = (features / jnp.sqrt(variance + 1e-7)).reshape(features.shape[0], -1, 160)
        num_frames = num_frames // 2
        return jnp.where((jnp.arange(features.shape[1]) < num_frames[:, None])[..., None], features, 0.0), num_frames


def _htk_points(low: float, high: float, count: int) -> np.ndarray:
    """Frequencies in Hz, equally far apart on HTK's mel scale."""
    low, high = 2595.0 * np.log10(1.0 + np.array([low, high]) / 700.0)
    return 700.0 * (10.0 ** (np.linspace(low, high, count) / 2595.0) - 1.0)


# Slaney's mel scale: linear to 1 kHz (15 mel), then logarithmic.
def _slaney_hz_to_mel(hz: float) -> float:
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + math.log(hz / 1000.0) * 27.0 / math.log(6.4)


def _slaney_mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp(math.log(6.4) / 27.0 * (mel - 15.0)))
