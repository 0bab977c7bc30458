"""How an answer begins: without TensorFlow, without tracing twice, and with cards of other versions."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from slm_jax import foundations, paths
from slm_jax.inference import card_text, traces
from slm_jax.inference import model as model_lib

_ANSWER = """
import sys
import io
from slm_jax import ask, evaluate, infer
from slm_jax.serving import app, service  # all of `slm-jax serve` but the model, which is infer's
assert infer.main(['noise.wav', '--model', 'slm_tiny', '--decode', 'greedy', '--max_decode_length', '8']) == 0
sys.stdin = io.StringIO('/load noise.wav\\nTranscribe the speech.\\n')
assert ask.main(['--model', 'slm_tiny', '--decode', 'greedy', '--max_decode_length', '8']) == 0
assert evaluate.main(['--predictions', 'predictions.jsonl', '--out', 'report']) == 0
print('imported:', *({'tensorflow', 'tensorflow_datasets', 'seqio', 'clu', 't5x'} & set(sys.modules)))
"""


def test_what_only_answers_never_imports_tensorflow(tmp_path):
    noise = np.random.default_rng(0).normal(size=8000) * 0.1
    soundfile.write(tmp_path / 'noise.wav', noise, 16_000)
    line = {'id': 'a', 'lang': 'en', 'reference': 'yes', 'prediction': 'yes', 'instruction': 'Transcribe the speech.'}
    (tmp_path / 'predictions.jsonl').write_text(json.dumps(line))
    done = subprocess.run([sys.executable, '-c', _ANSWER], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].split() == ['imported:']


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Where traces are kept."""
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path))
    return paths.cache() / 'traces'


def test_parameters_are_traced_once_for_each_configuration(notes, monkeypatch):
    model_lib.configure(foundations.card('t5_tiny'), [], [])
    system = model_lib.configured_system()
    first = traces.abstract_params(system)
    monkeypatch.setattr(type(system), 'init', None)  # is not called again
    assert foundations.flatten(traces.abstract_params(system)) == foundations.flatten(first)
    assert len(list(notes.iterdir())) == 1
    monkeypatch.undo()
    monkeypatch.setenv('SLM_JAX_CACHE', str(notes.parent))
    model_lib.configure(foundations.card('t5_tiny'), [], ['T5Config.num_decoder_layers=1'])
    fewer = traces.abstract_params(model_lib.configured_system())
    assert len(foundations.flatten(fewer)) < len(foundations.flatten(first)) and len(list(notes.iterdir())) == 2


def test_a_program_is_traced_once_for_each_shape(notes):
    traced = []

    def double(tree):
        traced.append(tree['x'].shape)
        return tree['x'] * 2

    for shape in ((2,), (2,), (3,), (2,)):
        x = np.arange(*shape, dtype=np.float32)
        np.testing.assert_array_equal(traces.program(double, ['double'], {'x': x})({'x': x}), 2 * x)
    assert traced == [(2,), (3,)]
    traces.program(double, ['another'], {'x': x})
    assert traced == [(2,), (3,), (2,)]


@pytest.mark.parametrize('name', ['usm_tiny', 't5_tiny', 'slm_tiny'])
def test_the_packaged_cards_have_a_configuration_that_is_ours(name):
    card = foundations.card(name)
    for training in (False, True):
        model_lib.configure(card, [], [], training)
        assert model_lib.configured_system() is not None


def test_only_training_reads_of_tasks_and_loaders():
    config = card_text.for_answering(foundations.card('slm_tiny')['config'])
    assert 'slm.SLM.adapter = @adapter.SlmAdapter()' in config and 'TASK_FEATURE_LENGTHS' in config
    statements = [line for line in config.splitlines() if not line.startswith('#')]
    assert not any(word in line for word in ('loader', 'registry', 'tasks', 'optimizers') for line in statements)


def test_a_card_that_names_what_is_no_more_is_refused():
    card = foundations.card('slm_tiny')
    card['config'] = card['config'].replace('slm_jax.adapters import slm', 'slm_jax.adaptors import slm')
    with pytest.raises(
        model_lib.ModelError, match=r"(?s)card of 'slm_tiny'.*written by 0\.1\.0.*slm_jax\.adaptors.*\n.*mend"
    ):
        model_lib.configure(card, [], [])


def test_a_macro_may_name_one_that_stands_behind_it():
    kept = 'from slm_jax.systems import slm\n\nEMBED_DIM = 4\nMODEL = @slm.SLM()\nWIDTH = %EMBED_DIM\n'
    left_out = 'FIRST = %SECOND\nLOADER_TASKS = %FIRST\nSECOND = @tasks.manifest()\n'
    config = f'from slm_jax import tasks\n{kept}{left_out}'
    assert card_text.for_answering(config).split() == kept.split()
