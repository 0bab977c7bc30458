"""Tests of what a speech language model knows, spoken: `python -m slm_jax.corpora.speech_tests OUT --voice flite`.

Where no set is named, those of slm_jax/corpora/zero_shot are read (ours, Apache-2.0). OUT gets manifests, for
`slm-jax evaluate MODEL --manifest OUT/NAME.jsonl --score_choices`:

    words            220 words beside pronounceable non-words: which recording is likelier (as sWUGGY)
    sentences        220 sentences beside ungrammatical ones (as sBLIMP)
    stories_heard    220 stories with two endings, spoken both: which recording is likelier (StoryCloze, speech alone)
    stories          the same: which ending in writing follows the spoken story (StoryCloze, speech to text)
    quiz_0, quiz_5   235 questions with four choices, spoken, after none or five others that are answered in writing
    mmlu_0, mmlu_5   those of MMLU

    --story_cloze FILE   StoryCloze's CSV (InputSentence1 to 4, RandomFifthSentenceQuiz1 and 2, AnswerRightEnding)
    --mmlu DIR           MMLU's folders of CSV files, test/SUBJECT_test.csv and dev/SUBJECT_dev.csv
    --pairs FILE         JSON lines {"right": TEXT, "wrong": TEXT}
    --stories FILE       JSON lines {"text": TEXT, "choices": [TEXT, TEXT], "answer": TEXT}
    --quiz FILE          likewise, of any number of choices; the first five of each "subject", if there are such, are
                         those that are answered before

A set is called as its file. Each option may be given several times.

--text_field text has the texts scored in the place of the recordings: what the language model knows of them. Both
recordings of a pair are of one voice; pairs and questions that were not read aloud are left out and counted. All other
options are those of `slm-jax synthesize`, which says what voices there are. A run that was broken off goes on.
"""

import argparse
import collections
import contextlib
import csv
import importlib.resources
import json
import pathlib
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from slm_jax import cli, synthesize
from slm_jax.data import json_lines

_SHOTS = 5
_STORY = [f'InputSentence{n}' for n in (1, 2, 3, 4)]
_ENDINGS = ('RandomFifthSentenceQuiz1', 'RandomFifthSentenceQuiz2')

Row = dict[str, Any]


class _Unread(Exception):
    """`synthesize` failed, and has said why."""


def packaged(name: str) -> list[Row]:
    """The lines of a set of slm_jax/corpora/zero_shot."""
    folder = importlib.resources.files('slm_jax.corpora')
    lines = folder.joinpath(f'zero_shot/{name}.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


def story_cloze(path: pathlib.Path) -> list[Row]:
    """The stories of StoryCloze's CSV, as those of `endings`.

    Raises:
        ValueError: a column or an answer is missing; names the line.
    """
    stories = []
    with _csv(path) as file:
        reader = csv.DictReader(file)
        needed = (*_STORY, *_ENDINGS, 'AnswerRightEnding')
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise ValueError(f'{path}: no column {missing[0]}; StoryCloze has {", ".join(needed)}.')
        for row in reader:
            texts = [(row[name] or '').strip() for name in (*_STORY, *_ENDINGS)]
            right, choices = (row['AnswerRightEnding'] or '').strip(), texts[len(_STORY) :]
            if not all(texts) or choices[0] == choices[1] or right not in ('1', '2'):
                raise ValueError(
                    f'{path}:{reader.line_num}: a sentence is empty, the endings are alike, or AnswerRightEnding, '
                    f'{right!r}, is not 1 or 2.'
                )
            stories.append(
                {'text': ' '.join(texts[: len(_STORY)]), 'choices': choices, 'answer': choices[int(right) - 1]}
            )
    if not stories:
        raise ValueError(f'{path}: has no story.')
    return stories


def mmlu(folder: pathlib.Path) -> dict[str, tuple[list[Row], list[Row]]]:
    """{subject: (questions, those that are answered before)}: `text`, `choices`, `letter`.

    Raises:
        ValueError: there are no such files, or a line has not six columns and an answer among A to D.
    """
    subjects = {}
    for path in sorted(folder.glob('test/*_test.csv')):
        subject = path.stem.removesuffix('_test')
        shots = folder / 'dev' / f'{subject}_dev.csv'
        if not shots.is_file():
            raise ValueError(f'{shots} is missing: the five questions that come first are there.')
        answered = list(_questions(shots))
        if len(answered) < _SHOTS:
            raise ValueError(f'{shots}: {len(answered)} questions; five come before each of the others.')
        subjects[subject] = list(_questions(path)), answered[:_SHOTS]
    if not subjects:
        raise ValueError(f'{folder}: no test/SUBJECT_test.csv, as MMLU has them.')
    return subjects


def _questions(path: pathlib.Path) -> Iterator[Row]:
    with _csv(path) as file:
        reader = csv.reader(file)
        for row in reader:
            if len(row) != 6 or row[5].strip() not in tuple('ABCD') or not all(cell.strip() for cell in row):
                raise ValueError(
                    f'{path}:{reader.line_num}: {len(row)} columns; a question, four choices and the letter of the '
                    'right one were expected.'
                )
            question, *choices, letter = (cell.strip() for cell in row)
            yield {'text': question, 'choices': choices, 'letter': letter}  # choices may be alike


@contextlib.contextmanager
def _csv(path: pathlib.Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            yield file
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: no CSV in UTF-8 ({error}). Save it as such.') from None


def pairs(path: pathlib.Path) -> list[Row]:
    """A JSONL file of texts, `right` and `wrong`, of which the first should be likelier; other fields are kept.

    Raises:
        ValueError: a line is no such pair; names it.
    """

    def fits(row: Row) -> bool:
        texts = [row.get('right'), row.get('wrong')]
        return all(isinstance(text, str) and text.strip() for text in texts) and texts[0] != texts[1]

    return _lines(path, fits, '"right" and "wrong", two different texts')


def asked(path: pathlib.Path, count: int | None = None) -> list[Row]:
    """A JSONL file of texts with `choices`, `count` of them, one of which is the `answer`.

    Raises:
        ValueError: a line is no such question; names it.
    """

    def fits(row: Row) -> bool:
        choices = row.get('choices')
        texts = [row.get('text'), *(choices if isinstance(choices, list) else ())]
        if not all(isinstance(text, str) and text.strip() for text in texts) or row.get('answer') not in texts[1:]:
            return False
        return len({*texts[1:]}) == len(texts) - 1 and 2 <= len(texts) - 1 <= 26 and count in (None, len(texts) - 1)

    several = count or 'two or more'
    return _lines(path, fits, f'"text", "choices", {several} different texts, and one of them as "answer"')


def quiz(path: pathlib.Path) -> dict[str, tuple[list[Row], list[Row]]]:
    """As `mmlu`, of a file of `asked`: the first five of each `subject` are answered before the others.

    Raises:
        ValueError: a line is no question, or a subject has no more than five.
    """
    subjects: dict[str, list[Row]] = collections.defaultdict(list)
    for row in asked(path):
        question = {name: row[name] for name in ('text', 'choices', 'answer')}
        subjects[str(row.get('subject', path.stem))].append(question)
    for subject, rows in subjects.items():
        if len(rows) <= _SHOTS:
            raise ValueError(f'{path}: {len(rows)} questions on {subject!r}; five come before each of the others.')
    return {subject: (rows[_SHOTS:], rows[:_SHOTS]) for subject, rows in subjects.items()}


def _lines(path: pathlib.Path, fits: Callable[[Row], bool], expected: str) -> list[Row]:
    rows = []
    for number, line in json_lines.lines(path):
        try:
            row = json_lines.parse(line)
        except ValueError as error:
            raise ValueError(f'{path}:{number}: {error}') from None
        if not fits(row):
            raise ValueError(f'{path}:{number}: {str(row)[:80]}; {expected} were expected.')
        rows.append(row)
    return rows


class Sets:
    """Writes sets in a folder.

    Args:
        out: the folder.
        options: of `synthesize`, voices and more.
        limit: the first so many of each set; None: all.
    """

    def __init__(self, out: pathlib.Path, options: Sequence[str], limit: int | None):
        self._out, self._options, self._limit = out, options, limit

    def pairs(self, name: str, pairs: Sequence[Row]) -> None:
        """Recordings of two texts, `right` and `wrong`, by the same voice."""
        pairs = pairs[: self._limit]
        # The voice and the speed of a clip are drawn by its number: alike in two sets of one order.
        sides = [
            self._spoken(f'{name}_{side}', [{'id': f'{name}/{n}', 'text': row[side]} for n, row in enumerate(pairs)])
            for side in ('right', 'wrong')
        ]
        lines = []
        for number, row in enumerate(pairs):
            found = [side[place] for side in sides if (place := f'{name}/{number}') in side]
            if len(found) < len(sides) or found[0]['speaker'] != found[1]['speaker']:
                continue
            choices = [{key: each[key] for key in ('audio', 'text', 'duration')} for each in found]
            line = {'id': f'{name}/{number}', 'choices': choices[:: (-1) ** number], 'target': row['right']}
            line |= {'speaker': found[0]['speaker']}
            kept = {key: value for key, value in row.items() if key not in ('right', 'wrong', 'audio', *line)}
            lines.append(line | kept)
        self._write(name, lines, len(pairs))

    def stories(self, name: str, stories: Sequence[Row]) -> None:
        """Stories with two endings: after a spoken story in writing, and all that is spoken."""
        stories = stories[: self._limit]
        rows = [{'id': f'{name}/{n}', 'text': row['text']} for n, row in enumerate(stories)]
        spoken = self._spoken(name, rows)
        lines = [
            {**spoken[row['id']], 'instruction': 'Write the next sentence of this story.', 'target': story['answer']}
            | {'choices': story['choices']}
            for row, story in zip(rows, stories, strict=True)
            if row['id'] in spoken
        ]
        self._write(name, lines, len(stories))
        pairs = []
        for story in stories:
            (wrong,) = (each for each in story['choices'] if each != story['answer'])
            pairs.append(
                {side: f'{story["text"]} {end}' for side, end in (('right', story['answer']), ('wrong', wrong))}
            )
        self.pairs(f'{name}_heard', pairs)

    def quiz(self, name: str, subjects: Mapping[str, tuple[Sequence[Row], Sequence[Row]]]) -> None:
        """Questions with choices that are read aloud; the answer is a letter."""
        rows: list[Row] = []
        for subject, (questions, shots) in subjects.items():
            for kind, those in (('shot', shots), ('test', questions[: self._limit])):
                for n, each in enumerate(those):
                    options = [f'{letter}: {choice}' for letter, choice in zip(string.ascii_uppercase, each['choices'])]
                    said = ' '.join(text if text[-1] in '.?!' else f'{text}.' for text in (each['text'], *options))
                    letter = each.get('letter') or string.ascii_uppercase[each['choices'].index(each['answer'])]
                    row = {'id': f'{subject}/{kind}/{n}', 'text': said, 'subject': subject, 'letter': letter}
                    rows.append(row | {'letters': list(string.ascii_uppercase[: len(options)])})
        spoken = self._spoken(name, rows)
        asked = [row for row in rows if '/test/' in row['id']]
        for count in (0, _SHOTS):
            lines = []
            for row in asked:
                before = [f'{row["subject"]}/shot/{n}' for n in range(count)]
                if not all(each in spoken for each in (*before, row['id'])):
                    continue
                turns: list[Any] = []
                for each in (*before, row['id']):
                    clip = spoken[each]
                    turns.append({'audio': clip['audio'], 'text': clip['text']})
                    turns.append('\nAnswer:' + (f' {clip["letter"]}\n\n' if each != row['id'] else ''))
                own = {key: row[key] for key in ('id', 'subject')}
                lines.append({**own, 'interleaved': turns, 'choices': row['letters'], 'target': row['letter']})
            self._write(f'{name}_{count}', lines, len(asked))

    def _spoken(self, name: str, rows: Sequence[Row]) -> dict[str, Row]:
        """The lines of what was read aloud, by their ids."""
        texts, spoken = self._out / 'texts' / f'{name}.jsonl', self._out / 'spoken' / name
        json_lines.write(texts, rows)
        spoken.parent.mkdir(exist_ok=True)
        if synthesize.main([str(texts), str(spoken), '--kind', 'sentences', '--split', 'test', *self._options]):
            raise _Unread
        lines = json_lines.read(spoken / 'test.jsonl')
        return {row['id']: {**row, 'audio': f'spoken/{name}/{row["audio"]}'} for row in lines}

    def _write(self, name: str, lines: Sequence[Row], count: int) -> None:
        if not lines:
            raise ValueError(f'{name}: nothing of it was read aloud, or no pair by one voice. Give other voices.')
        json_lines.write(self._out / f'{name}.jsonl', lines)
        left = f', {count - len(lines)} left out: not read aloud' if count > len(lines) else ''
        print(f'{name}.jsonl: {len(lines)} lines{left}')


def write(args: argparse.Namespace, sets: Sets) -> None:
    """Writes what is asked for, or the packaged sets."""
    jobs: list[tuple[str, Callable[..., None], Any]] = []
    jobs += [('story_cloze', sets.stories, story_cloze(path)) for path in args.story_cloze]
    jobs += [('mmlu', sets.quiz, mmlu(path)) for path in args.mmlu]
    jobs += [(path.stem, sets.pairs, pairs(path)) for path in args.pairs]
    jobs += [(path.stem, sets.stories, asked(path, 2)) for path in args.stories]
    jobs += [(path.stem, sets.quiz, quiz(path)) for path in args.quiz]
    names = [name for name, *_ in jobs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f'{min(twice)}: two sets would be called so. Rename a file, or make them one after the other.')
    (args.out / 'texts').mkdir(parents=True, exist_ok=True)
    for name, job, rows in jobs:
        job(name, rows)
    if jobs:
        return
    sets.pairs('words', [{'right': row['word'], 'wrong': row['nonword']} for row in packaged('words')])
    kind = 'phenomenon'
    sets.pairs('sentences', [{'right': r['good'], 'wrong': r['bad'], kind: r[kind]} for r in packaged('sentences')])
    sets.stories('stories', packaged('endings'))
    questions = packaged('quiz')
    sets.quiz('quiz', {'quiz': (questions[_SHOTS:], questions[:_SHOTS])})


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.speech_tests',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', metavar='OUT', type=pathlib.Path)
    for name in ('story_cloze', 'mmlu', 'pairs', 'stories', 'quiz'):
        kind = 'DIR' if name == 'mmlu' else 'FILE'
        parser.add_argument(f'--{name}', metavar=kind, type=pathlib.Path, action='append', default=[])
    parser.add_argument('--limit', type=int, metavar='N', help='the first N of each set')
    args, options = parser.parse_known_args(argv)
    try:
        if args.limit is not None and args.limit < 1:
            raise ValueError(f'--limit {args.limit}: a whole number from 1 on was expected.')
        write(args, Sets(args.out, options, args.limit))
    except _Unread:
        return 1
    except (ValueError, OSError) as error:
        return cli.fail('speech_tests', error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
