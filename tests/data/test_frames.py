"""Frames stored beside recordings: the same whoever makes them, read in place of samples, refused if another's."""

import dataclasses
import hashlib
import itertools
import json

import ml_dtypes
import numpy as np
import pytest
import seqio

from slm_jax import tasks
from slm_jax.audio import augmentation
from slm_jax.data import beam, cache, frames, loader, preprocessors, shards
from slm_jax.data.tensorflow_cpu import tf

WIDTH = 3


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frame of three numbers for every 640 samples; no machine learning is needed to store it."""

    name: str = 'sums'
    fingerprint: str = 'f00d' * 16
    window: float = 30.0
    most_samples: float = float('inf')
    fails_at: int = -1

    @property
    def identity(self):
        configuration = f'Sums(\n    config = Config(layers=1, window={self.window})\n)'
        return {'name': self.name, 'fingerprint': self.fingerprint, 'configuration': configuration}

    @property
    def key(self):
        return hashlib.sha256(f'{self.fingerprint} {self.window}'.encode()).hexdigest()[:12]

    def __call__(self, samples):
        if len(samples) == self.fails_at:
            raise ZeroDivisionError('killed')
        pieces = np.pad(samples, (0, -len(samples) % 640)).reshape(-1, 640).astype(np.float32)
        return np.stack([pieces.sum(1), pieces.max(1), pieces[:, 0]], 1).astype(ml_dtypes.bfloat16)

    def shapes(self, batch):
        (rows, samples), dtype = batch['speech_samples']
        return {
            **batch,
            'speech_samples': ((rows, 0), dtype),
            'speech_frames': ((rows, -(-samples // 640), WIDTH), np.dtype(ml_dtypes.bfloat16)),
            'speech_frame_lengths': ((rows,), np.dtype(np.int32)),
        }


@pytest.fixture
def task(manifest, vocabulary, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    cache._reader.cache_clear()
    known = dict(seqio.TaskRegistry._REGISTRY)
    yield seqio.TaskRegistry.get(tasks.manifest('encoded', manifest))
    seqio.TaskRegistry._REGISTRY.clear()
    seqio.TaskRegistry._REGISTRY.update(known)


@pytest.fixture
def store(task, tmp_path):
    return cache.open_store(task, 'train', tmp_path / 'cache')


def made(store, encoder=Encoder()):
    """Content of all files of an encoder's frames, by name."""
    directory = store.directory / f'frames-{encoder.key}'
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != 'lock'}


def load(tmp_path, name='encoded', **options):
    return loader.SpeechTextLoader(name, seconds_per_batch=8.0, cache_dir=tmp_path / 'cache', **options)


def pairs(tmp_path, count=12, **options):
    """Batches from recordings, and from frames."""
    both = (load(tmp_path, **options).batches(), load(tmp_path, encoder=Encoder(), **options).batches())
    return [(one, other) for (_, one), (_, other) in itertools.islice(zip(*both), count)]


def compare(samples, encoded):
    """Row by row, what the encoder makes of the samples; all else is the same."""
    assert encoded['speech_samples'].shape == (len(samples['speech_lengths']), 0)
    assert encoded['speech_frames'].dtype == ml_dtypes.bfloat16
    for name in samples.keys() - {'speech_samples'}:
        np.testing.assert_array_equal(encoded[name], samples[name])
    for row, length in enumerate(samples['speech_lengths']):
        expected, count = Encoder()(samples['speech_samples'][row, :length]), encoded['speech_frame_lengths'][row]
        np.testing.assert_array_equal(encoded['speech_frames'][row, :count], expected)
        assert not encoded['speech_frames'][row, count:].any() and count == -(-length // 640)


def test_frames_come_in_the_place_of_samples(store, tmp_path):
    assert frames.encode(store, Encoder(), 'raise') == []
    assert json.loads(made(store)['frames.json']) == Encoder().identity
    for samples, encoded in pairs(tmp_path):
        compare(samples, encoded)
    data = load(tmp_path, encoder=Encoder())
    shapes = [{name: shape for name, (shape, _) in each.items()} for each in data.batch_shapes()]
    for batch, infos in data.examples():
        assert {name: array.shape for name, array in batch.items()} in shapes
        assert all(batch[name].dtype == dtype for name, (_, dtype) in data.batch_shapes()[0].items())
        for row, info in enumerate(infos):
            assert info is None or round(info.seconds * 16_000) == batch['speech_lengths'][row] > 0
    assert data.state() == {**load(tmp_path).state(), 'encoder': Encoder().key}


def test_texts_have_none(store, tmp_path):
    def text(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({'inputs': ['say one', 'say two'], 'targets': ['one', 'two']})

    seqio.TaskRegistry.add(
        'text',
        source=seqio.FunctionDataSource(text, splits=('train',)),
        preprocessors=[seqio.CacheDatasetPlaceholder(), seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=seqio.TaskRegistry.get('encoded').output_features,
    )
    texts = cache.open_store(seqio.TaskRegistry.get('text'), 'train', tmp_path / 'cache')
    for each in (store, texts):
        frames.encode(each, Encoder(), 'raise')
    assert not list(texts.directory.glob('frames-*'))
    kinds = set()
    for samples, encoded in pairs(tmp_path, 30, name={'encoded': 1.0, 'text': 1.0}):
        compare(samples, encoded)
        kinds.add(encoded['speech_frames'].shape[1] > 0)
    assert kinds == {True, False}
    alone = load(tmp_path, 'text', encoder=Encoder())
    assert 'speech_frames' not in alone.batch_shapes()[0] and alone.state() == load(tmp_path, 'text').state()


def test_what_was_cut_goes_on(store):
    with pytest.raises(ZeroDivisionError):
        frames.encode(store, Encoder(fails_at=int(store.samples[13])), 'raise')
    assert sorted(name for name in made(store) if '.part.' not in name) == ['00000.arrayrecord', '00001.arrayrecord']
    heard = []

    class Counting(Encoder):
        def __call__(self, samples):
            heard.append(len(samples))
            return super().__call__(samples)

    frames.encode(store, Counting(), 'raise')
    assert heard == store.samples[10:].tolist()
    cut = made(store)
    assert sorted(cut) == [*(f'{number:05d}.arrayrecord' for number in range(5)), 'frames.json']
    frames.encode(store, Counting(), 'raise')
    assert len(heard) == 14, 'all is there'
    for path in (store.directory / f'frames-{Encoder().key}').iterdir():
        path.unlink()
    frames.encode(store, Encoder(), 'raise')
    assert made(store) == cut


def test_beam_makes_the_same(store):
    pytest.importorskip('apache_beam')
    frames.encode(store, Encoder(), 'raise')
    one = made(store)
    for name in ('frames.json', '00001.arrayrecord', '00003.arrayrecord'):
        (store.directory / f'frames-{Encoder().key}' / name).unlink()
    assert beam.Beam(['--runner=DirectRunner'], lambda: None).encode(store, Encoder(), 'raise') == []
    assert made(store) == one


def test_a_store_elsewhere(task, store, tmp_path, monkeypatch):
    pytest.importorskip('gcsfs')
    import object_store

    from slm_jax import paths

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'local'))
    with object_store.serving() as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        there = cache.open_store(task, 'train', 'gs://bucket/cache')
        for each in (store, there):
            frames.encode(each, Encoder(), 'raise')
        written = {name: content for name, (content, *_) in bucket.objects.items() if '/frames-' in name}
        assert {name.rpartition('/')[2]: content for name, content in written.items()} == made(store)
        assert list(written)[-1].endswith('/frames.json'), 'written last'
        data = loader.SpeechTextLoader('encoded', cache_dir='gs://bucket/cache', encoder=Encoder())
        here = load(tmp_path, encoder=Encoder())
        encoded = sorted(batch['speech_frames'].astype(np.float64).sum() for batch, _ in data.examples())
        assert sum(encoded) == sum(batch['speech_frames'].astype(np.float64).sum() for batch, _ in here.examples())
        paths._reach.cache_clear()


def test_frames_of_another_encoder_are_refused(store, tmp_path):
    with pytest.raises(
        ValueError, match=r'has no frames of the speech encoder sums \(fingerprint f00df00df00d\)\. Enc'
    ):
        load(tmp_path, encoder=Encoder())
    frames.encode(store, Encoder(), 'raise')
    with pytest.raises(ValueError, match=r'but those of sums \(fingerprint f00df00df00d\) with window=30\.0\. Encode'):
        load(tmp_path, encoder=Encoder(window=5.0))
    other = Encoder('others', 'cafe' * 16)
    with pytest.raises(ValueError) as caught:
        load(tmp_path, encoder=other)
    assert str(caught.value).splitlines()[0] == (
        f'{store.directory} has no frames of the speech encoder others (fingerprint cafecafecafe), but those of sums '
        '(fingerprint f00df00df00d). Encode the data by the model that is trained (slm-jax prepare … --encode '
        'MODEL.gin, with the same --cache_dir), or set ENCODED to False.'
    )
    frames.encode(store, other, 'raise')  # both may be there
    assert load(tmp_path, encoder=other).state()['encoder'] == other.key
    load(tmp_path, encoder=Encoder())


def test_recordings_longer_than_the_encoder_takes(store, tmp_path):
    short = Encoder(most_samples=32_000)
    long = int((store.samples > 32_000).sum())
    with pytest.raises(preprocessors.BadExampleError) as caught:
        frames.encode(store, short, 'raise')
    assert f'{long} recordings are too long; the first: ' in str(caught.value)
    assert 'and the speech encoder takes 2 s at once. Split the recording.' in str(caught.value)
    assert len(frames.encode(store, short, 'skip')) == len(frames.encode(store, short, 'skip')) == long
    with pytest.raises(preprocessors.BadExampleError, match='s of speech where 2.0 s are allowed'):
        load(tmp_path, encoder=short)
    assert len(load(tmp_path, encoder=short, on_bad_example='skip').skipped) == long


def test_steps_that_change_recordings_are_refused(manifest, store, tmp_path):
    noisy = preprocessors.ExampleStep(
        lambda example, *_: {'speech': example['speech'] + 1}, reads=('speech',), adds={'speech': (tf.int16, 1)}
    )
    task = seqio.TaskRegistry.get('encoded')
    steps = [*task.preprocessors, noisy]
    seqio.TaskRegistry.add('noisy', source=task.source, preprocessors=steps, output_features=task.output_features)
    frames.encode(store, Encoder(), 'raise')
    with pytest.raises(ValueError, match="task 'noisy' changes its recordings each time they are read"):
        load(tmp_path, 'noisy', encoder=Encoder())


def test_augmented_recordings_are_refused(store, tmp_path):
    frames.encode(store, Encoder(), 'raise')
    with pytest.raises(
        ValueError, match=r'SpeechTextLoader.augmentation changes recordings, .* Set ENCODED to False, or leave it out'
    ):
        load(tmp_path, encoder=Encoder(), augmentation=augmentation.WaveformAugmentation())
