"""`slm-jax precompile`: what a person reads, and the exit status."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import optax
import pytest

from slm_jax import bindings, cli, configuration, precompile
from slm_jax.decoding import DecodeConfig
from slm_jax.training import partitioning, topologies

TINY = [
    '--gin_file=models/slm_tiny.gin',
    *('--gin.UsmConfig.num_layers=1', '--gin.T5Config.num_encoder_layers=1', '--gin.T5Config.num_decoder_layers=1'),
    *('--gin.SlmAdapterConfig.num_layers=1', '--gin.DecodeConfig.max_decode_length=8'),
]
SMALL = ['--rows=2', '--seconds=1', '--inputs=8', '--targets=8']


@pytest.fixture
def here(monkeypatch):
    """This process stays as it is: its one CPU device is the GPU."""
    monkeypatch.setattr(topologies, 'prepare', lambda topology: None)


@pytest.fixture
def toy(here, monkeypatch):
    """In place of the gin files, what compiles in a second."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / 'training')
    import toy

    from slm_jax.training import precompiled

    def configured(gin_files, gin_bindings):
        dtype = 'int8' if gin_bindings else 'bfloat16'
        system, optimizer, partitioner = toy.ToySystem(), optax.adam(1e-2), partitioning.Partitioner()
        training = precompiled.Training(system, ('adapter/.*',), optimizer, partitioner, dtype, DecodeConfig())
        return training, precompiled.Size(4, 30.0, 64, 128)

    monkeypatch.setattr(precompile, 'configured', configured)
    return toy


def test_the_program_is_a_command():
    assert 'precompile' in cli.COMMANDS


def test_a_system_that_cannot_answer_is_not_asked_to(toy, monkeypatch, tmp_path):
    monkeypatch.setattr(toy.ToySystem, 'answers', False, raising=False)
    file = tmp_path / 'found.json'
    argv = [*TINY[:1], *SMALL, '--topology=gpu:80GBx1', '--no-smallest', f'--json={file}']
    assert precompile.main(argv) == 0
    assert [step['step'] for step in json.loads(file.read_text())['steps']] == ['train', 'evaluate']


def test_the_table_and_its_json(toy, capsys, tmp_path):
    file = tmp_path / 'found.json'
    assert precompile.main([*TINY[:1], *SMALL, '--topology=gpu:80GBx1', '--steps=train,decode', f'--json={file}']) == 0
    out = capsys.readouterr().out
    for line in (
        'gpu:80GBx1: 1 devices (GPUs, simulated on this CPU: see --help); mesh: data 1, fsdp 1, model 1',
        'batch: 2 rows of 1 s, 8 + 8 tokens; answers of up to 128 tokens (greedy)',
        'bytes on each device',
        'of 73.6 GB that can be had',
        'smallest slice that the train step fits on: gpu:80GBx1, --mesh data=1,fsdp=1,model=1',
    ):
        assert line in out
    found = json.loads(file.read_text())
    train, decode = found['steps']
    assert found['fits'] and train['fits'] and found['versions']['jax']
    assert train['bytes']['optimizer'] == 2 * train['bytes']['trained'] + 4 and decode['bytes']['optimizer'] == 0
    assert train['collectives'] == decode['collectives'] == {}
    assert train['simulated'] and train['estimate'] is None and train['flops'] > 0


def test_what_does_not_fit_has_its_own_status_and_says_what_helps(toy, capsys):
    arguments = [*TINY[:1], *SMALL, '--topology=gpu:0.5kBx1', '--steps=train', '--mesh=auto']
    assert precompile.main(arguments) == precompile.EXIT_TOO_LARGE == 3
    out, err = capsys.readouterr()
    assert 'TOO MUCH' in out and 'smallest slice: none of the listed ones' in out and 'auto: 1 layouts' in out
    assert 'train does not fit on gpu:0.5kBx1: it needs' in err and 'of each device, which has 460 B' in err
    for remedy in (
        '--gin.FROZEN_DTYPE=int8',
        'BATCH_SECONDS',
        "TASK_FEATURE_LENGTHS['speech']",
        'remat_policy',
        'fsdp',
    ):
        assert remedy in err
    assert precompile.main([*arguments, '--gin.FROZEN_DTYPE=int8', '--no-smallest']) == 3
    out, err = capsys.readouterr()
    assert 'int8' not in err and 'frozen parameters in int8' in out and 'smallest' not in out


def test_the_batch_is_what_gin_asks_for():
    training, size = precompile.configured(
        ['models/slm_xxl.gin'],
        ["TASK_FEATURE_LENGTHS={'speech': 240000, 'inputs': 32, 'targets': 64}", 'BATCH_SECONDS=100.0'],
    )
    assert (size.rows, size.seconds, size.inputs, size.targets) == (6, 15.0, 32, 64)
    assert training.trainable == ('adapter/.*',) and training.frozen_dtype == 'bfloat16'


def test_only_what_is_read_needs_a_value(tmp_path):
    """A run file that includes runs/train.gin takes back what it sets; what compiling does not read is left out."""
    run = tmp_path / 'run.gin'
    run.write_text("include 'runs/train.gin'\ninclude 'models/slm_tiny.gin'\nMODEL_DIR = %gin.REQUIRED\n")
    precompile.configured([str(run)], [])
    assert bindings._without_value() == []
    with pytest.raises(configuration.ConfigurationError, match='MODEL has no value: give --gin.MODEL=VALUE'):
        precompile.configured(['runs/train.gin'], [])
    with pytest.raises(configuration.ConfigurationError, match='MODEL_DIR, MIXTURE_OR_TASK_NAME, TRAIN_STEPS have'):
        configuration.parse_gin(['runs/train.gin', 'models/slm_tiny.gin'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--topology=v9:2x2'], "no chip 'v9'"),
        (
            ['--topology=gpu:1GBx1', '--mesh=modl=4'],
            "--mesh modl=4: there is no axis 'modl'; data, fsdp and model are.",
        ),
        (['--topology=gpu:1GBx1', '--mesh=model=x'], '--mesh model=x: write data=1,fsdp=4,model=8, or auto.'),
        (['--topology=gpu:1GBx1', '--mesh=model=3'], 'model=3 do not multiply to the 1 devices'),
        (['--topology=gpu:1GBx1', '--steps=trin'], "no step 'trin'; there are train, evaluate, decode."),
        (['--topology=gpu:1GBx1', '--rows=0'], '--rows is 0; it must be above 0.'),
        (['--topology=gpu:1GBx1', '--gin.TRAINABLE=adaptor'], 'adaptor'),
    ],
)
def test_wrong_arguments(here, capsys, arguments, message):
    assert precompile.main([*TINY, *SMALL, '--steps=evaluate', *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and 'Traceback' not in err


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extras dev and tpu)')
def test_a_tpu_slice():
    """The console's way, for four chips: nothing but the table is shown, and no TPU is looked for."""
    arguments = [*TINY, *SMALL, '--topology=v5e:2x2', '--mesh=fsdp=2,model=2', '--steps=evaluate', '--no-smallest']
    done = subprocess.run(
        [sys.executable, '-m', 'slm_jax.cli', 'precompile', *arguments, '--json=-'],
        env={name: value for name, value in os.environ.items() if not name.startswith('JAX_PLATFORMS')},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, '')
    found = json.loads(done.stdout)
    (step,) = found['steps']
    assert step['fits'] and step['mesh'] == {'data': 1, 'fsdp': 2, 'model': 2} and not step['simulated']
    assert step['collectives']['all-gather'] > 0 and step['estimate']['seconds'] > 0
    assert step['bytes']['code'] > 0 and found['versions']['libtpu']
