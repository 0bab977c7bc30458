"""Stores in an object store: built from here, by Beam too, and read shard by shard through the local cache."""

import itertools

import numpy as np
import object_store
import pytest
import seqio

from slm_jax import paths, tasks
from slm_jax.data import beam, cache, loader, shards, sources

pytest.importorskip('gcsfs')


@pytest.fixture(scope='module')
def bucket():
    with object_store.serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield store
        paths._reach.cache_clear()


@pytest.fixture
def task(manifest, bucket, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    cache._reader.cache_clear()
    bucket.objects.clear()
    yield seqio.TaskRegistry.get(tasks.manifest('elsewhere', manifest))
    seqio.TaskRegistry._REGISTRY.pop('elsewhere')


def test_a_store_elsewhere_is_the_same_and_is_staged_shard_by_shard(task, bucket, tmp_path, monkeypatch):
    here = cache.open_store(task, 'train', tmp_path / 'here')
    there = cache.open_store(task, 'train', 'gs://bucket/stores')
    written = {name.rpartition('/')[2]: content for name, (content, *_) in bucket.objects.items()}
    assert written == {path.name: path.read_bytes() for path in here.directory.iterdir() if path.name != 'lock'}
    assert list(bucket.objects)[-1].endswith('/store.json'), 'written last'
    staged = tmp_path / 'cache/staged'
    assert not staged.exists(), 'nothing is fetched before it is read'
    np.testing.assert_array_equal(there.speech(7), here.speech(7))
    assert [path.name for path in staged.rglob('*.arrayrecord')] == ['00001.arrayrecord']
    monkeypatch.setattr(cache, '_STAGED_SHARDS', 2)
    for index in (0, 12, 23):
        np.testing.assert_array_equal(there.speech(index), here.speech(index))
    assert sorted(path.name for path in staged.rglob('*.arrayrecord')) == ['00002.arrayrecord', '00004.arrayrecord']
    assert there.features(3) == here.features(3) and there.ids == here.ids
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ['cache', 'here'], 'no folder gs:'


def test_a_cache_that_is_a_bucket_trains_as_one_that_is_here(task, bucket, tmp_path, monkeypatch):
    def batches():
        data = loader.SpeechTextLoader('elsewhere', 'train', seconds_per_batch=8.0)
        return list(itertools.islice(data.batches(), 5))

    here = batches()
    monkeypatch.setenv('SLM_JAX_CACHE', 'gs://bucket/cache')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'local'))
    for (_, one), (_, other) in zip(here, batches(), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert any('/lengths-' in name for name in bucket.objects)
    assert list((tmp_path / 'local').rglob('*.arrayrecord'))


def test_beam_goes_on_with_a_store_elsewhere(task, bucket, tmp_path):
    pytest.importorskip('apache_beam')
    directory = cache.store_dir(task, 'train', 'gs://bucket/beam')
    shards.build(task, 'train', directory, 2, 4)
    runner = beam.Beam(['--runner=DirectRunner'], lambda: None)
    runner.stores([task], 'train', 'gs://bucket/beam', 'raise')
    runner.measure(task, there := cache.Store(directory))
    here = cache.open_store(task, 'train', tmp_path / 'here')
    assert len(there) == 24 and there.ids == here.ids
    names = {name.rpartition('/')[2] for name in bucket.objects}
    assert names == {path.name for path in here.directory.iterdir() if path.name != 'lock'} | {
        name for name in names if name.startswith('lengths-') and name.count('-') == 1
    }


def test_shards_of_a_manifest_elsewhere(task, manifest, bucket):
    lines = manifest.read_text().splitlines()
    for number, start in enumerate(range(0, 24, 5)):
        text = '\n'.join(lines[start : start + 5])
        bucket.put(f'lines/part-{number}.jsonl', text.encode())
    source = sources.ManifestSource({'train': 'gs://bucket/lines/part-*.jsonl'})
    assert source.files('train') == [f'gs://bucket/lines/part-{number}.jsonl' for number in range(5)]
    assert source.contents('train').offsets.tolist() == [0, 5, 10, 15, 20, 24]
    before = source.state('train')
    bucket.put('lines/part-3.jsonl', '\n'.join(lines[15:19]).encode())
    assert source.state('train') != before
