"""DMLM from end to end with tiny parts: a codebook, units, training, scores, a recording heard and a text said.

    bash launch/test.sh tests/test_dmlm_end_to_end.py

The encoder and the language model are small random ones, the speech is of tones.
"""

import json
import pathlib
import sys

import numpy as np
import pytest
import soundfile

import gin
from slm_jax import cli, foundations
from slm_jax.training.logs import read_losses

sys.path.append(str(pathlib.Path(__file__).parent / 'importers'))
import tiny_llm

GOLDENS = pathlib.Path(__file__).parent / 'testdata/encoder_goldens'
GIN = """
from __gin__ import dynamic_registration
from slm_jax import train
from slm_jax.systems import dmlm
from slm_jax.systems import speech_encoder
include 'runs/dmlm.gin'
include 'foundations/llm/model.gin'
include 'models/dmlm.gin'
include 'foundations/encoder/model.gin'
SPEECH = {'train': 'train_units.jsonl', 'validation': 'validation_units.jsonl'}
SPEECH_UNITS = 8
SPEECH_CODEBOOK = 'book'
NEW_ROWS_LIKE = %LLM
FOUNDATIONS = {'llm': %LLM, 'speech_encoder': %SPEECH_ENCODER, 'codebook': %SPEECH_CODEBOOK}
dmlm.DMLM.speech_encoder = @speech_encoder.SpeechEncoder()
ROW_LENGTH = 128
ROWS = 2
WARMUP_STEPS = 1
MODEL_DIR = 'model'
train.train.num_samples = 1
"""
VOCODER = (
    'train --gin_file=codebooks/vocoder.gin --gin.MODEL_DIR=vocoder --gin.UNITS=train_units.jsonl '
    '--gin.UNITS_VALIDATION=validation_units.jsonl --gin.NUM_UNITS=8 --gin.TRAIN_STEPS=2 --gin.WARMUP_STEPS=1 '
    '--gin.BATCH_ROWS=1 --gin.UnitAudio.crop_seconds=0.2 --gin.VocoderConfig.emb_dim=8 --gin.VocoderConfig.num_layers=1'
)


def recordings(folder):
    """Manifests of tones, and what they are to say."""
    rng, time = np.random.default_rng(0), np.arange(12_000) / 16_000
    for split, count in (('train', 8), ('validation', 2)):
        lines = []
        for number in range(count):
            tone = 5000 * np.sin(2 * np.pi * (300 + 200 * (number % 4)) * time**1.5) + 50 * rng.standard_normal(12_000)
            soundfile.write(folder / f'{split}{number}.wav', tone.astype(np.int16), 16_000)
            lines.append(json.dumps({'audio': f'{split}{number}.wav', 'text': 'abcd'[number % 4], 'lang': 'en'}))
        (folder / f'{split}.jsonl').write_text('\n'.join(lines))


@pytest.mark.slow
def test_the_whole_way(tmp_path, monkeypatch, capsys):
    pytest.importorskip('sklearn')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))

    def slm_jax(*command, status=0):
        """What a command prints; a part that begins with '=' is one argument."""
        parts = [[part[1:]] if part.startswith('=') else part.split() for part in command]
        returned, printed = cli.main([each for part in parts for each in part]), capsys.readouterr()
        assert returned == status, printed.err
        return printed.err if status else printed.out

    recordings(tmp_path)
    slm_jax(f'import {GOLDENS}/whisper foundations/encoder')
    slm_jax(f'import {tiny_llm.write(tmp_path / "llm")} foundations/llm')
    pathlib.Path('mine.gin').write_text(GIN)
    run = 'train --gin_file=mine.gin'
    try:
        slm_jax('codebook fit book --encoder foundations/encoder --manifest train.jsonl --gin.K=8')
        for split in ('train', 'validation'):
            slm_jax(f'codebook encode book {split}_units.jsonl --manifest {split}.jsonl')
        for steps in (2, 4):
            said = slm_jax(f'{run} --gin.TRAIN_STEPS={steps}')
            assert ('resumed' in said) == (steps == 4)

        short = '--gin.sampling/DecodeConfig.max_decode_length=6 --max_decode_length 8'
        assert 'WER' in slm_jax(f'evaluate model --task dmlm_asr --split validation --out asr {short}')
        slm_jax(f'evaluate model --task dmlm_t2s --split validation --out t2s {short}')
        answer = json.loads(slm_jax(f'infer validation0.wav --model model --format json {short}'))
        slm_jax(VOCODER)
        slm_jax('infer --speak', '=ab cd', f'said.wav --model model --vocoder vocoder {short}')

        assert '2 recordings' in slm_jax('codebook decode vocoder t2s/predictions.jsonl spoken')

        refused = slm_jax('infer --speak', '=ab', 'no.wav --model slm_tiny --vocoder vocoder', status=2)
        assert 'slm_tiny writes no units of speech. Give --model a DMLM' in refused
        assert '--speak takes a text, one file to write' in slm_jax('infer --speak ab out.mp3', status=2)
        slm_jax('codebook fit other --encoder foundations/encoder --manifest train.jsonl --gin.K=8 --gin.LAYER=1')
        refused = slm_jax(f'{run} --gin.SPEECH_CODEBOOK=other --gin.MODEL_DIR=no', status=2)
        assert 'is a codebook of foundations/encoder (layer 1, fingerprint' in refused
        refused = slm_jax(f'{run} --gin.SPEECH_CODEBOOK=other --gin.DMLM.layer=1 --gin.MODEL_DIR=no', status=2)
        assert "the tokens are of 'book@" in refused and "and the model has 'other@" in refused
        refused = slm_jax(f'{run} --gin.SPEECH_UNITS=4 --gin.MODEL_DIR=no', status=2)
        assert 'codebook/centroids has shape' in refused
        refused = slm_jax(f'{run} --gin.NEW_ROWS_LIKE=foundations/encoder --gin.MODEL_DIR=no', status=2)
        assert '(set by NEW_ROWS_LIKE)' in refused and 'the width of its token_embedder/embedding is none' in refused
        weights = "--gin.MODALITY_WEIGHTS={'text':1.0}"
        assert '(set by MODALITY_WEIGHTS) has no weight for speech, of which' in slm_jax(
            f'{run} --gin.MODEL_DIR=no', f'={weights}', status=2
        )
        assert not pathlib.Path('no').exists() or not [*pathlib.Path('no').glob('[0-9]*')]
    finally:
        gin.clear_config()
    losses = read_losses('model')
    assert sorted(losses) == [0, 1, 2, 3] and all(np.isfinite(values).all() for values in losses.values())
    asr, t2s = (list(map(json.loads, (tmp_path / f'{name}/predictions.jsonl').open())) for name in ('asr', 't2s'))
    assert answer['text'].split() == asr[0]['prediction'].split()
    units = json.loads((tmp_path / 'validation_units.jsonl').read_text().splitlines()[0])['units']
    assert asr[0]['instruction'] == t2s[0]['reference'] == ' '.join(map(str, units))
    assert all(0 <= int(unit) < 8 for row in t2s for unit in row['prediction'].split())
    spoken = list(map(json.loads, (tmp_path / 'spoken/manifest.jsonl').open()))
    assert [row['text'] for row in spoken] == [row['instruction'] for row in t2s] == ['a', 'b']
    samples, rate = soundfile.read('said.wav')
    assert rate == 16_000 and len(samples) and not pathlib.Path('no.wav').exists()
    card = foundations.card('model')
    assert card['initialised_from']['llm']['fingerprint'] == foundations.card('foundations/llm')['fingerprint']
    assert card['foundations'].keys() == {'speech_encoder', 'codebook'}
