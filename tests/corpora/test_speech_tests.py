"""Spoken tests: pairs by one voice, stories, and questions after answered ones."""

import csv

import pytest

from slm_jax.corpora import speech_tests
from slm_jax.data import json_lines

STORY = {
    **{f'InputSentence{n}': f'This is sentence {n}.' for n in (1, 2, 3, 4)},
    'RandomFifthSentenceQuiz1': 'It ends well.',
    'RandomFifthSentenceQuiz2': 'It ends badly.',
    'AnswerRightEnding': '2',
}


@pytest.fixture
def run(tmp_path, hum, capsys):
    """Runs the program with two voices that hum; returns its status, what it said, and the lines of a set."""
    voices = [f'--voice={name}={hum} {{out}} {{text}} {{speed}}' for name in ('amy', 'bob')]

    def call(*options):
        status = speech_tests.main([str(tmp_path / 'out'), '--processes=1', *voices, *options])
        return status, ''.join(capsys.readouterr()), lambda name: json_lines.read(tmp_path / f'out/{name}.jsonl')

    return call


def test_stories_and_their_endings(run, tmp_path):
    with (tmp_path / 'stories.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, STORY)
        writer.writeheader()
        writer.writerows([STORY, STORY | {'InputSentence1': 'Another, "one".', 'AnswerRightEnding': '1'}])
    status, said, lines = run(f'--story_cloze={tmp_path / "stories.csv"}')
    assert status == 0 and 'story_cloze.jsonl: 2 lines\n' in said
    written = lines('story_cloze')
    assert written[1]['text'] == 'Another, "one". This is sentence 2. This is sentence 3. This is sentence 4.'
    assert [row['target'] for row in written] == ['It ends badly.', 'It ends well.']
    assert all((tmp_path / 'out' / row['audio']).is_file() for row in written)
    for row in lines('story_cloze_heard'):
        right, wrong = sorted(row['choices'], key=lambda each: each['text'] != row['target'])
        assert row['target'] == right['text'] != wrong['text']
        assert all((tmp_path / 'out' / each['audio']).is_file() for each in row['choices'])
    firsts = [row['choices'][0]['text'] == row['target'] for row in lines('story_cloze_heard')]
    assert firsts == [True, False]  # the right one stands anywhere


def test_questions_come_after_answered_ones(run, tmp_path):
    for kind, count in (('test', 2), ('dev', 6)):
        (tmp_path / 'mmlu' / kind).mkdir(parents=True)
        with (tmp_path / 'mmlu' / kind / f'virology_{kind}.csv').open('w', newline='') as file:
            csv.writer(file).writerows([f'{kind} question {n}?', 'red', 'red', 'blue', 'no', 'B'] for n in range(count))
    status, said, lines = run(f'--mmlu={tmp_path / "mmlu"}', '--limit=1')
    assert status == 0, said
    (none,), (five,) = lines('mmlu_0'), lines('mmlu_5')
    assert none['interleaved'][0]['text'] == 'test question 0? A: red. B: red. C: blue. D: no.'
    assert none['interleaved'][1:] == ['\nAnswer:'] and none['choices'] == ['A', 'B', 'C', 'D']
    assert none['target'] == five['target'] == 'B' and five['subject'] == 'virology'
    assert [turn for turn in five['interleaved'] if isinstance(turn, str)] == ['\nAnswer: B\n\n'] * 5 + ['\nAnswer:']
    assert five['interleaved'][8]['text'].startswith('dev question 4?')


def test_sets_of_ones_own(run, tmp_path):
    asked = {'text': 'What is it?', 'choices': ['a dog', 'a cat'], 'answer': 'a cat'}
    json_lines.write(tmp_path / 'swuggy.jsonl', [{'right': 'wagon', 'wrong': 'magon', 'id': 'x', 'length': 5}])
    json_lines.write(tmp_path / 'tales.jsonl', [asked])
    json_lines.write(tmp_path / 'facts.jsonl', [asked | {'subject': 'pets', 'letter': 'A'}] * 6)
    sets = {'pairs': 'swuggy', 'stories': 'tales', 'quiz': 'facts'}
    status, said, lines = run(*(f'--{kind}={tmp_path / name}.jsonl' for kind, name in sets.items()))
    assert status == 0, said
    [pair], [story], [question] = map(lines, ('swuggy', 'tales', 'facts_5'))
    assert pair['length'] == 5 and pair['id'] == 'swuggy/0' and pair['choices'][0]['text'] == pair['target'] == 'wagon'
    assert story['choices'] == asked['choices'] and lines('tales_heard')[0]['target'] == 'What is it? a cat'
    assert question['choices'] == ['A', 'B'] and question['target'] == 'B' and question['subject'] == 'pets'
    pairs = f'--pairs={tmp_path / "swuggy.jsonl"}'
    assert 'swuggy: two sets would be called so.' in run(pairs, pairs)[1]


@pytest.mark.slow
def test_the_packaged_sets(run):
    status, said, lines = run('--limit=3')
    assert status == 0, said
    assert {row['target'] for row in lines('words')} == {row['word'] for row in speech_tests.packaged('words')[:3]}
    for name in ('words', 'sentences', 'stories_heard'):
        assert all(len(row['choices']) == 2 and ' + ' not in row['speaker'] for row in lines(name))
    assert all(len(row['interleaved']) == 12 for row in lines('quiz_5'))


@pytest.mark.parametrize(
    ('option', 'content', 'message'),
    [
        ('--story_cloze', 'a,b\n1,2\n', 'no column InputSentence1; StoryCloze has InputSentence1, '),
        (
            '--story_cloze',
            ','.join(STORY) + '\n' + ','.join([*STORY.values()][:-1]) + ',3\n',
            "stories.csv:2: a sentence is empty, the endings are alike, or AnswerRightEnding, '3', is not 1 or 2.",
        ),
        ('--story_cloze', '\xff', 'stories.csv: no CSV in UTF-8 ('),
        ('--mmlu', '', 'no test/SUBJECT_test.csv, as MMLU has them.'),
        ('--pairs', '{"right": "a", "wrong": "a"}', "stories.csv:1: {'right': 'a', 'wrong': 'a'}; \"right\" and \"wro"),
        (
            '--stories',
            '{"text": "a", "choices": ["b", "c", "d"], "answer": "b"}',
            '"choices", 2 different texts, a',
        ),
        ('--quiz', '{"text": "a", "choices": ["b", "c"], "answer": "d"}', "csv:1: {'text': 'a', "),
        (
            '--quiz',
            '{"text": "a", "choices": ["b", "c"], "answer": "c"}',
            "1 questions on 'stories'; five come",
        ),
        ('--quiz', 'What?', 'stories.csv:1: not JSON'),
    ],
)
def test_what_is_no_such_set_is_named(run, tmp_path, option, content, message):
    (tmp_path / 'stories.csv').write_text(content, encoding='latin-1')
    status, said, _ = run(f'{option}={tmp_path / "stories.csv" if content else tmp_path}')
    assert status == 2 and message in said


def test_questions_without_answers_are_named(tmp_path):
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test/law_test.csv').write_text('What?,a,b,c,d,E\n')
    with pytest.raises(ValueError, match='law_dev.csv is missing: the five questions that come first are there.'):
        speech_tests.mmlu(tmp_path)
    (tmp_path / 'dev').mkdir()
    (tmp_path / 'dev/law_dev.csv').write_text('What?,a,b,c,d,A\n')
    (tmp_path / 'test/law_test.csv').write_text('What?,a,b,c,d,A\n')
    with pytest.raises(ValueError, match='law_dev.csv: 1 questions; five come before each of the others.'):
        speech_tests.mmlu(tmp_path)
    (tmp_path / 'dev/law_dev.csv').write_text('What?,a,b,c,d,A\n' * 5)
    (tmp_path / 'test/law_test.csv').write_text('What?,a,b,c,d,E\n')
    with pytest.raises(ValueError, match='law_test.csv:1: 6 columns; a question, four choices and the letter of'):
        speech_tests.mmlu(tmp_path)
