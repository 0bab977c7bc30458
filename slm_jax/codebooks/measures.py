"""How good a codebook is, on synthetic speech whose phones are known (`corpora.phones`).

- units/s, bits/s: units without repetitions; the entropy of these and of their durations, each taken alone.
- purity: frames whose phone is the one that their unit stands for. A unit stands for the phone that it has most often
  in the other half of the sentences.
- PNMI: information that units have of phones, as a share of the phones' entropy (HuBERT, arXiv 2106.07447); of all
  sentences, so it rises with k.
- ABX: of two phones A and B and one more X of A's kind, how often B is taken to be nearer: means of the centroids over
  the phone, cosine distance; beside it that of the encoder's own frames. NaN where no phone lasts two frames, as with
  an encoder of few frames a second.
- unit errors: edits per unit when a sentence is encoded again: quieter, with noise, a little later, in another voice,
  or said by a vocoder.

Of few sentences PNMI is too high and purity too low: some hundred are wanted.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jiwer
import numpy as np
from jaxtyping import Float, Int, Int16

from slm_jax.codebooks import units
from slm_jax.codebooks.codebook import Codebook
from slm_jax.corpora.phones import PAUSE, Phone

_TRIPLES = 20_000
_LEAST_FRAMES = 2  # of a phone that ABX takes
LATER = 80  # samples by which a sentence comes later


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence that was read.

    Attributes:
        text, voice: which.
        samples: at 16 kHz.
        phones: of it.
    """

    text: str
    voice: str
    samples: Int16[np.ndarray, ' n']
    phones: Sequence[Phone]


@dataclasses.dataclass(frozen=True)
class _Heard:
    """A sentence's frames, units by frame and without repetitions, durations, and the phone of each frame."""

    frames: Float[np.ndarray, 't d']
    by_frame: Int[np.ndarray, ' t']
    units: Int[np.ndarray, ' u']
    durations: Int[np.ndarray, ' u']
    phones: Sequence[str]


def measure(
    codebook: Codebook,
    encoder: Callable[[Int16[np.ndarray, ' n']], Any],
    sentences: Sequence[Sentence],
    vocoder: Any = None,
    seed: int = 0,
) -> dict[str, float]:
    """All of the measures above, as shares and numbers.

    Args:
        codebook: to be measured.
        encoder: samples to frames.
        sentences: the same texts in each voice.
        vocoder: a `vocoder.Vocoder`, or None.
        seed: of the triples and the noise.
    """
    heard = [_heard(codebook, encoder, sentence) for sentence in sentences]
    seconds = sum(len(sentence.samples) for sentence in sentences) / 16_000
    counted = collections.Counter(unit for each in heard for unit in each.units.tolist())
    lasting = collections.Counter(duration for each in heard for duration in each.durations.tolist())
    rate = sum(counted.values()) / seconds
    rng = np.random.default_rng(seed)
    own, frames = _abx(codebook, heard, sentences, rng)
    result = {
        'units/s': rate,
        'bits/s': rate * _entropy(counted),
        'bits/s with durations': rate * (_entropy(counted) + _entropy(lasting)),
        'purity': _purity(heard),
        'PNMI': _pnmi(heard),
        'ABX error': own,
        'ABX error of frames': frames,
    }
    for name, again in _again(sentences, rng, vocoder, heard).items():
        found = [_encoded(codebook, encoder, samples) for samples in again]
        result[f'unit error, {name}'] = _unit_error([(each.units, new) for each, new in zip(heard, found)])
    by_text: dict[str, list[Int[np.ndarray, ' u']]] = collections.defaultdict(list)
    for sentence, each in zip(sentences, heard):
        by_text[sentence.text].append(each.units)
    if others := [(first, other) for first, *rest in by_text.values() for other in rest]:
        result['unit error, another voice'] = _unit_error(others)
    return result


def _heard(codebook: Codebook, encoder: Callable, sentence: Sentence) -> _Heard:
    frames = np.asarray(encoder(sentence.samples)).astype(np.float32)
    single, durations = units.of_clip(codebook, frames)
    centres = (np.arange(len(frames)) + 0.5) / codebook.frames_per_second
    starts = np.array([phone.start for phone in sentence.phones])
    places = np.searchsorted(starts, centres, 'right') - 1
    names = [sentence.phones[place].name if place >= 0 else PAUSE for place in places]
    return _Heard(frames, np.repeat(single, durations), single, durations, names)


def _encoded(codebook: Codebook, encoder: Callable, samples: Int16[np.ndarray, ' n']) -> Int[np.ndarray, ' u']:
    return units.of_clip(codebook, np.asarray(encoder(samples)))[0]


def _again(
    sentences: Sequence[Sentence], rng: np.random.Generator, vocoder: Any, heard: Sequence[_Heard]
) -> dict[str, Iterator[Any]]:
    """Each sentence changed in a way that leaves what is said as it is."""

    def noisy(samples: Int16[np.ndarray, ' n']) -> Any:
        loudness = np.sqrt(np.mean(np.square(samples.astype(np.float64))))
        noise = rng.normal(0.0, loudness / 10, len(samples))
        return np.clip(samples + noise, -32768, 32767).astype(np.int16)

    result: dict[str, Iterator[Any]] = {
        '12 dB quieter': ((each.samples // 4).astype(np.int16) for each in sentences),
        'noise at 20 dB': (noisy(each.samples) for each in sentences),
        '5 ms later': (np.concatenate([np.zeros(LATER, np.int16), each.samples]) for each in sentences),
    }
    if vocoder is not None:
        result['said by the vocoder'] = (vocoder.speak(each.units, each.durations) for each in heard)
    return result


def _unit_error(pairs: Sequence[tuple[Any, Any]]) -> float:
    edits = count = 0
    for wanted, found in pairs:
        said, again = (' '.join(map(str, row.tolist())) for row in (wanted, found))
        told = jiwer.process_words(said, again)
        edits += told.substitutions + told.deletions + told.insertions
        count += len(wanted)
    return edits / max(count, 1)


def _entropy(counts: Mapping[Any, int]) -> float:
    shares = np.array(list(counts.values())) / sum(counts.values())
    return float(-np.sum(shares * np.log2(shares)))


def _purity(heard: Sequence[_Heard]) -> float:
    """What each half of the sentences says of the other."""
    right = frames = 0
    for half in (0, 1):
        seen: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
        for each in heard[half::2]:
            for unit, phone in zip(each.by_frame.tolist(), each.phones):
                seen[unit][phone] += 1
        stands_for = {unit: counts.most_common(1)[0][0] for unit, counts in seen.items()}
        for each in heard[1 - half :: 2]:
            right += sum(stands_for.get(unit) == phone for unit, phone in zip(each.by_frame.tolist(), each.phones))
            frames += len(each.phones)
    return right / max(frames, 1)


def _pnmi(heard: Sequence[_Heard]) -> float:
    both = collections.Counter(pair for each in heard for pair in zip(each.by_frame.tolist(), each.phones))
    single, phones = collections.Counter(), collections.Counter()
    for (unit, phone), count in both.items():
        single[unit] += count
        phones[phone] += count
    return (_entropy(single) + _entropy(phones) - _entropy(both)) / max(_entropy(phones), 1e-12)


def _abx(
    codebook: Codebook, heard: Sequence[_Heard], sentences: Sequence[Sentence], rng: np.random.Generator
) -> tuple[float, float]:
    """(error of units, error of frames). Where there are several voices, X has another one than A and B."""
    centroids = np.asarray(codebook.centroids)
    names, voices, of_units, of_frames = [], [], [], []
    for each, sentence in zip(heard, sentences):
        edges = [0] + [i for i in range(1, len(each.phones)) if each.phones[i] != each.phones[i - 1]]
        for start, end in zip(edges, [*edges[1:], len(each.phones)]):
            if each.phones[start] != PAUSE and end - start >= _LEAST_FRAMES:
                names.append(each.phones[start])
                voices.append(sentence.voice)
                of_units.append(centroids[each.by_frame[start:end]].mean(axis=0))
                of_frames.append(each.frames[start:end].mean(axis=0))
    kinds, whose = np.array(names), np.array(voices)
    if not names:
        return float('nan'), float('nan')
    errors: list[list[float]] = [[], []]
    vectors = [_unit(np.array(rows)) for rows in (of_units, of_frames)]
    for x in rng.integers(len(kinds), size=_TRIPLES):
        near = whose != whose[x] if len(set(voices)) > 1 else np.arange(len(kinds)) != x
        alike, others = np.flatnonzero(near & (kinds == kinds[x])), np.flatnonzero(near & (kinds != kinds[x]))
        if not len(alike) or not len(others):
            continue
        a, b = rng.choice(alike), rng.choice(others)
        for error, rows in zip(errors, vectors):
            to_a, to_b = float(rows[x] @ rows[a]), float(rows[x] @ rows[b])
            error.append(0.5 if to_a == to_b else float(to_b > to_a))
    own, frames = (float(np.mean(error)) if error else float('nan') for error in errors)
    return own, frames


def _unit(rows: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n d']:
    rows = rows - rows.mean(axis=0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
