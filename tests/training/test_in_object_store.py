"""Training with its directory in an object store, where nothing is renamed and nothing grows."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import toy

from slm_jax import foundations, paths
from slm_jax.training import checkpoints, lock
from slm_jax.training.logs import read_losses
from slm_jax.training.loop import NonFiniteError

FROZEN = 'gs://bucket/toy/frozen'


def train(model_dir, steps, **options):
    return toy.train(model_dir, steps, **({'foundations': {'speech_encoder': FROZEN}, 'num_samples': 0} | options))


@pytest.fixture(scope='module')
def trained(store, tmp_path_factory):
    """gs://bucket/toy/model, trained to step 7 and resumed to step 12; and a local run that was not interrupted."""
    folder = tmp_path_factory.mktemp('local')
    toy.save_frozen(FROZEN)
    toy.save_frozen(folder / 'frozen')
    toy.train(folder / 'model', 12, num_samples=0)
    train('gs://bucket/toy/model', 7, tensorboard=True)
    train('gs://bucket/toy/model', 12)
    return folder / 'model'


@pytest.fixture
def model_dir(trained, store):
    """A copy of it in the store, with checkpoints of steps 10 and 12, to be damaged."""
    for name in [name for name in store.objects if name.startswith('toy/copy/')]:
        del store.objects[name]
    for name in [name for name in store.objects if name.startswith('toy/model/')]:
        store.objects[name.replace('model', 'copy', 1)] = store.objects[name]
    return paths.path('gs://bucket/toy/copy')


def some_file(store, item):
    """The name of the largest object of an item of the newest checkpoint."""
    names = [name for name in store.objects if name.startswith(f'toy/copy/checkpoints/12/{item}/')]
    return max(names, key=lambda name: len(store.objects[name][0]))


def test_the_losses_are_those_of_an_unbroken_local_run(trained):
    assert read_losses('gs://bucket/toy/model') == read_losses(trained)
    assert foundations.card('gs://bucket/toy/model')['evaluation'] == foundations.card(trained)['evaluation']
    assert [path.name for path in checkpoints._all('gs://bucket/toy/model')] == ['12', '10']


def test_events_are_brought_there_and_nothing_else_is_left(trained, store):
    there = {name.split('/')[2].split('.')[0] for name in store.objects if name.startswith('toy/model/')}
    assert there == {'card', 'checkpoints', 'losses-0001-000001', 'losses-0002-000001', 'events'}
    assert not list(pathlib.Path().glob('gs:*'))


@pytest.mark.parametrize(('item', 'how'), [('trainable', 'missing'), ('optimizer', 'cut'), ('card', 'missing')])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(model_dir, store, item, how, capsys):
    name = some_file(store, item)
    content, *rest = store.objects.pop(name)
    if how == 'cut':
        store.objects[name] = (content[: len(content) // 2], *rest)
    if item != 'optimizer':
        with pytest.raises(checkpoints.CheckpointError, match='Step 10 is whole: give --step 10'):
            checkpoints.load_for_inference(model_dir)
    train(model_dir, 13)
    said = capsys.readouterr().out
    assert f'WARNING: gs://bucket/{name} is {"missing" if how == "missing" else "damaged: it has "}' in said
    assert 'set aside as 12.damaged; training goes on from step 10, which is whole.' in said
    assert checkpoints.newest(model_dir).name == '13'
    assert all(len(set(losses)) == 1 for losses in read_losses(model_dir).values())
    assert any(name.startswith('toy/copy/checkpoints/12.damaged/') for name in store.objects)


def test_a_half_written_checkpoint_does_not_count(model_dir, store):
    for name in [name for name in store.objects if name.startswith('toy/copy/checkpoints/12/')]:
        if name.rpartition('/')[2] in ('commit_success.txt', 'files.json'):
            del store.objects[name]
    assert checkpoints.newest(model_dir).name == '10'
    train(model_dir, 11)
    assert sorted(path.name for path in (model_dir / 'checkpoints').iterdir()) == ['10', '11']


def test_a_training_that_was_copied_from_a_disk_goes_on(trained, store):
    copied = paths.path('gs://bucket/toy/copied')
    for name in paths.files(trained):
        if not name.endswith('commit_success.txt'):  # in case Orbax begins to write it on disks
            paths.upload(trained / name, copied / name)
    assert checkpoints.load_for_inference(copied)[1]['step'] == 12
    assert train(copied, 13, foundations={'speech_encoder': str(trained.parent / 'frozen')})['step'] == 13
    assert [path.name for path in checkpoints._all(copied)] == ['13', '12']


def test_a_second_run_is_refused(model_dir, monkeypatch):
    held = lock.Lock(model_dir)
    with pytest.raises(lock.LockError, match='gs://bucket/toy/copy is being trained in by process'):
        train(model_dir, 13)
    held.check()
    held.close()
    assert not (model_dir / lock.FILE).exists()


def test_a_machine_that_was_taken_away_is_followed(model_dir, monkeypatch):
    monkeypatch.setattr(lock, '_GONE_SECONDS', 0.5)
    monkeypatch.setattr(lock, '_SETTLE_SECONDS', 0.1)
    lock.Lock(model_dir)._closed.set()
    monkeypatch.setattr(lock, '_machine', lambda: 'another')
    lock.Lock(model_dir).close()


def test_of_two_that_begin_at_once_one_is_first(store):
    url = paths.path('gs://bucket/toy/once')
    assert store.put('toy/once', b'first', '0') and not store.put('toy/once', b'second', '0')
    for exists in (url.exists, lambda: False):  # seen before, or only by the store
        url.exists = exists
        with pytest.raises(FileExistsError):
            paths.create(url, 'third')
    assert url.read_text() == 'first'


def test_a_batch_that_is_not_finite_is_kept(model_dir):
    with pytest.raises(NonFiniteError, match='The batch is in gs://bucket/toy/nan/bad_batch_2.npz'):
        train('gs://bucket/toy/nan', 5, system=toy.ToySystem(nan_at=3))
    assert (paths.path('gs://bucket/toy/nan') / 'bad_batch_2.npz').stat().st_size > 100


def test_s3(store, trained, capsys):
    pytest.importorskip('s3fs')
    frozen, model_dir = 's3://bucket/s3/frozen', 's3://bucket/s3/model'
    toy.save_frozen(frozen)
    for steps in (7, 12):
        train(model_dir, steps, foundations={'speech_encoder': frozen})
    assert read_losses(model_dir) == read_losses(trained)
    data = [name for name in store.objects if name.startswith('s3/model/checkpoints/12/trainable/')]
    name = max(data, key=lambda name: len(store.objects[name][0]))
    del store.objects[name]
    train(model_dir, 13, foundations={'speech_encoder': frozen})
    assert (
        f'WARNING: s3://bucket/{name} is missing. The checkpoint is set aside as 12.damaged' in capsys.readouterr().out
    )
    assert [path.name for path in checkpoints._all(model_dir)] == ['13', '10']
    held = lock.Lock(paths.path(model_dir))
    with pytest.raises(lock.LockError, match='s3://bucket/s3/model is being trained in by process'):
        train(model_dir, 14, foundations={'speech_encoder': frozen})
    held.close()


def test_a_foundation_there_is_there_whole_or_not_at_all(trained, store):
    name = 'gs://bucket/toy/half'
    toy.save_frozen(name)
    foundations.verified(name)
    del store.objects['toy/half/card.json']
    with pytest.raises(foundations.FoundationError, match='No foundation'):
        foundations.find(name)
    toy.save_frozen(name, seed=1)
    data = max((n for n in store.objects if n.startswith('toy/half/params/d/')), key=lambda n: len(store.objects[n][0]))
    content, *rest = store.objects[data]
    store.objects[data] = (content[:-9], *[rest[0] + 1, rest[1]])
    with pytest.raises(foundations.FoundationError, match='gs://bucket/toy/half/params'):
        foundations.verified(name)


KILLED = f"""
import sys; sys.path.insert(0, {os.path.dirname(toy.__file__)!r})
import toy
toy.train('gs://bucket/toy/killed', 10**6, foundations={{'speech_encoder': {FROZEN!r}}}, checkpoint_period=2)
"""


@pytest.mark.slow
def test_kill_9(trained, store):
    model_dir = 'gs://bucket/toy/killed'
    for _ in range(3):
        process = subprocess.Popen([sys.executable, '-c', KILLED], stdout=subprocess.DEVNULL)
        before = store.generation
        while store.generation < before + 150:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
    last = max(read_losses(model_dir))
    train(model_dir, last + 2)
    train('gs://bucket/toy/unbroken', last + 2)
    killed, unbroken = read_losses(model_dir), read_losses('gs://bucket/toy/unbroken')
    assert {step: set(losses) for step, losses in killed.items()} == {s: set(losses) for s, losses in unbroken.items()}
