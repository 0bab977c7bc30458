"""Several processes as one training: on this machine, with simulated devices."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import toy

from slm_jax import evaluate, infer, train
from slm_jax.training import checkpoints, hosts, partitioning
from slm_jax.training.logs import read_losses


@pytest.fixture
def model_dir(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    return tmp_path / 'model'


def begin(folder, command, processes, devices=1, dirs=None, **variables):
    """The processes of one program; what each says goes to a file in `folder`. `dirs`: of each, in place of a '%'."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    # On a busy machine devices may be late; XLA aborts after 40 s.
    flags += ' --xla_cpu_collective_call_terminate_timeout_seconds=300 --xla_cpu_collective_timeout_seconds=300'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', **variables}
    if processes > 1:
        environment |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(processes)}
    started = []
    for index in range(processes):
        own = [sys.executable, *(str(dirs[index]) if word == '%' else str(word) for word in command)]
        if processes > 1:
            environment['JAX_PROCESS_ID'] = str(index)
        with (folder / f'said-{index}').open('w') as said:
            started.append(subprocess.Popen(own, env=environment, stdout=said, stderr=subprocess.STDOUT))
    return started


def start(model_dir, steps, processes=2, devices=1, dirs=None, **options):
    """The processes of one training of the toy."""
    command, dirs = [toy.__file__, '%', steps], dirs or [model_dir] * processes
    return begin(model_dir.parent, command, processes, devices, dirs, TOY=json.dumps(options))


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


def taken(folder, processes):
    """Of each evaluation batch, the rows that each process has made."""
    return list(zip(*(json.loads((folder / f'taken-{index}').read_text()) for index in range(processes))))


def test_two_hosts_train_as_one(model_dir, tmp_path):
    """Two processes of two devices; rows that these do not divide; one of them writes, both resume; slow input."""
    toy.train(model_dir, 12, loader=toy.ToyLoader(7), eval_loaders={'dev': toy.ToyLoader(7)})
    two = tmp_path / 'two'
    slow = {'fault': 'slow', 'fault_on': 1, 'seconds': {'SLOW': 2}}
    assert ended(start(two, 7, devices=2, rows=7, **slow)) == [0, 0], said(two, 1)
    assert '4 x cpu (data 4, fsdp 1, model 1), 2 host(s)' in said(two, 0)
    assert 'are filled up with empty rows, 12% of all. ROW_MULTIPLE = 4' in said(two, 0)
    for index in range(2):
        assert 'slm-jax: host 1 (' in said(two, index)
        assert 'has been waiting for its input of step 4 for ' in said(two, index)
    assert taken(tmp_path, 2) == [([0, 1, 2, 3], [4, 5, 6])] * 2

    assert ended(start(two, 12, devices=2, rows=7)) == [0, 0], said(two, 1)
    silent = [line for line in said(two, 1).splitlines() if not line.startswith(('[Gloo]', 'WARNING:absl:'))]
    assert not silent, 'the first host speaks for all'
    np.testing.assert_allclose(losses(two), losses(model_dir), rtol=1e-5)
    one, other = (checkpoints.load_for_inference(each)[1]['evaluation'] for each in (model_dir, two))
    assert other == pytest.approx(one, rel=1e-5)


LAYOUTS = [(devices, processes) for devices in (1, 2, 4, 8) for processes in (1, 2, 4) if processes <= devices]
AXES = ({'data': -1}, {'data': 1, 'model': -1}, {'data': 1, 'fsdp': -1})


@pytest.mark.slow
@pytest.mark.parametrize('one_disk', [True, False])
def test_the_same_losses_whoever_goes_on(model_dir, tmp_path, one_disk):
    """1 to 8 devices of 1 to 4 processes go on from each other's checkpoints, every axis across processes."""
    runs = [(*layout, axes) for layout in LAYOUTS for axes in AXES]
    if not one_disk:
        runs = [(*layout, AXES[number % 3]) for number, layout in enumerate(LAYOUTS + LAYOUTS[::-1])]
    runs.append((8, 4, {'data': 2, 'fsdp': 2, 'model': 2}))
    toy.train(model_dir, 3 * len(runs))
    disks = [tmp_path / f'disk-{number}' / 'model' for number in range(1 if one_disk else 4)]
    for disk in disks:
        toy.save_frozen(disk.parent / 'frozen')
    for number, (devices, processes, mesh) in enumerate(runs, 1):
        # Of several disks, one process has the newest checkpoint, and seldom the first of them.
        newest = max(range(len(disks)), key=lambda disk: last_step(disks[disk]))
        dirs = [disks[(newest + index - (processes > 1)) % len(disks)] for index in range(processes)]
        started = start(model_dir, 3 * number, processes, devices // processes, dirs, mesh=mesh)
        assert ended(started, 120) == [0] * processes, (devices, processes, mesh, said(model_dir, 0))
        if one_disk:
            rows = taken(disks[0].parent, processes)
            assert [sorted({*itertools.chain(*batch)}) for batch in rows] == [list(range(8))] * len(rows)
    found = {step: values for disk in disks if disk.exists() for step, values in read_losses(disk).items()}
    np.testing.assert_allclose([found[step][0] for step in range(3 * len(runs))], losses(model_dir), rtol=1e-5)


def last_step(model_dir):
    found = [int(path.name) for path in model_dir.glob('checkpoints/*') if path.name.isdigit()]
    return max(found, default=-1)


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


@pytest.mark.slow
def test_kill_9_of_a_host_and_a_restart_give_the_losses_of_an_unbroken_run(model_dir, tmp_path):
    assert ended(start(tmp_path / 'whole', 60)) == [0, 0]
    started = start(model_dir, 60, seconds={'LOST': 5}, fault='slow', fault_on=0)
    wait_for_steps(model_dir, 3, started)
    started[1].kill()
    assert ended(started)[0] == train.EXIT_HOST_LOST
    assert ended(start(model_dir, 60)) == [0, 0]
    assert losses(model_dir) == losses(tmp_path / 'whole')


@pytest.mark.parametrize(
    'fault, status, words',
    [
        ('fails', 2, 'clip7.wav: the file is cut'),
        pytest.param('bug', 1, 'ZeroDivisionError: a step of the task', marks=pytest.mark.slow),
        ('differs', 2, 'host 1 differs from host 0 in the data, plan: another there, one on host 0'),
    ],
)
def test_what_fails_on_one_host_is_said_on_all(model_dir, fault, status, words):
    assert ended(start(model_dir, 20, fault=fault, fault_on=1)) == [status, status]
    assert words in said(model_dir, 1)
    assert words in said(model_dir, 0) and 'host 1' in said(model_dir, 0)


@pytest.mark.slow
def test_hosts_without_a_shared_disk(model_dir, tmp_path):
    """Host 0 writes; the hosts may change places."""
    toy.train(model_dir, 10)
    dirs = [tmp_path / name / 'model' for name in ('a', 'b')]
    for own in dirs:
        toy.save_frozen(own.parent / 'frozen')
    assert ended(start(model_dir, 5, dirs=dirs)) == [0, 0], said(model_dir, 0)
    assert f'note: {dirs[0]} is not on a disk that all hosts share: host 0 writes' in said(model_dir, 0)
    assert not (dirs[1] / 'checkpoints/5').exists() and checkpoints.newest(dirs[0]).name == '5'
    assert ended(start(model_dir, 10, dirs=dirs[::-1], devices=2, mesh={'model': 4})) == [0, 0], said(model_dir, 0)
    assert checkpoints.newest(dirs[1]).name == '10'
    found = {step: values for own in dirs for step, values in read_losses(own).items()}
    expected = read_losses(model_dir)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[step][0] for step in expected], [v[0] for v in expected.values()], rtol=1e-5)


@pytest.mark.slow
def test_nan_on_two_hosts_writes_its_whole_batch_once(model_dir):
    assert ended(start(model_dir, 20, nan_at=3)) == [1, 1]
    batch = np.load(model_dir / 'bad_batch_2.npz')
    assert batch['decoder_target_tokens'].shape[0] == 8
    assert [path.name for path in model_dir.glob('bad_batch*')] == ['bad_batch_2.npz']


@pytest.mark.slow
def test_two_hosts_evaluate_as_one(manifest, tmp_path):
    """Both decode parts of the rows; the first writes what one process writes."""
    asked = ['--manifest', manifest, '--instruction', 'Transcribe the speech.', '--batch_seconds', '20']
    command = ['-m', 'slm_jax.cli', 'evaluate', 'usm_tiny', *asked, '--out', '%', '--multihost']
    dirs = [tmp_path / 'first', tmp_path / 'second']
    started = begin(tmp_path, command, 2, dirs=dirs)
    assert evaluate.main([*map(str, command[3:-2]), str(tmp_path / 'one')]) == 0
    assert ended(started) == [0, 0], (tmp_path / 'said-1').read_text()
    assert not dirs[1].exists() and 'WER' in (tmp_path / 'said-0').read_text()
    one, first = (tmp_path / 'one', dirs[0])
    assert (one / 'predictions.jsonl').read_text() == (first / 'predictions.jsonl').read_text()
    assert (
        len(
            {
                json.loads((each / 'results.json').read_text())['scores']['transcription']['en']['wer']
                for each in (one, first)
            }
        )
        == 1
    )


@pytest.mark.slow
def test_two_hosts_infer_as_one(manifest, tmp_path, capsys):
    files = sorted(manifest.parent.glob('*.wav'))[:5]
    started = begin(tmp_path, ['-m', 'slm_jax.cli', 'infer', *files, '--model', 'usm_tiny', '--multihost'], 2)
    assert infer.main([*map(str, files), '--model', 'usm_tiny']) == 0
    assert ended(started) == [0, 0]
    said = [(tmp_path / f'said-{index}').read_text().splitlines() for index in range(2)]
    heard = [[line for line in lines if not line.startswith('[Gloo]')] for lines in said]
    assert heard == [capsys.readouterr().out.splitlines(), []]


NAMES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


@pytest.mark.parametrize(
    'values, words',
    [
        (('localhost:1', '', ''), 'JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES and JAX_PROCESS_ID not'),
        (('', '2', '0'), 'JAX_NUM_PROCESSES, JAX_PROCESS_ID is set, JAX_COORDINATOR_ADDRESS not: set all three'),
        (('localhost', '2', '0'), "JAX_COORDINATOR_ADDRESS is 'localhost'; HOST:PORT of process 0 was expected"),
        (('localhost:1', '2', '2'), "JAX_NUM_PROCESSES is '2' and JAX_PROCESS_ID '2'; a number of hosts, and one"),
        (('localhost:1', 'two', '0'), "JAX_NUM_PROCESSES is 'two'"),
    ],
)
def test_half_a_word_on_who_is_who_is_refused(monkeypatch, capsys, values, words):
    for name, value in zip(NAMES, values):
        monkeypatch.setenv(name, value)
    for program in (train.main, evaluate.main, infer.main):
        assert program(['--multihost']) in (1, 2)
        assert words in capsys.readouterr().err


def test_multihost_without_others_is_refused(tmp_path):
    (host,) = begin(tmp_path, ['-m', 'slm_jax.cli', 'train', '--multihost'], 1)
    assert ended([host]) == [2]
    said = (tmp_path / 'said-0').read_text()
    assert 'slm-jax train: --multihost: nothing says which host this is' in said and 'Traceback' not in said


def test_parts_of_the_mesh_need_not_be_blocks_of_rows(monkeypatch):
    """A model axis over hosts, and devices in an order of their own."""

    def mesh(hosts, **shape):
        devices = np.array([types.SimpleNamespace(process_index=host) for host in hosts], object)
        return types.SimpleNamespace(shape=shape, devices=devices.reshape(tuple(shape.values())))

    def rows(mesh, count, host):
        monkeypatch.setattr(jax, 'process_index', lambda: host)
        return partitioning.host_rows(mesh, count).tolist()

    crossed = mesh([0, 1, 2, 3, 0, 1, 2, 3], data=2, fsdp=2, model=2)
    assert [rows(crossed, 8, host) for host in range(4)] == [[0, 1, 4, 5]] * 2 + [[2, 3, 6, 7]] * 2
    blocks = mesh([0, 0, 1, 1], data=4, fsdp=1, model=1)
    assert [rows(blocks, 5, host) for host in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


ALONE = """
import functools, jax
jax.distributed.initialize = functools.partial(jax.distributed.initialize, initialization_timeout=3)
from slm_jax import train
train.main(['--multihost'])
"""


@pytest.mark.slow
@pytest.mark.parametrize('index', ['0', '1'])
def test_hosts_that_do_not_come_are_said_in_a_line(index):
    names = dict(zip(NAMES, ('localhost:47111', '2', index)))
    done = subprocess.run([sys.executable, '-c', ALONE], env={**os.environ, **names}, capture_output=True, text=True)
    assert done.returncode == train.EXIT_HOST_LOST
    assert done.stderr.startswith('slm-jax: --multihost: the other hosts were not found at localhost:47111 (JAX_')
    assert len(done.stderr.splitlines()) == 1
