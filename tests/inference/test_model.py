"""A model of public parts: a small Whisper and a small T5, as transformers saved them, and an untrained adapter."""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import linen as nn

from slm_jax import configuration, evaluate, foundations, import_, infer, llms, train
from slm_jax.data import prompts
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
# As `slm-jax import` writes it for a decoder-only model; this one reads bytes.
CHAT_GIN = """
from __gin__ import dynamic_registration
from slm_jax.data import prompts
from slm_jax.data import vocabularies
from slm_jax.llms import decoder_only
LLM = '{folder}/llm'
LLM_MODULE = @decoder_only.DecoderOnly()
CHAT_TEMPLATE = '<user>\\n{{user}}<end>\\n'
EMBED_DIM = 32
NUM_HEADS = 2
HEAD_DIM = 16
MLP_DIM = 64
EMBED_SCALE = 0.02
decoder_only.DecoderOnlyConfig:
  vocab_size = 259
  emb_dim = %EMBED_DIM
  num_layers = 2
  num_heads = 4
  num_kv_heads = 2
  head_dim = 8
  mlp_dim = 64
  logits_via_embedding = True
decoder_only.DecoderOnly.config = @decoder_only.DecoderOnlyConfig()
vocabularies.names.llm = %LLM
prompts.Prompt.chat = %CHAT_TEMPLATE
"""
CHAT_RUN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
include 'runs/slm_imported.gin'
include 'models/usm_tiny.gin'
include '{folder}/llm/model.gin'
SPEECH_ENCODER = 'usm_tiny'
REDUCTION_FACTOR = 2
MIXTURE_OR_TASK_NAME = 'voice_prompts'
MODEL_DIR = 'model'
TRAIN_STEPS = 1
"""
QUICK = ('--max_decode_length', '4', '--batch_seconds', '60')


def saved(folder, names):
    """Writes `model` as a training by `model.gin` between these foundations would, its adapter at random."""
    import slm_jax.tasks  # noqa: F401  registers with gin what a run's configuration has
    from slm_jax.training import checkpoints, origins, state

    configuration.parse_gin([str(folder / 'model.gin')])
    config = configuration.operative_config()
    rng = np.random.default_rng(0)
    shapes = state.unboxed(traces.abstract_params(model_lib.configured_system()))['adapter']
    adapter = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    card = {'name': 'model', 'kind': checkpoints.KIND, 'config': config}
    card['foundations'] = {origin.subtree: origin.describe() for origin in origins.find(names)}
    saved = checkpoints.Checkpoints(folder / 'model')
    saved.save(state.TrainState(jnp.int32(1), jnp.int32(-1), {'adapter': adapter}, {}), jax.random.key(0), card)
    saved.close()
    return rng


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with `model`, the directory of a training, and clips of 25 and 31 s with their manifest."""
    folder = tmp_path_factory.mktemp('whisper')
    import_.import_checkpoint(str(GOLDENS / 'encoder_goldens' / 'whisper'), str(folder / 'whisper'), 'float32')
    import_.import_checkpoint(str(GOLDENS / 't5_goldens' / 't5_1_1'), str(folder / 't5'), 'float32')
    (folder / 'model.gin').write_text(GIN.format(folder=folder))
    rng = saved(folder, {'speech_encoder': str(folder / 'whisper'), 'llm': str(folder / 't5')})
    with (folder / 'clips.jsonl').open('w') as lines:
        for name, seconds in (('fits', 25), ('long', 31)):
            noise = (1000 * rng.standard_normal(seconds * 16_000)).astype(np.int16)
            soundfile.write(folder / f'{name}.wav', noise, 16_000)
            lines.write(json.dumps({'audio': f'{name}.wav', 'text': name}) + '\n')
    return folder


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    """A folder with `llm`, a decoder-only foundation at random, and `model`, of a training with it."""
    folder = tmp_path_factory.mktemp('chat')
    (folder / 'model.gin').write_text(CHAT_GIN.format(folder=folder))
    configuration.parse_gin([str(folder / 'model.gin')])
    llm = model_lib.query('%LLM_MODULE')
    fresh = jax.jit(lambda: llms.initial_params(llm, jax.random.key(0)))()
    params = jax.tree.map(lambda leaf: 10 * leaf, nn.unbox(fresh))
    card = {'name': 'llm', 'kind': 'llm', 'vocabulary': 'bytes'}
    foundations.save(folder / 'llm', params, card, [folder / 'model.gin'])
    (folder / 'model.gin').write_text(CHAT_RUN.format(folder=folder))
    saved(folder, {'speech_encoder': 'usm_tiny', 'llm': str(folder / 'llm')})
    return folder


def test_a_decoder_only_model_hears_in_the_users_turn(chat, manifest, tmp_path, monkeypatch, capsys):
    """And reads as it would alone what stands in the place of the speech."""
    asked, answer = [], model_lib.Model.answers

    def answers(model, batch):
        asked.append((model.prompt, batch['encoder_input_tokens'][batch['encoder_input_tokens'].any(axis=1)]))
        return answer(model, batch)

    def said(tokens):
        return bytes(token - 3 if token > 2 else ord('*') for token in tokens if token).decode()

    monkeypatch.setattr(model_lib.Model, 'answers', answers)
    line = manifest.read_text().splitlines()[0]
    manifest.write_text(line + '\n')
    clip = str(manifest.with_name(json.loads(line)['audio']))
    assert infer.main([clip, '--model', str(chat / 'model'), '--instruction', 'Say {it}.', *QUICK]) == 0
    prompt, tokens = asked.pop()
    assert prompt == prompts.Prompt(None, '<user>\n{user}<end>\n') and prompts.SPEECH in tokens[0]
    assert said(tokens[0]) == '<user>\n*\nSay {it}.<end>\n'
    predictions = []
    for name in ('model', 'llm'):
        argv = [str(chat / name), '--manifest', str(manifest), '--text_field', 'text', '--out', str(tmp_path / name)]
        assert evaluate.main([*argv, *QUICK]) == 0
        predictions.append(json.loads((tmp_path / name / 'predictions.jsonl').read_text()))
    assert predictions[0] == predictions[1] and predictions[0]['prediction']
    written = json.loads(line)
    expected = f'<user>\n{written["text"]}\n{predictions[0]["instruction"]}<end>\n'
    assert [said(tokens[0]) for _, tokens in asked] == [expected, expected]
    capsys.readouterr()


@pytest.mark.slow
def test_training_with_a_decoder_only_model(chat, manifest, tmp_path, capsys):
    """The run of imported parts takes either kind; the prompt's tokens count."""
    (tmp_path / 'tasks.gin').write_text('from __gin__ import dynamic_registration\nfrom slm_jax.tasks import registry')
    files = ('runs/slm_imported.gin', 'models/usm_tiny.gin', chat / 'llm' / 'model.gin', tmp_path / 'tasks.gin')
    macros = {
        'SPEECH_ENCODER': 'usm_tiny', 'REDUCTION_FACTOR': 2, 'MODEL_DIR': tmp_path / 'run', 'TRAIN_STEPS': 2,
        'WARMUP_STEPS': 1, 'NUM_BUCKETS': 1, 'train.eval_loaders': '{}', 'MIXTURE_OR_TASK_NAME': '@registry.manifest()',
        'registry.manifest.name': 'mine', 'registry.manifest.path': manifest,
    }  # fmt: skip
    macros['train/loader.SpeechTextLoader.on_bad_example'] = 'raise'
    argv = [f'--gin_file={file}' for file in files] + [f'--gin.{name}={value}' for name, value in macros.items()]
    assert train.main([*argv, "--gin.TASK_FEATURE_LENGTHS={'speech': 480000, 'inputs': 30, 'targets': 512}"]) == 2
    assert 'tokens of inputs where 30 are allowed' in capsys.readouterr().err  # 'Transcribe the speech.' has 22
    assert train.main(argv) == 0
    assert 'train 2: loss ' in capsys.readouterr().out
    assert infer.main([str(manifest.with_name('clip00.wav')), '--model', str(tmp_path / 'run'), *QUICK]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize('said', ['True', 'False'])
def test_a_card_of_before_says_where_the_speech_stands(said):
    config = (
        f'from __gin__ import dynamic_registration\nfrom slm_jax.systems import slm\nslm.SLM.speech_first = {said}\n'
    )
    card = {'name': 'mine', 'kind': 'model', 'versions': {'slm_jax': '0.1.0'}, 'config': config}
    if said == 'True':
        model_lib.configure(card, [], [])
        assert prompts.Prompt() == prompts.Prompt(None, None)
    else:
        message = r"'mine' has SLM.speech_first = False: .*no prompts.Prompt.template gives. Use .*\(0.1.0\), or train"
        with pytest.raises(ValueError, match=message):
            model_lib.configure(card, [], [])


def test_whisper_takes_all_clips_up_to_its_30_seconds(world, tmp_path, capsys):
    assert infer.main([str(world / 'fits.wav'), str(world / 'long.wav'), '--model', str(world / 'model'), *QUICK]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and out.startswith(str(world / 'fits.wav'))
    assert '31 s is longer than the 30 s' in err and '`slm-jax infer --chunk_seconds 30` cuts' in err
    argv = [str(world / 'model'), '--manifest', str(world / 'clips.jsonl'), '--out', str(tmp_path), *QUICK]
    assert evaluate.main([*argv, '--on_bad_example', 'skip']) == 0
    data = json.loads((tmp_path / 'results.json').read_text())['data']
    assert data['examples'] == 1 and 'long.wav: 31 s is longer' in data['skipped'][0]
    assert evaluate.main([*argv, '--max_seconds', '31']) == 2
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
