"""The whole way in an object store: foundations, configuration, manifest, audio, MODEL_DIR, reports, exports.

What stands in for the store is object_store.py; the clients are those that one uses in earnest.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

GIN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax import train
include 'runs/train.gin'
include 'models/slm_tiny.gin'
tasks.manifest.name = 'sounds'
tasks.manifest.path = {'train': 'gs://bucket/sounds/all.jsonl', 'validation': 'gs://bucket/sounds/all.jsonl'}
MIXTURE_OR_TASK_NAME = @tasks.manifest()
FOUNDATIONS = {'speech_encoder': 'gs://bucket/foundations/usm_tiny', 'llm': 'gs://bucket/foundations/t5_tiny'}
BATCH_SECONDS = 4.0
NUM_BUCKETS = 1
EVAL_PERIOD = 2
WARMUP_STEPS = 1
train.train.num_samples = 0
TASK_FEATURE_LENGTHS = {'speech': 32000, 'inputs': 48, 'targets': 16}
"""


def slm_jax(store, folder, *arguments, status=0):
    """What `slm-jax …` prints, run in `folder`."""
    done = subprocess.run(
        [sys.executable, '-m', 'slm_jax.cli', *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **store.environment(), 'SLM_JAX_CACHE': str(folder / 'cache')},
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def sounds(store, tmp_path_factory):
    """Sounds, their manifest, foundations and a configuration in the store; an empty local folder."""
    from slm_jax import foundations, paths

    folder = tmp_path_factory.mktemp('empty')
    rng, lines = np.random.default_rng(0), []
    for number in range(8):
        soundfile.write(folder / 'a.wav', rng.normal(size=16000) * 0.1, 16_000)
        paths.upload(folder / 'a.wav', paths.path(f'gs://bucket/sounds/audio/{number}.wav'))
        where = 'gs://bucket/sounds/' if number % 2 else ''
        lines.append(json.dumps({'audio': f'{where}audio/{number}.wav', 'text': 'one', 'lang': 'en'}))
    (folder / 'a.wav').unlink()
    paths.path('gs://bucket/sounds/all.jsonl').write_text('\n'.join(lines))
    paths.path('gs://bucket/sounds/run.gin').write_text(GIN)
    for name in ('usm_tiny', 't5_tiny'):
        installed = foundations.find(name)
        for file in paths.files(installed):
            paths.upload(installed / file, paths.path(f'gs://bucket/foundations/{name}') / file)
    return folder


@pytest.mark.slow
def test_the_whole_way(store, sounds):
    from slm_jax import paths

    run = ('train', '--gin_file=gs://bucket/sounds/run.gin', '--gin.MODEL_DIR=gs://bucket/model')
    slm_jax(store, sounds, *run, '--gin.TRAIN_STEPS=2')
    assert 'resumed gs://bucket/model at step 2' in slm_jax(store, sounds, *run, '--gin.TRAIN_STEPS=4')
    said = slm_jax(
        store, sounds, 'evaluate', 'gs://bucket/model', '--manifest', 'gs://bucket/sounds/all.jsonl',
        '--out', 'gs://bucket/report', '--max_decode_length', '4',
    )  # fmt: skip
    assert 'report: gs://bucket/report/report.html' in said
    assert 'sounds' in slm_jax(store, sounds, 'card', 'gs://bucket/model')
    slm_jax(store, sounds, 'infer', 'gs://bucket/sounds/audio/0.wav', '--model', 'gs://bucket/model')
    assert 'wrote gs://bucket/export' in slm_jax(store, sounds, 'export', 'gs://bucket/model', 'gs://bucket/export')
    assert sorted(paths.files(paths.path('gs://bucket/export'))) == ['card.json', 'trainable.safetensors']
    assert [path.name for path in sounds.iterdir()] == ['cache']
