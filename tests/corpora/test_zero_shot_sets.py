"""The text sets of the package are whole, and nothing but sense tells a right answer from a wrong one."""

import collections
import pathlib

import pytest

from slm_jax import corpora
from slm_jax.data import json_lines
from slm_jax.evaluation import normalizers

_FOLDER = pathlib.Path(corpora.__file__).with_name('zero_shot')
_TEXT = {'text': str, 'lang': str, 'source': str, 'split': str}
_FIELDS = {
    'endings': (220, {**_TEXT, 'choices': list, 'answer': str}),
    'passages': (60, {**_TEXT, 'questions': list}),
    'dialogs': (60, {'turns': list, 'choices': list, 'answer': str}),
    'quiz': (240, {**_TEXT, 'choices': list, 'answer': str, 'topic': str}),
    'names': (150, {**_TEXT, 'phrases': list}),
    'words': (220, {'word': str, 'nonword': str}),
    'sentences': (220, {'good': str, 'bad': str, 'phenomenon': str}),
}


def _rows(name):
    return json_lines.read(_FOLDER / f'{name}.jsonl')


def _said(row):
    """All that is said in a line, in the order of reading."""
    return [
        text
        for value in row.values()
        for part in (value if isinstance(value, list) else [value])
        for text in ([part['question'], *part['answers']] if isinstance(part, dict) else [part])
    ]


def test_there_are_these_sets_and_no_others():
    assert {path.stem for path in _FOLDER.iterdir()} == set(_FIELDS)


@pytest.mark.parametrize('name', _FIELDS)
def test_lines_have_their_fields_and_are_unlike_each_other(name):
    number, fields = _FIELDS[name]
    rows = _rows(name)
    assert len(rows) == number
    for row in rows:
        assert {field: type(value) for field, value in row.items()} == fields
        assert all(text == text.strip() != '' and '  ' not in text for text in _said(row))
        if 'text' in row:
            assert (row['lang'], row['source'], row['split']) == ('en', name, 'test')
    # What is asked or read is in one line only. Pairs of endings and of dialogs share their choices.
    for field in {'text', 'turns', 'word', 'nonword', 'good', 'bad'} & set(fields):
        assert max(collections.Counter(str(row[field]).lower() for row in rows).values()) == 1


@pytest.mark.parametrize('name, choices', [('endings', 2), ('dialogs', 2), ('quiz', 4)])
def test_a_choice_is_right_and_stands_anywhere(name, choices):
    rows = _rows(name)
    assert all(len(set(row['choices'])) == len(row['choices']) == choices for row in rows)
    where = collections.Counter(row['choices'].index(row['answer']) for row in rows)
    assert where == dict.fromkeys(range(choices), len(rows) // choices)


@pytest.mark.parametrize('name', ['endings', 'dialogs'])
def test_each_ending_is_right_once_and_wrong_once(name):
    """So that whoever does not hear the beginning has half of them right, whatever the endings are like."""
    right = collections.defaultdict(set)
    for row in _rows(name):
        right[frozenset(row['choices'])].add(row['answer'])
    assert all(choices == answers for choices, answers in right.items())
    assert len(right) == len({text for choices in right for text in choices}) / 2 == len(_rows(name)) / 2


def test_the_right_choice_of_a_quiz_is_not_known_by_its_length():
    rows = _rows('quiz')
    assert set(collections.Counter(row['topic'] for row in rows).values()) == {30}
    for end in (max, min):
        found = [end(row['choices'], key=len) == row['answer'] for row in rows]
        assert 0.12 < sum(found) / len(rows) < 0.35


def test_the_first_answer_is_a_part_of_the_passage_and_not_of_the_question():
    for row in _rows('passages'):
        assert 2 <= len(row['questions']) <= 3
        for question in row['questions']:
            assert set(question) == {'question', 'answers'} and question['question'][-1] == '?'
            assert question['answers'][0] in row['text']
            asked = f' {normalizers.squad(question["question"])} '
            assert not any(f' {normalizers.squad(answer)} ' in asked for answer in question['answers'])


def test_a_name_is_in_its_sentence_and_in_no_other():
    rows = _rows('names')
    for row in rows:
        assert row['phrases'] and all(phrase in row['text'] for phrase in row['phrases'])
    assert max(collections.Counter(phrase for row in rows for phrase in row['phrases']).values()) == 1


def test_no_nonword_is_a_word_of_the_set_and_pairs_are_alike():
    rows = _rows('words')
    assert not {row['word'] for row in rows} & {row['nonword'] for row in rows}
    for row in rows:
        assert 4 <= len(row['word']) <= 9 and (row['word'] + row['nonword']).islower()
        assert abs(len(row['word']) - len(row['nonword'])) <= 1


def test_the_better_sentence_is_not_known_by_its_length():
    rows = _rows('sentences')
    assert set(collections.Counter(row['phenomenon'] for row in rows).values()) == {20}
    assert all(row['good'] != row['bad'] for row in rows)
    for size in (len, lambda text: len(text.split())):
        shorter = sum(size(row['good']) < size(row['bad']) for row in rows)
        longer = sum(size(row['good']) > size(row['bad']) for row in rows)
        assert abs(longer - shorter) < 0.05 * len(rows)
