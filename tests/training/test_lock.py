"""Two runs in one directory: the second is refused, and a dead one is followed."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import toy

from slm_jax.training import checkpoints, lock
from slm_jax.training.logs import read_losses


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds instead of minutes."""
    monkeypatch.setattr(lock, '_BEAT_SECONDS', 0.2)
    monkeypatch.setattr(lock, '_GONE_SECONDS', 1.5)
    monkeypatch.setattr(lock, '_SETTLE_SECONDS', 0.2)


def elsewhere(directory, **fields):
    """Makes the lock that of another machine."""
    holder = json.loads((directory / lock.FILE).read_text()) | {'machine': 'elsewhere', 'host': 'tpu-7'} | fields
    (directory / lock.FILE).write_text(json.dumps(holder))
    return holder


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path, capsys):
    toy.save_frozen(tmp_path / 'frozen')
    model_dir = tmp_path / 'model'
    process = subprocess.Popen([sys.executable, toy.__file__, str(model_dir), str(10**6)], stdout=subprocess.DEVNULL)
    try:
        while not (model_dir / 'losses.jsonl').exists() or len(read_losses(model_dir)) < 12:
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(
            lock.LockError,
            match=f'{model_dir} is being trained in by process {process.pid} on .*, started .* UTC, last heard of',
        ):
            toy.train(model_dir, 5)
        assert checkpoints.load_for_inference(model_dir)[1]['step'] >= 5  # what reads needs no lock
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    capsys.readouterr()
    assert toy.train(model_dir, 1)['step'] >= 5
    assert 'Waiting' not in capsys.readouterr().out, 'killed: followed at once'
    assert not (model_dir / lock.FILE).exists()


def test_a_run_on_another_machine_is_refused_while_it_lives(tmp_path, capsys):
    held = lock.Lock(tmp_path)
    stop = threading.Event()
    held._closed.set()
    held._thread.join()

    def live():
        while not stop.wait(0.3):
            elsewhere(tmp_path, beat=time.time())

    elsewhere(tmp_path)
    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(lock.LockError, match=f'process {os.getpid()} on tpu-7'):
        lock.Lock(tmp_path)
    stop.set()
    thread.join()
    assert 'Waiting up to' in capsys.readouterr().out


def test_a_machine_that_was_taken_away_is_followed(tmp_path):
    lock.Lock(tmp_path)._closed.set()
    for beat in (time.time() - 1000, time.time(), time.time() + 1000):  # of a clock that is wrong, too
        time.sleep(0.5)
        elsewhere(tmp_path, beat=beat)
        started = time.monotonic()
        lock.Lock(tmp_path)._closed.set()
        assert time.monotonic() - started < 5


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
    lock.Lock(tmp_path)._closed.set()
    holder = json.loads((tmp_path / lock.FILE).read_text())
    (tmp_path / lock.FILE).write_text(json.dumps(holder | {'process': '1'}))
    lock.Lock(tmp_path).close()


def test_who_lost_the_lock_writes_no_checkpoint(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    toy.train(tmp_path / 'model', 5)
    held = lock.Lock(tmp_path / 'model')
    elsewhere(tmp_path / 'model', token='another')
    with pytest.raises(lock.LockError, match='no longer locked by this run but by process .* on tpu-7'):
        held.check()
    held.close()
    assert (tmp_path / 'model' / lock.FILE).exists()  # the other's


def test_of_many_that_start_at_once_one_trains(tmp_path):
    lock.Lock(tmp_path)._closed.set()
    holder = json.loads((tmp_path / lock.FILE).read_text())
    (tmp_path / lock.FILE).write_text(json.dumps(holder | {'process': '1'}))  # killed
    held, refused = [], []

    def start():
        try:
            held.append(lock.Lock(tmp_path))
        except lock.LockError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].check()
    held[0].close()
