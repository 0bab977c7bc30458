"""The store: what was put in comes out in any order; builds resume; bad examples are named."""

import dataclasses
import json

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax import tasks  # noqa: F401  registers tasks
from slm_jax.audio import waveforms
from slm_jax.data import cache, preprocessors
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
    assert [f['target'] for f in store.all_features()] == [f'number {n}'.encode() for n in range(24)]


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
    monkeypatch.setattr(cache, 'SHARD_EXAMPLES', 5)
    asr = task(manifest)
    add = cache._ShardWriter.add

    def cut(self, example, error):
        if example['id'].endswith(b':18'):
            raise KeyboardInterrupt
        add(self, example, error)

    monkeypatch.setattr(cache._ShardWriter, 'add', cut)
    with pytest.raises(KeyboardInterrupt):
        cache.open_store(asr, 'train', tmp_path / 'cache')
    directory = cache.store_dir(asr, 'train', tmp_path / 'cache')
    assert sorted(p.name for p in directory.glob('*.json')) == [f'0000{n}.json' for n in range(3)]

    written = []
    monkeypatch.setattr(
        cache._ShardWriter,
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


def test_wrong_names_are_said(manifest, tmp_path):
    asr = task({'train': manifest}, name='only_train')
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
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
    unpacked = cache._unpack(cache._pack(example))
    assert unpacked['text'] == example['text'] and unpacked['empty'] == b''
    assert unpacked['number'] == -3 and unpacked['number'].dtype == np.int64
    np.testing.assert_array_equal(unpacked['vector'], example['vector'])


def test_decoding_reports_faults_of_content_and_samples():
    wrong = preprocessors.tf.data.Dataset.from_tensors({'content': b'not audio', 'origin': 'corpus/17', 'error': ''})
    (example,) = preprocessors.decode_content(wrong).as_numpy_iterator()
    assert example['error'].startswith(b'corpus/17: not audio') and len(example['speech']) == 0
    empty = preprocessors.tf.data.Dataset.from_tensors(
        {'samples': np.zeros(0, np.int64), 'origin': 'corpus/18', 'error': ''}
    )
    (example,) = preprocessors.decode_samples(empty, 16000).as_numpy_iterator()
    assert example['error'].startswith(b'corpus/18: holds no samples')
    assert waveforms.SAMPLE_RATE == 16000


def test_a_fingerprint_of_its_own_describes_a_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Step:
        size: int
        fingerprint: str = 'of all that decides'

    assert cache.describe([Step(1)]) == ['of all that decides']
