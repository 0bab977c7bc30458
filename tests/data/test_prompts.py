"""Where speech and instruction stand, as tokens; and templates that cannot be."""

import types

import numpy as np
import pytest
import seqio

import gin
from slm_jax import (
    configuration,
    tasks,  # noqa: F401  registers tasks
)
from slm_jax.data import measure, preprocessors
from slm_jax.data.prompts import SPEECH, Prompt

CHAT = '<user>\n{user}<end>\n<assistant>\n'


class Texts:
    """A vocabulary that tells which texts were encoded: a text is one token, known again by `said`."""

    eos_id = 1

    def __init__(self):
        self.texts = ['', '', '']

    def encode(self, text):
        self.texts += [text] * bool(text)
        return [len(self.texts) - 1] * bool(text)

    def said(self, ids):
        return [self.texts[token] if token > 1 else token for token in ids]


def encoded(prompt, *arguments):
    vocabulary = Texts()
    return vocabulary.said(prompt.tokens(vocabulary, *arguments))


@pytest.mark.parametrize(
    ('prompt', 'speech', 'text', 'neither'),
    [
        # Two texts side by side are encoded each by itself, and the mark is left out in front: as ever with T5.
        (Prompt(), ['Do {it}!', 1], ['a {b}', 'Do {it}!', 1], ['Do {it}!', 1]),
        (Prompt('{instruction}{speech}'), ['Do {it}!', SPEECH, 1], ['Do {it}!', 'a {b}', 1], ['Do {it}!', 1]),
        (
            Prompt('On {speech} "{instruction}"'),
            ['On ', SPEECH, ' "Do {it}!"', 1],
            ['On a {b} "Do {it}!"', 1],
            ['On  "Do {it}!"', 1],
        ),
        # A chat is one text, but for the speech.
        (
            Prompt(chat=CHAT),
            ['<user>\n', SPEECH, '\nDo {it}!<end>\n<assistant>\n'],
            ['<user>\na {b}\nDo {it}!<end>\n<assistant>\n'],
            ['<user>\nDo {it}!<end>\n<assistant>\n'],
        ),
        (
            Prompt('{instruction}: {speech}', CHAT),
            ['<user>\nDo {it}!: ', SPEECH, '<end>\n<assistant>\n'],
            ['<user>\nDo {it}!: a {b}<end>\n<assistant>\n'],
            ['<user>\nDo {it}!: <end>\n<assistant>\n'],
        ),
        (Prompt(chat='{user}'), ['\nDo {it}!'], ['a {b}\nDo {it}!'], ['Do {it}!']),
    ],
)
def test_speech_stands_where_the_template_says(prompt, speech, text, neither):
    assert encoded(prompt, 'Do {it}!') == speech
    assert encoded(prompt, 'Do {it}!', 'a {b}') == text
    assert encoded(prompt, 'Do {it}!', '') == neither


def test_without_texts_or_a_vocabulary():
    assert encoded(Prompt(), '') == encoded(Prompt(), '', '') == [1]
    assert encoded(Prompt('{instruction}{speech}'), '{speech}') == ['{speech}', SPEECH, 1]
    assert Prompt().tokens(None, 'x') == ()


@pytest.mark.parametrize(
    ('binding', 'said'),
    [
        (
            "Prompt.template='{instruction}'",
            'prompts.Prompt.template (set by PROMPT_TEMPLATE) has no place {speech}: it',
        ),
        ("Prompt.template=''", 'has no place {speech} and no place {instruction}: it must have {speech} and'),
        ("Prompt.template='{speech}{instruction}{speech}'", 'has 2 places {speech}: it must have {speech} and'),
        ("Prompt.template='{speech}{instrution}{instruction}'", 'has {instrution}, which nothing fills: it must have'),
        ("Prompt.chat='Hello'", 'prompts.Prompt.chat has no place {user}: it must have {user} once, and no other'),
        ("Prompt.chat='{user}{assistant}'", 'prompts.Prompt.chat has {assistant}, which nothing fills: it must have'),
    ],
)
def test_templates_that_cannot_be_name_their_field(binding, said):
    if 'PROMPT_TEMPLATE' in said:
        binding = binding.replace('Prompt.template', 'PROMPT_TEMPLATE')
    with pytest.raises(configuration.ConfigurationError) as error:
        configuration.parse_gin(['models/slm_tiny.gin'], [binding])
    assert said in str(error.value) and 'In call to' not in str(error.value)


def test_tasks_write_prompts():
    """Of a language model's inputs; the mark only where there is speech."""
    gin.bind_parameter('slm_jax.data.prompts.Prompt.chat', CHAT)
    try:
        for length, expected in ((7, ['<user>\n', SPEECH, '\nDo!<end>\n<assistant>\n']), (0, None), (None, None)):
            vocabulary = Texts()
            features = {name: Feature(vocabulary, True) for name in ('inputs', 'targets')}
            example = {'inputs': b'Do!', 'targets': b'done'} | ({} if length is None else {'speech_length': length})
            tokens = preprocessors.tokenize.function(example, features, None)
            expected = expected or ['<user>\nDo!<end>\n<assistant>\n']
            assert vocabulary.said(tokens['inputs'].tolist()) == expected and tokens['inputs'].dtype == np.int32
            assert vocabulary.said(tokens['targets'].tolist()) == ['done', 1]
            assert tokens['inputs_pretokenized'] == b'Do!'
        features = {name: Feature(Texts(), False) for name in ('inputs', 'targets')}
        tokens = preprocessors.tokenize.function({'inputs': b'', 'targets': b'x', 'speech_length': 7}, features, None)
        assert not tokens['inputs'].size and tokens['targets'].size == 1, 'CTC reads none'
    finally:
        gin.clear_config()


def test_lengths_are_measured_of_each_prompt(tmp_path):
    task, store = seqio.get_mixture_or_task('voice_prompts_asr_en'), types.SimpleNamespace(directory=tmp_path)
    before = measure.path_of(task, store)
    gin.bind_parameter('slm_jax.data.prompts.Prompt.chat', CHAT)
    try:
        assert measure.path_of(task, store) != before
    finally:
        gin.clear_config()
    assert measure.path_of(task, store) == before


class Feature:
    """What `tokenize` wants of a SeqIO feature."""

    def __init__(self, vocabulary, add_eos):
        self.vocabulary, self.add_eos = vocabulary, add_eos
