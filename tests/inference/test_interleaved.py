"""Lines of a manifest with several recordings: prompts in turns, and choices that are heard."""

import re

import numpy as np
import pytest
import soundfile

from slm_jax.data import json_lines, prompts
from slm_jax.inference import answering, controls, queries


class Letters:
    """A vocabulary of letters."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return ''.join(chr(token) if token > 0 else '@' for token in ids)


@pytest.fixture
def asked(tmp_path):
    """asked(lines, question…): the queries of a manifest beside two recordings of 0.1 and 0.2 s."""
    for name, length in (('a', 1_600), ('b', 3_200)):
        soundfile.write(tmp_path / f'{name}.wav', np.full(length, length / 32_768, np.float32), 16_000)

    def call(lines, listen=True, max_seconds=1.0, **question):
        json_lines.write(tmp_path / 'lines.jsonl', lines)
        given = queries.Question(**question)
        prompt = prompts.Prompt(chat='{user}')
        path = tmp_path / 'lines.jsonl'
        return list(queries.from_manifest(path, [given], Letters(), max_seconds, prompt, listen=listen))

    return call


TURNS = {
    'id': 'x',
    'interleaved': ['Q ', {'audio': 'a.wav', 'text': 'one'}, ' A 1 Q ', {'audio': 'b.wav', 'text': 'two'}, ' A'],
    'target': '2',
    'choices': ['1', '2'],
}
PAIR = {
    'id': 'y',
    'choices': [{'audio': 'b.wav', 'text': 'wagon'}, {'audio': 'a.wav', 'text': 'magon'}],
    'target': 'wagon',
}


def test_a_prompt_in_turns(asked, tmp_path):
    (query,) = asked([TURNS], score_choices=True)
    assert Letters().decode(query.tokens) == 'Q @ A 1 Q @ A'
    assert query.recordings == (1_600, 3_200) and len(query.samples) == 4_800
    assert query.info['choices'] == ['1', '2'] and query.info['reference'] == '2'
    assert query.info['duration'] == 0.3 and query.info['interleaved'][1]['audio'] == str(tmp_path / 'a.wav')
    (query,) = asked([TURNS], text_field='text')
    assert Letters().decode(query.tokens) == 'Q one A 1 Q two A' and query.samples is None and not query.recordings
    (query,) = asked([TURNS], listen=False)
    assert query.samples is None
    again = {'id': 'x', **query.info}  # as predictions.jsonl has it
    assert asked([again])[0].recordings == (1_600, 3_200)


def test_segments_of_recordings(asked):
    """Nothing of a recording is heard that was not asked for."""
    half = {'audio': 'b.wav', 'text': 'two', 'offset': 0.05, 'duration': 0.1}
    (query,) = asked([TURNS | {'interleaved': ['Q ', half, ' A']}])
    assert query.recordings == (1_600,) and query.info['interleaved'][1]['offset'] == 0.05
    (query,) = asked([PAIR | {'choices': [half, PAIR['choices'][1]], 'target': 'two'}], score_choices=True)
    assert [len(each) for each in query.heard] == [1_600, 1_600]


def test_choices_that_are_heard(asked):
    (query,) = asked([PAIR | {'subject': 'words'}], score_choices=True)
    assert [len(each) for each in query.heard] == [3_200, 1_600] and query.samples is None
    assert query.info['subject'] == 'words'
    assert query.info['choices'] == ['wagon', 'magon'] and query.info['reference'] == 'wagon'
    assert query.tokens == asked([PAIR | {'audio': 'a.wav'}], score_choices=True)[0].tokens == (prompts.SPEECH, 10)[1:]
    (query,) = asked([PAIR], score_choices=True, text_field='text')
    assert not query.heard and query.info['choices'] == ['wagon', 'magon'] and query.tokens == ()


@pytest.mark.parametrize(
    ('line', 'question', 'message'),
    [
        (TURNS | {'interleaved': 'Q'}, {}, 'field "interleaved": is \'Q\'; a list of texts and {"audio": FILE, '),
        (TURNS | {'interleaved': [{'text': 'x'}]}, {}, "field \"interleaved\": has {'text': 'x'}; a list of texts and"),
        (TURNS, {'text_field': 'said'}, "a.wav has no text in 'said' (text_field); a list of texts and"),
        (TURNS, {'instruction': 'Go on.'}, 'has "interleaved", which is all that is asked; leave out --instruction.'),
        (TURNS, {'max_seconds': 0.15}, 'b.wav: 0.2 s is longer than the 0.15 s that this model takes at once.'),
        (
            PAIR | {'choices': [{'audio': 'a.wav'}, 'x']},
            {'score_choices': True},
            'field "choices": has {\'audio\': \'a.wav\'}; {"audio": FILE, "text": …} was expected.',
        ),
        (PAIR | {'target': 'x'}, {'score_choices': True}, "none of the choices is the reference 'x'"),
        (PAIR, {}, 'field "audio" is missing.'),
        (
            TURNS | {'interleaved': [{'audio': 'a.wav', 'offset': 'x'}]},
            {},
            'lines.jsonl:1: field "offset" is \'x\'; seconds were expected',
        ),
    ],
)
def test_what_cannot_be_names_the_line(asked, line, question, message):
    with pytest.raises(ValueError) as caught:
        asked([line], **question)
    assert message in str(caught.value) and ('lines.jsonl:1' in str(caught.value) or '.wav' in str(caught.value))


def test_another_prompts_recordings_are_those_of_as_many(asked):
    other = TURNS | {'id': 'z', 'interleaved': TURNS['interleaved'][::-1]}
    found = list(controls.shuffle_audio(asked([TURNS, other])))
    assert [query.recordings for query in found] == [(3_200, 1_600), (1_600, 3_200)]
    fewer = TURNS | {'id': 'w', 'interleaved': TURNS['interleaved'][:2]}
    with pytest.raises(ValueError, match="shuffle_audio: the prompts 'x' and 'w' have different numbers of recordings"):
        list(controls.shuffle_audio(asked([TURNS, fewer])))
    with pytest.raises(ValueError, match="text_from: the prompt 'x' has several recordings"):
        list(controls.with_texts(asked([TURNS]), {'x': 'a'}, Letters(), prompts.Prompt()))


class Parts:
    """A vocabulary of words, most with the space before them, as of BPE."""

    def encode(self, text):
        return [''.join(part) for part in re.findall(r' ?\w+|\W', text)]


@pytest.mark.parametrize(
    ('chat', 'last', 'expected'),
    [
        ('{user}', '\nA:', [' yes']),
        ('{user}', '\nA: ', ['yes']),
        ('<{user}>', '\nA:', ['yes']),
        (None, '\nA:', ['yes']),  # an encoder read the prompt
    ],
)
def test_a_choice_goes_on_with_the_prompt(chat, last, expected):
    info = {'id': 'x', 'interleaved': ['Q: ', {'audio': 'a.wav'}, last], 'choices': ['yes', 'no'], 'reference': 'no'}
    candidates = answering._Candidates([queries.Query((), info=info)], Parts(), chat)
    assert list(next(iter(candidates)).target) == expected
