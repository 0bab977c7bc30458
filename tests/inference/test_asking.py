"""Conversations as prompts: by the chat template of the foundation, and only by one that the model was trained with."""

import json
import pathlib
import types

import pytest

from slm_jax import foundations
from slm_jax.data import prompts
from slm_jax.inference import asking

TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<sys>Be kind.</s>{% endif %}"
    '<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)
CHAT = '<bos><sys>Be kind.</s><user>{user}</s><assistant>'


class Letters:
    eos_id = 1

    def encode(self, text):
        return [ord(letter) for letter in text]


@pytest.fixture
def model(tmp_path):
    """model(template, chat): with a foundation that has this template."""

    def make(template=TEMPLATE, chat=CHAT, turn='"{speech}" {instruction}'):
        asking._chat.cache_clear()
        (tmp_path / 'llm').mkdir(exist_ok=True)
        (tmp_path / 'llm' / foundations.CARD).write_text(json.dumps({'kind': 'llm', 'chat_template': template}))
        return types.SimpleNamespace(
            directory=pathlib.Path('runs/slm'),
            hears=True,
            text_vocabulary=Letters(),
            prompt=prompts.Prompt(turn, chat),
            foundations={'llm': {'name': str(tmp_path / 'llm')}},
        )

    return make


def text(tokens):
    return ''.join('[SPEECH]' if token == prompts.SPEECH else chr(token) for token in tokens)


def messages(*turns):
    return [asking.Message(role, content, number == 0) for number, (role, content) in enumerate(turns)]


def test_one_turn_is_what_infer_asks(model):
    chat = model()
    [one] = messages(('user', 'What?'))
    query = asking.query(chat, [one], b'samples')
    assert query.tokens == chat.prompt.tokens(chat.text_vocabulary, 'What?') and not query.transcribed
    assert text(query.tokens) == '<bos><sys>Be kind.</s><user>"[SPEECH]" What?</s><assistant>'
    assert asking.query(chat, messages(('user', 'Transcribe the speech.')), b'samples').transcribed
    assert asking.query(chat, [one], b'samples', with_ctc=True).transcribed


def test_turns_before_are_read(model):
    chat = model()
    assert asking.reads_history(chat) == ''
    turns = messages(('user', 'What?'), ('assistant', 'A dog.'), ('user', 'Which?'))
    assert text(asking.query(chat, turns, b'samples').tokens) == (
        '<bos><sys>Be kind.</s><user>"[SPEECH]" What?</s><assistant>A dog.</s><user>Which?</s><assistant>'
    )
    system = [asking.Message('system', 'Be brief.'), asking.Message('user', 'What?', True)]
    assert text(asking.query(chat, system, b'samples').tokens) == (
        '<bos><system>Be brief.</s><user>"[SPEECH]" What?</s><assistant>'
    )
    alone = [asking.Message(role, content) for role, content, _ in turns]
    assert '[SPEECH]' not in text(asking.query(chat, alone, None).tokens)


@pytest.mark.parametrize(
    'options, said',
    [
        ({'chat': None}, 'slm has no chat template: it reads one request at a time'),
        ({'template': None}, 'the chat template of slm is not known'),
        ({'chat': '<other>{user}<assistant>'}, 'not the one that it was trained with'),
        ({'template': '{{ nothing.at.all }}'}, 'not the one that it was trained with'),
    ],
)
def test_others_read_one_request(model, options, said):
    chat = model(**options)
    assert said in asking.reads_history(chat)
    with pytest.raises(ValueError, match='Put all that matters into one message'):
        asking.query(chat, messages(('user', 'What?'), ('assistant', 'A dog.'), ('user', 'Which?')), b'samples')


def test_a_template_that_forgets_the_recording(model):
    forgetful = TEMPLATE.replace('{% for m in messages %}', '{% for m in messages[-1:] %}')
    turns = messages(('user', 'What?'), ('assistant', 'A dog.'), ('user', 'Which?'))
    with pytest.raises(ValueError, match='the chat template of slm leaves the turn with the recording out'):
        asking.query(model(forgetful), turns, b'samples')


def test_what_cannot_be_asked(model):
    chat = model()
    with pytest.raises(ValueError, match="'SpeechOfTheUser' stands for the recording"):
        asking.query(chat, messages(('user', 'SpeechOfTheUser'), ('assistant', ''), ('user', '')), b'samples')
    chat.hears = False
    with pytest.raises(ValueError, match='a language model alone hears nothing'):
        asking.query(chat, messages(('user', 'What?')), b'samples')
    chat.hears, chat.text_vocabulary = True, None
    with pytest.raises(ValueError, match=r"instruction 'What\?': slm reads none; by CTC it writes what is said"):
        asking.query(chat, messages(('user', 'What?')), b'samples')
    with pytest.raises(ValueError, match='slm has no language model and answers no text'):
        asking.query(chat, messages(('user', 'What?')), None)
