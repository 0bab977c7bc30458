"""Several processes as one training: on this machine, with simulated devices."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import toy

from slm_jax import train
from slm_jax.training import checkpoints, hosts
from slm_jax.training.logs import read_losses


@pytest.fixture
def model_dir(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    return tmp_path / 'model'


def start(model_dir, steps, processes=2, devices=1, dirs=None, **toy_options):
    """The processes of one training; what each says goes to a file beside the model's directory."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'TOY': json.dumps(toy_options)}
    if processes > 1:
        environment |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(processes)}
    started = []
    for index in range(processes):
        own = dirs[index] if dirs else model_dir
        with (model_dir.parent / f'said-{index}').open('w') as said:
            started.append(
                subprocess.Popen(
                    [sys.executable, toy.__file__, str(own), str(steps)],
                    env=environment | ({'JAX_PROCESS_ID': str(index)} if processes > 1 else {}),
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def ended(started, seconds=60):
    """Exit statuses; none of the processes outlives the test."""
    try:
        return [process.wait(seconds) for process in started]
    finally:
        for process in started:
            process.kill()


def said(model_dir, index):
    return (model_dir.parent / f'said-{index}').read_text()


def losses(model_dir):
    """One loss a step; where a step was repeated, both must be the same to the last bit."""
    record = read_losses(model_dir)
    for step, values in record.items():
        assert len(set(values)) == 1, (step, values)
    return [record[step][0] for step in sorted(record)]


def wait_for_steps(model_dir, count, started):
    while not (model_dir / 'losses.jsonl').exists() or len(read_losses(model_dir)) < count:
        assert all(process.poll() is None for process in started), said(model_dir, 0)
        time.sleep(0.1)


def test_two_hosts_train_as_one(model_dir, tmp_path):
    """Two processes of two devices; rows that these do not divide; one of them writes, and both resume."""
    toy.train(model_dir, 12, loader=toy.ToyLoader(7), eval_loaders={'dev': toy.ToyLoader(7)})
    two = tmp_path / 'two'
    for steps in (7, 12):
        assert ended(start(two, steps, devices=2, rows=7)) == [0, 0], said(two, 1)
    np.testing.assert_allclose(losses(two), losses(model_dir), rtol=1e-5)
    assert checkpoints.load_for_inference(two)[1]['evaluation'] == pytest.approx(
        checkpoints.load_for_inference(model_dir)[1]['evaluation'], rel=1e-5
    )
    assert '4 x cpu (data 4, fsdp 1, model 1), 2 host(s)' in said(two, 0)
    assert 'are filled up with empty rows, 12% of all. ROW_MULTIPLE = 4' in said(two, 0)
    silent = [line for line in said(two, 1).splitlines() if not line.startswith(('[Gloo]', 'WARNING:absl:'))]
    assert not silent, 'the first host speaks for all'


def test_sigterm_on_one_host_saves_on_all_and_a_model_axis_joins_both(model_dir, tmp_path):
    options = {'devices': 2, 'mesh': {'model': 4}, 'seconds': {'LOST': 20}}
    started = start(model_dir, 10**6, **options)
    wait_for_steps(model_dir, 5, started)
    started[1].send_signal(signal.SIGTERM)
    assert ended(started) == [143, 143], said(model_dir, 0)
    saved = int(checkpoints.newest(model_dir).name)
    assert saved == max(read_losses(model_dir)) + 1
    assert f'stopped by a signal; step {saved} is saved' in said(model_dir, 0)
    toy.train(model_dir, saved + 3)
    toy.train(tmp_path / 'one', saved + 3)
    np.testing.assert_allclose(losses(model_dir), losses(tmp_path / 'one'), rtol=1e-5)


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_host_is_named_by_the_others_within_a_minute(model_dir, killed):
    started = start(model_dir, 10**6, seconds={'LOST': 5})
    wait_for_steps(model_dir, 3, started)
    started[killed].kill()
    assert ended(started)[1 - killed] == train.EXIT_HOST_LOST == hosts.EXIT_HOST_LOST == 75
    text = said(model_dir, 1 - killed)
    assert f'slm-jax: host {killed} (' in text and 'this process ends too (75). Start all hosts again' in text


@pytest.mark.parametrize(
    'fault, status, words',
    [
        ('fails', 2, 'clip7.wav: the file is cut'),
        ('bug', 1, 'ZeroDivisionError: a step of the task'),
        ('differs', 2, 'host 1 differs from host 0 in the data, plan: another there, one on host 0'),
    ],
)
def test_what_fails_on_one_host_is_said_on_all(model_dir, fault, status, words):
    assert ended(start(model_dir, 20, fault=fault, fault_on=1)) == [status, status]
    assert words in said(model_dir, 1)
    assert words in said(model_dir, 0) and 'host 1' in said(model_dir, 0)


def test_a_host_with_slow_input_is_named_on_all(model_dir):
    assert ended(start(model_dir, 6, fault='slow', fault_on=1, seconds={'SLOW': 2})) == [0, 0]
    for index in range(2):
        assert 'slm-jax: host 1 (' in said(model_dir, index)
        assert 'has been waiting for its input of step 4 for ' in said(model_dir, index)


def test_nan_on_two_hosts_writes_its_whole_batch_once(model_dir):
    assert ended(start(model_dir, 20, nan_at=3)) == [1, 1]
    batch = np.load(model_dir / 'bad_batch_2.npz')
    assert batch['decoder_target_tokens'].shape[0] == 8
    assert [path.name for path in model_dir.glob('bad_batch*')] == ['bad_batch_2.npz']
