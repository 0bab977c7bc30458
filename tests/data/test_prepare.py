"""`slm-jax prepare`: what gin names is stored once, bad examples and wrong names are said."""

import pytest

import gin
from slm_jax import prepare

RUN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax.data import loader
MIXTURE_OR_TASK_NAME = @tasks.manifest()
tasks.manifest.name = 'prepared'
tasks.manifest.path = {path}
loader.SpeechTextLoader.mixture_or_task_name = %MIXTURE_OR_TASK_NAME
"""


@pytest.fixture
def run(manifest, tmp_path):
    import seqio

    (tmp_path / 'run.gin').write_text(RUN.format(path={'train': str(manifest)}))

    def call(*arguments):
        return prepare.main([*arguments, '--cache_dir', str(tmp_path / 'cache')])

    call.gin_file = str(tmp_path / 'run.gin')
    yield call
    gin.clear_config()
    seqio.TaskRegistry._REGISTRY.pop('prepared', None)


def test_a_manifest_named_by_gin(run, capsys):
    for _ in range(2):  # the second finds everything
        assert run('--gin_file', run.gin_file) == 0
        assert 'prepared train: 24 recordings or texts, 0.01 h' in capsys.readouterr().out


def test_bad_examples(run, manifest, capsys):
    path = manifest.parent / 'clip03.wav'
    path.write_bytes(b'')
    assert run('--gin_file', run.gin_file) == 1
    error = capsys.readouterr().err
    assert f'{path}: the file is empty' in error and "on_bad_example='skip'" in error
    assert run('--gin_file', run.gin_file, '--on_bad_example', 'skip') == 0
    out = capsys.readouterr().out
    assert '23 recordings or texts' in out and '1 bad examples skipped:' in out and str(path) in out


def test_wrong_names(run, capsys):
    assert run('voice_prompt') == 1
    assert 'did you mean voice_prompts' in capsys.readouterr().err
    assert run() == 1
    assert 'nothing to prepare' in capsys.readouterr().err
