"""The whole way: sounds in files, an adapter between the packaged foundations, a score that only listening explains."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from slm_jax import evaluate
from slm_jax.training.logs import read_losses

RATE = 16_000
WORDS = {'one': (500, 900), 'two': (1200, 300), 'three': (700, 2400), 'four': (2000, 1500)}
GIN = """
from __gin__ import dynamic_registration
from slm_jax import decoding
from slm_jax import tasks
from slm_jax import train
from slm_jax.adapters import slm as adapter
from slm_jax.systems import slm
include 'runs/train.gin'
include 'models/slm_tiny.gin'
# What CTC makes of tones is no start, and no help in writing.
slm.SLM.label_tokens = None
decoding.DecodeConfig.ctc_weight = 0.0
adapter.SlmAdapterConfig.reduction = 'stack'
adapter.SlmAdapterConfig.reduction_factor = 4
adapter.SlmAdapterConfig.output_scale = 1.0
tasks.manifest.name = 'sounds'
tasks.manifest.path = {'train': 'train.jsonl', 'validation': 'test.jsonl'}
MIXTURE_OR_TASK_NAME = @tasks.manifest()
BATCH_SECONDS = 16.0
NUM_BUCKETS = 1
WARMUP_STEPS = 20
EVAL_PERIOD = 120
train.train.num_samples = 0
TASK_FEATURE_LENGTHS = {'speech': 32000, 'inputs': 48, 'targets': 16}
"""
TRAIN = '--gin_file=sounds.gin --gin.MODEL_DIR=model --gin.TRAIN_STEPS=120'.split()


def sound(word, rng):
    """A pair of tones of a loudness, length and noise of its own, int16."""
    time = np.arange(int(rng.uniform(0.7, 1.3) * RATE)) / RATE
    first, second = (np.sin(2 * np.pi * rng.uniform(0.97, 1.03) * hertz * time) for hertz in WORDS[word])
    wave = np.where(time < time[-1] / 2, first, second) * rng.uniform(2000, 9000)
    return (wave + 100 * rng.standard_normal(len(time))).astype(np.int16)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A directory where `slm-jax train` has run, beside sounds that it has not heard."""
    folder = tmp_path_factory.mktemp('sounds')
    rng = np.random.default_rng(0)
    for split, clips in (('train', 24), ('test', 6)):
        lines = []
        for number in range(clips * len(WORDS)):
            word = [*WORDS][number % len(WORDS)]
            soundfile.write(folder / f'{split}{number}.wav', sound(word, rng), RATE)
            lines.append(json.dumps({'audio': f'{split}{number}.wav', 'text': word, 'lang': 'en'}))
        (folder / f'{split}.jsonl').write_text('\n'.join(lines))
    (folder / 'sounds.gin').write_text(GIN)
    slm_jax(folder, 'train', *TRAIN)
    return folder


def slm_jax(folder, *arguments):
    """What `slm-jax …` prints, run in `folder`."""
    return python(folder, '-m', 'slm_jax.cli', *arguments)


def python(folder, *arguments):
    """What Python prints, run in `folder`."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={**os.environ, 'SLM_JAX_CACHE': str(folder / 'cache')}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def word_error_rate(*options):
    assert evaluate.main(['model', '--manifest', 'test.jsonl', '--out', 'report', *options]) == 0
    return json.loads(pathlib.Path('report/results.json').read_text())['scores']['transcription']['en']['wer']


def test_the_loss_falls(folder):
    losses = [values[-1] for _, values in sorted(read_losses(folder / 'model').items())]
    assert len(losses) == 120
    assert np.mean(losses[:3]) > 1.5 and np.mean(losses[-10:]) < 0.5


def test_it_hears_sounds_it_was_not_trained_on(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert word_error_rate() < 10
    assert word_error_rate('--shuffle_audio') > 50


def test_infer_answers_on_one_file_from_int8(folder):
    assert 'three' in slm_jax(folder, 'infer', 'test2.wav', '--model', 'model', '--gin.FROZEN_DTYPE=int8')


@pytest.mark.slow
def test_int8_changes_the_loss_by_less_than_a_percent(folder):
    benchmark = pathlib.Path(__file__).parent / 'benchmarks/bench_int8.py'
    table = [line.split('|')[1:-1] for line in python(folder, benchmark, 'model').splitlines() if line.startswith('|')]
    size, loss = ({row[0].strip(): float(row[column]) for row in table[2:]} for column in (1, 3))
    assert 0.5 < size['int8'] / size['bfloat16'] < 0.52
    assert loss['int8'] != loss['float32']
    for dtype in ('bfloat16', 'int8'):  # a loss near 0, as here, is compared with 0.1
        assert abs(loss[dtype] - loss['float32']) < 0.01 * max(loss['float32'], 0.1)
