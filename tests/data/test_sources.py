"""Sources of many files: their order, ranges without what comes before, and what is wrong with a file."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax import tasks
from slm_jax.data import cache, preprocessors, shards, sources


@pytest.fixture(autouse=True)
def fresh_registry():
    known = dict(seqio.TaskRegistry._REGISTRY)
    yield
    seqio.TaskRegistry._REGISTRY.clear()
    seqio.TaskRegistry._REGISTRY.update(known)


def touch(folder, *names):
    for name in names:
        (folder / name).write_text('')
    return [str(folder / name) for name in names]


def test_names_of_many_files(tmp_path):
    files = touch(tmp_path, 'a-1.tar', 'a-10.tar', 'a-2.tar', 'b.tar')
    assert sources.expand(files[0]) == files[:1]
    assert sources.expand(f'{tmp_path}/a-*.tar') == files[:3]
    assert sources.expand([f'{tmp_path}/b.tar', f'{tmp_path}/a-?.tar']) == [files[3], files[0], files[2]]
    assert sources.expand('gs://b/c@3.tar') == [f'gs://b/c-0000{i}-of-00003.tar' for i in range(3)]
    assert sources.expand('c@2') == ['c-00000-of-00002', 'c-00001-of-00002']
    assert sources.expand('s-{008..011}.tar') == ['s-008.tar', 's-009.tar', 's-010.tar', 's-011.tar']
    assert sources.expand('me@home/x.jsonl') == ['me@home/x.jsonl']
    with pytest.raises(ValueError) as caught:
        sources.expand(f'{tmp_path}/c-*.tar')
    assert str(caught.value) == f'{tmp_path}/c-*.tar: no file is called so. Correct the pattern, or make the files.'


def test_pieces_are_the_whole(tmp_path):
    contents = sources.Contents(['a', 'b', 'c', 'd'], np.array([0, 3, 3, 10, 12]))
    assert contents.pieces(0, None) == [('a', 0, 3), ('c', 0, 7), ('d', 0, 2)]
    assert contents.pieces(2, 5) == [('a', 2, 3), ('c', 0, 2)]
    assert contents.pieces(5, 11) == [('c', 2, 7), ('d', 0, 1)]
    assert contents.pieces(12, None) == contents.pieces(3, 3) == []
    assert [piece for i in range(0, 12, 4) for piece in contents.pieces(i, i + 4)] == [
        ('a', 0, 3), ('c', 0, 1), ('c', 1, 5), ('c', 5, 7), ('d', 0, 2),
    ]  # fmt: skip


@pytest.fixture
def sharded(manifest):
    """The lines of a manifest in five files."""
    lines = manifest.read_text().splitlines()
    for number, start in enumerate(range(0, 24, 5)):
        (manifest.parent / f'part-{number}.jsonl').write_text('\n'.join(lines[start : start + 5]))
    return f'{manifest.parent}/part-*.jsonl'


def store(name, tmp_path, split='train', **options):
    return cache.open_store(seqio.TaskRegistry.get(name), split, tmp_path / 'cache', **options)


def test_a_manifest_in_shards_is_the_manifest(manifest, sharded, tmp_path):
    whole = store(tasks.manifest('whole', manifest), tmp_path)
    parts = store(tasks.manifest('parts', sharded), tmp_path)
    assert len(parts) == 24
    for index in range(24):
        one, other = whole.features(index), parts.features(index)
        assert one['audio'] == other['audio'] and one['text'] == other['text']
        np.testing.assert_array_equal(whole.speech(index), parts.speech(index))
    assert parts.ids[7] == f'{manifest.parent}/part-1.jsonl:3'
    french = store(tasks.manifest('french', sharded, langs=['fr']), tmp_path)
    assert len(french) == 8
    before = parts.directory
    (manifest.parent / 'part-4.jsonl').write_text((manifest.parent / 'part-3.jsonl').read_text())
    assert store('parts', tmp_path).directory != before, 'a shard that changed'


@pytest.mark.parametrize('langs', [(), ('fr',)])
def test_a_range_is_read_without_the_files_before_it(sharded, manifest, langs, monkeypatch):
    source = sources.ManifestSource({'train': sharded}, langs)
    everything = list(source.examples('train'))
    contents = source.contents('train')
    assert contents.offsets[-1] == len(everything) == (8 if langs else 24)
    read, read_from = [], sources.ManifestSource.read
    monkeypatch.setattr(
        sources.ManifestSource, 'read', lambda self, file, *span: read.append(file) or read_from(self, file, *span)
    )
    taken = list(source.dataset(contents.pieces(5, 8)).as_numpy_iterator())
    assert [example['id'].decode() for example in taken] == [example['id'] for example in everything[5:8]]
    assert f'{manifest.parent}/part-0.jsonl' not in read


def test_ten_thousand_files_are_opened_one_after_the_other(tmp_path):
    line = json.dumps({'audio': 'a.wav', 'text': 'a', 'lang': 'en'}) + '\n'
    for number in range(10_000):
        (tmp_path / f'{number:05d}.jsonl').write_text(line)
    source = sources.ManifestSource({'train': f'{tmp_path}/*.jsonl'})
    contents = source.contents('train')
    assert contents.offsets[-1] == 10_000
    (example,) = source.dataset(contents.pieces(9_876, 9_877)).as_numpy_iterator()
    assert example['id'].decode() == f'{tmp_path}/09876.jsonl:1'
    assert len(source.state('train')) == 64


def flac(samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format='flac', subtype='PCM_16')
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def clips(first, count):
    members = {}
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        members[f'clips/{number:03d}.flac'] = flac((1000 * rng.standard_normal(4000 + number)).astype(np.int16))
        about = {'text': f'number {number}', 'lang': 'en', 'audio': 'of a former life.wav', 'translation': {'fr': 'un'}}
        members[f'clips/{number:03d}.json'] = json.dumps(about).encode()
    return members


def test_tars_are_read_and_cut_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 4)
    write_tar(tmp_path / 'a-00000-of-00002.tar', clips(0, 6))
    write_tar(
        tmp_path / 'a-00001-of-00002.tar', clips(6, 5) | {'./z.wav': flac(np.ones(99, np.int16)), 'z.txt': b'z\n'}
    )
    name = tasks.tars('tars', f'{tmp_path}/a@2.tar', lang='en')
    found = store(name, tmp_path)
    assert len(found) == 12 and len(found.sizes) == 3
    assert found.samples.tolist() == [4000 + number for number in range(11)] + [99]
    assert [found.features(i)['text'].decode() for i in (0, 10, 11)] == ['number 0', 'number 10', 'z']
    features = found.features(3)
    assert features['lang'] == b'en' and json.loads(features['translations']) == {'fr': 'un'} and not features['audio']
    assert found.ids[7] == f'{tmp_path}/a-00001-of-00002.tar:clips/007'
    (found.directory / 'store.json').unlink()
    (found.directory / '00001.json').unlink()
    again = store(name, tmp_path)
    assert again.ids == found.ids


def test_what_is_wrong_with_a_key_is_one_bad_example(tmp_path):
    path = write_tar(
        tmp_path / 'a.tar',
        clips(0, 1)
        | {
            'mute.json': b'{"text": "a"}',
            'wordless.flac': flac(np.ones(99, np.int16)),
            'odd.wav': b'RIFF',
            'odd.txt': b'o',
        }
        | {'broken.flac': flac(np.ones(99, np.int16)), 'broken.json': b'{'},
    )
    found = store(tasks.tars('bad', path, lang='en'), tmp_path, on_bad_example='skip')
    assert found.ids == [f'{path}:clips/000']
    mute, wordless, odd, broken = (error for _, error in found.skipped)
    assert mute == f'{path}:mute: holds no recording (json). Add one (flac, wav, mp3, opus, ogg, …), or remove the key.'
    assert wordless == f'{path}:wordless: has no text. Add a .json or .txt of the same name, or remove the key.'
    assert odd.startswith(f'{path}:odd: ') and 'not JSON' in broken and broken.startswith(f'{path}:broken: ')
    with pytest.raises(preprocessors.BadExampleError, match='holds no recording'):
        cache.open_store(seqio.TaskRegistry.get('bad'), 'train', tmp_path / 'cache')


@pytest.mark.parametrize(
    'spoil, said',
    [
        (lambda content: content[: len(content) // 2], 'is torn after byte'),
        (lambda content: content[: -(-len(content.rstrip(b'\0')) // 512) * 512], 'is torn after byte'),
        (lambda content: b'no tar', 'is no tar'),
        (lambda content: b'', 'is no tar'),
        (lambda content: None, 'cannot be read (No such file or directory)'),
    ],
)
def test_a_tar_that_is_torn_or_none_is_said_in_one_line(tmp_path, spoil, said):
    path = write_tar(tmp_path / 'a.tar', clips(0, 3))
    content = spoil(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    name = tasks.tars('torn', path)
    with pytest.raises(ValueError) as caught:
        store(name, tmp_path, on_bad_example='skip')
    assert f'{path}: {said}' in str(caught.value).splitlines()[0]
    with pytest.raises(ValueError, match=f'{path}: {said}'.replace('(', r'\(').replace(')', r'\)')):
        sources.TarSource({'train': str(path)}).contents('train')


def test_wrong_arguments_of_tasks():
    with pytest.raises(ValueError, match="unknown language 'klingon'"):
        tasks.tars('k', 'a.tar', lang='klingon')
    with pytest.raises(ValueError, match='must say which column is the recording'):
        tasks.hugging_face('h', 'a', columns={'text': 'text'})
    tasks.tars('taken', 'a.tar')
    with pytest.raises(ValueError, match="'taken' is registered already"):
        tasks.tars('taken', 'b.tar')


@pytest.fixture
def hugging_face(tmp_path):
    """make(kind): a data set of seven recordings, as `datasets` writes it."""
    datasets = pytest.importorskip('datasets')
    rows = {'clip': [], 'sentence': [f'number {number}' for number in range(7)], 'lang': ['en'] * 7}
    for number in range(7):
        rows['clip'].append({'bytes': flac(np.full(1000 + number, number, np.int16)), 'path': f'{number}.flac'})
    data = datasets.Dataset.from_dict(rows).cast_column('clip', datasets.Audio(decode=False))

    def make(kind):
        path = tmp_path / kind
        if kind == 'parquet':
            path.mkdir()
            data.to_parquet(path / 'train-00000.parquet')
        else:
            (datasets.DatasetDict({'train': data}) if kind == 'dictionary' else data).save_to_disk(path)
        return str(path)

    return make


COLUMNS = {'audio': 'clip', 'text': 'sentence', 'lang': 'lang'}


@pytest.mark.parametrize('kind', ['parquet', 'dictionary', 'dataset'])
def test_data_sets_of_hugging_face(hugging_face, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 3)
    path = hugging_face(kind)
    name = tasks.hugging_face('hf', path, COLUMNS)
    found = store(name, tmp_path)
    assert found.samples.tolist() == [1000 + number for number in range(7)]
    assert found.features(5)['text'] == b'number 5' and found.features(5)['lang'] == b'en'
    assert (found.speech(6) == 6).all() and found.ids[2] == f'{path}:train:2'
    source = sources.HuggingFaceSource(path, {'train': 'train'}, COLUMNS)
    assert source.contents('train').offsets.tolist() == [0, 7]
    (example,) = source.read('train', 4, 5)
    assert example['text'] == 'number 4'
    wrong = dataclasses.replace(source, columns={'audio': 'clip', 'text': 'txt'})
    with pytest.raises(ValueError, match=f'{path}: no column txt; there are clip, sentence, lang. Say in `columns`'):
        wrong.contents('train')


def test_a_data_set_that_cannot_be_had_is_said_in_one_line(hugging_face, tmp_path, monkeypatch):
    path = hugging_face('dictionary')
    for source in (
        sources.HuggingFaceSource(path, {'test': 'test'}, COLUMNS),
        sources.HuggingFaceSource(str(tmp_path / 'nowhere'), {'test': 'test'}, COLUMNS),
    ):
        with pytest.raises(ValueError) as caught:
            source.contents('test')
        assert str(caught.value).startswith(f"{source.path_or_name}: no split 'test' of a data set can be had (")
        assert '\n' not in str(caught.value)


def test_a_library_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
    with pytest.raises(
        ValueError, match=r'somebody/corpus: data sets .* take its library: pip install \"slm_jax\[datasets\]\"'
    ):
        sources.HuggingFaceSource('somebody/corpus', {'train': 'train'}, COLUMNS).contents('train')
