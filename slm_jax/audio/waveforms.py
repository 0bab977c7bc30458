"""Reading recordings: any format, rate and channel count in; int16 mono samples at 16 kHz out.

A recording is never cut or patched in silence. Whatever cannot be read whole raises `AudioError`,
which names the file, what is wrong with it and what to do; what is read in spite of an oddity that
somebody should know of warns with an `AudioWarning`.
"""

import io
import math
import os
import warnings

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16, Shaped

from slm_jax import paths
from slm_jax.audio import containers, ffmpeg
from slm_jax.audio.containers import AudioError, AudioWarning

SAMPLE_RATE = 16000
_INT16_SCALE = 32768.0
# libsndfile states the largest number that it knows for a stream that does not say how long it is.
_UNKNOWN_LENGTH = 2**62
# Values that are read at once: a damaged header may state any length, and none is believed.
_BLOCK = 2**24
# Of a damaged header too: resampling 1 Hz would fill the memory.
_LOWEST_RATE = 1000
# A flipped bit makes 1e38 of a float; nothing that is computed with it may overflow.
_LOUDEST = 1e9
# What is left of channels that cancel, as a share of the power that unlike channels leave.
_CANCELLED = 0.1


def read_waveform(source, max_seconds: float | None = None) -> Int16[np.ndarray, ' samples']:
    """Reads a whole recording as 16 kHz mono samples.

    Args:
        source: a path, or an open binary file object, whose `name` is used in messages. libsndfile
            reads WAV, FLAC, MP3, OGG, Opus and what else it knows; PyAV M4A, MP4, WebM, AMR, AAC and WMA.

        max_seconds: a longer one is refused before it is in memory, however few bytes it has been compressed to.

    Returns:
        Samples at 16 kHz; channels are averaged, see `to_int16`. A 16-bit mono file at 16 kHz is
        returned bit for bit.

    Raises:
        AudioError: the file is missing, unreadable, empty, truncated, damaged, not audio, without
            samples, or holds NaN. No file raises anything else.
    """
    name = str(getattr(source, 'name', '<memory>')) if hasattr(source, 'read') else os.fspath(source)
    try:
        content = source.read() if hasattr(source, 'read') else paths.path(name).read_bytes()
    except paths.StorageError as error:
        raise AudioError(f'{name}: {error}') from error
    except (OSError, ValueError) as error:
        raise AudioError(
            f'{name}: cannot be opened ({getattr(error, "strerror", None) or error}). '
            'Check that the path exists and that you may read it.'
        ) from error
    if not content:
        raise AudioError(f'{name}: the file is empty (0 bytes). Fetch or record it again, or remove it.')
    try:
        return to_int16(*_decode(name, content, max_seconds or math.inf), name)
    except AudioError:
        raise
    except Exception as error:  # Decoders fail in ways that nobody lists; to a caller all are one bad file.
        reason = getattr(error, 'strerror', None) or getattr(error, 'error_string', None) or repr(error)
        raise AudioError(
            f'{name}: the file is damaged or truncated ({str(reason).rstrip(".")}). Fetch it again, or remove it.'
        ) from error


def _decode(name: str, content: bytes, most: float) -> tuple[Float32[np.ndarray, 'samples channels'], int]:
    """Samples on a scale of 1, and how many there are in a second."""
    kind = containers.sniff(content)
    if kind == 'ogg' and len(links := containers.links(content)) > 1:
        parts = []
        for link in links:
            parts.append(_decode(name, link, most))
            length = sum(len(samples) for samples, _ in parts)
            containers.check_seconds(name, length, parts[-1][0].shape[1], parts[-1][1], most)
        if len({(rate, samples.shape[1]) for samples, rate in parts}) > 1:
            raise AudioError(f'{name}: its sample rate or number of channels changes midway. Write it again as WAV.')
        return np.concatenate([samples for samples, _ in parts]), parts[0][1]
    content, demuxer, length = containers.checked(name, kind, content)
    if demuxer:
        return ffmpeg.decode(name, content, demuxer, most)
    try:
        file = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        if kind in ('wav', 'ogg', 'caf'):  # They may hold what libsndfile has no decoder for.
            return ffmpeg.decode(name, content, kind, most)
        raise AudioError(
            f'{name}: not audio that can be read ({error.error_string.rstrip(".")}). '
            'Convert it to WAV, FLAC, MP3, OGG or Opus.'
        ) from error
    with file:
        if file.frames >= _UNKNOWN_LENGTH or (kind == 'wav' and 'MPEG' in file.subtype):  # an estimate
            return ffmpeg.decode(name, content, file.format.lower(), most)
        if length > file.frames:  # an estimate too, and libsndfile would read no more than that
            return ffmpeg.decode(name, content, 'mp3', most)
        blocks = [file.read(_BLOCK // file.channels, dtype='float32', always_2d=True)]
        while len(blocks[-1]) == _BLOCK // file.channels:
            containers.check_seconds(name, sum(map(len, blocks)), file.channels, file.samplerate, most)
            blocks.append(file.read(_BLOCK // file.channels, dtype='float32', always_2d=True))
        samples = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        containers.check_seconds(name, len(samples), file.channels, file.samplerate, most)
        slack = 1152 * containers.FRAMES_SLACK if file.format == 'MP3' else 0
        if len(samples) < (length or file.frames) - slack:
            raise containers.truncated(name, f'{len(samples)} of {length or file.frames} samples are there')
        return samples, file.samplerate


def to_int16(
    samples: Shaped[np.ndarray, ' samples *channels'], rate: int, name: str = '<memory>'
) -> Int16[np.ndarray, ' resampled']:
    """Makes one channel of several and resamples to 16 kHz.

    Args:
        samples: integers, or floats whose full scale is 1.0. Integers are on int16's scale unless one
            of them exceeds it: then they are 32-bit samples. Channels are averaged, without those that
            others cancel.
        rate: samples per second of the input.
        name: of the recording, for messages.

    Returns:
        int16 samples at 16 kHz. What is louder than full scale is clipped, as a sound card does.

    Raises:
        AudioError: no samples, NaN or infinite ones, or too few in a second.
    """
    samples = np.asarray(samples)
    if samples.size == 0:
        raise AudioError(f'{name}: holds no samples (zero length). Remove it from the data.')
    if np.issubdtype(samples.dtype, np.integer):
        if samples.dtype == np.int16 and samples.ndim == 1 and rate == SAMPLE_RATE:
            return samples
        scale = _INT16_SCALE if np.abs(samples).max() <= _INT16_SCALE else 2.0**31
        samples = (samples / scale).astype(np.float32)
    if not np.isfinite(samples).all():
        raise AudioError(f'{name}: holds samples that are NaN or infinite. Write the file again as 16-bit PCM.')
    samples = samples.clip(-_LOUDEST, _LOUDEST)
    if rate < _LOWEST_RATE:
        raise AudioError(f'{name}: states {rate} samples a second, which no recording has. Fetch it again.')
    if samples.ndim == 2:
        samples = samples[:, 0] if samples.shape[1] == 1 else _mixed(samples, name)
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality='HQ')
        if samples.size == 0:
            raise AudioError(f'{name}: is shorter than one sample at {SAMPLE_RATE} Hz. Remove it from the data.')
    return np.clip(np.round(samples * _INT16_SCALE), -32768, 32767).astype(np.int16)


def _mixed(samples: Shaped[np.ndarray, 'samples channels'], name: str) -> Shaped[np.ndarray, ' samples']:
    """The mean of the channels. One that is the inverse of others is left out: it would silence them."""
    number, count = samples.shape
    products, sums = np.zeros((count, count)), np.zeros(count)
    for start in range(0, number, 2**20):
        block = samples[start : start + 2**20].astype(np.float64)
        products += block.T @ block
        sums += block.sum(axis=0)
    covariance = products / number - np.outer(sums, sums) / number**2
    powers = np.diag(covariance)
    # What two channels leave of their powers when they are added; unlike ones leave all.
    pairs = powers[:, None] + powers
    cancelling = pairs + 2 * covariance < _CANCELLED * pairs
    kept = list(range(count))
    while (opponents := cancelling[np.ix_(kept, kept)].sum(axis=0)).any():
        kept.pop(len(kept) - 1 - int(np.argmax(opponents[::-1])))
    if covariance[np.ix_(kept, kept)].sum() < _CANCELLED * powers[kept].sum():  # three that cancel together
        kept = [int(np.argmax(powers))]
    if len(kept) == count:
        return samples.mean(axis=1)
    left_out = ', '.join(str(channel + 1) for channel in range(count) if channel not in kept)
    warnings.warn(
        f'{name}: its channels cancel each other (inverted polarity); read without channel {left_out}.',
        AudioWarning,
        stacklevel=2,
    )
    return samples[:, kept].mean(axis=1)
