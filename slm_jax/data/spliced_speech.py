# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""New sentences out of the words of recordings, so that an encoder does not learn these by heart.

    python -m slm_jax.data.spliced_speech MANIFEST ENCODER OUT --hours 3 --seed 0

reads the recordings of MANIFEST (JSONL) with ENCODER (a foundation with a CTC head, best one that
was trained on them), cuts out the words that it reads rightly, and puts runs of one to four words
of one language one after the other. OUT gets audio/*.flac (16 kHz) and manifest.jsonl. As in
aligned data augmentation (arXiv 2104.01393), words keep their voice and lose their sentence.
"""

import argparse
import collections
import dataclasses
import itertools
import os
import pathlib
import random
from collections.abc import Mapping, Sequence

import jiwer
import numpy as np
from jaxtyping import Float, Int

from slm_jax.data import synthetic_speech, text_corpora

_SAMPLE_RATE = synthetic_speech.SAMPLE_RATE
# Seconds. A label may come this much before the end of its sound; and the encoder, which does not
# look ahead, writes about so much later than it hears.
_EARLY, _LATE = 0.06, 0.04
_LONGEST_RUN = 4  # words


@dataclasses.dataclass(frozen=True)
class Word:
    """One that was read rightly.

    Attributes:
      text: normalised.
      start, end: in samples.
      follows: whether the word before it in the recording was read rightly too.
    """

    text: str
    start: int
    end: int
    follows: bool


def spelt(labels: Int[np.ndarray, 'frames'], pieces: Sequence[str]) -> list[tuple[str, int, int]]:
    """Words of the best labels of a clip's frames: (word, frame of its first label, of the last)."""
    words, before = [], 0
    for frame, label in enumerate(labels.tolist()):
        if label and label != before:
            piece = pieces[label]
            if piece.startswith('▁') or not words:
                words.append(['', frame, frame])
            words[-1][0] += piece.removeprefix('▁')
            if words[-1][0] == piece.removeprefix('▁'):
                words[-1][1] = frame  # A mark alone is written as soon as the last word is over.
            words[-1][2] = frame
        before = label
    return [(text, first, last) for text, first, last in words if text]


def rightly_read(
    reference: str,
    read: Sequence[tuple[str, int, int]],
    samples: Float[np.ndarray, 'samples'],
    frames: int,
) -> list[Word]:
    """The words of a clip that stand in its reference, cut where it is quietest between two.

    Args:
      reference: normalised.
      read: see `spelt`.
      samples: of the clip at 16 kHz.
      frames: their number.
    """
    if not read or not reference:
        return []
    hop = samples.size / frames
    early, late = int(_EARLY * _SAMPLE_RATE), int(_LATE * _SAMPLE_RATE)
    cuts = [max(0, int(read[0][1] * hop) - 3 * early)]
    for (_, _, last), (_, first, _) in itertools.pairwise(read):
        start = int((last + 1) * hop) - early - late
        cuts.append(_quietest(samples, start, int(first * hop) - late))
    cuts.append(min(samples.size, int((read[-1][2] + 1) * hop) + 3 * early))
    aligned = jiwer.process_words(reference, ' '.join(text for text, _, _ in read)).alignments[0]
    words, last = [], -2
    for chunk in aligned:
        if chunk.type == 'equal':
            for number in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                words.append(
                    Word(read[number][0], cuts[number], cuts[number + 1], number == last + 1)
                )
                last = number
    return words


def _quietest(samples: Float[np.ndarray, 'samples'], start: int, end: int) -> int:
    """The middle of the quietest 20 ms."""
    width = _SAMPLE_RATE // 50
    start = max(0, min(start, end - 2 * width))
    power = np.convolve(samples[start : max(end, start + 2 * width)] ** 2, np.ones(width), 'valid')
    return start + int(np.argmin(power)) + width // 2


Clip = tuple[Float[np.ndarray, 'samples'], list[Word]]


def read_words(manifest: str | os.PathLike, encoder: str) -> dict[str, list[Clip]]:
    """By language, the clips of a manifest with the words that a foundation reads rightly in them.

    Raises:
      ValueError: a clip cannot be read, or the foundation is no speech encoder with a CTC head.
    """
    import jax

    from slm_jax.audio import waveforms
    from slm_jax.evaluation import model as model_lib
    from slm_jax.evaluation import queries
    from slm_jax.systems import encoder_ctc

    model = model_lib.load(encoder)
    if not isinstance(model.system, encoder_ctc.EncoderCtc):
        raise ValueError(f'{encoder} is no speech encoder with a CTC head, as usm_tiny is.')
    tokenizer = model.vocabulary.tokenizer
    pieces = [tokenizer.id_to_piece(label) for label in range(tokenizer.get_piece_size())]

    @jax.jit
    def labels(params, samples, lengths):
        variables = {'params': params['speech_encoder']}
        _, frames, logits = model.system.speech_encoder.apply(variables, samples, lengths)
        return logits.argmax(axis=-1), frames

    def stream():
        for row in text_corpora.read_jsonl(manifest):
            yield queries.Query((), waveforms.read_waveform(row['audio']), row)

    clips = collections.defaultdict(list)
    for group, batch in queries.batched(stream()):
        speech = batch['speech_samples'], batch['speech_lengths']
        best, lengths = map(np.asarray, labels(model.params, *speech))
        for (_, query), clip, frames in zip(group, best, lengths, strict=False):
            samples = query.samples.astype(np.float32) / 32768
            reference = text_corpora.normalize(query.info['text'])
            words = rightly_read(reference, spelt(clip[:frames], pieces), samples, int(frames))
            if words:
                clips[query.info['lang']].append((samples, words))
    return dict(clips)


def sentence(clips: Sequence[Clip], rng: random.Random) -> tuple[str, Float[np.ndarray, 'samples']]:
    """Two to ten words of one language in runs, and their sound at 16 kHz."""
    texts, sound, wanted = [], [], rng.randint(2, 10)
    fade = np.linspace(0, 1, _SAMPLE_RATE // 200, dtype=np.float32)
    while len(texts) < wanted:
        samples, words = rng.choice(clips)
        first = last = rng.randrange(len(words))
        longest = min(rng.randint(1, _LONGEST_RUN), wanted - len(texts))
        while last + 1 < len(words) and words[last + 1].follows and last - first + 1 < longest:
            last += 1
        piece = samples[words[first].start : words[last].end].copy()
        if piece.size < 2 * fade.size:
            continue
        piece[: fade.size] *= fade
        piece[-fade.size :] *= fade[::-1]
        texts += [word.text for word in words[first : last + 1]]
        pause = rng.uniform(0, 0.15) if rng.random() < 0.4 else 0.0
        sound += [piece, np.zeros(int(pause * _SAMPLE_RATE), np.float32)]
    return ' '.join(texts), np.concatenate(sound)


def write(
    clips: Mapping[str, Sequence[Clip]], out: str | os.PathLike, hours: float, seed: int = 0
) -> dict[str, float]:
    """Writes audio/*.flac and manifest.jsonl until `hours` are reached; returns hours by language.

    Half of it sounds as recorded, the other as `synthetic_speech` alters recordings.
    """
    import soundfile

    out = pathlib.Path(out)
    (out / 'audio').mkdir(parents=True, exist_ok=True)
    total, rng = collections.Counter(), random.Random(seed)
    langs = sorted(clips)
    weights = [sum(len(words) for _, words in clips[lang]) for lang in langs]
    with open(out / 'manifest.jsonl', 'w', encoding='utf-8') as lines:
        for number in itertools.count():
            (lang,) = rng.choices(langs, weights)
            text, samples = sentence(clips[lang], rng)
            if rng.random() < 0.5:
                samples = synthetic_speech.place(
                    synthetic_speech.resize(samples, _SAMPLE_RATE, rng), rng
                )
            row = {
                'text': text,
                'lang': lang,
                'source': 'spliced',
                'audio': f'audio/{seed}_{number:06d}.flac',
                'duration': round(samples.size / _SAMPLE_RATE, 3),
            }
            soundfile.write(out / row['audio'], samples, _SAMPLE_RATE, subtype='PCM_16')
            text_corpora.append_jsonl(lines, row)
            total[lang] += row['duration'] / 3600
            if total.total() >= hours:
                return dict(total)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.data.spliced_speech',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('manifest')
    parser.add_argument('encoder')
    parser.add_argument('out')
    parser.add_argument('--hours', type=float, default=3.0)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        clips = read_words(args.manifest, args.encoder)
        hours = write(clips, args.out, args.hours, args.seed)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{error}\n')
    for lang, amount in sorted(hours.items()):
        print(f'{lang}: {amount:.2f} h')


if __name__ == '__main__':
    main()
