"""Synthetic speech whose phones and words are known: espeak-ng says when it begins each (Debian's libespeak-ng1)."""

import ctypes
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16

from slm_jax.audio import waveforms

_LIBRARY = 'libespeak-ng.so.1'
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_END, _WORD, _PHONEME = 0, 1, 7  # espeakEVENT_LIST_TERMINATED, …_WORD, …_PHONEME
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


class _Voice(ctypes.Structure):
    _fields_ = [
        ('name', ctypes.c_char_p), ('languages', ctypes.c_char_p), ('identifier', ctypes.c_char_p),
        ('gender', ctypes.c_ubyte), ('age', ctypes.c_ubyte), ('variant', ctypes.c_ubyte), ('xx1', ctypes.c_ubyte),
        ('score', ctypes.c_int), ('spare', ctypes.c_void_p),
    ]  # fmt: skip


class Reading(NamedTuple):
    """A sentence that was read.

    Attributes:
        samples: at 16 kHz.
        phones: of it, one after another without a gap.
        words: seconds at which each begins; of some, as numbers, espeak-ng reads several.
    """

    samples: Int16[np.ndarray, ' n']
    phones: list[Phone]
    words: list[float]


def spoken(voice: str, sentences: Sequence[str]) -> Iterator[Reading]:
    """Sentences in a voice. The library has one voice at a time: read all of them before another speaks.

    Args:
        voice: as `espeak-ng -v` takes it: 'en-us', 'en-gb', 'en-us+f3'.
        sentences: to read.

    Raises:
        ValueError: the library is not installed, or there is no such voice.
    """
    try:
        espeak = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ValueError(f'{_LIBRARY} is not installed ({error}): apt-get install libespeak-ng1') from None
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
    name = voice.encode()
    if espeak.espeak_SetVoiceByName(name) and espeak.espeak_SetVoiceByProperties(ctypes.byref(_Voice(languages=name))):
        raise ValueError(f'espeak-ng has no voice {voice!r}: `espeak-ng --voices` lists them, and +f3 is a throat.')
    blocks: list[np.ndarray] = []
    begun: list[tuple[float, str]] = []
    words: dict[int, float] = {}  # by their place in the text

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    def heard(samples, count, events):
        if samples and count:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        place = 0
        while events[place].type != _END:
            event = events[place]
            if event.type == _PHONEME:
                begun.append((event.audio_position / 1000, event.id.decode(errors='replace').strip(_STRESS)))
            elif event.type == _WORD and event.length:  # without: what is left of the voice before
                words.setdefault(event.text_position, event.audio_position / 1000)
            place += 1
        return 0

    espeak.espeak_SetSynthCallback(heard)
    for sentence in sentences:
        for heard_before in (blocks, begun, words):
            heard_before.clear()
        text = sentence.encode()
        espeak.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        samples = waveforms.to_int16(np.concatenate(blocks), rate)
        ends = [start for start, _ in begun[1:]] + [len(samples) / waveforms.SAMPLE_RATE]
        named = [(name if name and not name.startswith('_') else PAUSE, start) for start, name in begun]
        own = [Phone(name, start, end) for (name, start), end in zip(named, ends) if end > start]
        yield Reading(samples, own, [words[place] for place in sorted(words)])
