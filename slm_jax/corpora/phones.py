"""Synthetic speech whose phones are known: espeak-ng says when it begins each (Debian's libespeak-ng1)."""

import ctypes
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16

from slm_jax.audio import waveforms

_LIBRARY = 'libespeak-ng.so.1'
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_END, _PHONEME = 0, 7  # espeakEVENT_LIST_TERMINATED, espeakEVENT_PHONEME
PAUSE = '_'
_STRESS = "',%=|"  # marks within espeak-ng's names of phones


class Phone(NamedTuple):
    """A phone by espeak-ng's name, without stress, or `PAUSE`; from `start` to `end`, seconds."""

    name: str
    start: float
    end: float


class _Event(ctypes.Structure):
    _fields_ = [
        ('type', ctypes.c_int), ('unique_identifier', ctypes.c_uint), ('text_position', ctypes.c_int),
        ('length', ctypes.c_int), ('audio_position', ctypes.c_int), ('sample', ctypes.c_int),
        ('user_data', ctypes.c_void_p), ('id', ctypes.c_char * 8),
    ]  # fmt: skip


def spoken(voice: str, sentences: Sequence[str]) -> Iterator[tuple[Int16[np.ndarray, ' n'], list[Phone]]]:
    """Sentences in a voice: samples at 16 kHz, and their phones, one after another without a gap.

    Args:
        voice: as `espeak-ng -v` takes it: 'en-us', 'en-us+f3'.
        sentences: to read.

    Raises:
        ValueError: the library is not installed, or there is no such voice.
    """
    try:
        espeak = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ValueError(f'{_LIBRARY} is not installed ({error}): apt-get install libespeak-ng1') from None
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
    if espeak.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f'espeak-ng has no voice {voice!r}: `espeak-ng --voices` lists them, and +f3 is a throat.')
    blocks: list[np.ndarray] = []
    begun: list[tuple[float, str]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    def heard(samples, count, events):
        if samples and count:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        place = 0
        while events[place].type != _END:
            if events[place].type == _PHONEME:
                phone = events[place].id.decode(errors='replace').strip(_STRESS)
                begun.append((events[place].audio_position / 1000, phone))
            place += 1
        return 0

    espeak.espeak_SetSynthCallback(heard)
    for sentence in sentences:
        blocks.clear()
        begun.clear()
        text = sentence.encode()
        espeak.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        samples = waveforms.to_int16(np.concatenate(blocks), rate)
        ends = [start for start, _ in begun[1:]] + [len(samples) / waveforms.SAMPLE_RATE]
        named = [(name if name and not name.startswith('_') else PAUSE, start) for start, name in begun]
        yield samples, [Phone(name, start, end) for (name, start), end in zip(named, ends) if end > start]
