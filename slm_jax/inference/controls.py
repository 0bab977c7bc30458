"""What may stand in the place of a query's speech: another clip's, or a text, as in a cascade."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from slm_jax.data import prompts
from slm_jax.inference.queries import Query, asked


def shuffle_audio(queries: Iterable[Query]) -> Iterator[Query]:
    """Gives each query the audio of another clip: that of the last different one before it.

    Queries on the first clip come as soon as a second is there, with the audio of that one.

    Raises:
        ValueError: there are no two different clips.
    """
    now: Query | None = None
    before: Query | None = None
    held: list[Query] = []
    for query in queries:
        if query.samples is None:
            raise ValueError('shuffle_audio: the data has examples without audio; leave them out.')
        if now is None or now.samples is None or not np.array_equal(now.samples, query.samples):
            before, now = now, query
        if before is None:
            held.append(query)
            continue
        for early in held:
            yield _hears(early, now)
        held = []
        yield _hears(query, before)
    if held:
        raise ValueError('shuffle_audio: at least two different clips are needed; give more data.')


def _hears(query: Query, other: Query) -> Query:
    if len(query.recordings) != len(other.recordings):
        raise ValueError(
            f'shuffle_audio: the prompts {query.info.get("id")!r} and {other.info.get("id")!r} have different numbers '
            'of recordings. Evaluate prompts of one number by themselves.'
        )
    return dataclasses.replace(query, samples=other.samples, recordings=other.recordings)


def with_texts(
    queries: Iterable[Query], texts: Mapping[str, str], vocabulary: Any, prompt: prompts.Prompt
) -> Iterator[Query]:
    """Puts a text in the place of each query's speech: the second half of a cascade.

    Args:
        queries: their `info['id']` is looked up; the text is in the language of the speech.
        texts: from id to text.
        vocabulary: of the inputs.
        prompt: of the model.

    Raises:
        ValueError: an id has no text, or a task keeps none of its instructions.
    """
    for query in queries:
        if query.recordings:
            raise ValueError(
                f'text_from: the prompt {query.info.get("id")!r} has several recordings, and one text is there for it. '
                '--text_field names the field of each recording that has its own.'
            )
        text, instruction = text_of(query, texts), query.info.get('instruction')
        if instruction is None:
            raise ValueError(
                f'text_from: example {query.info.get("id")!r} has no instruction; its task must keep the text of its '
                'inputs as `inputs_pretokenized`, as slm_jax.data.preprocessors.tokenize does.'
            )
        langs = (query.info.get(name, '') for name in ('lang', 'target_lang'))
        yield dataclasses.replace(query, samples=None, **asked(vocabulary, prompt, instruction, text, *langs))


def text_of(query: Query, texts: Mapping[str, str]) -> str:
    """The text that `texts` has for a query; a ValueError where there is none."""
    identity = query.info.get('id', '')
    if identity not in texts:
        raise ValueError(
            f'text_from: no text for example {identity!r}. Evaluate the first half of the cascade on the same data.'
        )
    return texts[identity]


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a predictions.jsonl, `duration` as a number.

    Raises:
        ValueError: unreadable, empty, or a line is no JSON object; names file and line.
    """
    from slm_jax.data import json_lines, manifests

    rows = []
    for number, line in json_lines.lines(path):
        try:
            row = json_lines.parse(line)
            if 'duration' in row:
                row['duration'] = manifests.seconds(row, 'duration')
        except ValueError as error:
            raise ValueError(f'{path}:{number}: {error}') from None
        rows.append(row)
    return rows


def texts_by_id(path: str | os.PathLike, field: str = 'prediction') -> dict[str, str]:
    """{id: text} of a predictions.jsonl.

    Raises:
        ValueError: a line lacks the field, or two lines of one id differ in it.
    """
    texts: dict[str, str] = {}
    for row in read_lines(path):
        identity, text = str(row.get('id')), row.get(field)
        if not isinstance(text, str):
            raise ValueError(f'{path}: example {identity!r} has no text in its field {field!r}.')
        if texts.setdefault(identity, text) != text:
            raise ValueError(f'{path}: two lines of id {identity!r} have different {field!r}.')
    return texts
