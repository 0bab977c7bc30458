"""Sets of texts: what of Alpaca, SQuAD, dialogs and sentences is spoken, what stays written, what cannot be read."""

import json

import pytest

from slm_jax.corpora import text_sets

_ALPACA = [
    {'instruction': 'Name a capital.', 'input': '', 'output': 'Paris.'},
    {'instruction': 'Translate.', 'input': 'Good\nmorning.', 'output': 'Bonjour.'},
    {'instruction': 'Write nothing.', 'input': '', 'output': ' '},
]
_SQUAD = {
    'data': [
        {
            'paragraphs': [
                {
                    'context': 'It was built in 1889 by Eiffel.',
                    'qas': [
                        {'id': 'q1', 'question': 'By whom?', 'answers': [{'text': 'Eiffel'}, {'text': 'Eiffel'}]},
                        {'id': 'q2', 'question': 'When?', 'answers': [{'text': '1889'}, {'text': 'in 1889'}]},
                        {'id': 'q3', 'question': 'Why?', 'answers': [{'text': 'no'}], 'is_impossible': True},
                    ],
                }
            ]
        }
    ]
}


@pytest.fixture
def clips(tmp_path):
    """The clips of a file with this content, and what is left out; JSON unless it is text."""

    def read(content, *spoken, kind=''):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / 'set.json').write_text(text, encoding='utf-8')
        found, examples = text_sets.read(tmp_path / 'set.json', kind)
        made, left_out = text_sets.clips(examples, spoken or text_sets.SPOKEN[found])
        return found, made, dict(left_out)

    return read


def test_alpacas_instruction_or_input_is_spoken(clips):
    kind, (first, second), left_out = clips(_ALPACA)
    assert kind == 'alpaca' and left_out == {'without an answer': 1}
    assert first.turns == ((0, 'Name a capital.'),)
    wordings = text_sets.instructions.TEMPLATES['response/answer']
    row = {'id': 'set/0', 'text': 'Name a capital.', 'instruction': wordings[0], 'target': 'Paris.'}
    assert first.rows == [row]
    assert second.rows[0]['instruction'] == 'Good\nmorning.' and second.rows[0]['text'] == 'Translate.'
    _, (only,), left_out = clips('\n'.join(map(json.dumps, _ALPACA)), 'input')
    assert left_out == {'input empty': 2}
    assert (only.rows[0]['text'], only.rows[0]['instruction']) == ('Good morning.', 'Translate.')
    _, (_, both), _ = clips(_ALPACA, 'instruction', 'input')
    assert both.rows[0]['text'] == 'Translate. Good morning.' and both.rows[0]['instruction'] == wordings[1]


def test_squads_passage_is_read_once_and_its_questions_are_written_or_the_reverse(clips):
    kind, (clip,), left_out = clips(_SQUAD)
    assert kind == 'squad' and left_out == {'without an answer': 1}
    assert [(row['id'], row['instruction'], row['target']) for row in clip.rows] == [
        ('q1', 'By whom?', 'Eiffel'),
        ('q2', 'When?', '1889'),
    ]
    assert 'answers' not in clip.rows[0] and clip.rows[1]['answers'] == ['1889', 'in 1889']
    _, asked, _ = clips(_SQUAD, 'question')
    assert [clip.rows[0]['text'] for clip in asked] == ['By whom?', 'When?']
    assert {clip.rows[0]['instruction'] for clip in asked} == {'It was built in 1889 by Eiffel.'}
    assert len({clip.group for clip in asked}) == 1
    row = {'context': 'A.', 'question': 'B?', 'answers': {'text': ['C'], 'answer_start': [0]}}
    assert clips(json.dumps(row))[1][0].rows[0]['target'] == 'C'


def test_turns_of_a_dialog_are_spoken_by_two(clips):
    turns = {'turns': ['Hello.', 'Good day.', 'How are you?', 'Well.']}
    kind, made, _ = clips(json.dumps(turns))
    assert kind == 'dialog' and [clip.rows[0]['target'] for clip in made] == turns['turns'][1:]
    assert made[2].turns == ((0, 'Hello.'), (1, 'Good day.'), (0, 'How are you?'))
    roles = [{'role': role, 'content': text} for role, text in zip(['user', 'assistant'] * 2, turns['turns'])]
    chat = {'id': 'c', 'messages': [{'role': 'system', 'content': 'Be kind.'}, *roles]}
    _, made, _ = clips(json.dumps(chat), 'turn')
    assert [clip.rows[0] for clip in made] == [
        {'id': 'c.1', 'text': 'Hello.', 'instruction': 'Answer what is said.', 'target': 'Good day.'},
        {'id': 'c.3', 'text': 'How are you?', 'instruction': 'A: Hello.\nB: Good day.', 'target': 'Well.'},
    ]


def test_sentences_keep_what_else_their_lines_have(clips):
    kind, made, left_out = clips('One two.\n\nThree four.\n')
    assert kind == 'sentences' and [clip.rows for clip in made] == [
        [{'id': 'set/0', 'text': 'One two.'}],
        [{'id': 'set/1', 'text': 'Three four.'}],
    ]
    _, made, left_out = clips('{"text": "Eins", "lang": "de", "phrases": ["Eins"]}\n{"text": " "}\n')
    assert [clip.rows for clip in made] == [[{'id': 'set/0', 'text': 'Eins', 'lang': 'de', 'phrases': ['Eins']}]]
    assert left_out == {'text empty': 1}


@pytest.mark.parametrize(
    'content, kind, said',
    [
        ('[]', '', 'set.json: entry 1 is no JSON object. A list of objects was expected'),
        ('', '', 'set.json: the file is empty'),
        ([{'a': 1}], '', 'an object with a is of no kind that is known. It needs instruction and output, context'),
        ([{'instruction': 1, 'output': 'x'}], '', 'entry 1: field "instruction" is 1; a text was expected, as Alpaca'),
        ('{"context": "a", "question": null}', '', 'set.json:1: field "question" is None; a text was expected'),
        ({'data': [{'title': 'x'}]}, '', r"set.json: is not laid out as SQuAD \(KeyError: 'paragraphs'\)"),
        ({'data': []}, '', 'set.json: holds no question'),
        ('{"turns": ["a", 2]}', '', r'set.json:1: field "turns" has 2; a turn is a text, or {"role", "content"}'),
        ('{"text": "a", "audio": "b"}', '', "set.json:1: has the field 'audio', which is written of its clip"),
        ('{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}', '', "the id 'x' stands there 2 times"),
        ('{"text": "a"}\n{"text": ', '', 'set.json:2: not JSON'),
        ('plain text', 'squad', "set.json: is no JSON; a set of kind 'squad' is"),
        ('{"text": "a"}', 'dialog', 'set.json:1: no list of turns; the field "turns" was expected'),
    ],
)
def test_what_cannot_be_read(clips, content, kind, said):
    with pytest.raises(ValueError, match=said):
        clips(content, kind=kind)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match='no_set.json: cannot be read'):
        text_sets.read(tmp_path / 'no_set.json')
