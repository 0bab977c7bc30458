"""The texts of a training are noted from its card, as the training would have noted them."""

import json

import numpy as np
import pytest

from slm_jax.corpora import seen as program
from slm_jax.data import json_lines, seen

CONFIG = """
from __gin__ import dynamic_registration
from slm_jax import tasks
tasks.manifest.name = 'seen_{name}'
tasks.manifest.path = {{'train': '{folder}/lines.jsonl'}}
tasks.manifest.task = 'instruct'
MIXTURE_OR_TASK_NAME = @tasks.manifest()
"""


@pytest.fixture
def trained(tmp_path, write_wav, vocabulary):
    """A model's directory as training left it, but for the file; begun at another that has met something."""
    write_wav(tmp_path / 'a.wav', 0.5)
    asked = [('Which size?', 'Large.'), ('Which size?', 'Small.'), ('How many?', 'Two.')]
    rows = [{'audio': 'a.wav', 'text': 'a', 'instruction': ask, 'target': answer} for ask, answer in asked]
    json_lines.write(tmp_path / 'lines.jsonl', [*rows, {'audio': 'gone.wav', 'instruction': 'Why?', 'target': 'No.'}])
    first, model = tmp_path / 'first', tmp_path / 'model'
    card = {'name': 'first', 'kind': 'llm'}
    for folder in (first, model):
        folder.mkdir()
        (folder / 'card.json').write_text(json.dumps(card))
        card = {
            'name': 'model',
            'kind': 'model',
            'config': CONFIG.format(name=tmp_path.name, folder=tmp_path),
            'data': {'split': 'train', 'tasks': ['mine']},
            'initialised_from': {'llm': {'name': str(first)}},
        }
    seen.write(first, {'instructions': seen.hashes(['Before?']), 'targets': seen.hashes(['yes'])})
    return model


def test_texts_of_the_tasks_and_of_what_training_began_at(trained, tmp_path, capsys):
    assert program.main([str(trained), '--cache_dir', str(tmp_path / 'stores')]) == 0
    assert 'seen.npz: 3 instructions, 4 targets' in capsys.readouterr().out
    met = seen.read(trained)
    assert np.isin(seen.hashes(['which SIZE', 'how many', 'before']), met['instructions']).all()
    assert np.isin(seen.hashes(['large', 'small', 'two', 'yes']), met['targets']).all()
    assert not np.isin(seen.hashes(['Why?']), met['instructions']).any(), 'what could not be read was not met'


def test_what_was_not_trained_is_said(tmp_path, capsys):
    (tmp_path / 'card.json').write_text(json.dumps({'name': 'x', 'kind': 'llm'}))
    assert program.main([str(tmp_path)]) != 0
    assert 'its card names no data, so it was not trained by slm-jax train' in capsys.readouterr().err
