"""Scores of predictions against references, per language, direction or subject, and overall.

A prediction is a dictionary, one line of `predictions.jsonl`:

    id, task, lang       of the example; `lang` is what is spoken
    target_lang          what is written: equal to `lang` or absent for a transcription
    slot                 name of the slot that was asked for; absent where none was
    subject              of a question with `choices`, as MMLU has them; it may be absent
    reference, prediction, instruction
    phrases              those that are said, of a list of candidates: of them and of all else WER is told apart
    cluster              those of one are drawn together for intervals; where it is absent, those of one id
    answers              all that are accepted, the first of which is the reference; absent where one text is expected
    log_likelihoods, tokens   of the `choices`, or of the reference alone, where texts were scored and none was written

Six kinds follow from it: `transcription` (WER, CER, exact-match accuracy; B-WER, U-WER), `translation` (BLEU, chrF),
`slots` (micro F1, accuracy), `answers` (whether one is contained, F1, exact match), `choices` (accuracy, and perplexity
of the right one) and `likelihood` (perplexity). Every score is taken over a whole group at once (corpus level), in
percent but for perplexity and bits, with its 95% bootstrap interval.
"""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from slm_jax.data import phrases
from slm_jax.evaluation import normalizers, statistics
from slm_jax.evaluation.statistics import ABSENT, MetricsError

KINDS = ('transcription', 'translation', 'slots', 'answers', 'choices', 'likelihood')
# Scores, of which all else that stands beside them is a count.
RATES = (
    *('wer', 'b_wer', 'u_wer', 'cer', 'bleu', 'chrf', 'contains', 'f1', 'precision', 'recall'),
    *('accuracy', 'accuracy_norm', 'perplexity', 'bits_per_byte'),
)
# Written without spaces between words: a word error rate would count whole sentences.
UNSPACED = frozenset({'ja', 'zh', 'yue', 'cmn', 'wuu', 'th', 'lo', 'km', 'my', 'bo', 'dz'})

Prediction = Mapping[str, Any]
# What is right, what was answered, and the phrases, normalised.
Pair = tuple[list[str], str, list[str] | None]
Resamples = Mapping[str, Float[np.ndarray, ' resamples']]


def base_language(code: str | None) -> str:
    """Returns 'pt' for 'pt-BR', 'zh' for 'zh_cn', '' for None."""
    return (code or '').replace('_', '-').split('-')[0].lower()


def is_unspaced(code: str | None) -> bool:
    """Says whether the language is written without spaces between words."""
    return base_language(code) in UNSPACED


def bleu_tokenizer(target_lang: str | None) -> str:
    """Name of sacrebleu's tokenizer for texts in a language; of Japanese characters, where MeCab is not installed."""
    language = base_language(target_lang)
    if language in ('zh', 'cmn', 'yue', 'wuu'):
        return 'zh'
    if language == 'ja' and all(map(importlib.util.find_spec, ('MeCab', 'ipadic'))):
        return 'ja-mecab'
    return 'char' if language in UNSPACED else '13a'


def kind_of(prediction: Prediction) -> str:
    """Returns one of `KINDS`."""
    if prediction.get('log_likelihoods'):
        return 'choices' if prediction.get('choices') else 'likelihood'
    if prediction.get('answers'):
        return 'answers'
    if prediction.get('slot'):
        return 'slots'
    target = prediction.get('target_lang')
    if target and base_language(target) != base_language(prediction.get('lang')):
        return 'translation'
    return 'transcription'


def accepted(value: Any) -> Any:
    """The list of accepted answers that a field holds, also as in SQuAD of Hugging Face; any other value as it is.

    A `{'text': [...], 'answer_start': [...]}` is one, too.
    """
    inner = value.get('text') if isinstance(value, Mapping) else value
    return inner if isinstance(inner, list) else value


def group_of(prediction: Prediction) -> str:
    """Returns what the example is counted under: language, direction ('fr-en'), slot name or subject."""
    language = prediction.get('lang') or 'unknown'
    kind = kind_of(prediction)
    if kind == 'slots':
        return prediction['slot']
    if kind == 'choices' and 'subject' in prediction:
        return str(prediction['subject'])
    return f'{language}-{prediction["target_lang"]}' if kind == 'translation' else language


def score(
    predictions: Sequence[Prediction],
    normalizer: str = normalizers.AUTO,
    translation_normalizer: str = 'none',
    others: Sequence[Prediction] | None = None,
) -> dict[str, Any]:
    """Scores a whole evaluation.

    Args:
        predictions: as the module's docstring says.
        normalizer: name, for all but translation; or `normalizers.AUTO`, see `normalizer_of`.
        translation_normalizer: name, for BLEU and chrF, which are customarily taken on the text as
            it stands.
        others: another system's predictions of the same examples (`slm_jax.evaluation.oracle` pairs them).

    Returns:
        normalizers {kind: those used}; signatures {metric: text}; and scores {kind: {group: {metric:
        value, intervals: {metric: [low, high]}}}}, without intervals where there is but one example. A kind with more
        than one group has 'overall' (all examples as one corpus) and 'average' (unweighted mean of the groups) as
        well. BLEU has no 'overall' where the target languages need different tokenizers; WER counts only languages
        with spaces between words.
        More than one task adds by_task {task: scores}, and `others` adds oracle {scores, shares}: theirs, and what
        percentage of them each of `RATES` is, with its interval of paired resamples.

    Raises:
        MetricsError: no prediction, a missing field, or an empty reference; the message names the
            examples.
    """
    if not predictions:
        raise MetricsError('predictions: there are none to score; is the split empty?')
    names = _names(normalizer, translation_normalizer)
    signatures: dict[str, str] = {}
    pairs = [_pair(prediction, names) for prediction in predictions]
    _refuse_empty(predictions, pairs)
    scores, resamples = _score_kinds(predictions, pairs, signatures)
    result: dict[str, Any] = {
        'normalizers': {kind: _used(predictions, kind, names[kind]) for kind in scores},
        'signatures': signatures,
        'scores': scores,
    }
    tasks = sorted({p.get('task') or '' for p in predictions})
    if len(tasks) > 1:
        result['by_task'] = {}
        for task in tasks:
            chosen = [i for i, p in enumerate(predictions) if (p.get('task') or '') == task]
            result['by_task'][task], _ = _score_kinds(
                [predictions[i] for i in chosen], [pairs[i] for i in chosen], signatures
            )
    if others is not None:
        theirs, their_resamples = _score_kinds(others, [_pair(prediction, names) for prediction in others], {})
        result['oracle'] = {'scores': theirs, 'shares': _shares(scores, resamples, theirs, their_resamples)}
    return result


def check_reference(
    example: Prediction, normalizer: str = normalizers.AUTO, translation_normalizer: str = 'none'
) -> None:
    """Refuses an example that `score` would refuse whatever is answered, so that it is not decoded first.

    Raises:
        MetricsError: its reference is missing, no text, or empty after normalising; the message names it.
    """
    reference, name = example.get('reference'), f'example {example.get("id")!r}'
    if not isinstance(reference, str):
        raise MetricsError(f'{name}: its reference is {reference!r}; it must be a string.')
    names = _names(normalizer, translation_normalizer)
    for reference in _right(example):
        if _normalized(example, reference, names).strip():
            continue
        kind = kind_of(example)
        raise MetricsError(
            f'{name}: its reference {reference!r} is empty after normalising '
            f'({normalizer_of(example, names[kind])}). Give it a text, leave it '
            f'out (--on_bad_example skip), or score with --{"translation_" * (kind == "translation")}normalizer none.'
        )


def normalizer_of(prediction: Prediction, normalizer: str) -> str:
    """Name of the normaliser of an example: what was asked for or, with `AUTO`, the customary one.

    That is Whisper's for transcripts in English, as on the public leaderboards, unless it leaves no word of the
    reference ('Hmm.' becomes nothing, '...' a full stop); SQuAD's for answers; and `basic` for all else. A text that
    was scored is taken as it was.
    """
    kind = kind_of(prediction)
    if kind in ('choices', 'likelihood'):
        return 'none'
    if normalizer != normalizers.AUTO:
        return normalizer
    if kind == 'answers':
        return 'squad'
    english = kind == 'transcription' and base_language(prediction.get('lang')) == 'en'
    if english and normalizers.basic(normalizers.whisper_english(prediction['reference'])):
        return 'whisper_english'
    return 'basic'


def _used(predictions: Sequence[Prediction], kind: str, normalizer: str) -> str:
    """Names of the normalisers of a kind, with the languages if there are several."""
    languages: dict[str, set[str]] = {}
    for prediction in predictions:
        if kind_of(prediction) == kind:
            name = normalizer_of(prediction, normalizer)
            languages.setdefault(name, set()).add(prediction.get('lang') or 'unknown')
    if len(languages) == 1:
        return next(iter(languages))
    return ', '.join(f'{name} ({" ".join(sorted(codes))})' for name, codes in sorted(languages.items()))


def _names(normalizer: str, translation_normalizer: str) -> dict[str, str]:
    return dict.fromkeys(KINDS, normalizer) | {'translation': translation_normalizer}


def error_rate(prediction: Prediction, normalizer: str = normalizers.AUTO) -> float:
    """How bad one example is, to sort by: WER, CER (no spaces), 100 - chrF, 0 and 100, or 100 - F1; in %.

    0 for an answer that contains one that is accepted. Of a scored text 100 times its bits per byte, at most 100.
    """
    kind = kind_of(prediction)
    if kind == 'likelihood':
        return min(100.0 * _likelihood([prediction]).scores()['bits_per_byte'], 100.0)
    if kind == 'choices':
        return 0.0 if prediction['prediction'] == prediction['reference'] else 100.0
    references, answer, _ = _pair(prediction, {kind: 'none' if kind == 'translation' else normalizer})
    if kind == 'answers':
        scores = statistics.answers([references], [answer]).scores()
        return 0.0 if scores['contains'] else 100.0 - scores['f1']
    if kind == 'slots':
        return 0.0 if references[0] == (answer or ABSENT) else 100.0
    if kind == 'translation':
        return 100.0 - statistics.chrf(references, [answer])[0].scores()['chrf']
    if is_unspaced(prediction.get('lang')):
        return statistics.characters(references, [answer]).scores()['cer']
    return statistics.words(references, [answer]).scores()['wer']


def _right(prediction: Prediction) -> list[str]:
    """The texts that are right: all `answers`, or the reference.

    Raises:
        MetricsError: `answers` are no list of texts.
    """
    answers = prediction.get('answers')
    if not answers:
        return [prediction['reference']]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise MetricsError(f'answers: {answers!r} in example {prediction.get("id")!r}; they must be a list of strings.')
    return answers


def _pair(prediction: Prediction, names: Mapping[str, str]) -> Pair:
    """One example, normalised: what is right (one text but for answers), the prediction, and its phrases."""
    for field in ('reference', 'prediction'):
        if not isinstance(prediction.get(field), str):
            raise MetricsError(
                f'{field}: missing or not text in example {prediction.get("id")!r}; it must be a string.'
            )
    right = [_normalized(prediction, text, names) for text in _right(prediction)]
    return right, _normalized(prediction, prediction['prediction'], names), _phrases(prediction, names)


def _normalized(prediction: Prediction, text: str, names: Mapping[str, str]) -> str:
    kind = kind_of(prediction)
    text = normalizers.get(normalizer_of(prediction, names[kind]))(text)
    if kind == 'answers' and is_unspaced(prediction.get('target_lang') or prediction.get('lang')):
        return ' '.join(''.join(text.split()))  # its characters are its words
    return ''.join(text.split()) if kind == 'transcription' and is_unspaced(prediction.get('lang')) else text


def _phrases(prediction: Prediction, names: Mapping[str, str]) -> list[str] | None:
    """The phrases of a prediction, normalised; None where it has none of its own."""
    try:
        given = phrases.of_row(prediction)
    except ValueError as error:
        raise MetricsError(f'example {prediction.get("id")!r}: {error}') from None
    return None if given is None else [_normalized(prediction, phrase, names) for phrase in given]


def _refuse_empty(predictions: Sequence[Prediction], pairs: Sequence[Pair]) -> None:
    empty = [p.get('id') for p, (right, *_) in zip(predictions, pairs, strict=True) if not all(map(str.strip, right))]
    if empty:
        shown = ', '.join(str(i) for i in empty[:5]) + (', …' if len(empty) > 5 else '')
        raise MetricsError(
            f'reference: empty after normalising in {len(empty)} example(s): {shown}. '
            'Give them a text, leave them out of the data, or score with the normalizer none.'
        )


def _score_kinds(
    predictions: Sequence[Prediction],
    pairs: Sequence[Pair],
    signatures: dict[str, str],
) -> tuple[dict[str, dict[str, dict[str, Any]]], dict[str, dict[str, Resamples]]]:
    """The scores by kind and group, and those of the resamples."""
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    resamples: dict[str, dict[str, Resamples]] = {}
    units = [str(p.get('cluster', p.get('id', f'#{i}'))) for i, p in enumerate(predictions)]
    for kind in KINDS:
        groups: dict[str, list[int]] = {}
        for i, prediction in enumerate(predictions):
            if kind_of(prediction) == kind:
                groups.setdefault(group_of(prediction), []).append(i)
        groups = dict(sorted(groups.items()))
        if len(groups) > 1:
            groups['overall'] = [i for members in groups.values() for i in members]
        of_group: dict[str, dict[str, Any]] = {}
        drawn: dict[str, Resamples] = {}
        for group, members in groups.items():
            found = _statistics(kind, [predictions[i] for i in members], [pairs[i] for i in members], signatures)
            of_group[group] = {'examples': len(members), **found.scores()}
            its_units = [units[i] for i in members]
            drawn[group] = statistics.resampled(found, its_units, f'{kind}/{group}') if len(set(its_units)) > 1 else {}
        if len(groups) > 1:
            parts = [group for group in groups if group != 'overall']
            of_group['average'] = _average([of_group[group] for group in parts])
            drawn['average'] = _average([drawn[group] for group in parts]) if all(map(drawn.get, parts)) else {}
        for group, values in drawn.items():
            of_group[group]['intervals'] = {name: statistics.interval(values[name]) for name in RATES if name in values}
        if groups:
            scores[kind], resamples[kind] = of_group, drawn
    return scores, resamples


def _average(of_groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Unweighted mean over the groups of every rate; counts are left out."""
    values = {name: [scores[name] for scores in of_groups if name in scores] for name in RATES}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def _shares(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    resamples: Mapping[str, Mapping[str, Resamples]],
    theirs: Mapping[str, Mapping[str, Mapping[str, float]]],
    their_resamples: Mapping[str, Mapping[str, Resamples]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Each rate in percent of theirs, where theirs is not 0; resamples where it is are left out."""
    shares: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, groups in scores.items():
        shares[kind] = {}
        for group, ours in groups.items():
            names = [name for name in RATES if ours.get(name) is not None and theirs[kind][group].get(name)]
            share: dict[str, Any] = {name: 100.0 * ours[name] / theirs[kind][group][name] for name in names}
            share['intervals'] = {}
            for name in [name for name in names if name in resamples[kind][group]]:
                drawn, divisor = resamples[kind][group][name], their_resamples[kind][group][name]
                share['intervals'][name] = statistics.interval(100.0 * drawn[divisor != 0] / divisor[divisor != 0])
            shares[kind][group] = share
    return shares


def _statistics(
    kind: str,
    predictions: Sequence[Prediction],
    pairs: Sequence[Pair],
    signatures: dict[str, str],
) -> statistics.Statistics:
    """Of one group's examples."""
    if kind in ('choices', 'likelihood'):
        found = _likelihood(predictions)
        if kind == 'likelihood':
            return found
        texts = [p['choices'] for p in predictions]
        right = [each.index(p['reference']) for each, p in zip(texts, predictions, strict=True)]
        return statistics.joined([statistics.choices(right, [p['log_likelihoods'] for p in predictions], texts), found])
    right, answers, listed = map(list, zip(*pairs, strict=True))
    references = [first for first, *_ in right]
    if kind == 'answers':
        return statistics.answers(right, answers)
    if kind == 'slots':
        return statistics.slots(references, answers)
    if kind == 'transcription':
        version = importlib.metadata.version('jiwer')
        parts = []
        spaced = [i for i, p in enumerate(predictions) if not is_unspaced(p.get('lang'))]
        if spaced:
            measured = [statistics.words([references[i] for i in spaced], [answers[i] for i in spaced])]
            if any(listed[i] is not None for i in spaced):
                measured.append(
                    statistics.biased(*([part[i] for i in spaced] for part in (references, answers, listed)))
                )
            words = statistics.joined(measured)
            counts = np.zeros((len(pairs), words.counts.shape[1]), np.int64)
            counts[spaced] = words.counts
            parts.append(statistics.Statistics(counts, words.rates))
            signatures['wer'] = f'jiwer {version}, corpus level'
        signatures['cer'] = f'jiwer {version}, corpus level; no spaces in {", ".join(sorted(UNSPACED))}'
        parts += [statistics.characters(references, answers), statistics.exact(references, answers)]
        return statistics.joined(parts)
    found, signatures['chrf'] = statistics.chrf(references, answers)
    parts = [found]
    tokenizers = {bleu_tokenizer(p['target_lang']) for p in predictions}
    if len(tokenizers) == 1:
        found, signature = statistics.bleu(references, answers, *tokenizers)
        parts.insert(0, found)
        signatures['bleu'] = _also(signatures.get('bleu'), signature)
    return statistics.joined(parts)


def _likelihood(predictions: Sequence[Prediction]) -> statistics.Statistics:
    """Of the reference, which is one of the texts that were scored."""
    where = [p['choices'].index(p['reference']) if p.get('choices') else 0 for p in predictions]
    values, tokens = ([p[f][i] for p, i in zip(predictions, where, strict=True)] for f in ('log_likelihoods', 'tokens'))
    return statistics.likelihood(values, tokens, [p['reference'] for p in predictions])


def _also(known: str | None, signature: str) -> str:
    """Signatures of one metric side by side: several tokenizers may be at work in one report."""
    parts = known.split(' ; ') if known else []
    return ' ; '.join(parts if signature in parts else [*parts, signature])
