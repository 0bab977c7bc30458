"""Queries from loaders and manifests, and their batches."""

import dataclasses
import functools
import json
import re
import types

import numpy as np
import pytest

from slm_jax.data import prompts
from slm_jax.inference import answering, controls, queries

RATE = queries.SAMPLE_RATE
PROMPT, BEHIND = prompts.Prompt(), prompts.Prompt('{instruction}{speech}')


class Words:
    """A vocabulary: a word is its length."""

    def encode(self, text):
        return [1 + len(word) for word in text.split()]

    def decode(self, ids):
        return ' '.join(map(str, ids))


def spoken(seconds, value=1, **info):
    return queries.Query((5, 1), np.full(round(seconds * RATE), value, np.int16), info)


@pytest.mark.parametrize(
    ('seconds', 'bound'),
    [(0, 0), (0.1, 1), (1, 1), (1.01, 1.5), (1.6, 2), (2.5, 3), (3.01, 4), (11.9, 12), (13, 16)],
)
def test_bounds(seconds, bound):
    assert queries.seconds_bound(seconds, fine=True) == bound
    coarse = queries.seconds_bound(seconds)
    assert coarse in (0, 2, 4, 8, 16) and seconds <= coarse <= max(2 * seconds, 2)


@pytest.mark.parametrize('fine', [False, True])
def test_every_query_is_in_one_batch_and_whole(fine):
    rng = np.random.default_rng(0)
    given = [spoken(s, 1 + i % 100) for i, s in enumerate(rng.uniform(0.1, 9, 200))]
    given += [queries.Query((7,) * n + (1,)) for n in (3, 40, 3)]
    seen, shapes = {}, {}
    for group, batch in queries.batched(iter(given), seconds_per_batch=30, fine=fine):
        rows = batch['speech_samples'].shape[0]
        assert rows >= len(group)
        assert rows * batch['speech_samples'].shape[1] <= 30 * RATE
        assert not batch['speech_lengths'][len(group) :].any()
        assert not batch['encoder_input_tokens'][len(group) :].any()
        for row, (position, query) in enumerate(group):
            seen[position] = query
            length = batch['speech_lengths'][row]
            samples = () if query.samples is None else query.samples
            np.testing.assert_array_equal(batch['speech_samples'][row, :length], samples)
            assert not batch['speech_samples'][row, length:].any()
            tokens = batch['encoder_input_tokens'][row]
            assert tuple(tokens[: len(query.tokens)]) == query.tokens
            assert not tokens[len(query.tokens) :].any()
        shape = batch['speech_samples'].shape[1], batch['encoder_input_tokens'].shape[1]
        shapes.setdefault(shape, set()).add(rows)
    assert [seen[i] for i in range(len(given))] == given
    assert len(shapes) <= 10
    assert all(len(rows) == 1 for rows in shapes.values()), 'one compilation a shape'


def test_a_single_query_is_a_batch_of_one_and_rows_keep_their_multiple():
    [(group, batch)] = queries.batched([spoken(3)])
    assert (len(group), batch['speech_samples'].shape) == (1, (1, 4 * RATE))
    for _, batch in queries.batched([spoken(s) for s in (3, 3, 3, 50)], 30, row_multiple=4):
        assert batch['speech_samples'].shape[0] % 4 == 0


def test_no_query_is_padded_beyond_what_the_encoder_takes():
    for fine in (False, True):
        found = list(queries.batched([spoken(s) for s in (29, 30, 1.5)], 60, fine=fine, longest=30.0))
        assert sorted(batch['speech_samples'].shape for _, batch in found)[-1] == (2, 30 * RATE)
        assert len(found) == 2
    [(_, batch)] = queries.batched([spoken(29)], 60)
    assert batch['speech_samples'].shape == (1, 32 * RATE)


def test_advice_on_long_audio_holds():
    samples = np.zeros(round(5.2 * RATE), np.int16)
    queries.check_length('a.wav', samples, 5.2)
    with pytest.raises(
        ValueError, match=r'a.wav: 5.2 s is longer .*chunk_seconds 3.33` cuts.*; --max_seconds 6 lets it'
    ):
        queries.check_length('a.wav', samples, 10 / 3)
    with pytest.raises(ValueError, match=r'longer than the 3 s .* --chunk_seconds 3` cuts it at pauses.$'):
        queries.check_length('a.wav', samples, 3.0, 4.0)


def test_a_prompt_may_not_be_longer_than_the_language_model_has_positions():
    queries.check_tokens(queries.Query((7,) * 64), 64)
    queries.check_tokens(queries.Query((7,) * 640), None)
    for tokens, most in ((70, 80), (65, 64)):
        said = f"example 'long': {tokens} tokens are read of it, and the language model has {most} positions"
        with pytest.raises(ValueError, match=said):
            queries.check_tokens(queries.Query((7,) * tokens, info={'id': 'long'}), most)


def test_what_a_check_refuses_is_raised_or_told():
    def check(query):
        if query.info['id'] == 2:
            raise ValueError('the second')

    asked, told = [spoken(1, id=i) for i in (1, 2, 3)], []
    assert [q.info['id'] for q in queries.checked(asked, check, told.append)] == [1, 3]
    assert told == ['the second']
    with pytest.raises(ValueError, match='the second'):
        list(queries.checked(asked, check, None))


def test_a_manifest_without_its_recordings(manifest):
    manifest.with_name('clip00.wav').unlink()
    found = list(queries.from_manifest(manifest, [queries.Question()], Words(), 30, PROMPT, listen=False))
    assert len(found) == 24 and all(query.samples is None for query in found)


def test_a_batch_has_the_contract():
    [(_, batch)] = queries.batched([spoken(1.2)])
    dtypes = {name: array.dtype.name for name, array in batch.items()}
    assert dtypes == {
        'speech_samples': 'int16',
        'speech_lengths': 'int32',
        'encoder_input_tokens': 'int32',
        'decoder_input_tokens': 'int32',
        'decoder_target_tokens': 'int32',
        'decoder_loss_weights': 'float32',
        'transcribed': 'bool',
    }


def test_the_language_of_a_scored_answer_is_given():
    """Of a model that knows languages by codes, such as mBART."""
    query = queries.Query((7, 8, 1), info={'choices': ['ab', 'a']}, first=250004)
    model = types.SimpleNamespace(
        vocabulary=types.SimpleNamespace(encode=lambda text: [ord(letter) for letter in text]),
        log_likelihoods=lambda batch: (-batch['decoder_loss_weights'].sum(axis=1)).tolist(),
        encoder_seconds=None, computed_seconds=0.0, row_multiple=1, prompt=PROMPT,
    )  # fmt: skip
    target = query.with_target((97, 98)).target
    assert target == (250004, 97, 98)
    batch = queries.batch_of([query.with_target((97, 98))], (0.0, 8), 1, 8)
    assert batch['decoder_target_tokens'][0].tolist() == [*target, 0, 0, 0, 0, 0]
    assert batch['decoder_loss_weights'][0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    [(_, _, said)] = answering.said(model, [query], 60.0, score=True)
    assert said == {'prediction': 'a', 'log_likelihoods': [-2.0, -1.0], 'tokens': [2, 1]}


def test_only_transcripts_are_marked_as_such(manifest):
    line = controls.read_lines(manifest)[1]
    asked = ['Transcribe the speech.', 'Transcribe the {language} speech.', 'Which size was ordered?']
    questions = [queries.Question(words) for words in asked]
    questions.append(queries.Question('Translate this speech to French.', target_lang='fr'))
    path = write(manifest.with_name('one.jsonl'), dict(line, translation='oui', target_lang='fr'))
    found = list(queries.from_manifest(path, questions, Words(), 30, PROMPT))
    assert [query.transcribed for query in found] == [True, True, False, False]
    [(_, batch)] = queries.batched(found)
    assert batch['transcribed'].tolist() == [True, True, False, False]


def test_shuffled_audio_is_always_another_clip():
    clips = [spoken(1 + i / 10, i, id=i) for i in (1, 1, 1, 2, 3, 3, 1)]
    shuffled = list(controls.shuffle_audio(iter(clips)))
    assert [q.info['id'] for q in shuffled] == [q.info['id'] for q in clips]
    for before, after in zip(clips, shuffled, strict=True):
        assert not np.array_equal(before.samples, after.samples)
        assert before.tokens == after.tokens
    with pytest.raises(ValueError, match='two different clips'):
        list(controls.shuffle_audio([spoken(1), spoken(1)]))
    with pytest.raises(ValueError, match='without audio'):
        list(controls.shuffle_audio([queries.Query((1,))]))


def test_a_text_takes_the_place_of_the_speech():
    asked = [spoken(1, id='a', instruction='Repeat!')]
    [text] = controls.with_texts(asked, {'a': 'one three'}, Words(), PROMPT)
    assert text.samples is None and text.tokens == (4, 6, 8, 1)
    [text] = controls.with_texts(asked, {'a': 'one three'}, Words(), BEHIND)
    assert text.tokens == (8, 4, 6, 1)
    with pytest.raises(ValueError, match="no text for example 'a'"):
        list(controls.with_texts(asked, {}, Words(), PROMPT))
    with pytest.raises(ValueError, match="example 'a' has no instruction; its task must keep .* `inputs_pretokenized`"):
        list(controls.with_texts([spoken(1, id='a')], {'a': 'one'}, Words(), PROMPT))


def test_lines_with_a_target_language_are_translated_or_transcribed(manifest):
    line = {'text': 'oui', 'lang': 'fr', 'target_lang': 'en'}
    path = write(manifest.with_name('one.jsonl'), dict(line, translation='yes'))

    def asked(**question):
        [query] = queries.from_manifest(path, [queries.Question(**question, text_field='text')], Words(), 30, PROMPT)
        return query.info['reference'], query.info.get('target_lang')

    assert asked() == asked(target_lang='en') == ('yes', 'en')
    assert asked(instruction='Transcribe the {language} speech.') == ('oui', None)
    write(path, {'text': 'oui', 'lang': 'fr', 'translation': 'yes'})
    assert asked(target_lang='en') == ('yes', 'en'), 'as a task takes it that is given the language'
    for same in ('fr', 'fr-CA'):
        write(path, dict(line, target_lang=same))
        assert asked() == ('oui', same)
    for bad in (line, dict(line, translation={'de': 'ja'})):
        write(path, bad)
        with pytest.raises(ValueError, match=r"one.jsonl:1: no reference: translation into 'en' is missing or empty"):
            asked()


class Codes(Words):
    """One of a model that is told languages by codes."""

    languages = {'fr_XX': 90, 'en_XX': 91}


def test_requests_become_codes_of_languages():
    prompt, mark = prompts.Prompt('{speech}'), prompts.SPEECH
    asked = functools.partial(queries.asked, Codes(), prompt)
    assert asked('Transcribe the French speech.') == {'tokens': (90, mark, 1), 'first': 90}
    assert asked('Translate this French speech to English.') == {'tokens': (90, mark, 1), 'first': 91}
    assert asked('Translate this speech to English.', lang='fr') == {'tokens': (90, mark, 1), 'first': 91}
    assert asked('Transcribe the speech.', lang='fr', target_lang='en')['first'] == 90
    assert asked('', 'ab abc', lang='fr', target_lang='en') == {'tokens': (90, 3, 4, 1), 'first': 91}
    for instruction, message in (
        ('Transcribe the speech.', "instruction 'Transcribe the speech.': which language is spoken is not known"),
        ('What is said?', "instruction 'What is said?': this model reads none, it transcribes and translates"),
        ('Transcribe the Welsh speech.', "the language model has no code for the language 'cy'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            asked(instruction)
    # In a cascade, a text begins with the code of what was said.
    said = spoken(1, id='a', lang='fr', target_lang='en', instruction='Translate this speech to English.')
    [text] = controls.with_texts([said], {'a': 'ab abc'}, Codes(), prompt)
    assert (text.tokens, text.first, text.samples) == ((90, 3, 4, 1), 91, None)
    # One that reads instructions decides by them.
    told = queries.asked(Codes(), PROMPT, 'What is said?')
    assert told['first'] == 0 and mark not in told['tokens']
    assert queries.asked(Words(), PROMPT, 'Transcribe the French speech.').keys() == {'tokens'}


def write(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return path


def test_texts_by_id(tmp_path):
    path = write(tmp_path / 'p.jsonl', {'id': 'a', 'prediction': 'x', 'reference': 'y'})
    assert controls.texts_by_id(path) == {'a': 'x'}
    assert controls.texts_by_id(path, 'reference') == {'a': 'y'}
    with pytest.raises(ValueError, match="example 'a' has no text in its field 'nothing'"):
        controls.texts_by_id(path, 'nothing')
    path = write(path, {'id': 'a', 'prediction': 'x'}, {'id': 'a', 'prediction': 'y'})
    with pytest.raises(ValueError, match="two lines of id 'a'"):
        controls.texts_by_id(path)


def test_lines_that_other_programs_write(tmp_path):
    path = tmp_path / 'p.jsonl'
    path.write_text('{"id": 7, "prediction": "a\u2028b", "duration": "1.5"}\n', encoding='utf-8')
    assert controls.texts_by_id(path) == {'7': 'a\u2028b'}
    assert controls.read_lines(path)[0]['duration'] == 1.5


def test_segments_of_a_manifest_and_of_what_became_of_it(tmp_path, write_wav):
    samples = write_wav(tmp_path / 'long.wav', 4.0)
    rows = [{'audio_filepath': 'long.wav', 'offset': o, 'duration': 1.0, 'text': 'hi'} for o in (0, 2.5)]
    path = write(tmp_path / 'm.jsonl', *rows)
    for _ in range(2):  # what was predicted of segments is a manifest of the same
        found = list(queries.from_manifest(path, [queries.Question()], Words(), 30, PROMPT))
        assert [query.info['offset'] for query in found] == [0.0, 2.5]
        assert len({query.info['id'] for query in found}) == 2
        for query, start in zip(found, (0, 40000), strict=True):
            np.testing.assert_array_equal(query.samples, samples[start : start + RATE])
        path = write(tmp_path / 'predictions.jsonl', *(dict(query.info) for query in found))


def test_unreadable_lines_are_named(tmp_path):
    path = tmp_path / 'p.jsonl'
    with pytest.raises(ValueError, match='cannot be read'):
        controls.read_lines(path)
    path.write_text('{"a": 1}\n{', encoding='utf-8')
    with pytest.raises(ValueError, match='p.jsonl:2: not JSON'):
        controls.read_lines(path)
    path.write_text('[]', encoding='utf-8')
    with pytest.raises(ValueError, match='p.jsonl:1: a JSON object'):
        controls.read_lines(path)


def test_a_manifest(manifest):
    found = list(queries.from_manifest(manifest, [queries.Question()], Words(), 30, PROMPT, task='mine'))
    assert len(found) == 24
    info = found[1].info
    assert info['task'] == 'mine' and info['lang'] == 'en'
    assert info['instruction'] == 'Say number 1.' and info['reference'] == 'number 1'
    assert found[1].tokens == (4, 7, 3, 1)
    assert info['duration'] == pytest.approx(len(found[1].samples) / RATE, abs=1e-3)


def test_translations_and_wordings_of_a_manifest(manifest):
    question = queries.Question('Say in {target_language} this {language}.', target_lang='fr')
    lines = [line for line in controls.read_lines(manifest) if line['lang'] == 'en']
    path = write(manifest.with_name('en.jsonl'), *lines)
    for query in queries.from_manifest(path, [question], Words(), 30, PROMPT):
        assert query.info['instruction'] == 'Say in French this English.'
        assert query.info['target_lang'] == 'fr'
    with pytest.raises(ValueError, match="no reference: translation into 'de'"):
        list(queries.from_manifest(path, [queries.Question(target_lang='de')], Words(), 30, PROMPT))


def test_slots_are_asked_one_by_one_and_absent_ones_are_none(manifest):
    line = dict(controls.read_lines(manifest)[1], slots={'size': 'large'})
    path = write(manifest.with_name('slots.jsonl'), line)
    asked = [queries.Question('Which size?', slot='size'), queries.Question('Milk?', slot='milk')]
    size, milk = queries.from_manifest(path, asked, Words(), 30, PROMPT)
    assert (size.info['slot'], size.info['reference']) == ('size', 'large')
    assert (milk.info['slot'], milk.info['reference']) == ('milk', 'none')
    assert size.samples is milk.samples, 'read once'
    field = queries.Question('Which size?', reference_field='slots.size')
    [query] = queries.from_manifest(path, [field], Words(), 30, PROMPT)
    assert query.info['reference'] == 'large'
    with pytest.raises(ValueError, match='"slots" is not an object'):
        list(queries.from_manifest(manifest, asked, Words(), 30, PROMPT))


def test_a_list_in_the_reference_field_are_accepted_answers(tmp_path):
    def ask(answers, field='answers'):
        line = {'id': 'a', 'lang': 'en', 'text': 'What is two?', 'answers': answers}
        question = queries.Question('Answer.', reference_field=field, text_field='text')
        [query] = queries.from_manifest(write(tmp_path / 'q.jsonl', line), [question], Words(), 30, PROMPT)
        return query.info

    for answers, field in (
        (['two', '2'], 'answers'),
        ({'text': ['two', '2']}, 'answers'),
        ({'of': ['two', '2']}, 'answers.of'),
    ):
        info = ask(answers, field)
        assert (info['reference'], info['answers']) == ('two', ['two', '2'])
    assert ask('two') | {'answers': None} == info | {'answers': None} and 'answers' not in ask('two')
    for wrong, message in (
        (['two', 2], r"q.jsonl:1: answers is \['two', 2\]; each answer that is accepted must be a text"),
        ({'text': []}, 'no reference: answers is missing or empty'),
        (None, 'no reference: answers is missing or empty'),
    ):
        with pytest.raises(ValueError, match=message):
            ask(wrong)
    path = write(tmp_path / 'predictions.jsonl', {**info, 'prediction': '2'})
    [again] = queries.from_manifest(path, [queries.Question(text_field='prediction')], Words(), 30, PROMPT)
    assert again.info == info, 'predictions are a manifest, too'


def test_predictions_are_a_manifest_whose_text_stands_for_speech(tmp_path):
    line = {'id': 'a', 'lang': 'fr', 'reference': 'bonjour', 'prediction': 'bon jour'}
    path = write(tmp_path / 'predictions.jsonl', line)
    question = queries.Question('Translate.', text_field='prediction')
    [query] = queries.from_manifest(path, [question], Words(), 30, PROMPT)
    assert query.samples is None and query.tokens == (4, 5, 11, 1)
    assert query.info['reference'] == 'bonjour' and query.info['id'] == 'a'
    [query] = queries.from_manifest(path, [question], Words(), 30, BEHIND)
    assert query.tokens == (11, 4, 5, 1)
    with pytest.raises(ValueError, match="no text in field 'said'"):
        list(queries.from_manifest(path, [queries.Question(text_field='said')], Words(), 30, PROMPT))


def test_bad_lines_stop_or_are_left_out(manifest):
    lines = controls.read_lines(manifest)
    manifest.with_name('bad.wav').write_bytes(b'')
    bad = [{'audio': 'bad.wav', 'text': 'x', 'lang': 'en'}, {'text': 'x', 'lang': 'en'}]
    path = write(manifest.with_name('some.jsonl'), lines[0], *bad, lines[1])
    with pytest.raises(ValueError, match='bad.wav: the file is empty'):
        list(queries.from_manifest(path, [queries.Question()], Words(), 30, PROMPT))
    told = []
    found = list(queries.from_manifest(path, [queries.Question()], Words(), 30, PROMPT, on_bad=told.append))
    assert len(found) == 2 and len(told) == 2
    assert 'bad.wav' in told[0] and 'field "audio" is missing' in told[1]


def test_long_audio_is_an_error_that_says_so(manifest):
    with pytest.raises(ValueError, match=r'longer than the 1 s .* --chunk_seconds'):
        list(queries.from_manifest(manifest, [queries.Question()], Words(), 1.0, PROMPT))


def test_wording():
    assert queries.wording('', 'fr', '') == 'Transcribe the French speech.'
    assert queries.wording('', '', '') == 'Transcribe the speech.'
    assert queries.wording('', 'fr', 'en') == 'Translate this speech to English.'
    assert queries.wording('In {language}?', 'pt-BR', '') == 'In Portuguese?'
    with pytest.raises(ValueError, match='the target language is not known'):
        queries.wording('To {target_language}.', 'fr', '')


@dataclasses.dataclass
class Info:
    id: str = 'a'
    task: str = 't'
    lang: str = 'en'
    target_lang: str = ''
    instruction: str = 'Say.'
    reference: str = 'yes'
    audio: str | None = None
    seconds: float = 0.5
    offset: float | None = None
    phrases: tuple[str, ...] | None = ('Say',)


class FakeLoader:
    def examples(self):
        batch = {
            'speech_samples': np.ones((3, RATE), np.int16),
            'speech_lengths': np.array([RATE // 2, 0, 0], np.int32),
            'encoder_input_tokens': np.array([[4, 5, 1, 0], [6, 1, 0, 0], [0, 0, 0, 0]], np.int32),
            'decoder_target_tokens': np.array([[9, 1], [8, 1], [0, 0]], np.int32),
        }
        asr = 'This is French. What does the speaker say?'
        yield batch, [Info(), Info(id='b', reference='', seconds=0.0, instruction=asr), None]


def test_a_loader():
    first, second = queries.from_loader(FakeLoader(), Words())
    assert first.tokens == (4, 5, 1) and len(first.samples) == RATE // 2
    assert first.info == {
        'id': 'a',
        'task': 't',
        'lang': 'en',
        'instruction': 'Say.',
        'reference': 'yes',
        'duration': 0.5,
        'phrases': ('Say',),
    }
    assert second.samples is None and second.tokens == (6, 1)
    assert second.transcribed and not first.transcribed
    assert second.info['reference'] == '8 1', 'spelt from the target tokens'
