"""The README's way with public foundations: import, train an adapter, go on, evaluate, infer, export.

    bash launch/test.sh tests/importers/test_imported_end_to_end.py

is every encoder with T5 1.1 and with mT5. The Hugging Face directories are small random models that transformers saved.
The speech is of recordings where `slm-jax prepare voice_prompts` has been, else of tones.
"""

import json
import pathlib

import numpy as np
import pytest
import soundfile

import gin
from slm_jax import cli, foundations
from slm_jax.importers.hugging_face import tensors
from slm_jax.training.logs import read_losses

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata'
GIN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax import train
include 'runs/slm_imported.gin'
include 'foundations/encoder/model.gin'
include 'foundations/llm/model.gin'
tasks.manifest.name = 'a_few_clips'
tasks.manifest.path = %MANIFESTS
MIXTURE_OR_TASK_NAME = @tasks.manifest()
NUM_BUCKETS = 1
BATCH_SECONDS = 4
WARMUP_STEPS = 1
train.train.num_samples = 0
"""


def recordings(split, count):
    """Samples, rate and text of clips of 0.5 to 2 s."""
    import tensorflow_datasets as tfds

    import slm_jax.data.tensorflow_cpu  # noqa: F401  before others load TensorFlow
    import slm_jax.data.voice_prompts  # noqa: F401  registers the data set

    prompts = tfds.builder('voice_prompts')
    if prompts.data_path.exists():
        for clip in tfds.as_numpy(prompts.as_dataset(split=split)):
            if clip['lang'] == b'en' and 4000 <= len(clip['audio']) <= 16_000 and clip['text'] and count:
                count -= 1
                yield clip['audio'], 8000, clip['text'].decode()
        return
    rng, time = np.random.default_rng(count), np.arange(16_000) / 16_000
    for number in range(count):
        tone = 5000 * np.sin(2 * np.pi * (300 + 200 * (number % 4)) * time) + 50 * rng.standard_normal(len(time))
        yield tone.astype(np.int16), 16_000, 'abcd'[number % 4]


@pytest.fixture(scope='module')
def manifests(tmp_path_factory):
    """{split: JSONL}, the files beside it."""
    folder, paths = tmp_path_factory.mktemp('speech'), {}
    for split, count in (('train', 8), ('validation', 2)):
        lines = []
        for number, (samples, rate, text) in enumerate(recordings(split, count)):
            soundfile.write(folder / f'{split}{number}.wav', samples, rate)
            lines.append(json.dumps({'audio': f'{split}{number}.wav', 'text': text, 'lang': 'en'}))
        paths[split] = str(folder / f'{split}.jsonl')
        pathlib.Path(paths[split]).write_text('\n'.join(lines))
    return paths


@pytest.mark.slow
@pytest.mark.parametrize('llm', ('t5_1_1', 'mt5'))
@pytest.mark.parametrize('encoder', ('whisper', 'gemma3n', 'w2v_bert'))
def test_the_whole_way(encoder, llm, manifests, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))

    def slm_jax(command):
        """What a command prints."""
        status, printed = cli.main(command.split()), capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    slm_jax(f'import {GOLDENS}/encoder_goldens/{encoder} foundations/encoder')
    slm_jax(f'import {GOLDENS}/t5_goldens/{llm} foundations/llm')
    pathlib.Path('mine.gin').write_text(f'{GIN}MANIFESTS = {manifests}')
    clip = manifests['validation'].replace('.jsonl', '0.wav')
    try:
        for steps in (2, 4):
            said = slm_jax(f'train --gin_file=mine.gin --gin.MODEL_DIR=model --gin.TRAIN_STEPS={steps}')
            assert ('resumed' in said) == (steps == 4)
        asked = '--instruction Transcribe --max_decode_length 16'
        assert 'WER' in slm_jax(f'evaluate model --out report {asked} --manifest {manifests["validation"]}')
        answer = json.loads(slm_jax(f'infer {clip} --model model --format json {asked}'))
        slm_jax('export model exported')
    finally:
        gin.clear_config()
    losses = read_losses('model')
    assert sorted(losses) == [0, 1, 2, 3] and all(np.isfinite(values).all() for values in losses.values())
    results = json.loads(pathlib.Path('report/results.json').read_text())
    predictions = pathlib.Path('report/predictions.jsonl').read_text().splitlines()
    assert len(predictions) == 2 and results['scores']['transcription']['en']['wer'] >= 0
    assert answer['text'].split() == json.loads(predictions[0])['prediction'].split()
    named = json.loads(pathlib.Path('exported/card.json').read_text())['foundations']
    assert named == foundations.card('model')['foundations'] == results['foundations']
    assert {part: named[part]['fingerprint'] for part in named} == {
        'speech_encoder': foundations.card('foundations/encoder')['fingerprint'],
        'llm': foundations.card('foundations/llm')['fingerprint'],
    }
    pathlib.Path('exported/trainable.safetensors').rename('exported/model.safetensors')
    assert all(name.startswith('adapter/') for name in tensors.tensors(pathlib.Path('exported')))
