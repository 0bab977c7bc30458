"""Reading a recording, or the segment of one that a manifest names by `offset` and `duration` (NeMo)."""

import functools
import threading

import numpy as np
from jaxtyping import Int16

from slm_jax import paths
from slm_jax.audio import waveforms

# A stated duration may differ by this: MP3 encoders add some 50 ms, some tools estimate, and many round.
_SLACK_SECONDS, _SLACK_SHARE = 0.1, 0.02
# Many segments of one file are read one after the other, by several threads.
_LOCKS = [threading.Lock() for _ in range(16)]


class SegmentError(ValueError):
    """`offset` and `duration` do not fit the recording: `str()` names all of them and the remedy."""


def read(path: str, offset: str = '', duration: str = '') -> Int16[np.ndarray, ' samples']:
    """Reads a recording at 16 kHz, or a segment of it.

    Args:
        path: see `waveforms.read_waveform`.
        offset: seconds before the segment; '' for a whole recording.
        duration: seconds of the segment, '' if it goes on to the end; of a whole recording what is stated of it.

    Raises:
        SegmentError: the segment goes beyond the end, or a recording is not as long as stated.
        AudioError: see `waveforms.read_waveform`.
    """
    if not offset:
        samples = waveforms.read_waveform(path)
        if duration and abs(_seconds(samples) - float(duration)) > _slack(samples):
            raise SegmentError(
                f'{path}: field "duration" says {float(duration):g} s, the recording has {_seconds(samples):.2f} s. '
                'Correct it; a segment has an "offset" too.'
            )
        return samples
    key = str(paths.state(path))
    with _LOCKS[hash(path) % len(_LOCKS)]:
        samples = _recording(path, key)
    start, whole = round(float(offset) * waveforms.SAMPLE_RATE), _seconds(samples)
    if start >= len(samples):
        raise SegmentError(
            f'{path}: field "offset" is {float(offset):g} s, the recording has {whole:.2f} s. Correct it.'
        )
    seconds = float(duration) if duration else whole - float(offset)
    left = whole - float(offset) - seconds
    if left < -(_SLACK_SECONDS if start else _slack(samples)):
        raise SegmentError(
            f'{path}: a segment of {seconds:g} s from {float(offset):g} s on ("duration", "offset") ends after the '
            f'recording, which has {whole:.2f} s. Correct it.'
        )
    if not start and left <= _SLACK_SECONDS:
        return samples  # the whole of it, measured by another tool
    return samples[start : start + max(1, round(seconds * waveforms.SAMPLE_RATE))].copy()


@functools.lru_cache(maxsize=2)
def _recording(path: str, unused_key: object) -> Int16[np.ndarray, ' samples']:
    return waveforms.read_waveform(path)


def _seconds(samples: np.ndarray) -> float:
    return len(samples) / waveforms.SAMPLE_RATE


def _slack(samples: np.ndarray) -> float:
    return max(_SLACK_SECONDS, _SLACK_SHARE * _seconds(samples))
