"""New sentences out of the words of recordings, so that an encoder does not learn these by heart.

    python -m slm_jax.corpora.spliced_speech MANIFEST ENCODER OUT --hours 3 --seed 0 [--texts CORPORA]

reads the recordings of MANIFEST (JSONL) with ENCODER (a foundation with a CTC head, best one that
was trained on them) and cuts out what it reads rightly. Runs of one to four words of one language
are put one after the other; with --texts, up to half of the clips say parts of sentences of CORPORA
(written by slm_jax.corpora.text_corpora), each in as few pieces as it takes: words, runs of words, and
parts of words where a word was never recorded. OUT gets audio/*.flac (16 kHz) and manifest.jsonl.
As in aligned data augmentation (arXiv 2104.01393), words keep their voice and lose their sentence.
"""

import argparse
import collections
import dataclasses
import io
import itertools
import os
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jiwer
import numpy as np
from jaxtyping import Float, Int

from slm_jax import paths
from slm_jax.corpora import synthetic_speech
from slm_jax.data import ctc_text, json_lines

_SAMPLE_RATE = synthetic_speech.SAMPLE_RATE
# Seconds. A label may come this much before the end of its sound; and the encoder, which does not
# look ahead, writes about so much later than it hears.
_EARLY, _LATE = 0.06, 0.04
_LONGEST_RUN = 4  # words
# Characters of a piece, the spaces at a word's ends included.
_SHORTEST_PIECE, _LONGEST_PIECE = 3, 24


@dataclasses.dataclass(frozen=True)
class Word:
    """One that was read rightly.

    Attributes:
        text: normalised.
        cuts: samples at which its characters begin; the last is its end.
        follows: whether the word before it in the recording was read rightly too.
    """

    text: str
    cuts: tuple[int, ...]
    follows: bool


Spelt = tuple[str, tuple[int, ...]]  # a word and the frame of each of its characters


def spelt(labels: Int[np.ndarray, ' frames'], pieces: Sequence[str]) -> list[Spelt]:
    """Words of the best labels of a clip's frames."""
    words: list[Spelt] = []
    before = 0
    for frame, label in enumerate(labels.tolist()):
        if label and label != before:
            piece = pieces[label]
            if piece.startswith('▁') or not words:
                words.append(('', ()))
            text, frames = words[-1]
            # A mark alone comes as soon as the last word is over, and is no letter.
            letters = piece.removeprefix('▁')
            words[-1] = text + letters, frames + (frame,) * len(letters)
        before = label
    return [word for word in words if word[0]]


def rightly_read(
    reference: str,
    read: Sequence[Spelt],
    samples: Float[np.ndarray, ' samples'],
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
    edges = [max(0, int(read[0][1][0] * hop) - 3 * early)]
    for (_, before), (_, after) in itertools.pairwise(read):
        start = int((before[-1] + 1) * hop) - early - late
        edges.append(_quietest(samples, start, int(after[0] * hop) - late))
    edges.append(min(samples.size, int((read[-1][1][-1] + 1) * hop) + 3 * early))
    aligned = jiwer.process_words(reference, ' '.join(text for text, _ in read)).alignments[0]
    words, last = [], -2
    for chunk in aligned:
        if chunk.type == 'equal':
            for number in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                (text, at), start, end = read[number], edges[number], edges[number + 1]
                inner = np.clip([int(frame * hop) - early - late for frame in at[1:]], start, end)
                words.append(Word(text, (start, *inner.tolist(), end), number == last + 1))
                last = number
    return words


def _quietest(samples: Float[np.ndarray, ' samples'], start: int, end: int) -> int:
    """The middle of the quietest 20 ms."""
    width = _SAMPLE_RATE // 50
    start = max(0, min(start, end - 2 * width))
    power = np.convolve(samples[start : max(end, start + 2 * width)] ** 2, np.ones(width), 'valid')
    return start + int(np.argmin(power)) + width // 2


Clip = tuple[Float[np.ndarray, ' samples'], list[Word]]


def read_words(manifest: str | os.PathLike, encoder: str) -> dict[str, list[Clip]]:
    """By language, the clips of a manifest with the words that a foundation reads rightly in them.

    Raises:
        ValueError: a clip cannot be read, or the foundation is no speech encoder with a CTC head.
    """
    import jax

    from slm_jax.audio import waveforms
    from slm_jax.inference import model as model_lib
    from slm_jax.inference import queries
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
        for row in json_lines.read(manifest):
            yield queries.Query((), waveforms.read_waveform(row['audio']), row)

    clips = collections.defaultdict(list)
    for group, batch in queries.batched(stream(), longest=model.encoder_seconds):
        speech = batch['speech_samples'], batch['speech_lengths']
        best, lengths = map(np.asarray, labels(model.params, *speech))
        for (_, query), clip, frames in zip(group, best, lengths, strict=False):
            samples = np.asarray(query.samples, np.float32) / 32768
            reference = ctc_text.normalize(query.info['text'])
            words = rightly_read(reference, spelt(clip[:frames], pieces), samples, int(frames))
            if words:
                clips[query.info['lang']].append((samples, words))
    return dict(clips)


class Voice:
    """All that was read rightly in the recordings of a language, to say other texts with."""

    def __init__(self, clips: Sequence[Clip]):
        self._clips = [samples for samples, _ in clips]
        self._stretches = [  # of each clip, the runs of words that follow each other
            (number, run) for number, (_, words) in enumerate(clips) for run in _runs(words)
        ]
        # ' one two ' for each run; a character's clip, start and end. Spaces have no sound.
        text, places = [], []
        for number, run in self._stretches:
            for word in run:
                text += [' ', *word.text]
                places.append((number, word.cuts[0], word.cuts[0]))
                places += [(number, *cuts) for cuts in itertools.pairwise(word.cuts)]
            text += [' ', '\n']
            places += [(number, run[-1].cuts[-1], run[-1].cuts[-1])] * 2
        self._text, self._places = ''.join(text), places

    def runs(self, rng: random.Random) -> tuple[str, Float[np.ndarray, ' samples']]:
        """Two to ten words in runs of one to four, and their sound at 16 kHz."""
        texts, pieces, wanted = [], [], rng.randint(2, 10)
        weights = [len(run) for _, run in self._stretches]
        while len(texts) < wanted:
            ((number, run),) = rng.choices(self._stretches, weights)
            first = rng.randrange(len(run))
            last = first + min(rng.randint(1, _LONGEST_RUN), wanted - len(texts), len(run) - first)
            texts += [word.text for word in run[first:last]]
            pieces.append((number, run[first].cuts[0], run[last - 1].cuts[-1], True))
        return ' '.join(texts), self._joined(pieces, rng)

    def say(self, text: str, rng: random.Random) -> Float[np.ndarray, ' samples'] | None:
        """A normalised text in as few pieces as it takes, at 16 kHz; None where it takes others."""
        text = f' {text} '
        best: list[tuple[float, int] | None] = [(0.0, 0)] + [None] * len(text)
        for end in range(_SHORTEST_PIECE, len(text) + 1):
            for start in range(max(0, end - _LONGEST_PIECE), end - _SHORTEST_PIECE + 1):
                if (reached := best[start]) and text[start:end] in self._text:
                    cost = reached[0] + 1 + rng.random() / 2  # Not the same ones each time.
                    if (known := best[end]) is None or cost < known[0]:
                        best[end] = cost, start
        if best[-1] is None:
            return None
        pieces, end = [], len(text)
        while end and (reached := best[end]):
            start = reached[1]
            found = [m.start() for m in re.finditer(re.escape(text[start:end]), self._text)]
            at = rng.choice(found)
            number, first, _ = self._places[at]
            pieces.append((number, first, self._places[at + end - start - 1][2], text[end - 1] == ' '))
            end = start
        return self._joined(pieces[::-1], rng)

    def _joined(
        self, pieces: Sequence[tuple[int, int, int, bool]], rng: random.Random
    ) -> Float[np.ndarray, ' samples']:
        """(clip, start, end, whether a word ends here) one after the other, faded into each other."""
        half = _SAMPLE_RATE // 250
        ramp = np.linspace(0, 1, 2 * half, dtype=np.float32)
        sound = np.zeros(2 * half, np.float32)
        for number, start, end, word_ends in pieces:
            clip = np.pad(self._clips[number], half)
            piece = clip[start : end + 2 * half].copy()
            if piece.size < 2 * ramp.size:
                continue
            piece[: ramp.size] *= ramp
            piece[-ramp.size :] *= ramp[::-1]
            sound[-ramp.size :] += piece[: ramp.size]
            pause = rng.uniform(0, 0.15) if word_ends and rng.random() < 0.4 else 0.0
            sound = np.concatenate([sound, piece[ramp.size :], np.zeros(int(pause * _SAMPLE_RATE), np.float32)])
        return sound


def _runs(words: Sequence[Word]) -> list[list[Word]]:
    runs = []
    for word in words:
        if not (runs and word.follows):
            runs.append([])
        runs[-1].append(word)
    return runs


def write(
    clips: Mapping[str, Sequence[Clip]],
    out: str | os.PathLike,
    hours: float,
    seed: int = 0,
    texts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Writes audio/*.flac and manifest.jsonl until `hours` are reached; returns hours by language.

    Half of it sounds as recorded, the other as `synthetic_speech` alters recordings.

    Args:
        texts: by language, what up to half of the clips say, two to ten words of each; those that
            cannot be put together are left out.
    """
    import soundfile

    out = paths.path(out)
    (out / 'audio').mkdir(parents=True, exist_ok=True)
    total: collections.Counter = collections.Counter()
    rng = random.Random(seed)
    langs = sorted(clips)
    weights = [sum(len(words) for _, words in clips[lang]) for lang in langs]
    voices = {lang: Voice(clips[lang]) for lang in langs}
    with (out / 'manifest.jsonl').open('w', encoding='utf-8') as lines:
        for number in itertools.count():
            (lang,) = rng.choices(langs, weights)
            if texts and lang in texts and rng.random() < 0.5:
                words, wanted = rng.choice(texts[lang]).split(), rng.randint(2, 10)
                start = rng.randint(0, max(0, len(words) - wanted))
                text = ' '.join(words[start : start + wanted])
                samples = voices[lang].say(text, rng)
                if samples is None:
                    continue
            else:
                text, samples = voices[lang].runs(rng)
            if rng.random() < 0.5:
                samples = synthetic_speech.place(synthetic_speech.resize(samples, _SAMPLE_RATE, rng), rng)
            row: dict[str, Any] = {
                'text': text,
                'lang': lang,
                'source': 'spliced',
                'audio': f'audio/{seed}_{number:06d}.flac',
                'duration': round(samples.size / _SAMPLE_RATE, 3),
            }
            flac = io.BytesIO()
            soundfile.write(flac, samples, _SAMPLE_RATE, format='FLAC', subtype='PCM_16')
            (out / row['audio']).write_bytes(flac.getvalue())
            json_lines.append(lines, row)
            total[lang] += row['duration'] / 3600
            if total.total() >= hours:
                break
    return dict(total)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.spliced_speech',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('manifest')
    parser.add_argument('encoder')
    parser.add_argument('out')
    parser.add_argument('--hours', type=float, default=3.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--texts', metavar='CORPORA')
    args = parser.parse_args(argv)
    try:
        texts = collections.defaultdict(list)
        if args.texts:
            for row in json_lines.read(paths.path(args.texts) / 'text_train.jsonl'):
                if text := ctc_text.normalize(row['text']):
                    texts[row['lang']].append(text)
        clips = read_words(args.manifest, args.encoder)
        hours = write(clips, args.out, args.hours, args.seed, texts)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{error}\n')
    for lang, amount in sorted(hours.items()):
        print(f'{lang}: {amount:.2f} h')


if __name__ == '__main__':
    main()
