"""Scores of predictions against references, per language, per direction and overall.

A prediction is a dictionary, one line of `predictions.jsonl`:

    id, task, lang       of the example; `lang` is what is spoken
    target_lang          what is written: equal to `lang` or absent for a transcription
    slot                 name of the slot that was asked for; absent where none was
    reference, prediction, instruction

Three kinds follow from it: `transcription` (WER, CER, exact-match accuracy), `translation` (BLEU,
chrF) and `slots` (micro F1, accuracy). Every score is taken over a whole group at once (corpus
level), in percent.
"""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax.evaluation import normalizers

# Written without spaces between words: a word error rate would count whole sentences.
UNSPACED = frozenset({'ja', 'zh', 'yue', 'cmn', 'wuu', 'th', 'lo', 'km', 'my', 'bo', 'dz'})
# The slot's value where the speaker did not name it; an answer of this value is 'nothing found'.
ABSENT = 'none'

Prediction = Mapping[str, Any]


class MetricsError(ValueError):
    """Predictions cannot be scored; the message names the example and the field."""


def base_language(code: str | None) -> str:
    """Returns 'pt' for 'pt-BR', 'zh' for 'zh_cn', '' for None."""
    return (code or '').replace('_', '-').split('-')[0].lower()


def is_unspaced(code: str | None) -> bool:
    """Says whether the language is written without spaces between words."""
    return base_language(code) in UNSPACED


def kind_of(prediction: Prediction) -> str:
    """Returns 'slots', 'translation' or 'transcription'."""
    if prediction.get('slot'):
        return 'slots'
    target = prediction.get('target_lang')
    if target and base_language(target) != base_language(prediction.get('lang')):
        return 'translation'
    return 'transcription'


def group_of(prediction: Prediction) -> str:
    """Returns what the example is counted under: language, direction ('fr-en') or slot name."""
    language = prediction.get('lang') or 'unknown'
    kind = kind_of(prediction)
    if kind == 'slots':
        return prediction['slot']
    return f'{language}-{prediction["target_lang"]}' if kind == 'translation' else language


def word_errors(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Word error rate over all pairs together (jiwer).

    Args:
        references: normalised texts, words parted by spaces, none of them empty.
        predictions: as many texts; an empty one counts as deletions.

    Returns:
        wer (percent), words (of the references), substitutions, deletions, insertions.

    Raises:
        MetricsError: nothing to score, unequal numbers, or an empty reference.
    """
    import jiwer

    _check(references, predictions)
    output = jiwer.process_words(list(references), list(predictions))
    return {'wer': 100.0 * output.wer, **_counts(output, 'words')}


def character_errors(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Character error rate over all pairs together (jiwer); a space is a character.

    For languages without spaces between words take the spaces out first, as `score` does: there
    they only stand where punctuation was. Arguments and errors as `word_errors`; returns cer
    (percent) and characters.
    """
    import jiwer

    _check(references, predictions)
    output = jiwer.process_characters(list(references), list(predictions))
    return {'cer': 100.0 * output.cer, 'characters': _counts(output, 'characters')['characters']}


def bleu(references: Sequence[str], predictions: Sequence[str], target_lang: str | None) -> tuple[float, str]:
    """Corpus BLEU (sacrebleu), tokenized as the target language is; returns (score, signature)."""
    import sacrebleu

    _check(references, predictions)
    # A trained tokenizer (MeCab) would make the score depend on what is installed: characters
    # instead.
    language = base_language(target_lang)
    chinese = language in ('zh', 'cmn', 'yue', 'wuu')
    tokenizer = 'zh' if chinese else 'char' if language in UNSPACED else '13a'
    # sacrebleu warns of 'tokenized' text where sentences merely end in ' .'; that is the model's
    # doing.
    logging.getLogger('sacrebleu').setLevel(logging.ERROR)
    metric = sacrebleu.BLEU(tokenize=tokenizer)
    value = metric.corpus_score(list(predictions), [list(references)]).score
    return value, str(metric.get_signature())


def chrf(references: Sequence[str], predictions: Sequence[str]) -> tuple[float, str]:
    """Corpus chrF2 (sacrebleu); returns (score, signature)."""
    import sacrebleu

    _check(references, predictions)
    metric = sacrebleu.CHRF()
    value = metric.corpus_score(list(predictions), [list(references)]).score
    return value, str(metric.get_signature())


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions equal to their reference, in percent."""
    _check(references, predictions)
    equal = sum(r == p for r, p in zip(references, predictions, strict=True))
    return 100.0 * equal / len(references)


def slot_f1(references: Sequence[str], predictions: Sequence[str], absent: str = ABSENT) -> dict[str, float]:
    """Micro-averaged F1 of slot values, one question a pair.

    A value found and right is a true positive; one found but wrong is a false positive, and a false
    negative too where there was one to be found. `absent` and '' mean that no value was found.

    Args:
        references: normalised values, `absent` where the speaker named none.
        predictions: as many normalised answers.
        absent: the normalised word for 'not mentioned'.

    Returns:
        f1, precision, recall and accuracy, in percent; a precision or recall of nothing is 0. Where
        neither side names any value all are 100.
    """
    _check(references, predictions)
    pairs = list(zip(references, (p or absent for p in predictions), strict=True))
    correct = sum(r == p != absent for r, p in pairs)
    found = sum(p != absent for _, p in pairs)
    there = sum(r != absent for r, _ in pairs)
    exact = 100.0 * sum(r == p for r, p in pairs) / len(pairs)
    if not found and not there:
        return {'f1': 100.0, 'precision': 100.0, 'recall': 100.0, 'accuracy': exact}
    return {
        'f1': 200.0 * correct / (found + there),
        'precision': 100.0 * correct / found if found else 0.0,
        'recall': 100.0 * correct / there if there else 0.0,
        'accuracy': exact,
    }


def score(
    predictions: Sequence[Prediction],
    normalizer: str = normalizers.AUTO,
    translation_normalizer: str = 'none',
) -> dict[str, Any]:
    """Scores a whole evaluation.

    Args:
        predictions: as the module's docstring says.
        normalizer: name, for transcription and slots; or `normalizers.AUTO`, see `normalizer_of`.
        translation_normalizer: name, for BLEU and chrF, which are customarily taken on the text as
            it stands.

    Returns:
        normalizers {kind: those used}; signatures {metric: text}; and scores {kind: {group: {metric:
        value}}}. A kind with more than one group has 'overall' (all examples as one corpus) and
        'average' (unweighted mean of the groups) as well. BLEU has no 'overall' where the target
        languages need different tokenizers; WER counts only languages with spaces between words.
        More than one task adds by_task {task: scores}.

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
    scores = _score_kinds(predictions, pairs, signatures)
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
            result['by_task'][task] = _score_kinds(
                [predictions[i] for i in chosen], [pairs[i] for i in chosen], signatures
            )
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
    if not _normalized(example, reference, names).strip():
        kind = kind_of(example)
        raise MetricsError(
            f'{name}: its reference {reference!r} is empty after normalising '
            f'({normalizer_of(example, names[kind])}). Give it a text, leave it '
            f'out (--on_bad_example skip), or score with --{"translation_" * (kind == "translation")}normalizer none.'
        )


def normalizer_of(prediction: Prediction, normalizer: str) -> str:
    """Name of the normaliser of an example: what was asked for or, with `AUTO`, the customary one.

    That is Whisper's for transcripts in English, as on the public leaderboards, unless it leaves no word of the
    reference ('Hmm.' becomes nothing, '...' a full stop); and `basic` for all else.
    """
    if normalizer != normalizers.AUTO:
        return normalizer
    english = kind_of(prediction) == 'transcription' and base_language(prediction.get('lang')) == 'en'
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
    return {'transcription': normalizer, 'translation': translation_normalizer, 'slots': normalizer}


def error_rate(prediction: Prediction, normalizer: str = normalizers.AUTO) -> float:
    """How bad one example is, to sort by: WER, CER (no spaces), 100 - chrF, or 0 and 100; in %."""
    kind = kind_of(prediction)
    reference, answer = _pair(prediction, {kind: 'none' if kind == 'translation' else normalizer})
    if kind == 'slots':
        return 0.0 if reference == (answer or ABSENT) else 100.0
    if kind == 'translation':
        return 100.0 - chrf([reference], [answer])[0]
    if is_unspaced(prediction.get('lang')):
        return character_errors([reference], [answer])['cer']
    return word_errors([reference], [answer])['wer']


def _counts(output: Any, unit: str) -> dict[str, float]:
    return {
        unit: output.hits + output.substitutions + output.deletions,
        'substitutions': output.substitutions,
        'deletions': output.deletions,
        'insertions': output.insertions,
    }


def _check(references: Sequence[str], predictions: Sequence[str]) -> None:
    if len(references) != len(predictions) or not references:
        raise MetricsError(
            f'predictions: {len(predictions)} for {len(references)} references; give one for each, at least one.'
        )
    empty = [i for i, reference in enumerate(references) if not reference.strip()]
    if empty:
        raise MetricsError(f'reference: empty at positions {empty[:5]}; an error rate divides by its length.')


def _pair(prediction: Prediction, names: Mapping[str, str]) -> tuple[str, str]:
    """The normalised (reference, prediction) of one example."""
    for field in ('reference', 'prediction'):
        if not isinstance(prediction.get(field), str):
            raise MetricsError(
                f'{field}: missing or not text in example {prediction.get("id")!r}; it must be a string.'
            )
    pair = [_normalized(prediction, prediction[field], names) for field in ('reference', 'prediction')]
    return pair[0], pair[1]


def _normalized(prediction: Prediction, text: str, names: Mapping[str, str]) -> str:
    kind = kind_of(prediction)
    text = normalizers.get(normalizer_of(prediction, names[kind]))(text)
    return ''.join(text.split()) if kind == 'transcription' and is_unspaced(prediction.get('lang')) else text


def _refuse_empty(predictions: Sequence[Prediction], pairs: Sequence[tuple[str, str]]) -> None:
    empty = [p.get('id') for p, (reference, _) in zip(predictions, pairs, strict=True) if not reference.strip()]
    if empty:
        shown = ', '.join(str(i) for i in empty[:5]) + (', …' if len(empty) > 5 else '')
        raise MetricsError(
            f'reference: empty after normalising in {len(empty)} example(s): {shown}. '
            'Give them a text, leave them out of the data, or score with the normalizer none.'
        )


def _score_kinds(
    predictions: Sequence[Prediction],
    pairs: Sequence[tuple[str, str]],
    signatures: dict[str, str],
) -> dict[str, dict[str, dict[str, float]]]:
    scores = {}
    for kind in ('transcription', 'translation', 'slots'):
        groups: dict[str, list[int]] = {}
        for i, prediction in enumerate(predictions):
            if kind_of(prediction) == kind:
                groups.setdefault(group_of(prediction), []).append(i)
        if not groups:
            continue
        of_group = {
            group: _score_group(kind, [predictions[i] for i in members], [pairs[i] for i in members], signatures)
            for group, members in sorted(groups.items())
        }
        if len(groups) > 1:
            members = [i for group in groups.values() for i in group]
            overall = _score_group(kind, [predictions[i] for i in members], [pairs[i] for i in members], signatures)
            of_group = {**of_group, 'overall': overall, 'average': _average(of_group)}
        scores[kind] = of_group
    return scores


def _average(of_group: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Unweighted mean over the groups of every rate; counts are left out."""
    average = {}
    for name in ('wer', 'cer', 'accuracy', 'bleu', 'chrf', 'f1', 'precision', 'recall'):
        values = [scores[name] for scores in of_group.values() if name in scores]
        if values:
            average[name] = sum(values) / len(values)
    return average


def _score_group(
    kind: str,
    predictions: Sequence[Prediction],
    pairs: Sequence[tuple[str, str]],
    signatures: dict[str, str],
) -> dict[str, float]:
    references, answers = map(list, zip(*pairs, strict=True))
    result: dict[str, float] = {'examples': len(pairs)}
    if kind == 'slots':
        return {**result, **slot_f1(references, answers)}
    if kind == 'transcription':
        version = importlib.metadata.version('jiwer')
        spaced = [i for i, p in enumerate(predictions) if not is_unspaced(p.get('lang'))]
        if spaced:
            result |= word_errors([references[i] for i in spaced], [answers[i] for i in spaced])
            signatures['wer'] = f'jiwer {version}, corpus level'
        result |= character_errors(references, answers)
        signatures['cer'] = f'jiwer {version}, corpus level; no spaces in {", ".join(sorted(UNSPACED))}'
        return {**result, 'accuracy': accuracy(references, answers)}
    by_tokenizer = {}
    for language in sorted({base_language(p['target_lang']) for p in predictions}):
        value, signature = bleu(references, answers, language)
        by_tokenizer[signature] = value
    if len(by_tokenizer) == 1:
        [(signature, result['bleu'])] = by_tokenizer.items()
        signatures['bleu'] = _also(signatures.get('bleu'), signature)
    result['chrf'], signatures['chrf'] = chrf(references, answers)
    return result


def _also(known: str | None, signature: str) -> str:
    """Signatures of one metric side by side: several tokenizers may be at work in one report."""
    parts = known.split(' ; ') if known else []
    return ' ; '.join(parts if signature in parts else [*parts, signature])
