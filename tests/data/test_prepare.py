"""`slm-jax prepare`: what gin names is stored once, bad examples and wrong names are said."""

import sys

import pytest

import gin
from slm_jax import prepare
from slm_jax.data import json_lines, shards

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
    assert run('--gin_file', run.gin_file) == 2
    error = capsys.readouterr().err
    assert f'{path}: the file is empty' in error and "on_bad_example='skip'" in error
    assert run('--gin_file', run.gin_file, '--on_bad_example', 'skip') == 0
    out = capsys.readouterr().out
    assert '23 recordings or texts' in out and '1 bad examples skipped:' in out and str(path) in out


def test_wrong_names(run, capsys):
    assert run('voice_prompt') == 2
    assert 'did you mean voice_prompts' in capsys.readouterr().err
    assert run() == 2
    assert 'nothing to prepare' in capsys.readouterr().err


@pytest.fixture
def beam():
    return pytest.importorskip('apache_beam')


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(next(folder.iterdir()).iterdir()) if path.name != 'lock'}


def test_beam_builds_the_same_store(beam, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    assert prepare.main(['--gin_file', run.gin_file, '--cache_dir', str(tmp_path / 'one')]) == 0
    said = capsys.readouterr().out
    assert run('--gin_file', run.gin_file, '--runner=DirectRunner') == 0
    assert capsys.readouterr().out == said
    one, many = files(tmp_path / 'one'), files(tmp_path / 'cache')
    assert one == many
    assert {'store.json', 'samples.npy', 'skipped.jsonl', '00004.json', '00004.arrayrecord'} < one.keys()
    assert len([name for name in one if name.startswith('lengths-')]) == 1 and len(one) == 14


def test_beam_goes_on_with_the_shards_that_are_missing(beam, run, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    assert run('--gin_file', run.gin_file, '--runner=DirectRunner') == 0
    whole = files(tmp_path / 'cache')
    store = next((tmp_path / 'cache').iterdir())
    for name in ('store.json', '00001.json', '00003.json', '00003.arrayrecord'):
        (store / name).unlink()
    built, build = [], shards.build
    monkeypatch.setattr(shards, 'build', lambda *args, **pieces: built.append(args[3:5]) or build(*args, **pieces))
    assert run('--gin_file', run.gin_file, '--runner=DirectRunner') == 0
    assert sorted(built) == [(1, 2), (3, 4)] and files(tmp_path / 'cache') == whole


def test_one_machine_goes_on_with_what_many_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    assert run('--gin_file', run.gin_file) == 0
    whole = files(tmp_path / 'cache')
    store = next((tmp_path / 'cache').iterdir())
    for name in ('store.json', '00000.json', '00002.json', '00003.json'):
        (store / name).unlink()
    assert run('--gin_file', run.gin_file) == 0
    assert files(tmp_path / 'cache') == whole


def test_beam_lists_all_bad_examples_in_one_file(beam, run, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, 'SHARD_EXAMPLES', 5)
    bad = [manifest.parent / f'clip{number:02d}.wav' for number in (3, 4, 17)]
    for path in bad:
        path.write_bytes(b'')
    assert run('--gin_file', run.gin_file, '--runner=DirectRunner') == 2
    error, store = capsys.readouterr().err, next((tmp_path / 'cache').iterdir())
    assert f'3 bad examples, all listed in {store}/skipped.jsonl; the first: {bad[0]}: the file is empty' in error
    assert "on_bad_example='skip'" in error and 'Traceback' not in error
    listed = json_lines.read(store / 'skipped.jsonl')
    assert [row['error'].split(':')[0] for row in listed] == [str(path) for path in bad]
    assert sorted(path.stem for path in store.glob('*.json')) == ['00001', '00002', '00004']
    assert run('--gin_file', run.gin_file, '--runner=DirectRunner', '--on_bad_example', 'skip') == 0
    assert '21 recordings or texts' in capsys.readouterr().out


def test_beam_that_cannot_run_is_said_in_one_line(run, monkeypatch, capsys):
    pytest.importorskip('apache_beam')
    assert run('--gin_file', run.gin_file, '--runner=DirektRunner') == 2
    assert '--runner=DirektRunner: Beam has no such runner. DirectRunner is this machine' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    assert run('--gin_file', run.gin_file, '--runner=DirectRunner') == 2
    assert '--runner takes Apache Beam, which is not installed' in (error := capsys.readouterr().err)
    assert "pip install 'slm_jax[beam]'" in error
    with pytest.raises(SystemExit):
        run('--gin_file', run.gin_file, '--project=p')
    assert 'unrecognized arguments: --project=p' in capsys.readouterr().err
