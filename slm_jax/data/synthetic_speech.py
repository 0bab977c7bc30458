# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Synthetic speech with its text, for pretraining: Debian's synthesisers in many voices and rooms.

    python -m slm_jax.data.synthetic_speech CORPORA OUT --hours 4 --seed 0

says sentences of CORPORA (written by slm_jax.data.text_corpora) with espeak-ng and, in English,
flite; each voice is changed in rate, pitch and size, and put into a room, noise and sometimes
a telephone. OUT gets audio/*.flac (16 kHz) and manifest.jsonl. Clip n depends on the seed and n
alone, so that a program cut short goes on where it stopped.
"""

import argparse
import collections
import io
import os
import pathlib
import random
import re
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from slm_jax.data import text_corpora

SAMPLE_RATE = 16_000
# Relative amounts of speech: the five languages of the voice prompts, and a little of the others.
LANGUAGES = {'en': 20, 'es': 15, 'fr': 15, 'it': 15, 'ru': 15, 'de': 2, 'pt': 2, 'nl': 2, 'pl': 2,
             'ca': 2, 'cs': 2, 'sv-SE': 2, 'tr': 2, 'id': 2, 'vi': 1, 'hi': 1, 'ar': 1}
SOURCES = {'voice_prompts': 4, 'phrases': 4, 'numerals': 2, 'orders': 3, 'common_voice': 1}
_ESPEAK = {'en': 'en-us en-us en-gb en-gb-x-rp en-gb-scotland en-029', 'es': 'es es-419',
           'fr': 'fr-fr fr-be fr-ch', 'pt': 'pt pt-br', 'sv-SE': 'sv'}
_VARIANTS = ('m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 Alex Alicia Andrea Andy '
             'Annie Diogo Gene Henrique Hugo Jacky Lee Linda Marco Mario Michael Mike Nguyen Zac '
             'adam anika antonio belinda benjamin caleb david edward michel pablo paul pedro '
             'quincy rob robert sandro shelby steph travis victor').split()
_FLITE = ('awb', 'kal16', 'rms', 'slt')


def speak(text: str, lang: str, rng: random.Random) -> tuple[str, Float[np.ndarray, 'samples']]:
    """One reading of the text by a voice drawn from `rng`: (its name, samples at 16 kHz).

    Raises:
      RuntimeError: the synthesiser is not installed, or failed.
    """
    if lang == 'en' and rng.random() < 0.4 and shutil.which('flite'):
        voice = f'flite/{rng.choice(_FLITE)}'
        command = ['flite', '-voice', voice[6:],
                   '--setf', f'duration_stretch={rng.uniform(0.8, 1.3):.2f}',
                   '--setf', f'int_f0_target_mean={rng.uniform(80, 190):.0f}',
                   '-t', text, '-o', '/dev/stdout']
    else:
        name = rng.choice(_ESPEAK.get(lang, lang).split()) + '+' + rng.choice(_VARIANTS)
        voice = f'espeak-ng/{name}'
        command = ['espeak-ng', '-v', name, '-s', str(rng.randint(130, 220)),
                   '-p', str(rng.randint(20, 80)), '-g', str(rng.choice([0, 0, 1, 3])),
                   '--stdin', '--stdout']
    if not shutil.which(command[0]):
        raise RuntimeError(f'{command[0]} is not installed; apt-get install {command[0]}')
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'{" ".join(command)} did not end within a minute') from None
    samples, rate = _read_wav(done.stdout)
    if done.returncode or not samples.size:
        raise RuntimeError(f'{" ".join(command)}: {done.stderr.decode(errors="replace")[:200]}')
    # Playing at another rate moves pitch and formants together: a smaller or larger speaker.
    import soxr
    return voice, soxr.resample(samples, rate * rng.uniform(0.88, 1.12), SAMPLE_RATE)


def _read_wav(data: bytes) -> tuple[Float[np.ndarray, 'samples'], int]:
    # Written to a pipe, the header cannot name the length: take what follows `data`.
    start = data.find(b'data')
    if start < 0:
        return np.zeros(0, np.float32), SAMPLE_RATE
    pcm = np.frombuffer(data[start + 8:len(data) - (len(data) - start) % 2], '<i2')
    return pcm.astype(np.float32) / 32768, int.from_bytes(data[24:28], 'little')


def place(samples: Float[np.ndarray, 'samples'], rng: random.Random
          ) -> Float[np.ndarray, 'longer']:
    """The same speech in a room, with noise, down a telephone or neither; peaks stay below 1."""
    import soxr

    noise = np.random.default_rng(rng.getrandbits(32))
    before, after = (int(rng.uniform(0.02, 0.35) * SAMPLE_RATE) for _ in range(2))
    samples = np.pad(samples, (before, after))
    if rng.random() < 0.5:
        samples = _convolve(samples, _room(rng, noise))
    if rng.random() < 0.75:
        level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(8, 40) / 20)
        samples = samples + level * _coloured(samples.size, rng.choice([0, 0.5, 1, 1.5]), noise)
    if rng.random() < 0.4:
        narrow = soxr.resample(samples, SAMPLE_RATE, 8000)
        spectrum, hertz = np.fft.rfft(narrow), np.fft.rfftfreq(narrow.size, 1 / 8000)
        low, high = rng.uniform(100, 300), rng.uniform(3300, 3900)
        spectrum *= 1 / (1 + (low / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / high) ** 24)
        narrow = np.fft.irfft(spectrum, narrow.size)
        narrow /= max(1.0, np.abs(narrow).max() * 1.01)
        if rng.random() < 0.5:  # G.711's companding, in its continuous form.
            code = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127)
            narrow = np.sign(code) * np.expm1(np.abs(code) / 127 * np.log(256)) / 255
        samples = soxr.resample(narrow, 8000, SAMPLE_RATE)
    peak = 10 ** (-rng.uniform(0.5, 24) / 20)
    return (samples * peak / max(np.abs(samples).max(), 1e-6)).astype(np.float32)


def _room(rng: random.Random, noise: np.random.Generator) -> np.ndarray:
    """The direct sound, then noise that decays by 60 dB within the reverberation time."""
    seconds = rng.uniform(0.1, 0.6)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = noise.standard_normal(time.size) * 10 ** (-3 * time / seconds)
    tail[:int(rng.uniform(0.001, 0.012) * SAMPLE_RATE)] = 0
    response = tail * 10 ** (-rng.uniform(0, 15) / 20) / np.sqrt(np.sum(tail**2))
    response[0] = 1
    return response


def _convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    size = 1 << (samples.size + response.size).bit_length()
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size),
                        size)[:samples.size]


def _coloured(size: int, slope: float, noise: np.random.Generator) -> np.ndarray:
    """Unit-power noise whose amplitude falls as frequency^-slope: 0 white, 0.5 pink, 1 brown."""
    spectrum = np.fft.rfft(noise.standard_normal(size))
    spectrum /= np.maximum(np.arange(spectrum.size), 20) ** slope
    samples = np.fft.irfft(spectrum, size)
    return samples / np.sqrt(np.mean(samples**2))


def sentences(corpora: str | os.PathLike, seed: int) -> Iterator[dict]:
    """An endless sequence of {'text', 'lang', 'source'} in the proportions given above.

    A sentence comes back only when its source has no other left. Digits are left to the recorded
    prompts: what a synthesiser makes of '1,5' is not what is written.
    """
    pools = collections.defaultdict(list)
    for row in text_corpora.read_jsonl(pathlib.Path(corpora, 'text_train.jsonl')):
        if row['source'] in SOURCES and row['lang'] in LANGUAGES and 2 <= len(row['text']) <= 160 \
                and (row['source'] == 'voice_prompts' or not re.search(r'\d|[A-Z]{2}', row['text'])):
            pools[row['lang'], row['source']].append(row['text'])
    for row in text_corpora.read_jsonl(pathlib.Path(corpora, 'orders_train.jsonl')):
        pools['en', 'orders'].append(row['text'])
    rng = random.Random(seed)
    positions = collections.Counter()
    for pool in pools.values():
        rng.shuffle(pool)
    weights = {key: LANGUAGES[key[0]] * SOURCES[key[1]] for key in sorted(pools)}
    share = collections.Counter()
    for (lang, source), weight in weights.items():
        share[lang] += SOURCES[source]
    weights = {key: weight / share[key[0]] for key, weight in weights.items()}
    while True:
        key, = rng.choices(list(weights), list(weights.values()))
        yield {'text': pools[key][positions[key] % len(pools[key])], 'lang': key[0],
               'source': f'synthetic/{key[1]}'}
        positions[key] += 1


def synthesise(corpora: str | os.PathLike, out: str | os.PathLike, hours: float, seed: int = 0,
               longest: float = 16.0) -> dict[str, float]:
    """Writes audio/*.flac and manifest.jsonl until `hours` are reached; returns hours by language.

    Args:
      longest: seconds; a longer clip is left out.
    """
    import soundfile

    out = pathlib.Path(out)
    (out / 'audio').mkdir(parents=True, exist_ok=True)
    total = collections.Counter()
    with open(out / 'manifest.jsonl', 'w', encoding='utf-8') as manifest:
        for number, row in enumerate(sentences(corpora, seed)):
            rng = random.Random(f'{seed}/{number}')
            voice, samples = speak(row['text'], row['lang'], rng)
            if 0.2 < samples.size / SAMPLE_RATE <= longest:
                name = f'audio/{seed}_{number:06d}.flac'
                samples = place(samples, rng)
                if not (out / name).exists():
                    flac = io.BytesIO()
                    soundfile.write(flac, samples, SAMPLE_RATE, format='FLAC', subtype='PCM_16')
                    (out / f'{name}.part').write_bytes(flac.getvalue())
                    (out / f'{name}.part').rename(out / name)
                seconds = samples.size / SAMPLE_RATE
                text_corpora.append_jsonl(manifest, {
                    'audio': name, **row, 'duration': round(seconds, 3), 'speaker': voice})
                total[row['lang']] += seconds / 3600
            if total.total() >= hours:
                return dict(total)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m slm_jax.data.synthetic_speech',
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('corpora')
    parser.add_argument('out')
    parser.add_argument('--hours', type=float, default=4.0)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        hours = synthesise(args.corpora, args.out, args.hours, args.seed)
    except (OSError, RuntimeError) as error:
        parser.exit(2, f'{error}\n')
    for lang, amount in sorted(hours.items()):
        print(f'{lang}: {amount:.2f} h')


if __name__ == '__main__':
    main()
