"""Paths in an object store: what is said of those that cannot be used, and that all read and write there."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from slm_jax import cli, configuration, paths
from slm_jax.data import json_lines, segments, sources


@pytest.mark.parametrize('name', ['gs://nowhere/model', 'ftp://host/model', 'gs://', 's3://bucket/model'])
def test_what_cannot_be_used_is_said_in_one_line(store, name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda module: None if module == 's3fs' else find(module))
    remedy = {
        'gs://nowhere/model': 'gs://nowhere: there is no such bucket, or it is hidden from you. Correct the name',
        'ftp://host/model': 'no scheme ftp:// is known; give a local path, or one of gs://, s3://',
        'gs://': 'the name of the bucket is missing',
        's3://bucket/model': "takes s3fs, which is not installed: pip install 'slm_jax\\[s3\\]'",
    }[name]
    with pytest.raises(paths.StorageError, match=remedy) as raised:
        paths.path(name)
    assert '\n' not in str(raised.value)


def test_who_is_not_let_in_is_told_how(store, monkeypatch):
    monkeypatch.setattr(store, 'let_in', False)
    paths._reach.cache_clear()
    with pytest.raises(
        paths.StorageError,
        match=r'gs://bucket: cannot be reached \(Anonymous caller .*\). To be let in, log in by `gcloud auth',
    ):
        paths.path('gs://bucket/model')
    paths._reach.cache_clear()


@pytest.mark.parametrize(
    'command',
    [
        ['train', '--gin_file=gs://bucket/no.gin'],
        ['evaluate', 'slm_tiny', '--manifest', 'gs://bucket/no.jsonl'],
        ['evaluate', '--predictions', 'gs://bucket/no.jsonl'],
        ['infer', 'gs://bucket/no.wav', '--model', 'slm_tiny'],
        ['infer', '--manifest', 'gs://bucket/no.jsonl', '--model', 'slm_tiny'],
        ['infer', 'a.wav', '--model', 'gs://nowhere/model'],
        ['export', 'gs://bucket/no', 'gs://bucket/out'],
        ['import', 'gs://bucket/no', 'gs://bucket/out'],
        ['card', 'gs://bucket/no'],
    ],
)
def test_what_is_not_there_is_one_line(store, command, capsys):
    assert cli.main(command) in (1, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if 'SLM_JAX_TRACEBACK' not in line]
    assert len(said) == 1 and ('gs://bucket/no' in said[0] or 'gs://nowhere' in said[0]), said


def test_a_manifest_there_names_recordings_there(store, tmp_path):
    noise = (1000 * np.random.default_rng(0).normal(size=32000)).astype(np.int16)
    soundfile.write(tmp_path / 'a.flac', noise, 16_000)
    soundfile.write(tmp_path / 'a.wav', noise, 16_000)
    for name in ('a.flac', 'a.wav'):
        paths.upload(tmp_path / name, paths.path(f'gs://bucket/manifests/audio/{name}'))
    rows = [
        {'audio': 'audio/a.flac', 'text': 'a', 'lang': 'en'},
        {'audio': 'gs://bucket/manifests/audio/a.wav', 'text': 'a', 'lang': 'en', 'offset': 1.0, 'duration': 0.5},
        {'audio': str(tmp_path / 'a.wav'), 'text': 'a', 'lang': 'en'},
    ]
    json_lines.write('gs://bucket/manifests/all.jsonl', rows)
    source = sources.ManifestSource({'train': 'gs://bucket/manifests/all.jsonl'})
    lengths = [len(segments.read(e['audio'], e['offset'], e['duration'])) for e in source.examples('train')]
    assert lengths == [32000, 8000, 32000]
    before = source.state('train')
    assert source.state('train') == before
    paths.upload(tmp_path / 'a.wav', paths.path('gs://bucket/manifests/audio/a.flac'))
    changed = source.state('train')
    del store.objects['manifests/audio/a.flac']
    assert len({before, changed, source.state('train')}) == 3


def test_a_file_there_is_copied_once(store, tmp_path, monkeypatch):
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path))
    url = paths.path('gs://bucket/copies/00000.arrayrecord')
    url.write_bytes(b'1234')
    first = paths.local(url)
    assert first.read_bytes() == b'1234' and paths.local(url) == first
    url.write_bytes(b'5678')
    assert paths.local(url).read_bytes() == b'5678'
    with pytest.raises(FileNotFoundError, match='gs://bucket/copies/none'):
        paths.local('gs://bucket/copies/none')
    assert paths.local(tmp_path / 'as it is') == tmp_path / 'as it is'


def test_a_configuration_there_may_include_another(store):
    paths.path('gs://bucket/gin/all.gin').write_text("include 'gs://bucket/gin/more.gin'\n")
    paths.path('gs://bucket/gin/more.gin').write_text("include 'models/t5_tiny.gin'\nNAME = 'there'\n")
    configuration.parse_gin(['gs://bucket/gin/all.gin'])
    from slm_jax.inference import model

    assert model.query('%NAME') == 'there'
    with pytest.raises(configuration.ConfigurationError, match="gin file 'gs://bucket/gin/none.gin' is not there"):
        configuration.parse_gin(['gs://bucket/gin/none.gin'])


def test_the_user_cache_may_be_there(store, monkeypatch):
    from slm_jax import foundations
    from slm_jax.foundations import verification

    monkeypatch.setenv('SLM_JAX_CACHE', 'gs://bucket/cache')
    foundations.verified('t5_tiny')
    assert any(name.startswith('cache/verified/') for name in store.objects)
    monkeypatch.setattr(verification, '_content', None)  # is not read again
    foundations.verified('t5_tiny')


def test_local_paths_need_no_client():
    code = (
        'import sys; from slm_jax import paths; paths.path("a"); '
        'print({"fsspec", "gcsfs", "tensorflow", "aiohttp"} & set(sys.modules))'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'set()'


def test_names_with_a_tilde_or_colons_are_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert paths.path('~/a') == tmp_path / 'a'
    assert str(paths.path('~nobody-of-that-name/a')) == '~nobody-of-that-name/a'
    assert not paths.is_url('a:b') and not paths.is_url('/x://y') and paths.is_url('gs://b/x')
    rows = [json.loads('{"a": 1}')]
    json_lines.write(tmp_path / 'x.jsonl', rows)
    assert json_lines.read(tmp_path / 'x.jsonl') == rows


def test_a_manifest_that_is_not_there_is_one_line(store, tmp_path, capsys):
    run = f"""
include 'runs/train.gin'
include 'models/slm_tiny.gin'
from __gin__ import dynamic_registration
from slm_jax import tasks
tasks.manifest.name = 'absent'
tasks.manifest.path = {{'train': 'gs://bucket/none.jsonl', 'validation': 'gs://bucket/none.jsonl'}}
MIXTURE_OR_TASK_NAME = @tasks.manifest()
MODEL_DIR = '{tmp_path / 'model'}'
TRAIN_STEPS = 300
"""
    (tmp_path / 'run.gin').write_text(run)
    assert cli.main(['train', f'--gin_file={tmp_path / "run.gin"}']) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('slm-jax') or 'Trace' in line]
    assert len(said) == 1 and 'gs://bucket/none.jsonl: cannot be read (No such file or directory)' in said[0]
