"""Recordings of a manifest and of a task are the same ones, with what their lines say."""

import json
import pathlib

import numpy as np
import seqio

from slm_jax import tasks
from slm_jax.codebooks.recordings import Manifest, Stored
from slm_jax.data import cache


def test_a_task_gives_what_its_manifest_does(manifest, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(seqio.TaskRegistry, '_REGISTRY', dict(seqio.TaskRegistry._REGISTRY))
    task = seqio.TaskRegistry.get(tasks.manifest('units', manifest))
    stores = [cache.open_store(task, 'train', tmp_path / 'cache')] * 2
    stored, listed = Stored([store.directory for store in stores]), Manifest(str(manifest), tmp_path)
    assert len(listed) == 24 and len(stored) == 48
    for one, other in zip(listed.read(22, 30), stored.read(46, 60), strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert {**one.row, 'audio': str(tmp_path / one.row['audio'])} == other.row
    assert [each.row['id'] for each in stored.read(23, 25)] == [f'{manifest}:24', f'{manifest}:1']


def test_paths_are_those_from_the_folder_of_the_new_manifest(manifest, tmp_path):
    first = next(Manifest(str(manifest), tmp_path / 'a/b').read(0, 1))
    assert first.row['audio'] == '../../clip00.wav'


def test_a_line_without_a_recording_is_an_error(tmp_path):
    path = pathlib.Path(tmp_path, 'm.jsonl')
    path.write_text(json.dumps({'text': 'x'}) + '\n{"audio": "none.wav"}\nno JSON\n')
    errors = [each.error for each in Manifest(str(path), tmp_path).read(0, 5)]
    assert 'm.jsonl:1: the line has no "audio"' in errors[0] and 'none.wav' in errors[1]
    assert 'm.jsonl:3: not JSON' in errors[2]
