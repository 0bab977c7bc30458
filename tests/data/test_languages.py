"""The codes of languages with which a language model's texts begin, and those that it does not have."""

import types

import pytest

from slm_jax.data import languages
from slm_jax.data.prompts import SPEECH, Prompt
from slm_jax.importers import mbart

CODES = {'de_DE': 40, 'en_XX': 41, 'cs_CZ': 42, 'zh_CN': 43, 'tl_XX': 44}
VOCABULARY = types.SimpleNamespace(languages=CODES, encode=lambda text: [len(text)] * bool(text))


def test_texts_begin_with_the_code_of_their_language():
    for lang, token in (('de', 40), ('de_DE', 40), ('en-GB', 41), ('cmn', 43), ('fil', 44)):
        assert languages.begun(VOCABULARY, lang) == (token,)
    assert languages.begun(types.SimpleNamespace(languages={}), 'cy') == ()
    assert all(map(languages.name, mbart.CODES)), 'a manifest can have each of its languages'


@pytest.mark.parametrize(
    ('lang', 'message'),
    [
        ('', 'the language of the text is not stated'),
        ('cy', r"no code for the language 'cy' \(Welsh\). Of its 5 the nearest are .*--language cy_XX=mean` adds one"),
        ('german', r"no code for the language 'german' \(unknown\). Of its 5 the nearest are de_DE;"),
        ('czeck', r'the nearest are cs_CZ;'),
    ],
)
def test_a_language_without_a_code_is_refused(lang, message):
    with pytest.raises(ValueError, match=message):
        languages.begun(VOCABULARY, lang)


def test_a_prompt_without_a_place_for_the_instruction():
    prompt = Prompt('{speech}')
    assert prompt.tokens(VOCABULARY, 'Translate!', SPEECH, 'de') == (40, SPEECH, 1)
    assert prompt.tokens(VOCABULARY, 'Translate!', SPEECH) == (1,)
    assert prompt.tokens(VOCABULARY, 'Translate!', 'abc', 'en') == (41, 3, 1)
    # Where nothing is to be heard or read, what is asked is what is read.
    assert prompt.tokens(VOCABULARY, 'Translate!', '', 'en') == (41, 10, 1)
    with pytest.raises(ValueError, match="no code for the language 'cy'"):
        prompt.tokens(VOCABULARY, 'Translate!', SPEECH, 'cy')
    with pytest.raises(ValueError, match='prompts.Prompt.template has no place {speech}'):
        Prompt('{instruction}')
