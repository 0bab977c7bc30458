"""Synthetic speech with its text, for pretraining: Debian's synthesisers in many voices and rooms.

    python -m slm_jax.corpora.synthetic_speech CORPORA OUT --hours 4 --seed 0

says sentences of CORPORA (written by slm_jax.corpora.text_corpora) with espeak-ng, flite and festival,
and takes the recordings of its speech.jsonl too; each voice is changed in rate, pitch and size, and
put into a room, noise and sometimes a telephone. OUT gets audio/*.flac (16 kHz) and manifest.jsonl.
Clip n depends on the corpora, the seed and n alone.

Debian's packages: espeak-ng flite festival festvox-italp16k festvox-itapc16k festvox-ru
festvox-us-slt-hts festvox-kallpc16k festvox-kdlpc16k festvox-ca-ona-hts festival-czech
festvox-czech-ph festvox-czech-machac festvox-czech-dita festival-hi festvox-hi-nsk
"""

import argparse
import collections
import os
import random
import re
from collections.abc import Iterator

import numpy as np
from absl import logging
from jaxtyping import Float

from slm_jax import paths
from slm_jax.audio import augmentation
from slm_jax.audio.waveforms import SAMPLE_RATE
from slm_jax.corpora import clips, voices
from slm_jax.data import json_lines

# Relative amounts of speech: the five languages of the voice prompts, and a little of the others.
LANGUAGES = {
    'en': 20,
    'es': 15,
    'fr': 15,
    'it': 15,
    'ru': 15,
    'de': 2,
    'pt': 2,
    'nl': 2,
    'pl': 2,
    'ca': 2,
    'cs': 2,
    'sv-SE': 2,
    'tr': 2,
    'id': 2,
    'vi': 1,
    'hi': 1,
    'ar': 1,
}
SOURCES = {
    'voice_prompts': 4,
    'phrases': 4,
    'numerals': 2,
    'orders': 3,
    'common_voice': 1,
    'recordings': 3,
}
# The share that festival speaks, the encoding that it reads, its voices.
_FESTIVAL = {
    'en': (0.15, 'ascii', ('cmu_us_slt_arctic_hts', 'kal_diphone', 'ked_diphone')),
    'it': (0.4, 'latin-1', ('lp_diphone', 'pc_diphone')),
    'ru': (0.4, 'utf-8', ('msu_ru_nsh_clunits',)),
    'ca': (0.5, 'latin-1', ('upc_ca_ona_hts',)),
    'cs': (0.6, 'iso-8859-2', ('czech_dita', 'czech_machac', 'czech_ph')),
    'hi': (0.5, 'utf-8', ('hindi_NSK_diphone',)),
}


def speak(text: str, lang: str, rng: random.Random, espeak: bool = True) -> tuple[str, Float[np.ndarray, ' samples']]:
    """One reading of the text by a voice drawn from `rng`: (its name, samples at 16 kHz).

    Args:
        espeak: False leaves a language that festival speaks to festival.

    Raises:
        RuntimeError: the synthesiser is not installed.
        ValueError: it did not read this text.
    """
    engine, encoding = rng.random(), 'utf-8'
    share, festival_encoding, festival_voices = _FESTIVAL.get(lang, (0, '', ()))
    if engine < share or not espeak:
        voice, encoding = f'festival/{rng.choice(festival_voices)}', festival_encoding
        text = re.sub(r"[^\w\s.,?!'-]|\.{2,}", ' ', text)  # Other signs stop some of its voices.
        command = [
            'text2wave',
            '-otype',
            'riff',
            '-eval',
            f'(voice_{voice[9:]})',
            '-eval',
            f"(Parameter.set 'Duration_Stretch {rng.uniform(0.75, 1.2):.2f})",
        ]
    elif lang == 'en' and engine < share + 0.3:
        voice = f'flite/{rng.choice(voices.FLITE)}'
        command = [
            'flite',
            '-voice',
            voice[6:],
            '--setf',
            f'duration_stretch={rng.uniform(0.8, 1.3):.2f}',
            '--setf',
            f'int_f0_target_mean={rng.uniform(80, 190):.0f}',
            '-t',
            text,
            '-o',
            '/dev/stdout',
        ]
    else:
        name = rng.choice(voices.accents(lang)) + '+' + rng.choice(voices.VARIANTS)
        voice = f'espeak-ng/{name}'
        command = [
            'espeak-ng',
            '-v',
            name,
            '-s',
            str(rng.randint(130, 220)),
            '-p',
            str(rng.randint(20, 80)),
            '-g',
            str(rng.choice([0, 0, 1, 3])),
            '--stdin',
            '--stdout',
        ]
    samples, rate = voices.run(command, text, encoding)
    return voice, resize(samples, rate, rng)


def resize(samples: Float[np.ndarray, ' samples'], rate: int, rng: random.Random) -> Float[np.ndarray, ' resampled']:
    """At 16 kHz, played too fast or too slow: pitch and formants move as with another body."""
    import soxr

    return soxr.resample(samples, rate * rng.uniform(0.88, 1.12), SAMPLE_RATE)


def place(samples: Float[np.ndarray, ' samples'], rng: random.Random) -> Float[np.ndarray, ' longer']:
    """The same speech in a room, with noise, down a telephone or neither; peaks stay below 1."""
    noise = np.random.default_rng(rng.getrandbits(32))
    before, after = (int(rng.uniform(0.02, 0.35) * SAMPLE_RATE) for _ in range(2))
    samples = np.pad(samples, (before, after))
    if rng.random() < 0.5:
        seconds, gap, level = rng.uniform(0.1, 0.6), rng.uniform(0.001, 0.012), rng.uniform(0, 15)
        samples = augmentation.convolve(samples, augmentation.room_response(noise, seconds, gap, level))
    if rng.random() < 0.75:
        level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(8, 40) / 20)
        samples = samples + level * augmentation.coloured(samples.size, rng.choice([0, 0.5, 1, 1.5]), noise)
    if rng.random() < 0.4:
        low, high = rng.uniform(100, 300), rng.uniform(3300, 3900)
        samples = augmentation.through_telephone(samples, low, high, rng.random() < 0.5)
    peak = 10 ** (-rng.uniform(0.5, 24) / 20)
    return (samples * peak / max(np.abs(samples).max(), 1e-6)).astype(np.float32)


def sentences(corpora: str | os.PathLike, seed: int) -> Iterator[dict]:
    """An endless sequence of {'text', 'lang', 'source'} in the proportions given above.

    Recordings have `audio` as well. A line comes back only when its source has no other left.
    Digits are left to the prompts: what a synthesiser makes of '1,5' is not what is written.
    """
    pools = collections.defaultdict(list)
    for row in json_lines.read(paths.path(corpora) / 'text_train.jsonl'):
        if (
            row['source'] in SOURCES
            and row['lang'] in LANGUAGES
            and 2 <= len(row['text']) <= 160
            and (row['source'] == 'voice_prompts' or not re.search(r'\d|[A-Z]{2}', row['text']))
        ):
            pools[row['lang'], row['source']].append({**row, 'source': f'synthetic/{row["source"]}'})
    for row in json_lines.read(paths.path(corpora) / 'orders_train.jsonl'):
        pools['en', 'orders'].append({'text': row['text'], 'lang': 'en', 'source': 'synthetic/orders'})
    for row in json_lines.read(paths.path(corpora) / 'speech.jsonl'):
        if row['lang'] in LANGUAGES:
            pools[row['lang'], 'recordings'].append({**row, 'source': f'altered/{row["source"]}'})
    rng = random.Random(seed)
    share = collections.Counter()
    for (lang, source), pool in sorted(pools.items()):
        rng.shuffle(pool)
        share[lang] += SOURCES[source]
    weights = {(lang, source): LANGUAGES[lang] * SOURCES[source] / share[lang] for lang, source in sorted(pools)}
    positions = collections.Counter()
    while True:
        (key,) = rng.choices(list(weights), list(weights.values()))
        yield pools[key][positions[key] % len(pools[key])]
        positions[key] += 1


def synthesise(
    corpora: str | os.PathLike,
    out: str | os.PathLike,
    hours: float,
    seed: int = 0,
    longest: float = 16.0,
) -> dict[str, float]:
    """Writes audio/*.flac and manifest.jsonl until `hours` are reached; returns hours by language.

    Sentences that a voice cannot read are left out and logged, up to one in a hundred.

    Args:
        longest: seconds; a longer clip is left out.

    Raises:
        RuntimeError: a synthesiser is missing, or fails more often.
    """
    import soundfile

    out = paths.path(out)
    (out / 'audio').mkdir(parents=True, exist_ok=True)
    total, unread = collections.Counter(), 0
    with (out / 'manifest.jsonl').open('w', encoding='utf-8') as manifest:
        for number, row in enumerate(sentences(corpora, seed)):
            rng = random.Random(f'{seed}/{number}')
            if 'audio' in row:
                samples, rate = soundfile.read(row['audio'], dtype='float32', always_2d=True)
                voice, samples = row['source'], resize(samples.mean(axis=1), rate, rng)
            else:
                try:
                    voice, samples = speak(row['text'], row['lang'], rng)
                except ValueError as error:
                    logging.warning('left out: %s', error)
                    unread += 1
                    if unread > 5 + number / 100:
                        raise RuntimeError(f'{unread} sentences were not read; {error}') from None
                    continue
            if not 0.2 < samples.size / SAMPLE_RATE <= longest:
                continue
            samples = place(samples, rng)
            audio = f'audio/{seed}_{number:06d}.flac'
            row = {**row, 'audio': audio, 'speaker': voice, 'duration': clips.save(out / audio, samples)}
            json_lines.append(manifest, row)
            total[row['lang']] += row['duration'] / 3600
            if total.total() >= hours:
                break
    return dict(total)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.synthetic_speech',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
