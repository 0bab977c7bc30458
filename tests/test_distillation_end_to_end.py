"""From transcripts to answers to an adapter that is trained on them, between the packaged foundations."""

import json

import numpy as np
import pytest
import soundfile

import gin
from slm_jax import cli
from slm_jax.training.logs import read_losses

GIN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax import train
from slm_jax.data import loader
from slm_jax.systems import slm
include 'runs/train.gin'
include 'models/slm_tiny.gin'
slm.SLM.objective = {{'cross_entropy': 0.5, 'distil': 0.5}}
slm.SLM.distil_temperature = 2.0
tasks.manifest.name = 'answers'
tasks.manifest.path = '{folder}/answers.jsonl'
tasks.manifest.task = 'instruct'
MIXTURE_OR_TASK_NAME = @tasks.manifest()
MODEL_DIR = '{folder}/model'
TRAIN_STEPS = 2
WARMUP_STEPS = 1
EVAL_PERIOD = 2
NUM_BUCKETS = 1
train.train.num_samples = 0
train.train.tensorboard = False
loader.SpeechTextLoader.cache_dir = '{folder}/cache'
"""


@pytest.mark.slow
def test_answers_are_distilled(tmp_path, capsys):
    rng, lines = np.random.default_rng(0), []
    for number, text in enumerate(['Please hold the line.', 'Goodbye!', 'A small coffee with milk.']):
        soundfile.write(tmp_path / f'{number}.wav', rng.normal(size=16_000) * 0.1, 16_000)
        lines.append({'audio': f'{number}.wav', 'text': text, 'lang': 'en'})
    (tmp_path / 'clips.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    assert (
        cli.main(['answers', str(tmp_path / 'clips.jsonl'), str(tmp_path / 'answers.jsonl'), '--model', 't5_tiny']) == 0
    )
    (tmp_path / 'run.gin').write_text(GIN.format(folder=tmp_path))
    try:
        assert cli.main(['train', f'--gin_file={tmp_path / "run.gin"}']) == 0, capsys.readouterr().err
        assert cli.main(['train', f'--gin_file={tmp_path / "run.gin"}', "--gin.TRAINABLE=('llm/.*',)"]) == 2
    finally:
        gin.clear_config()
    said = capsys.readouterr()
    assert 'train.trainable (set by TRAINABLE) names llm/…, which is the teacher by SLM.objective' in said.err
    evaluation = json.loads((tmp_path / 'model' / 'checkpoints' / '2' / 'card' / 'metadata').read_text())['evaluation']
    assert evaluation['validation/distil'] > 0 and evaluation['validation/loss'] > 0
    losses = read_losses(tmp_path / 'model')
    assert len(losses) == 2 and all(np.isfinite(values).all() for values in losses.values())
