"""Manifests: three dialects read alike; every fault names file, line, field and remedy."""

import json

import pytest

from slm_jax.data import manifests, sources


def read(tmp_path, *rows) -> list[dict]:
    path = tmp_path / 'm.jsonl'
    path.write_text(
        '\n'.join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows) + '\n',
        encoding='utf-8',
    )
    return list(manifests.read(path))


def test_our_fields(tmp_path):
    (example,) = read(
        tmp_path,
        {
            'audio': 'a/b.wav',
            'text': 'Ciao.',
            'lang': 'it',
            'translation': {'en': 'Hi.', 'de': None},
            'instruction': 'Which word?',
            'target': 'ciao',
            'duration': 1.0,
            'speaker': 'x',
            'id': 'u1',
        },
    )
    assert example == dict.fromkeys(manifests.FIELDS, '') | {
        'id': 'u1',
        'origin': f'{tmp_path}/m.jsonl:1',
        'audio': f'{tmp_path}/a/b.wav',
        'text': 'Ciao.',
        'lang': 'it',
        'duration': '1.0',
        'translations': '{"en": "Hi."}',
        'instruction': 'Which word?',
        'target': 'ciao',
    }


def test_answers_and_choices(tmp_path):
    texts = ['Sì.', 'No.']
    found = read(
        tmp_path,
        {'audio': 'a.wav', 'answers': texts, 'choices': texts, 'answer': 'No.'},
        {'audio': 'a.wav', 'answers': {'text': ['No.'], 'answer_start': [1]}, 'choices': texts, 'target': 'Sì.'},
        {'audio': 'a.wav', 'answers': 'No.', 'choices': texts, 'answer': 'Other.'},
        {'audio': 'a.wav', 'answers': [], 'choices': ['No.', 'No.'], 'answer': 'No.'},
    )
    assert [each['error'] for each in found] == [''] * 4
    assert [each['answers'] and json.loads(each['answers']) for each in found] == [texts, ['No.'], '', '']
    right = [each['choices'] and json.loads(each['choices']) for each in found]
    assert right == [{'texts': texts, 'right': 1}, {'texts': texts, 'right': 0}, '', '']


def test_nemo_and_slam_llm_fields(tmp_path):
    nemo, slam = read(
        tmp_path,
        {'audio_filepath': '/x/a.wav', 'duration': 2.5, 'text': 'hi'},
        {'key': 'utt7', 'source': 'b.wav', 'target': 'hello'},
    )
    assert (nemo['audio'], nemo['text'], nemo['error']) == ('/x/a.wav', 'hi', '')
    assert nemo['id'] == f'{tmp_path}/m.jsonl:1'
    assert (slam['id'], slam['audio'], slam['text']) == ('utt7', f'{tmp_path}/b.wav', 'hello')
    assert slam['target'] == 'hello'


def test_translation_as_a_string_and_numbers_as_text(tmp_path):
    first, second = read(
        tmp_path,
        {'audio': 'a', 'translation': 'Hallo', 'target_lang': 'de'},
        {'audio': 'a', 'text': 7, 'id': 12},
    )
    assert json.loads(first['translations']) == {'de': 'Hallo'}
    assert (second['text'], second['id']) == ('7', '12')


@pytest.mark.parametrize(
    'row, said',
    [
        ('{"audio": "a.wav", ', 'not JSON'),
        ('["a.wav"]', 'JSON object'),
        ({'audio': 3}, '"audio"'),
        ({'audio': 'a', 'text': ['x']}, '"text"'),
        ({'audio': 'a', 'lang': 'xx'}, "unknown language 'xx'"),
        ({'audio': 'a', 'translation': {'qqq': 'x'}}, "unknown language 'qqq'"),
        ({'audio': 'a', 'offset': -3.0}, '"offset" is -3.0'),
        ({'audio': 'a', 'duration': 'long'}, '"duration" is \'long\''),
        ({'audio': 'a', 'duration': True}, '"duration" is True'),
        ({'audio': 'a', 'translation': {'de': ['x']}}, '"translation"'),
        ('{"audio": "a", "text": "\\ud83d"}', 'half a character'),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    good, bad = read(tmp_path, {'audio': 'a', 'lang': 'pt-BR'}, row)
    assert not good['error']
    assert bad['error'].startswith(f'{tmp_path}/m.jsonl:2: ') and said in bad['error']


def test_unreadable_or_empty_manifest(tmp_path):
    with pytest.raises(ValueError, match='nowhere.jsonl: cannot be read'):
        list(manifests.read(tmp_path / 'nowhere.jsonl'))
    with pytest.raises(ValueError, match='empty'):
        read(tmp_path, '', '')


def test_a_source_gives_the_chosen_languages(manifest):
    source = sources.ManifestSource({'train': str(manifest)}, ('fr',))
    assert [e['lang'] for e in source.examples('train')] == ['fr'] * 8
    assert source.fingerprint('train') != sources.ManifestSource({'train': str(manifest)}, ()).fingerprint('train')


def test_the_state_is_that_of_the_lines_and_of_the_recordings(manifest):
    def state(*langs):
        return sources.ManifestSource({'train': str(manifest)}, langs).state('train')

    before, clip = state(), manifest.parent / 'clip01.wav'
    manifest.write_text(manifest.read_text() + '\n')
    assert state() == before, 'nothing that is read has changed'
    french = state('fr')
    content = clip.read_bytes()
    clip.unlink()
    gone = state()
    clip.write_bytes(content[:-2])
    assert len({before, gone, state()}) == 3
    assert state('fr') == french, 'clip01 is English'


def test_times_as_text_and_segments_of_nemo(tmp_path):
    rows = [
        {'audio': 'a.wav', 'duration': '1.5'},
        {'audio_filepath': 'a.wav', 'duration': 1.5},
        {'audio_filepath': 'a.wav', 'offset': '2', 'duration': 1.5},
        {'audio': 'a.wav', 'offset': 0},
        {'audio_filepath': 'a.wav', 'duration': 0},
    ]
    found = read(tmp_path, *rows)
    assert [(e['offset'], e['duration']) for e in found] == [
        ('', '1.5'),
        ('0.0', '1.5'),
        ('2.0', '1.5'),
        ('0.0', ''),
        ('', ''),
    ]
    assert len({e['id'] for e in found}) == 5


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    (example,) = read(tmp_path, {'audio': '~/a.wav'})
    assert example['audio'] == '/home/me/a.wav'
    assert str(sources.ManifestSource({'train': '~/m.jsonl'}).path('train')) == '/home/me/m.jsonl'
