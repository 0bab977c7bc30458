"""A model of public parts: a small Whisper and a small T5, as transformers saved them, and an untrained adapter."""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from slm_jax import configuration, evaluate, import_, infer, train
from slm_jax.inference import model as model_lib
from slm_jax.inference import traces
from slm_jax.training import partitioning

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata'
GIN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
include 'runs/slm_imported.gin'
include '{folder}/whisper/model.gin'
include '{folder}/t5/model.gin'
MIXTURE_OR_TASK_NAME = 'voice_prompts'
MODEL_DIR = 'model'
TRAIN_STEPS = 1
"""
QUICK = ('--max_decode_length', '4', '--batch_seconds', '60')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with `model`, the directory of a training, and clips of 25 and 31 s with their manifest."""
    import slm_jax.tasks  # noqa: F401  registers with gin what a run's configuration has
    from slm_jax.training import checkpoints, origins, state

    folder = tmp_path_factory.mktemp('whisper')
    import_.import_checkpoint(str(GOLDENS / 'encoder_goldens' / 'whisper'), str(folder / 'whisper'), 'float32')
    import_.import_checkpoint(str(GOLDENS / 't5_goldens' / 't5_1_1'), str(folder / 't5'), 'float32')
    (folder / 'model.gin').write_text(GIN.format(folder=folder))
    configuration.parse_gin([str(folder / 'model.gin')])
    config = configuration.operative_config()
    rng = np.random.default_rng(0)
    shapes = state.unboxed(traces.abstract_params(model_lib.configured_system()))['adapter']
    adapter = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    found = origins.find({'speech_encoder': str(folder / 'whisper'), 'llm': str(folder / 't5')})
    card = {'name': 'model', 'kind': checkpoints.KIND, 'config': config}
    card['foundations'] = {origin.subtree: origin.describe() for origin in found}
    saved = checkpoints.Checkpoints(folder / 'model')
    saved.save(state.TrainState(jnp.int32(1), jnp.int32(-1), {'adapter': adapter}, {}), jax.random.key(0), card)
    saved.close()
    with (folder / 'clips.jsonl').open('w') as lines:
        for name, seconds in (('fits', 25), ('long', 31)):
            noise = (1000 * rng.standard_normal(seconds * 16_000)).astype(np.int16)
            soundfile.write(folder / f'{name}.wav', noise, 16_000)
            lines.write(json.dumps({'audio': f'{name}.wav', 'text': name}) + '\n')
    return folder


def test_whisper_takes_all_clips_up_to_its_30_seconds(world, tmp_path, capsys):
    assert infer.main([str(world / 'fits.wav'), str(world / 'long.wav'), '--model', str(world / 'model'), *QUICK]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and out.startswith(str(world / 'fits.wav'))
    assert '31 s is longer than the 30 s' in err and '`slm-jax infer --chunk_seconds 30` cuts' in err
    argv = [str(world / 'model'), '--manifest', str(world / 'clips.jsonl'), '--out', str(tmp_path), *QUICK]
    assert evaluate.main([*argv, '--on_bad_example', 'skip']) == 0
    data = json.loads((tmp_path / 'results.json').read_text())['data']
    assert data['examples'] == 1 and 'long.wav: 31 s is longer' in data['skipped'][0]
    assert evaluate.main([*argv, '--max_seconds', '31']) == 1
    assert 'the speech encoder of model takes 30 s at once' in capsys.readouterr().err


def test_answers_are_traced_by_the_rules_of_generation(world, monkeypatch):
    asked = []

    def tracing(partitioner, mesh, generation=False):
        asked.append(generation)
        return contextlib.nullcontext()

    monkeypatch.setattr(partitioning.Partitioner, 'tracing', tracing)
    loaded = model_lib.load(world / 'model', decode={'max_decode_length': 2})
    batch = {
        'speech_samples': np.zeros((1, 0), np.int16),
        'speech_lengths': np.zeros(1, np.int32),
        'encoder_input_tokens': np.full((1, 4), 5, np.int32),
    }
    assert len(loaded.answers(batch)) == 1
    assert asked == [True]


@pytest.mark.parametrize('lengths', ["{'speech': 480640}", "{'inputs': 64}"])
def test_training_refuses_more_before_its_data_is_prepared(world, lengths, capsys):
    file = f'--gin_file={world / "model.gin"}'
    assert train.main([file, f'--gin.TASK_FEATURE_LENGTHS={lengths}']) == 2
    err = capsys.readouterr().err
    assert 'the speech encoder takes 30 s at once. Set it to 480000 or less' in err
