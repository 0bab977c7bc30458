"""The store: what was put in comes out in any order; builds resume; bad examples are named."""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax import tasks  # noqa: F401  registers tasks
from slm_jax.audio import waveforms
from slm_jax.data import cache, preprocessors, shards
from slm_jax.tasks import registry


@pytest.fixture(autouse=True)
def fresh_registry():
    known = dict(seqio.TaskRegistry._REGISTRY)
    yield
    seqio.TaskRegistry._REGISTRY.clear()
    seqio.TaskRegistry._REGISTRY.update(known)


def task(path, kind='asr', name=None, **kwargs):
    return seqio.TaskRegistry.get(registry.manifest(name or f'm_{kind}', path, kind, **kwargs))


def test_random_access(manifest, tmp_path):
    store = cache.open_store(task(manifest), 'train', tmp_path / 'cache')
    assert len(store) == 24 and store.skipped == []
    for index in (23, 0, 7, 7):
        path = manifest.parent / f'clip{index:02d}.wav'
        np.testing.assert_array_equal(store.speech(index), soundfile.read(path, dtype='int16')[0])
        assert store.samples[index] == len(store.speech(index))
        features = store.features(index)
        assert features['audio'].decode() == str(path)
        assert features['speech_length'] == store.samples[index]
    assert [store.features(index)['target'] for index in range(24)] == [f'number {n}'.encode() for n in range(24)]


def test_tasks_on_one_corpus_share_a_store(manifest, tmp_path):
    directories = {cache.store_dir(task(manifest, kind), 'train', tmp_path) for kind in ('asr', 'ctc', 'instruct')}
    assert len(directories) == 1
    assert cache.store_dir(task(manifest), 'test', tmp_path) not in directories
    assert cache.store_dir(task(manifest, name='fr', langs=['fr']), 'train', tmp_path) not in directories


def test_a_changed_manifest_gets_a_new_store(manifest, tmp_path):
    before = cache.store_dir(task(manifest), 'train', tmp_path)
    manifest.write_text(manifest.read_text().replace('number 3', 'number three'))
    assert cache.store_dir(task(manifest), 'train', tmp_path) != before


def test_a_cut_build_goes_on_where_it_stopped(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    asr = task(manifest)
    add = shards._Shard.add

    def cut(self, example, error):
        if example['id'].endswith(b':18'):
            raise KeyboardInterrupt
        add(self, example, error)

    monkeypatch.setattr(shards._Shard, 'add', cut)
    with pytest.raises(KeyboardInterrupt):
        cache.open_store(asr, 'train', tmp_path / 'cache')
    directory = cache.store_dir(asr, 'train', tmp_path / 'cache')
    assert sorted(p.name for p in directory.glob('*.json')) == [f'0000{n}.json' for n in range(3)]

    written = []
    monkeypatch.setattr(
        shards._Shard,
        'add',
        lambda self, example, error: (written.append(example['id']), add(self, example, error)),
    )
    store = cache.open_store(asr, 'train', tmp_path / 'cache')
    assert len(written) == 24 - 15 and len(store) == 24
    whole = cache.open_store(asr, 'train', tmp_path / 'another')
    assert store.ids == whole.ids
    for index in range(24):
        np.testing.assert_array_equal(store.speech(index), whole.speech(index))


def spoil(manifest, number=4):
    path = manifest.parent / f'clip{number:02d}.wav'
    path.write_bytes(path.read_bytes()[:-500])
    return path


def test_a_bad_recording_stops_the_build_and_is_named(manifest, tmp_path):
    path = spoil(manifest)
    with pytest.raises(preprocessors.BadExampleError, match=f'{path}.*truncated.*Fetch it again'):
        cache.open_store(task(manifest), 'train', tmp_path / 'cache')


def test_skipped_examples_are_listed_and_not_forgotten(manifest, tmp_path):
    bad = [spoil(manifest), manifest.parent / 'clip09.wav']
    bad[1].unlink()
    with manifest.open('a') as file:
        file.write(json.dumps({'audio': 'clip01.wav', 'text': 'x', 'lang': 'klingon'}) + '\n')
    asr = task(manifest)
    store = cache.open_store(asr, 'train', tmp_path / 'cache', on_bad_example='skip')
    assert len(store) == 22
    assert [error.split(':')[0] for _, error in store.skipped[:2]] == [str(p) for p in bad]
    assert "unknown language 'klingon'" in store.skipped[2][1]
    with pytest.raises(preprocessors.BadExampleError, match='truncated'):
        cache.open_store(asr, 'train', tmp_path / 'cache')


def test_a_recording_replaced_or_back_again_is_read(manifest, tmp_path, capsys):
    asr, clip = task(manifest), manifest.parent / 'clip04.wav'

    def store():
        return cache.open_store(asr, 'train', tmp_path / 'cache', on_bad_example='skip')

    first = store()
    content = clip.read_bytes()
    clip.unlink()
    gone = store()
    assert len(gone) == 23 and str(first.directory) in capsys.readouterr().err, 'which store is stale is said'
    clip.write_bytes(content)
    assert len(store()) == 24 and store().skipped == []
    samples = soundfile.read(clip, dtype='int16')[0][::-1]
    soundfile.write(clip, samples, 16000)
    np.testing.assert_array_equal(store().speech(4), samples)
    now = store().directory
    manifest.write_text(manifest.read_text())
    assert store().directory == now


@pytest.mark.parametrize(
    'content, said',
    [
        (None, 'cannot be read (No such file or directory)'),
        (b'', 'the file is empty'),
        ('folder', 'cannot be read (Is a directory)'),
        ('{"audio": "a.wav"}'.encode('utf-16'), 'is in UTF-16'),
    ],
)
def test_a_manifest_that_is_none_is_said_in_one_line(tmp_path, content, said):
    path = tmp_path / 'm.jsonl'
    if content == 'folder':
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        cache.open_store(task(path, name='none'), 'train', tmp_path / 'cache')
    assert str(caught.value).startswith(f'{path}: ') and said in str(caught.value)
    assert '\n' not in str(caught.value)


def test_whatever_a_file_does_to_its_reader_is_the_fault_of_that_file(manifest, tmp_path, monkeypatch):
    read = waveforms.read_waveform

    def reader(path):
        if path.endswith('clip07.wav'):
            raise ZeroDivisionError('odd header')
        return read(path)

    monkeypatch.setattr(waveforms, 'read_waveform', reader)
    with pytest.raises(preprocessors.BadExampleError, match=r'clip07.wav: cannot be .*ZeroDivisionError: odd header'):
        cache.open_store(task(manifest), 'train', tmp_path / 'cache')
    store = cache.open_store(task(manifest), 'train', tmp_path / 'cache', on_bad_example='skip')
    assert len(store) == 23 and len(store.skipped) == 1


def test_segments_are_stored(tmp_path, write_wav):
    samples = write_wav(tmp_path / 'long.wav', 10.0)
    lines = [
        {'audio_filepath': 'long.wav', 'offset': 0, 'duration': 2.0, 'text': 'a'},
        {'audio_filepath': 'long.wav', 'offset': 4.5, 'duration': '2.0', 'text': 'b'},
        {'audio_filepath': 'long.wav', 'offset': 9.0, 'duration': 2.0, 'text': 'c'},
    ]
    path = tmp_path / 'm.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    store = cache.open_store(task(path, name='segments'), 'train', tmp_path / 'cache', on_bad_example='skip')
    np.testing.assert_array_equal(store.speech(0), samples[:32000])
    np.testing.assert_array_equal(store.speech(1), samples[72000:104000])
    assert store.ids == [f'{path}:1', f'{path}:2']
    assert store.skipped[0][1].startswith(f'{path}:3: {tmp_path}/long.wav: a segment of 2 s from 9 s on')


def failing(kind: str):
    """A task whose source or step fails at the second of four examples."""

    def generate():
        for number in range(4):
            if kind == 'source' and number == 1:
                raise KeyError('gone')
            yield {'id': str(number).encode()}

    def dataset_fn(split, shuffle_files, seed=None):
        signature = {'id': preprocessors.tf.TensorSpec((), preprocessors.tf.string)}
        return preprocessors.tf.data.Dataset.from_generator(generate, output_signature=signature)

    def step(example, *unused):
        if kind == 'step' and example['id'] == b'1':
            raise KeyError('lang')
        return {'lang': b'en'}

    return seqio.TaskRegistry.add(
        f'failing_{kind}',
        source=seqio.FunctionDataSource(dataset_fn, splits=['train']),
        preprocessors=[
            preprocessors.ExampleStep(step, reads=('id',), adds={'lang': (preprocessors.tf.string, 0)}),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={},
    )


def test_a_step_that_fails_is_one_bad_example(tmp_path):
    asr = failing('step')
    with pytest.raises(preprocessors.BadExampleError) as caught:
        cache.open_store(asr, 'train', tmp_path)
    assert "failing_step train: example 1 of the source: KeyError: 'lang'" in str(caught.value)
    assert 'Traceback' not in str(caught.value)
    store = cache.open_store(asr, 'train', tmp_path, on_bad_example='skip')
    assert store.ids == ['0', '2', '3'] and store.skipped[0][0] == 'failing_step/train/1'


def test_a_source_that_fails_is_no_bad_example(tmp_path):
    with pytest.raises(ValueError, match="example 1 of the source: KeyError: 'gone'\nThe source cannot be read on"):
        cache.open_store(failing('source'), 'train', tmp_path, on_bad_example='skip')


def test_wrong_names_are_said(manifest, tmp_path):
    asr = task({'train': manifest}, name='only_train')
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\].*tasks.manifest.path.*eval_loaders="):
        cache.open_store(asr, 'test', tmp_path)
    with pytest.raises(ValueError, match='on_bad_example'):
        cache.open_store(asr, 'train', tmp_path, on_bad_example='ignore')


def test_features_of_any_type_survive():
    example = {
        'text': 'né'.encode(),
        'empty': b'',
        'number': np.int64(-3),
        'vector': np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    unpacked = shards.unpack(shards.pack(example))
    assert unpacked['text'] == example['text'] and unpacked['empty'] == b''
    assert unpacked['number'] == -3 and unpacked['number'].dtype == np.int64
    np.testing.assert_array_equal(unpacked['vector'], example['vector'])


def test_decoding_reports_faults_of_content_and_samples():
    texts = dict.fromkeys(('id', 'audio', 'text', 'alignment', 'error'), '')
    wrong = preprocessors.tf.data.Dataset.from_tensors(texts | {'content': b'not audio', 'origin': 'corpus/17'})
    (example,) = preprocessors.decode_content(wrong).as_numpy_iterator()
    assert example['error'].startswith(b'corpus/17: not audio') and len(example['speech']) == 0
    samples = {'samples': np.zeros(0, np.int64), 'origin': 'corpus/18'}
    empty = preprocessors.tf.data.Dataset.from_tensors(texts | samples)
    (example,) = preprocessors.decode_samples(empty, 16000).as_numpy_iterator()
    assert example['error'].startswith(b'corpus/18: holds no samples')
    assert waveforms.SAMPLE_RATE == 16000


def test_a_fingerprint_of_its_own_describes_a_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Step:
        size: int
        fingerprint: str = 'of all that decides'

    assert cache.describe([Step(1)]) == ['of all that decides']


def sifted(name: str, left_out: set[int], rekeyed: bool = False):
    """A task over the numbers to 23 of which a step before the placeholder leaves some out, or drops `source_index`."""

    def dataset_fn(split, shuffle_files, seed=None):
        return preprocessors.tf.data.Dataset.range(24).map(lambda number: {'number': number})

    def steps(dataset):
        dataset = dataset.filter(lambda example: ~preprocessors.tf.reduce_any(example['number'] == list(left_out)))
        if not rekeyed:
            return dataset.map(lambda example: example | {'id': preprocessors.tf.strings.as_string(example['number'])})
        return dataset.map(lambda example: {'id': preprocessors.tf.strings.as_string(example['number'])})

    source = seqio.FunctionDataSource(dataset_fn, splits=['train'])
    return seqio.TaskRegistry.add(
        name, source, preprocessors=[steps, seqio.CacheDatasetPlaceholder()], output_features={}
    )


@pytest.mark.parametrize('rekeyed', [False, True])
def test_a_shard_is_a_function_of_the_sources_index(tmp_path, monkeypatch, rekeyed):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    left_out = {1, 3, *range(10, 15), *range(18, 24)}
    task = sifted(f'sifted_{rekeyed}', left_out, rekeyed)
    whole = cache.open_store(task, 'train', tmp_path / 'whole')
    assert whole.ids == [str(number) for number in range(24) if number not in left_out]
    assert whole.sizes == [3, 5, 0, 3], 'an empty one in the middle is there, one at the end is not'
    assert [whole.features(i)['id'] for i in range(11)] == [name.encode() for name in whole.ids]
    directory = cache.store_dir(task, 'train', tmp_path / 'parts')
    directory.mkdir(parents=True)
    for number in (4, 0, 2, 3, 1):
        shards.build(task, 'train', directory, number, number + 1)
    cache.finish(task, 'train', directory)
    files = [{path.name: path.read_bytes() for path in each.iterdir()} for each in (whole.directory, directory)]
    assert files[0].pop('lock') == b'' and files[0] == files[1] and len(files[0]) == 4 + 3 + 3


def test_a_store_of_many_shards_opens_few(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 1)
    monkeypatch.setattr(cache, '_reader', functools.lru_cache(4)(cache._reader.__wrapped__))
    store = cache.open_store(task(manifest), 'train', tmp_path / 'cache')
    read = []
    monkeypatch.setattr(pathlib.Path, 'read_text', lambda self, *args: read.append(self.name) or self.open().read())
    store = cache.Store(store.directory)
    assert read == ['store.json'], 'no file of each shard'
    assert [store.features(index)['target'] for index in range(24)] == [f'number {n}'.encode() for n in range(24)]
    assert cache._reader.cache_info().currsize == 4
    assert store.name(5) == store.ids[5]
