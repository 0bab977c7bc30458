"""Sets of texts that a person has, as examples of which some fields are spoken and the others stay written.

    alpaca     JSON, a list of {"instruction", "input", "output"}; or JSONL       instruction, input
    squad      JSON as published (1.1 and 2.0); JSONL of context, question, answers       context, question
    dialog     JSONL, a dialog a line: {"turns": ["…", …]} or {"messages": [{"role", "content"}, …]}       history, turn
    sentences  text, one a line; or JSONL with `text`, whose other fields are kept       text

On the right are the fields that may be spoken. In `dialog` every turn but the first (of an assistant, where roles say
who is one) is an answer once: `turn` is the one before it, `history` what was said before that. A line with `answer`,
the next turn, is asked for that alone, and its other fields are kept.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from slm_jax import paths
from slm_jax.data import instructions, json_lines

Turn = tuple[int, str]  # the number of who speaks, and what
_TURNS = ('turns', 'messages', 'conversations', 'conversation', 'dialog', 'dialogue', 'utterances')
_TEXT = ('text', 'content', 'value', 'utterance')
_ROLE = ('role', 'from', 'speaker')
_ASSISTANT = ('assistant', 'gpt', 'bot', 'model')


@dataclasses.dataclass(frozen=True)
class Example:
    """One thing that is asked and its answers.

    Attributes:
        id: its name in the set.
        group: those of one group, as all questions on one passage, are of one split.
        fields: what may be spoken or written, in order; of each its turns.
        answers: all that are accepted; () of a sentence.
        row: what else a manifest is to have of it.
    """

    id: str
    group: str
    fields: Mapping[str, tuple[Turn, ...]]
    answers: tuple[str, ...] = ()
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is read aloud at once, and the lines of the manifest that it has."""

    group: str
    turns: tuple[Turn, ...]
    rows: list[dict[str, Any]]


def _one(text: Any) -> tuple[Turn, ...]:
    text = text.strip() if isinstance(text, str) else ''
    return ((0, text),) if text else ()


def _alpaca(rows: Sequence[tuple[str, Mapping[str, Any]]], stem: str) -> Iterator[Example]:
    for number, (place, row) in enumerate(rows):
        for field in ('instruction', 'output'):
            if not isinstance(row.get(field), str):
                raise ValueError(f'{place}: field "{field}" is {row.get(field)!r}; a text was expected, as Alpaca has.')
        fields = {'instruction': _one(row['instruction']), 'input': _one(row.get('input'))}
        # One instruction may stand many times, each with another input.
        yield Example(f'{stem}/{number}', row['instruction'], fields, _answers([row['output']]))


def _squad(rows: Sequence[tuple[str, Mapping[str, Any]]], stem: str) -> Iterator[Example]:
    for number, (place, row) in enumerate(rows):
        given = row.get('answers')
        given = given.get('text') if isinstance(given, Mapping) else given
        given = [each.get('text') if isinstance(each, Mapping) else each for each in given or ()]
        for field in ('context', 'question'):
            if not isinstance(row.get(field), str):
                raise ValueError(f'{place}: field "{field}" is {row.get(field)!r}; a text was expected, as SQuAD has.')
        fields = {'context': _one(row['context']), 'question': _one(row['question'])}
        yield Example(str(row.get('id') or f'{stem}/{number}'), row['context'], fields, _answers(given))


def _dialog(rows: Sequence[tuple[str, Mapping[str, Any]]], stem: str) -> Iterator[Example]:
    for number, (place, row) in enumerate(rows):
        name = next((name for name in _TURNS if isinstance(row.get(name), list)), None)
        if name is None:
            raise ValueError(f'{place}: no list of turns; the field "turns" was expected (or {", ".join(_TURNS[1:])}).')
        turns: list[tuple[str | None, str]] = []
        for turn in row[name]:
            text, role = turn, None
            if isinstance(turn, Mapping):
                text, role = (next((turn[k] for k in names if k in turn), None) for names in (_TEXT, _ROLE))
            if not isinstance(text, str):
                raise ValueError(f'{place}: field "{name}" has {turn!r}; a turn is a text, or {{"role", "content"}}.')
            if text.strip() and (turns or role != 'system'):  # a system's prompt is not said
                turns.append((role, text.strip()))
        roles = list(dict.fromkeys(role for role, _ in turns))
        said = [(place % 2 if role is None else roles.index(role), text) for place, (role, text) in enumerate(turns)]
        assistant = next((role for role in roles if role in _ASSISTANT), None)
        group = str(row.get('id') or f'{stem}/{number}')
        if 'answer' in row:
            rest = {field: value for field, value in row.items() if field not in ('id', name)}
            fields = {'history': tuple(said[:-1]), 'turn': tuple(said[-1:])}
            yield Example(group, group, fields, _answers([row['answer']]), rest)
            continue
        for k in range(1, len(said)):
            if assistant is None or turns[k][0] == assistant:
                fields = {'history': tuple(said[: k - 1]), 'turn': (said[k - 1],)}
                yield Example(f'{group}.{k}', group, fields, (turns[k][1],))


def _sentences(rows: Sequence[tuple[str, Mapping[str, Any]]], stem: str) -> Iterator[Example]:
    for number, (place, row) in enumerate(rows):
        if not isinstance(row.get('text'), str):
            raise ValueError(f'{place}: field "text" is {row.get("text")!r}; a text was expected.')
        if taken := sorted({'audio', 'speaker', 'duration', 'offset'} & set(row)):
            raise ValueError(f'{place}: has the field {taken[0]!r}, which is written of its clip. Rename it.')
        rest = {name: value for name, value in row.items() if name not in ('id', 'text')}
        yield Example(str(row.get('id') or f'{stem}/{number}'), row['text'], {'text': _one(row['text'])}, row=rest)


def _answers(given: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.strip() for each in given if isinstance(each, str) and each.strip()))


_READERS: dict[str, Callable[[Sequence[tuple[str, Mapping[str, Any]]], str], Iterator[Example]]] = {
    'alpaca': _alpaca,
    'squad': _squad,
    'dialog': _dialog,
    'sentences': _sentences,
}
# Of each kind the fields that may be spoken, and those that are unless told otherwise.
FIELDS = {
    'alpaca': ('instruction', 'input'),
    'squad': ('context', 'question'),
    'dialog': ('history', 'turn'),
    'sentences': ('text',),
}
SPOKEN = {
    'alpaca': ('instruction',),
    'squad': ('context',),
    'dialog': ('history', 'turn'),
    'sentences': ('text',),
}


def read(path: str | os.PathLike, kind: str = '') -> tuple[str, list[Example]]:
    """The kind of a set, told by its content unless given, and its examples.

    Raises:
        ValueError: it cannot be read, or is of no such kind; names the file, the place in it and the field.
    """
    rows = _rows(path, kind)
    if not rows:
        raise ValueError(f'{path}: holds no question.')
    found = kind or _kind(rows[0][1], path)
    examples = list(_READERS[found](rows, pathlib.PurePath(path).stem))
    counts = collections.Counter(example.id for example in examples)
    if again := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f'{path}: the id {again[0]!r} stands there {counts[again[0]]} times. Give each its own.')
    return found, examples


def _rows(path: str | os.PathLike, kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(its place for people, the object) of all that a file holds."""
    name = str(path)
    content = paths.path(path).read_bytes() if paths.path(path).is_file() else b''
    start = content.removeprefix(b'\xef\xbb\xbf').lstrip()[:1]
    if content and start not in (b'{', b'['):
        if kind not in ('', 'sentences'):
            raise ValueError(f'{path}: is no JSON; a set of kind {kind!r} is (see --help).')
        lines = [(number, line.decode(errors='replace')) for number, line in json_lines.lines(path)]
        return [(f'{name}:{number}', {'text': line.strip()}) for number, line in lines]
    try:
        whole = json.loads(content or b'null')
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, Mapping) and isinstance(whole.get('data'), list):
        return list(_published_squad(name, whole['data']))
    if isinstance(whole, list):
        wrong = next((number for number, row in enumerate(whole, 1) if not isinstance(row, Mapping)), None)
        if wrong or not whole:
            raise ValueError(f'{path}: entry {wrong or 1} is no JSON object. A list of objects was expected.')
        return [(f'{name}: entry {number}', row) for number, row in enumerate(whole, 1)]
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for number, line in json_lines.lines(path):
        try:
            rows.append((f'{name}:{number}', json_lines.parse(line)))
        except json_lines.JsonLinesError as error:
            raise ValueError(f'{name}:{number}: {error}') from None
    return rows


def _published_squad(name: str, articles: Sequence[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        for article in articles:
            for paragraph in article['paragraphs']:
                for asked in paragraph['qas']:
                    impossible = asked.get('is_impossible')
                    answers = [] if impossible else asked.get('answers')
                    yield (
                        f'{name}: question {asked.get("id")!r}',
                        {
                            'id': asked.get('id'),
                            'context': paragraph['context'],
                            'question': asked['question'],
                            'answers': answers,
                        },
                    )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f'{name}: is not laid out as SQuAD ({type(error).__name__}: {error}).') from None


def _kind(row: Mapping[str, Any], path: str | os.PathLike) -> str:
    for kind, fields in (('alpaca', ('instruction', 'output')), ('squad', ('context', 'question'))):
        if all(field in row for field in fields):
            return kind
    if any(isinstance(row.get(name), list) for name in _TURNS):
        return 'dialog'
    if 'text' in row:
        return 'sentences'
    raise ValueError(
        f'{path}: an object with {", ".join(sorted(row)) or "no field"} is of no kind that is known. '
        'It needs instruction and output, context and question, turns, or text.'
    )


def clips(
    examples: Sequence[Example], spoken: Sequence[str], wordings: Sequence[str] = ()
) -> tuple[list[Clip], collections.Counter]:
    """What is to be read aloud, and how many examples are left out of it and why.

    Fields that are not spoken are the instruction; where none is, a wording asks for an answer. Examples of which the
    same is spoken share a clip.

    Args:
        examples: of one set.
        spoken: names of fields.
        wordings: of requests for an answer, used in turn; default: those of instructions.py.
    """
    asked = tuple(wordings) or instructions.TEMPLATES['response/answer']
    made: dict[tuple, Clip] = {}
    left_out: collections.Counter = collections.Counter()
    for number, example in enumerate(examples):
        said = [turn for name in example.fields if name in spoken for turn in example.fields[name]]
        turns = tuple((speaker, ' '.join(text.split())) for speaker, text in said)
        if not turns:
            left_out[f'{", ".join(spoken)} empty'] += 1
            continue
        row: dict[str, Any] = {'id': example.id, 'text': ' '.join(text for _, text in turns)}
        if 'text' not in example.fields:
            if not example.answers:
                left_out['without an answer'] += 1
                continue
            rest = [turn for name in example.fields if name not in spoken for turn in example.fields[name]]
            written = [
                f'{chr(ord("A") + speaker)}: {text}' if 'turn' in example.fields else text for speaker, text in rest
            ]
            row['instruction'] = '\n'.join(written) if written else asked[number % len(asked)]
            row['target'] = example.answers[0]
            if len(example.answers) > 1:
                row['answers'] = [*example.answers]
        key = example.group, turns, example.row.get('lang'), example.row.get('split')
        made.setdefault(key, Clip(example.group, turns, [])).rows.append(row | dict(example.row))
    return list(made.values()), left_out
