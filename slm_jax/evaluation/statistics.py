"""Scores as functions of sums over examples, and their 95% intervals.

A corpus's score follows from counts of each example (words and edits, matching n-grams, …), added up. So the score of
a resample of the examples costs an addition: the bootstrap of Bisani and Ney (ICASSP 2004) for error rates, of Koehn
(EMNLP 2004) for BLEU. Two systems on the same examples are compared on the same resamples.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

RESAMPLES = 1000
# The slot's value where the speaker did not name it; an answer of this value is 'nothing found'.
ABSENT = 'none'


class MetricsError(ValueError):
    """Predictions cannot be scored; the message names the example and the field."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What scores need to know of each example.

    Attributes:
        counts: of each example.
        rates: from sums of them to {name of a score: value}, in percent, and to the numbers that are told beside it.
    """

    counts: Num[np.ndarray, 'examples counts']
    rates: Callable[[Num[np.ndarray, '*resamples counts']], dict[str, Num[np.ndarray, '*resamples']]]

    def scores(self) -> dict[str, float]:
        """The scores of all examples."""
        return {name: np.asarray(value).item() for name, value in self.rates(self.counts.sum(0)).items()}


def joined(parts: Sequence[Statistics]) -> Statistics:
    """All scores of several statistics of the same examples."""
    ends = np.cumsum([part.counts.shape[1] for part in parts])[:-1]

    def rates(sums):
        pieces = zip(parts, np.split(sums, ends, axis=-1), strict=True)
        return {name: value for part, piece in pieces for name, value in part.rates(piece).items()}

    return Statistics(np.hstack([part.counts for part in parts]), rates)


def resampled(statistics: Statistics, units: Sequence[str], seed: str) -> dict[str, Num[np.ndarray, ' resamples']]:
    """The scores of resamples of the examples.

    Args:
        statistics: of the examples.
        units: what is drawn, with replacement, is a unit with all its examples (the questions about one clip).
        seed: the same one draws the same of the same units.

    Returns:
        {name: values}; NaN where a resample has nothing to divide by.
    """
    names, unit = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), statistics.counts.shape[1]), statistics.counts.dtype)
    np.add.at(counts, unit, statistics.counts)
    rng = np.random.default_rng(list(seed.encode()))
    count = len(names)
    sums = [np.bincount(rng.integers(count, size=count), minlength=count) @ counts for _ in range(RESAMPLES)]
    with np.errstate(divide='ignore', invalid='ignore'):
        return statistics.rates(np.stack(sums))


def interval(values: Float[np.ndarray, ' resamples']) -> list[float]:
    """The 2.5th and the 97.5th percentile."""
    return np.nanpercentile(values, [2.5, 97.5]).tolist()


def words(references: Sequence[str], predictions: Sequence[str]) -> Statistics:
    """Word error rate (jiwer).

    Args:
        references: normalised texts, words parted by spaces, none of them empty.
        predictions: as many texts; an empty one counts as deletions.

    Returns:
        Of wer (percent), words (of the references), substitutions, deletions, insertions.

    Raises:
        MetricsError: nothing to score, unequal numbers, or an empty reference.
    """
    import jiwer

    _check(references, predictions)

    def rates(sums):
        hits, substitutions, deletions, insertions = np.moveaxis(sums, -1, 0)
        count = hits + substitutions + deletions
        return {
            'wer': 100.0 * ((substitutions + deletions + insertions) / count),
            'words': count,
            'substitutions': substitutions,
            'deletions': deletions,
            'insertions': insertions,
        }

    return Statistics(_edits(jiwer.process_words(list(references), list(predictions))), rates)


def biased(
    references: Sequence[str], predictions: Sequence[str], phrases: Sequence[Sequence[str] | None]
) -> Statistics:
    """Word error rates of the words in phrases of a list and of all others: B-WER and U-WER.

    As Le et al. (arXiv 2104.02194) define them: a word of the reference is counted, right or wrong, where a phrase of
    the list stands in the reference; an inserted word where one stands in the prediction. The edits are those of
    `words`, so that those of both kinds are all of them.

    Args:
        references: normalised texts, words parted by spaces, none of them empty.
        predictions: as many texts.
        phrases: of each example, normalised; None: it is not counted.

    Returns:
        Of b_wer, b_words, u_wer and u_words; without those of which there is no word.
    """
    import jiwer

    _check(references, predictions)
    output = jiwer.process_words(list(references), list(predictions))
    counts = np.zeros((len(references), 4), np.int64)  # words in phrases, errors in them; other words, errors
    for row, chunks, said, heard, listed in zip(
        counts, output.alignments, output.references, output.hypotheses, phrases, strict=True
    ):
        if listed is None:
            continue
        in_said, in_heard = _within(said, listed), _within(heard, listed)
        row[[0, 2]] = in_said.sum(), (~in_said).sum()
        for chunk in chunks:
            if chunk.type != 'equal':
                here = in_said[chunk.ref_start_idx : chunk.ref_end_idx]
                if chunk.type == 'insert':
                    here = in_heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
                row[[1, 3]] += here.sum(), (~here).sum()
    there = [name for name, words in zip('bu', counts[:, ::2].sum(0)) if words]

    def rates(sums):
        words = dict(zip('bu', (sums[..., :2], sums[..., 2:])))
        found = {f'{name}_wer': 100.0 * (words[name][..., 1] / words[name][..., 0]) for name in there}
        return found | {f'{name}_words': words[name][..., 0] for name in there}

    return Statistics(counts, rates)


def _within(words: Sequence[str], phrases: Sequence[str]) -> Bool[np.ndarray, ' words']:
    """Which words are of an occurrence of one of the phrases."""
    found = np.zeros(len(words), bool)
    for phrase in map(str.split, phrases):
        for start in range(len(words) - len(phrase) + 1):
            if phrase and list(words[start : start + len(phrase)]) == phrase:
                found[start : start + len(phrase)] = True
    return found


def characters(references: Sequence[str], predictions: Sequence[str]) -> Statistics:
    """Character error rate (jiwer); a space is a character.

    For languages without spaces between words take the spaces out first, as `metrics.score` does: there they only
    stand where punctuation was. Arguments and errors as `words`; of cer (percent) and characters.
    """
    import jiwer

    _check(references, predictions)

    def rates(sums):
        count = sums[..., :3].sum(-1)
        return {'cer': 100.0 * (sums[..., 1:].sum(-1) / count), 'characters': count}

    return Statistics(_edits(jiwer.process_characters(list(references), list(predictions))), rates)


def _edits(output: Any) -> Int[np.ndarray, 'examples 4']:
    """Hits, substitutions, deletions and insertions of each example."""
    kinds = ('equal', 'substitute', 'delete', 'insert')
    counts = np.zeros((len(output.alignments), len(kinds)), np.int64)
    for row, chunks in zip(counts, output.alignments, strict=True):
        for chunk in chunks:
            length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            row[kinds.index(chunk.type)] += length
    return counts


def bleu(references: Sequence[str], predictions: Sequence[str], tokenizer: str) -> tuple[Statistics, str]:
    """Corpus BLEU (sacrebleu) with a tokenizer of sacrebleu's; returns (statistics, signature)."""
    import sacrebleu

    # sacrebleu warns of 'tokenized' text where sentences merely end in ' .'; that is the model's doing.
    logging.getLogger('sacrebleu').setLevel(logging.ERROR)
    return _sacrebleu('bleu', sacrebleu.BLEU(tokenize=tokenizer), references, predictions)


def chrf(references: Sequence[str], predictions: Sequence[str]) -> tuple[Statistics, str]:
    """Corpus chrF2 (sacrebleu); returns (statistics, signature)."""
    import sacrebleu

    return _sacrebleu('chrf', sacrebleu.CHRF(), references, predictions)


def _sacrebleu(name: str, metric: Any, references: Sequence[str], predictions: Sequence[str]) -> tuple[Statistics, str]:
    """What sacrebleu's own bootstrap is made of; that one gives one half-width to both sides, and no pairs."""
    _check(references, predictions)
    counts = np.array(metric._extract_corpus_statistics(list(predictions), [list(references)]))

    def rates(sums):
        scores = [metric._compute_score_from_stats(each).score for each in sums.reshape(-1, sums.shape[-1]).tolist()]
        return {name: np.reshape(scores, sums.shape[:-1])}

    return Statistics(counts, rates), str(metric.get_signature())


def _mean(**values: Sequence[float]) -> Statistics:
    """Of means over the examples, in percent."""

    def rates(sums):
        return {name: 100.0 * sums[..., i] / sums[..., -1] for i, name in enumerate(values)}

    return Statistics(np.stack([*values.values(), np.ones(len(next(iter(values.values()))))], axis=1), rates)


def exact(references: Sequence[str], predictions: Sequence[str]) -> Statistics:
    """Share of predictions equal to their reference: accuracy, in percent."""
    _check(references, predictions)
    return _mean(accuracy=[r == p for r, p in zip(references, predictions, strict=True)])


def slots(references: Sequence[str], predictions: Sequence[str]) -> Statistics:
    """Micro-averaged F1 of slot values, one question a pair.

    A value found and right is a true positive; one found but wrong is a false positive, and a false
    negative too where there was one to be found. `ABSENT` and '' mean that no value was found.

    Args:
        references: normalised values, `ABSENT` where the speaker named none.
        predictions: as many normalised answers.

    Returns:
        Of f1, precision, recall and accuracy, in percent; a precision or recall of nothing is 0. Where
        neither side names any value all are 100.
    """
    _check(references, predictions)
    pairs = [(r, p or ABSENT) for r, p in zip(references, predictions, strict=True)]
    counts = np.array([(r == p != ABSENT, p != ABSENT, r != ABSENT, r == p, True) for r, p in pairs], np.int64)

    def rates(sums):
        correct, found, there, equal, count = np.moveaxis(sums, -1, 0)

        def share(part, whole, of_nothing):
            return np.where(whole, part / np.maximum(whole, 1), of_nothing)

        of_nothing = np.where(found + there, 0.0, 100.0)
        return {
            'f1': share(200.0 * correct, found + there, of_nothing),
            'precision': share(100.0 * correct, found, of_nothing),
            'recall': share(100.0 * correct, there, of_nothing),
            'accuracy': 100.0 * equal / count,
        }

    return Statistics(counts, rates)


def answers(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Statistics:
    """Exact match and F1 of SQuAD (Rajpurkar et al., EMNLP 2016), and whether an accepted answer is contained.

    A model that answers in a sentence is right by the last and by little else.

    Args:
        references: the normalised answers that are accepted for each question; the best counts.
        predictions: as many normalised answers, words parted by spaces.

    Returns:
        Of contains, f1 and accuracy (exact match), in percent.
    """
    _check([each[0] for each in references], predictions)
    pairs = list(zip(references, predictions, strict=True))
    return _mean(
        contains=[any(f' {accepted} ' in f' {answer} ' for accepted in each) for each, answer in pairs],
        f1=[max(_overlap(accepted.split(), answer.split()) for accepted in each) for each, answer in pairs],
        accuracy=[answer in each for each, answer in pairs],
    )


def choices(
    right: Sequence[int], log_likelihoods: Sequence[Sequence[float]], texts: Sequence[Sequence[str]]
) -> Statistics:
    """How often the right one of several texts is the likeliest, as EleutherAI's lm-evaluation-harness counts.

    Args:
        right: which one of each example's.
        log_likelihoods: of the texts of each example.
        texts: of each example.

    Returns:
        Of accuracy, and accuracy_norm by the likelihood per byte, in percent.
    """
    sizes = [np.array([len(text.encode()) for text in each]) for each in texts]
    values = [np.array(each) for each in log_likelihoods]
    return _mean(
        accuracy=[np.argmax(value) == which for which, value in zip(right, values, strict=True)],
        accuracy_norm=[np.argmax(v / size) == which for which, v, size in zip(right, values, sizes, strict=True)],
    )


def likelihood(log_likelihoods: Sequence[float], tokens: Sequence[int], texts: Sequence[str]) -> Statistics:
    """How well texts were foreseen.

    Args:
        log_likelihoods: of each text, to base e.
        tokens: in each.
        texts: as many.

    Returns:
        Of perplexity (of a token, so only models of one tokenizer compare), and bits_per_byte.
    """

    def rates(sums):
        return {
            'perplexity': np.exp(sums[..., 0] / sums[..., 1]),
            'bits_per_byte': sums[..., 0] / np.log(2) / sums[..., 2],
        }

    return Statistics(
        np.array([(-v, n, len(t.encode())) for v, n, t in zip(log_likelihoods, tokens, texts, strict=True)]), rates
    )


def _overlap(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """F1 of two bags of words, 0 to 1."""
    common = sum((collections.Counter(reference) & collections.Counter(prediction)).values())
    return 2 * common / (len(reference) + len(prediction))


def _check(references: Sequence[str], predictions: Sequence[str]) -> None:
    if len(references) != len(predictions) or not references:
        raise MetricsError(
            f'predictions: {len(predictions)} for {len(references)} references; give one for each, at least one.'
        )
    empty = [i for i, reference in enumerate(references) if not reference.strip()]
    if empty:
        raise MetricsError(f'reference: empty at positions {empty[:5]}; an error rate divides by its length.')
