"""What a line of a manifest says is right: the reference, all answers that are accepted, and texts to choose from."""

import json
from collections.abc import Mapping
from typing import Any

from slm_jax.data import languages
from slm_jax.evaluation import metrics


def reference_of(question: Any, raw: Mapping[str, Any], line: Mapping[str, str], target_lang: str) -> dict[str, Any]:
    """`reference` and, where a list of answers is accepted, `answers`."""
    answers = None
    if question.reference_field:
        field, value = question.reference_field, metrics.accepted(at(raw, question.reference_field))
        answers = value if isinstance(value, list) else None
    elif question.slot:
        field, value = 'slots', raw.get('slots')
        if not isinstance(value, dict):
            raise ValueError(f'{line["origin"]}: field "slots" is not an object of slot values.')
        value = value.get(question.slot) or metrics.ABSENT
    elif isinstance(raw.get('reference'), str):
        field, value, answers = 'reference', raw['reference'], raw.get('answers')
    elif target_lang and (question.target_lang or not line['target']):
        given = json.loads(line['translations'] or '{}')
        field, value = f'translation into {target_lang!r}', given.get(target_lang) or given.get('')
        if not question.target_lang and languages.main(target_lang) == languages.main(line['lang']):
            value = value or line['text']
    else:
        field, value = 'text', line['target'] or line['text']
    if answers and not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise ValueError(f'{line["origin"]}: {field} is {answers!r}; each answer that is accepted must be a text.')
    reference = answers[0] if answers else value
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f'{line["origin"]}: no reference: {field} is missing or empty.')
    return {'reference': reference, 'answers': answers or ([reference] if question.answered else None)}


def choices_of(raw: Mapping[str, Any], line: Mapping[str, str], reference: str) -> list[str] | None:
    """The texts that a line gives to choose from; None where it has none."""
    choices = raw.get('choices')
    if choices is None:
        return None
    texts = isinstance(choices, list) and all(isinstance(text, str) and text.strip() for text in choices)
    if not texts or len({*choices}) != len(choices) or len(choices) < 2:
        raise ValueError(f'{line["origin"]}: choices is {choices!r}; it must be a list of two or more different texts.')
    if reference not in choices:
        raise ValueError(
            f'{line["origin"]}: none of the choices is the reference {reference!r}; --reference_field names the field '
            'that holds the right one.'
        )
    return choices


def at(raw: Mapping[str, Any], path: str) -> Any:
    """`raw['slots']['size']` for 'slots.size'; None where there is none."""
    value: Any = raw
    for name in path.split('.'):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
