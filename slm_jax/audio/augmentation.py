"""Recordings as another room, noise, telephone or codec has them: a transform of waveforms, drawn anew each time.

    from slm_jax.audio import augmentation
    train/loader.SpeechTextLoader.augmentation = @augmentation.WaveformAugmentation()
    augmentation.WaveformAugmentation.noise_dir = '/data/noises'

What is drawn for a clip is a function of the loader's seed and the step. `slm-jax synthesize --augment` writes such
clips once and for all.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from slm_jax.audio import waveforms
from slm_jax.audio.waveforms import SAMPLE_RATE

# Of calls and messages: rate, and what libsndfile writes. All of them leave speech where it is in time.
CODECS: dict[str, tuple[int, dict[str, Any]]] = {
    'gsm': (8_000, {'format': 'WAV', 'subtype': 'GSM610'}),  # 13 kbit/s
    'g721': (8_000, {'format': 'AU', 'subtype': 'G721_32'}),  # 32
    'opus': (16_000, {'format': 'OGG', 'subtype': 'OPUS', 'compression_level': 1.0}),  # 9
    'mp3': (16_000, {'format': 'MP3', 'subtype': 'MPEG_LAYER_III', 'compression_level': 0.99}),  # 19
}
KINDS = ('room', 'noise', 'telephone', 'codec')
_SLOPES = (0, 0.5, 1, 1.5)


@dataclasses.dataclass(frozen=True)
class WaveformAugmentation:
    """Puts a clip into a room, into noise, down a telephone and through a codec, each with its probability.

    A clip keeps its length, and speech its place in it.

    Attributes:
        room, noise, telephone, codec: probabilities.
        reverberation: seconds in which a room's sound falls by 60 dB; from, to.
        snr: of speech over noise, in dB; from, to.
        noise_dir: folder whose recordings, those in its folders too, are the noise; '': noise from white to brown is
            made.
        codecs: names of CODECS, drawn equally often.

    Raises:
        ValueError: a field cannot be so.
    """

    room: float = 0.5
    noise: float = 0.75
    telephone: float = 0.2
    codec: float = 0.2
    reverberation: tuple[float, float] = (0.1, 0.6)
    snr: tuple[float, float] = (8.0, 40.0)
    noise_dir: str = ''
    codecs: Sequence[str] = tuple(CODECS)

    def __post_init__(self):
        for kind in KINDS:
            if not 0 <= getattr(self, kind) <= 1:
                raise ValueError(
                    f'WaveformAugmentation.{kind} is {getattr(self, kind)!r}; it is a probability, 0 to 1.'
                )
        for field, least in (('reverberation', 0.02), ('snr', -100.0)):
            given = getattr(self, field)
            if len(given) != 2 or not least <= given[0] <= given[1] <= 100:
                raise ValueError(
                    f'WaveformAugmentation.{field} is {given!r}; (from, to) was expected, between {least:g} and 100.'
                )
        if not self.codecs or (wrong := [name for name in self.codecs if name not in CODECS]):
            raise ValueError(
                f'WaveformAugmentation.codecs is {self.codecs!r}; there are {", ".join(CODECS)}'
                + (f', no {wrong[0]!r}.' if self.codecs else '. codec = 0 takes none.')
            )

    def check(self) -> None:
        """Refuses a `noise_dir` without recordings: a model that was trained with it needs none to answer.

        Raises:
            ValueError: as said.
        """
        if self.noise_dir:
            _recordings(self.noise_dir)

    def __call__(self, samples: Int16[np.ndarray, ' samples'], seed: Sequence[int]) -> Int16[np.ndarray, ' samples']:
        """The clip at 16 kHz as it is drawn by `seed`, whole numbers; no samples stay none."""
        if not samples.size:
            return samples
        rng = np.random.default_rng(seed)
        room, noise, telephone, codec = (rng.random() < getattr(self, kind) for kind in KINDS)
        if not (room or noise or telephone or codec):
            return samples
        sound = samples.astype(np.float32) / 32768
        if room:
            gap, level = rng.uniform((0.001, 0), (0.012, 15))
            response = room_response(rng, rng.uniform(*self.reverberation), gap, level)
            sound = convolve(sound, response)
        if noise:
            sound = sound + _level(sound) * 10 ** (-rng.uniform(*self.snr) / 20) * self._noise(sound.size, rng)
        if telephone:
            low, high = rng.uniform((100, 3300), (300, 3900))
            sound = through_telephone(sound, low, high, rng.random() < 0.5)
        sound = sound / max(1.0, 1.01 * np.abs(sound).max())
        if codec:
            sound = through_codec(sound, self.codecs[int(rng.integers(len(self.codecs)))])
        sound = np.pad(sound, (0, max(0, samples.size - sound.size)))[: samples.size]
        return np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)

    def _noise(self, size: int, rng: np.random.Generator) -> Float[np.ndarray, ' size']:
        """Noise of unit power."""
        if not self.noise_dir:
            return coloured(size, _SLOPES[rng.integers(len(_SLOPES))], rng)
        files = _recordings(self.noise_dir)
        noise = _recording(files[rng.integers(len(files))])
        start = rng.integers(noise.size)
        noise = np.resize(np.roll(noise, -start), size).astype(np.float32)
        return noise / max(_level(noise), 1.0)  # in silence there is nothing to raise


@functools.lru_cache(4)
def _recordings(folder: str) -> tuple[str, ...]:
    """The recordings in a folder, in order.

    Raises:
        ValueError: there is none.
    """
    suffixes = {f'.{name.lower()}' for name in soundfile.available_formats()} | {'.opus', '.m4a'}
    found = sorted(str(path) for path in pathlib.Path(folder).rglob('*') if path.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f'WaveformAugmentation.noise_dir {folder!r}: there is no recording in it (*.wav, *.flac, …).')
    return tuple(found)


@functools.lru_cache(64)
def _recording(path: str) -> Int16[np.ndarray, ' samples']:
    return waveforms.read_waveform(path)


def _level(samples: Float[np.ndarray, ' samples']) -> np.floating:
    return np.sqrt(np.mean(samples**2))


def room_response(
    noise: np.random.Generator, seconds: float, gap: float, level: float
) -> Float[np.ndarray, ' response']:
    """The direct sound and, from `gap` seconds on and `level` dB below it, noise that falls by 60 dB in `seconds`."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = noise.standard_normal(time.size) * 10 ** (-3 * time / seconds)
    tail[: int(gap * SAMPLE_RATE)] = 0
    response = tail * 10 ** (-level / 20) / np.sqrt(np.sum(tail**2))
    response[0] = 1
    return response


def convolve(
    samples: Float[np.ndarray, ' samples'], response: Float[np.ndarray, ' response']
) -> Float[np.ndarray, ' samples']:
    """What is heard of `samples` where a click sounds as `response`."""
    size = 1 << (samples.size + response.size).bit_length()
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: samples.size]


def coloured(size: int, slope: float, noise: np.random.Generator) -> Float[np.ndarray, ' size']:
    """Noise of unit power whose amplitude falls as frequency^-slope: 0 white, 0.5 pink, 1 brown."""
    spectrum = np.fft.rfft(noise.standard_normal(size))
    spectrum /= np.maximum(np.arange(spectrum.size), 20) ** slope
    samples = np.fft.irfft(spectrum, size)
    return samples / np.sqrt(np.mean(samples**2))


def through_telephone(
    samples: Float[np.ndarray, ' samples'], low: float, high: float, companded: bool
) -> Float[np.ndarray, ' about_samples']:
    """The band from `low` to `high` Hz; `companded` as by G.711's mu-law. Peaks are below 1."""
    narrow = soxr.resample(samples, SAMPLE_RATE, 8000)
    spectrum, hertz = np.fft.rfft(narrow), np.fft.rfftfreq(narrow.size, 1 / 8000)
    spectrum *= 1 / (1 + (low / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / high) ** 24)
    narrow = np.fft.irfft(spectrum, narrow.size)
    narrow /= max(1.0, np.abs(narrow).max() * 1.01)
    if companded:  # in its continuous form
        code = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127)
        narrow = np.sign(code) * np.expm1(np.abs(code) / 127 * np.log(256)) / 255
    return soxr.resample(narrow, 8000, SAMPLE_RATE)


def through_codec(samples: Float[np.ndarray, ' samples'], name: str) -> Float[np.ndarray, ' about_samples']:
    """Written and read again by one of CODECS; some blocks' ends are longer."""
    rate, written = CODECS[name]
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(samples, SAMPLE_RATE, rate), rate, **written)
    file.seek(0)
    return soxr.resample(soundfile.read(file, dtype='float32')[0], rate, SAMPLE_RATE)
