"""voice_prompts on a miniature release: fetching, checking, going on after a cut, the builder."""

import hashlib
import io
import pathlib
import tarfile

import numpy as np
import pytest
import soundfile

from slm_jax.corpora import prompt_manifests, splits
from slm_jax.data import json_lines, manifests, voice_prompts
from slm_jax.data.voice_prompts import builder, fetch

PROMPTS = {
    'en': {
        'hello': 'Hello.',
        'digits/1': 'one',
        'beep': '[a beep]',
        'letters/at': 'at [@]',
        'gone': 'There is no recording.',
        'silence/1': '(1 second of silence)',
    },
    'es': {'hello': 'Hola', 'digits/1': 'uno', 'beep': '[tono simple]', 'digits/1F': 'una'},
    'fr': {'hello': 'Bonjour', 'digits/1': 'un', 'for': 'Pour (emphase)'},
    'it': {'hello': 'Il [suo] saluto', 'digits/1': 'uno'},
    'ru': {'hello': 'Привет', 'digits/1': 'один', 'digits/3': 'три', 'digits/6': 'шесть'},
}


def archive(lang: str) -> bytes:
    """The publisher's tar of a language; `digits/1F` is stored as `digits/1f`."""

    def add(name, content):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        text = (
            '\ufeff; Core Asterisk Sounds\n\n'
            + ''.join(f'{key}: {value}\n' for key, value in PROMPTS[lang].items())
            + 'hello: again\n'
        )
        add(f'core-sounds-{lang}.txt', text.encode())
        for number, key in enumerate(PROMPTS[lang]):
            if key != 'gone':
                wav = io.BytesIO()
                soundfile.write(wav, np.full(80 + number, number, np.int16), 8000, format='WAV')
                add(f'{key.replace("1F", "1f")}.wav', wav.getvalue())
    return buffer.getvalue()


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A publisher on the disk, and a machine without apt."""
    folder = tmp_path / 'publisher'
    folder.mkdir()
    for lang in fetch.LANGUAGES:
        (folder / f'{lang}.tar.gz').write_bytes(archive(lang))
    monkeypatch.setattr(fetch, 'PUBLISHER', f'file://{folder}/{{lang}}.tar.gz')
    monkeypatch.setattr(
        fetch,
        'EXPECTED',
        {lang: (sum(key != 'gone' for key in prompts), len(prompts)) for lang, prompts in PROMPTS.items()},
    )
    monkeypatch.setenv('PATH', str(tmp_path / 'no_programs_here'))
    return folder


@pytest.mark.parametrize(
    'line, spoken',
    [
        ('Agent logged in.', 'Agent logged in.'),
        ('That agent is  logged on.   Please hold', 'That agent is logged on. Please hold'),
        ('[sound of monkeys screaming]', ''),
        ('<beep ascending>', ''),
        ('[ tono de error ]', ''),
        ('(10 seconds of silence)', ''),
        ('(beep).', ''),
        ('', ''),
        ('at [@]', 'at'),
        ('[!] punto esclamativo', 'punto esclamativo'),
        ('spazio []', 'spazio'),
        ('Pour (emphase)', 'Pour'),
        ('IAX (note: does not say "2")', 'IAX'),
        (
            'Please leave your message after the tone. (simple tone sound plays)',
            'Please leave your message after the tone.',
        ),
        (
            'La conferenza quando il nostro (enfatico) moderatore',
            'La conferenza quando il nostro moderatore',
        ),
        ('Il [suo] messaggio è stato salvato.', 'Il suo messaggio è stato salvato.'),
        ("menu poli (ne m'appelez plus, jamais), 4.", "menu poli ne m'appelez plus, jamais, 4."),
    ],
)
def test_what_is_spoken(line, spoken):
    assert builder.spoken_text(line) == spoken


def test_the_split_of_a_prompt_is_the_same_in_every_language():
    prompts = [f'prompt-{n}' for n in range(2000)]
    splits = builder.splits_of({lang: {prompt: f'{lang} {prompt}' for prompt in prompts} for lang in ('en', 'fr')})
    for prompt in prompts[:20]:
        bucket = int(hashlib.md5(prompt.encode()).hexdigest(), 16) % 10
        assert splits[prompt] == {0: 'test', 1: 'validation'}.get(bucket, 'train')
    assert 0.75 < list(splits.values()).count('train') / 2000 < 0.85


def test_no_sentence_is_held_out_that_is_trained_on():
    texts = {lang: {f'prompt-{n}': f'{lang} {n}' for n in range(200)} for lang in ('en', 'fr')}
    splits = builder.splits_of(texts)
    trained, held_out = (next(p for p in splits if splits[p] == split) for split in ('train', 'test'))
    texts['fr'][held_out] = texts['fr'][trained].upper() + '!'
    assert builder.splits_of(texts) == {prompt: split for prompt, split in splits.items() if prompt != held_out}


def test_builder(publisher, tmp_path):
    made = voice_prompts.VoicePrompts(data_dir=tmp_path / 'data')
    made.download_and_prepare()
    splits, examples = builder.splits_of(PROMPTS), {}
    for split in made.info.splits:
        for example in made.as_dataset(split=split).as_numpy_iterator():
            key = example['lang'].decode(), example['id'].decode()
            assert splits[key[1]] == split
            examples[key] = example
    assert {f'{lang}/{key}' for lang, key in examples} == {
        'en/hello',
        'en/digits/1',
        'en/letters/at',
        'es/hello',
        'es/digits/1',
        'es/digits/1F',
        'fr/hello',
        'fr/digits/1',
        'fr/for',
        'it/hello',
        'it/digits/1',
        'ru/hello',
        'ru/digits/1',
        'ru/digits/3',
        'ru/digits/6',
    }
    hello = examples['it', 'hello']
    assert hello['text'].decode() == 'Il suo saluto'
    assert {k: v.decode() for k, v in hello['translations'].items()} == {
        'en': 'Hello.',
        'es': 'Hola',
        'fr': 'Bonjour',
        'it': 'Il suo saluto',
        'ru': 'Привет',
    }
    assert examples['fr', 'for']['translations']['en'] == b''
    assert hello['audio'].dtype == np.int16 and len(hello['audio']) == 80
    assert len(examples['es', 'digits/1F']['audio']) == 83


def test_manifests_have_the_translations(publisher, tmp_path):
    prompt_manifests.write(tmp_path / 'out', tmp_path / 'downloads')
    rows = [row for split in splits.SPLITS for row in json_lines.read(tmp_path / f'out/{split}.jsonl')]
    (hello,) = (row for row in rows if row['id'] == 'it/hello')
    assert hello['translation'] == {'en': 'Hello.', 'es': 'Hola', 'fr': 'Bonjour', 'ru': 'Привет'}
    (only,) = (row for row in rows if row['id'].endswith('/digits/6'))
    assert len({row['id'] for row in rows}) == len(rows)  # as --text_from finds them
    assert only['translation'] == {} and not any(line['error'] for line in manifests.read(tmp_path / 'out/train.jsonl'))


def test_without_any_source_the_message_says_how_to_go_on(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, 'PUBLISHER', f'file://{tmp_path}/nothing/{{lang}}')
    with pytest.raises(fetch.FetchError) as error:
        fetch.fetch(tmp_path / 'downloads')
    for part in (
        'en, es, fr, it, ru',
        'publisher: ',
        'no apt-get',
        'same command again',
        str(tmp_path / 'downloads'),
    ):
        assert part in str(error.value)


def test_a_cut_fetch_goes_on(publisher, tmp_path, monkeypatch):
    whole = (publisher / 'it.tar.gz').read_bytes()
    (publisher / 'it.tar.gz').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(fetch.FetchError, match='it, ru'):
        fetch.fetch(tmp_path / 'downloads')
    (publisher / 'it.tar.gz').write_bytes(whole)
    for lang in ('en', 'es', 'fr'):
        (publisher / f'{lang}.tar.gz').unlink()  # not asked for again
    found = fetch.fetch(tmp_path / 'downloads')
    assert found == {lang: tmp_path / 'downloads' / lang for lang in fetch.LANGUAGES}
    for lang in fetch.LANGUAGES:
        (publisher / f'{lang}.tar.gz').unlink(missing_ok=True)
    assert fetch.fetch(tmp_path / 'downloads') == found


def test_another_release_is_refused(publisher, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.EXPECTED, 'fr', (4, 3))
    with pytest.raises(fetch.FetchError, match=r'fr archive holds 3 recordings and 3 .*\(4, 3\)'):
        fetch.fetch(tmp_path / 'downloads')


def test_a_damaged_debian_package_is_removed(tmp_path, monkeypatch):
    name = 'asterisk-core-sounds-en_1.6.1-1_all.deb'
    debs = tmp_path / 'debian'
    debs.mkdir()
    for key in fetch.DEBIAN_SHA256:
        (debs / f'asterisk-core-sounds-{key}_1.6.1-1_all.deb').write_bytes(b'')
    (debs / name).write_bytes(b'damaged')
    monkeypatch.setattr(fetch, 'PUBLISHER', f'file://{tmp_path}/nothing/{{lang}}')
    with pytest.raises(fetch.FetchError, match=f'{name} came damaged'):
        fetch.fetch(tmp_path)
    assert not (debs / name).exists()


def test_release_1_6_1_holds_2831_recordings():
    assert sum(recordings for recordings, _ in fetch.EXPECTED.values()) == 2831
    assert len(fetch.DEBIAN_SHA256) == 10
    assert pathlib.Path(fetch.__file__).parent.name == 'voice_prompts'
