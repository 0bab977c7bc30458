"""Which wordings ask for a transcript. That every template is known for what it is: tests/tasks/test_registry.py."""

import pytest

from slm_jax.data import instructions


@pytest.mark.parametrize(
    'text',
    [
        'transcribe the speech.',
        'TRANSCRIBE THE SPEECH',
        '  Transcribe \t the\u00a0speech !',
        '“Transcribe the speech.”',
        '«Transcribe this recording»',
        'Write down what is said…',
        'what does the speaker say',
        'This is french: what does the speaker say?',
        'Transcribe the Brazilian Portuguese speech.',
        'Transcribe the Norwegian (Bokmål) speech.',
        'Write down what is said in Sorani Kurdish.',
    ],
)
def test_case_punctuation_and_spaces_do_not_count(text):
    assert instructions.transcribes(text)


@pytest.mark.parametrize(
    'text',
    [
        '',
        'Transcribe the first half of the speech.',
        'Write down what is said in capital letters.',
        'Transcribe the speech in French and translate it.',
        'What does the speaker say, in French?',
        'Do not transcribe the speech.',
    ],
)
def test_other_wishes_are_no_transcripts(text):
    assert not instructions.transcribes(text)


def test_the_languages_that_a_request_names():
    """Of every wording of transcripts and translations; no other request has any."""
    fields = {'language': 'French', 'target_language': 'Norwegian Nynorsk'}
    expected = {'asr': ('', ''), 'asr_language': ('fr', 'fr'), 'ast': ('', 'nn'), 'ast_language': ('fr', 'nn')}
    for kind, languages in expected.items():
        for wording in instructions.TEMPLATES[kind]:
            assert instructions.spoken_and_wanted(wording.format(**fields)) == languages, wording
    assert instructions.spoken_and_wanted('translate this  ENGLISH speech to German') == ('en', 'de')
    assert instructions.spoken_and_wanted('Transcribe the Brazilian Portuguese speech.') == ('pt', 'pt')
    assert instructions.spoken_and_wanted('Transcribe the Mandarin Chinese speech.') == ('cmn', 'cmn')
    for other in ('What does the caller want?', 'Translate this Klingon speech to English.', ''):
        assert instructions.spoken_and_wanted(other) is None
