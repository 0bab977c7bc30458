"""From training to answers, of an SSR by the packaged gin files on foundations of its own."""

import json

import numpy as np
import pytest
import soundfile
import tiny_slm

import gin
from slm_jax import cli
from slm_jax.data import json_lines
from slm_jax.training.logs import read_losses

GIN = """
from __gin__ import dynamic_registration
from slm_jax.adapters import ssr as compressor
from slm_jax.audio import frontends
from slm_jax.encoders import aligners
from slm_jax.encoders import spelling
from slm_jax.encoders import usm
from slm_jax.systems import speech_encoder
from slm_jax.systems import ssr
include 'models/ssr.gin'
include '{folder}/llm/model.gin'
include 'models/lora.gin'
FOUNDATIONS = {{'speech_encoder': '{folder}/encoder', 'llm': '{folder}/llm'}}
TRAINABLE = ('adapter/.*', 'aligner/.*', 'lora/.*')
LORA_RANK = 2
TASK_FEATURE_LENGTHS = {{'speech': 16000, 'inputs': 64, 'targets': 64}}
usm.UsmConfig:
  num_layers = 1
  emb_dim = 16
  num_heads = 2
  subsample_channels = (4, 4)
usm.UsmEncoder.config = @usm.UsmConfig()
speech_encoder.SpeechEncoder:
  frontend = @frontends.UsmFrontend()
  encoder = @usm.UsmEncoder()
aligners.CtcAligner.config = @aligners.TransformerConfig()
aligners.TransformerConfig:
  spelling = @spelling.Spelling()
  num_layers = 0
  emb_dim = 16
  num_heads = 2
  mlp_dim = 16
spelling.Spelling.by_token = None
spelling.Spelling.vocab_size = 384
compressor.SsrConfig:
  output_dim = 16
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 16
ssr.SSR:
  objective = {{'next_token': 1.0, 'distil': 0.5, 'cross_entropy': 0.5}}
  switch_rate = 0.2
  frames_per_token = 2.0
  piece_seconds = 1.0
"""


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The directory of a model that was trained for two steps, with recordings of 0.6 to 3 s beside it."""
    folder = tmp_path_factory.mktemp('ssr')
    tiny_slm.write(folder, 'llama')
    (folder / 'slm.gin').write_text(GIN.format(folder=folder))
    tiny_slm.configured(folder)
    tiny_slm.train(folder, 2)
    gin.clear_config()
    rng = np.random.default_rng(0)
    for name, seconds in (('a', 0.6), ('b', 0.9), ('long', 3.0)):
        soundfile.write(folder / f'{name}.wav', 0.1 * rng.normal(size=int(16_000 * seconds)), 16_000)
    return folder / 'run'


def evaluated(model, name, line, *options):
    json_lines.write(model.parent / f'{name}.jsonl', [line])
    out = model.parent / name
    given = ['--manifest', model.parent / f'{name}.jsonl', '--out', out, '--max_decode_length', '4', *options]
    assert cli.main(['evaluate', str(model), *map(str, given)]) == 0
    gin.clear_config()
    return json_lines.read(out / 'predictions.jsonl')[0]


@pytest.mark.slow
def test_all_of_it_is_learnt_answered_and_scored(model, capsys):
    losses = read_losses(model)
    assert len(losses) == 2 and all(np.isfinite(values).all() for values in losses.values())
    long = str(model.parent / 'long.wav')
    assert cli.main(['infer', long, '--model', str(model), '--max_decode_length', '4']) == 1
    assert '--max_seconds 3 lets it through as it is' in capsys.readouterr().err
    gin.clear_config()
    arguments = ['infer', long, '--model', str(model), '--max_decode_length', '4', '--max_seconds', '3']
    assert cli.main([*arguments, '--format', 'json']) == 0
    gin.clear_config()
    line = json.loads(capsys.readouterr().out)
    assert line['duration'] == 3.0 and 'text' in line
    arguments = ['infer', str(model.parent / 'b.wav'), '--model', str(model), '--format', 'json', '--word_times']
    assert cli.main([*arguments, '--gin.SSR.probe_answers=True']) == 0
    gin.clear_config()
    line = json.loads(capsys.readouterr().out)
    assert len(line['words']) == len(line['text'].split()) and 0 <= line['words'][-1]['end'] <= 0.96
    recordings = [{'audio': 'a.wav', 'text': 'one'}, {'audio': 'b.wav', 'text': 'two'}]
    turns = {'id': 'x', 'interleaved': ['Q ', recordings[0], ' A 1 Q ', recordings[1], ' A'], 'target': '2'}
    assert 'prediction' in evaluated(model, 'turns', turns)
    given = ['--manifest', str(model.parent / 'turns.jsonl'), '--format', 'json', '--max_decode_length', '4']
    capsys.readouterr()
    assert cli.main(['infer', '--model', str(model), *given]) == 0
    gin.clear_config()
    assert json.loads(capsys.readouterr().out)['instruction'] == 'Q … A 1 Q … A'
    turns |= {'choices': ['1', '2']}
    scored = evaluated(model, 'scored', turns, '--score_choices')
    read = evaluated(model, 'read', turns, '--score_choices', '--text_field', 'text')
    assert scored['prediction'] in '12' and scored['log_likelihoods'] != read['log_likelihoods']
    pair = {'id': 'y', 'choices': recordings, 'target': 'two'}
    heard = evaluated(model, 'pair', pair, '--score_choices')
    assert heard['prediction'] in ('one', 'two') and max(heard['tokens']) > 0 and max(heard['log_likelihoods']) < 0
    probe = evaluated(
        model, 'probe', {'id': 'z', 'audio': 'long.wav', 'text': 'x'}, '--max_seconds=3', '--gin.SSR.probe_answers=True'
    )
    assert probe['prediction'] != ''
