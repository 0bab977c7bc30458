"""Reading recordings: any format, rate and channel count in; int16 mono samples at 16 kHz out.

A recording is never cut or patched in silence. Whatever cannot be read whole raises `AudioError`,
which names the file, what is wrong with it and what to do.
"""

import io
import os
import pathlib

import numpy as np
import soundfile
import soxr
from jaxtyping import Int16, Shaped

SAMPLE_RATE = 16000
_INT16_SCALE = 32768.0
# A WAV written to a pipe cannot know its length and states the largest one it can: not a sign of
# truncation.
_STREAMED_WAV_SIZE = 0x7F000000
# An MP3's header counts frames of 1152 samples and the encoder's delay; of intact files (Common
# Voice) decoders return up to two frames less than it states.
_MP3_SLACK = 2 * 1152


class AudioError(ValueError):
    """A recording that cannot be used: `str()` names the file, the fault and the remedy."""


def read_waveform(source) -> Int16[np.ndarray, ' samples']:
    """Reads a whole recording as 16 kHz mono samples.

    Args:
        source: a path, or an open binary file object, whose `name` is used in messages. WAV, FLAC,
            MP3, OGG and Opus are read, and whatever else the installed libsndfile knows.

    Returns:
        Samples at 16 kHz; channels are averaged. A 16-bit mono file at 16 kHz is returned bit
        for bit.

    Raises:
        AudioError: the file is missing, unreadable, empty, truncated, not audio, without samples, or
            holds NaN.
    """
    name = str(getattr(source, 'name', '<memory>')) if hasattr(source, 'read') else os.fspath(source)
    try:
        content = source.read() if hasattr(source, 'read') else pathlib.Path(name).read_bytes()
    except OSError as error:
        raise AudioError(
            f'{name}: cannot be opened ({error.strerror or error}). '
            'Check that the path exists and that you may read it.'
        ) from error
    if not content:
        raise AudioError(f'{name}: the file is empty (0 bytes). Fetch or record it again, or remove it.')
    _check_not_truncated(name, content)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            stated, rate = file.frames, file.samplerate
            slack = _MP3_SLACK if file.format == 'MP3' or 'MPEG' in file.subtype else 0
            samples = file.read(dtype='float32', always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f'{name}: not audio that libsndfile can read ({error}). Convert it to WAV, FLAC, MP3, OGG or Opus.'
        ) from error
    if stated < 2**62 and len(samples) < stated - slack:
        raise AudioError(_truncated(name, f'{len(samples)} of {stated} samples are there'))
    try:
        return to_int16(samples, rate)
    except AudioError as error:
        raise AudioError(f'{name}: {error}') from error


def to_int16(samples: Shaped[np.ndarray, ' samples *channels'], rate: int) -> Int16[np.ndarray, ' resampled']:
    """Averages channels and resamples to 16 kHz.

    Args:
        samples: integers, or floats whose full scale is 1.0. Integers are on int16's scale unless one
            of them exceeds it: then they are 32-bit samples.
        rate: samples per second of the input.

    Returns:
        int16 samples at 16 kHz. What is louder than full scale is clipped, as a sound card does.

    Raises:
        AudioError: no samples, or NaN or infinite ones.
    """
    samples = np.asarray(samples)
    if samples.size == 0:
        raise AudioError('holds no samples (zero length). Remove it from the data.')
    if np.issubdtype(samples.dtype, np.integer):
        if samples.dtype == np.int16 and samples.ndim == 1 and rate == SAMPLE_RATE:
            return samples
        scale = _INT16_SCALE if np.abs(samples).max() <= _INT16_SCALE else 2.0**31
        samples = (samples / scale).astype(np.float32)
    if not np.isfinite(samples).all():
        raise AudioError('holds samples that are NaN or infinite. Write the file again as 16-bit PCM.')
    if samples.ndim == 2:
        samples = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality='HQ')
        if samples.size == 0:
            raise AudioError(f'is shorter than one sample at {SAMPLE_RATE} Hz. Remove it from the data.')
    return np.clip(np.round(samples * _INT16_SCALE), -32768, 32767).astype(np.int16)


def _truncated(name: str, evidence: str) -> str:
    return f'{name}: the file is truncated ({evidence}). Fetch it again, or remove it.'


def _check_not_truncated(name: str, content: bytes) -> None:
    """Finds cuts that libsndfile passes over: WAV chunks and Ogg streams that stop early."""
    if content[:4] == b'RIFF' and content[8:12] == b'WAVE':
        position = 12
        while position + 8 <= len(content):
            kind, size = (
                content[position : position + 4],
                int.from_bytes(content[position + 4 : position + 8], 'little'),
            )
            left = len(content) - position - 8
            if size > left and size < _STREAMED_WAV_SIZE:
                raise AudioError(
                    _truncated(
                        name,
                        f'{left} of {size} bytes of its {kind.decode("ascii", "replace")!r} chunk are there',
                    )
                )
            if kind == b'data':
                return
            position += 8 + size + size % 2
        raise AudioError(_truncated(name, 'it has no data chunk'))
    if content[:4] == b'OggS':
        page = content[content.rfind(b'OggS') :]  # 27 bytes, among them flags [5] and n [26]; n segment sizes; segments
        if len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            raise AudioError(_truncated(name, 'its stream has no end'))
