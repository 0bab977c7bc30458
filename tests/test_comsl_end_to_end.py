"""ComSL from a manifest: trained across the thaw of its encoder, asked, evaluated; and what is refused before."""

import json

import flax.linen
import jax
import numpy as np
import pytest
import soundfile

import gin
from slm_jax import cli, foundations, llms
from slm_jax.audio import frontends
from slm_jax.data import json_lines
from slm_jax.encoders import whisper
from slm_jax.inference import model as model_lib
from slm_jax.llms import mbart
from slm_jax.systems import speech_encoder
from slm_jax.training import checkpoints
from slm_jax.training.logs import read_losses

LINES = [
    {'text': 'bonjour', 'lang': 'fr', 'translation': {'en': 'good morning'}},
    {'text': 'trois nouveaux messages', 'lang': 'fr', 'translation': {'en': 'three new messages'}},
    {'text': 'ne quittez pas', 'lang': 'fr', 'translation': {'en': 'hold the line'}},
    {'text': 'au revoir', 'lang': 'fr', 'translation': {'en': 'goodbye'}},
]
GIN = """
from __gin__ import dynamic_registration
from slm_jax import decoding
from slm_jax import tasks
from slm_jax import train
from slm_jax.audio import frontends
from slm_jax.data import loader
from slm_jax.data import vocabularies
from slm_jax.encoders import whisper
from slm_jax.llms import mbart
from slm_jax.systems import comsl
from slm_jax.systems import speech_encoder
include 'runs/comsl.gin'
include 'models/mbart_tiny.gin'
SPEECH_ENCODER = ''
LLM = '{folder}/mbart_tiny'
FOUNDATIONS = {{}}
VOCAB_SIZE = 160
EMBED_DIM = 16
NUM_HEADS = 2
MLP_DIM = 16
TASK = 'ast'
TRAINABLE = {{'(adapter|llm)/.*': 0, 'speech_encoder/.*': %THAW_STEP}}
mbart.MBartConfig:
  num_encoder_layers = 1
  num_decoder_layers = 1
comsl.ComSlConfig.erm_layer = 1
whisper.WhisperConfig:
  num_layers = 1
  emb_dim = 16
  num_heads = 2
  mlp_dim = 16
  window_seconds = 1.0
whisper.WhisperEncoder.config = @whisper.WhisperConfig()
speech_encoder.SpeechEncoder:
  frontend = @frontends.WhisperFrontend()
  encoder = @whisper.WhisperEncoder()
vocabularies.names.llm = %LLM
tasks.manifest.name = 'clips'
tasks.manifest.path = '{folder}/clips.jsonl'
tasks.manifest.task = %TASK
tasks.manifest.target_lang = 'en'
MIXTURE_OR_TASK_NAME = @tasks.manifest()
MODEL_DIR = '{folder}/model'
TRAIN_STEPS = 4
WARMUP_STEPS = 1
THAW_STEP = 2
EVAL_PERIOD = 2
BATCH_SECONDS = 4.0
NUM_BUCKETS = 1
LEARNING_RATE = 1e-3
train.train.num_samples = 1
train.train.tensorboard = False
loader.SpeechTextLoader.cache_dir = '{folder}/cache'
decoding.DecodeConfig.max_decode_length = 8
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With clips.jsonl, a vocabulary of it and run.gin."""
    from slm_jax.corpora import tokenizers

    folder, rng = tmp_path_factory.mktemp('comsl'), np.random.default_rng(0)
    for number, line in enumerate(LINES):
        soundfile.write(folder / f'{number}.wav', 0.1 * rng.normal(size=16_000), 16_000)
        line['audio'] = f'{number}.wav'
    json_lines.write(folder / 'clips.jsonl', LINES)
    pairs = [{**line, 'translation': line['translation']['en'], 'target_lang': 'en'} for line in LINES]
    json_lines.write(folder / 'pairs.jsonl', pairs)
    tokenizers.main([str(folder / 'pairs.jsonl'), str(folder), '--parallel', '--pieces', '60'])
    (folder / 'run.gin').write_text(GIN.format(folder=folder))
    return folder


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def run(folder, *bindings):
    gin.clear_config()
    return cli.main(['train', f'--gin_file={folder / "run.gin"}', *(f'--gin.{each}' for each in bindings)])


@pytest.mark.slow
def test_trained_asked_and_evaluated(folder, capsys):
    assert run(folder) == 0, capsys.readouterr().err
    assert len(read_losses(folder / 'model')) == 4
    card = checkpoints.load_for_inference(folder / 'model')[1]
    assert {f'validation/{name}' for name in ('loss', 'asr', 'st', 'mt', 'asr_mix', 'st_mix', 'mtp', 'erm')} <= (
        card['evaluation'].keys()
    )
    gin.clear_config()
    capsys.readouterr()
    files = [str(folder / '0.wav'), str(folder / '1.wav')]
    ask = ['infer', *files, '--model', str(folder / 'model'), '--format', 'json', '--instruction']
    assert cli.main([*ask, 'Translate this French speech to English.']) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer['audio'] for answer in answers] == files and all('text' in answer for answer in answers)
    for asked, message in (
        ('Translate this speech to English.', 'which language is spoken is not known'),
        ('What does the caller want?', 'this model reads none, it transcribes and translates'),
        ('Transcribe the Welsh speech.', "the language model has no code for the language 'cy' (Welsh)"),
    ):
        gin.clear_config()
        assert cli.main([*ask, asked]) != 0 and message in capsys.readouterr().err
    gin.clear_config()
    out = str(folder / 'evaluated')
    arguments = ['--manifest', str(folder / 'clips.jsonl'), '--target_lang', 'en', '--out', out]
    assert cli.main(['evaluate', str(folder / 'model'), *arguments]) == 0, capsys.readouterr().err
    predictions = [*json_lines.read(folder / 'evaluated' / 'predictions.jsonl')]
    assert [line['reference'] for line in predictions] == [line['translation']['en'] for line in LINES]


def test_what_is_refused_before_the_first_step(folder, capsys):
    """A weight of a loss without data, a line without translation, and a language that has no code."""
    assert run(folder, "TASK='asr'", f"MODEL_DIR='{folder / 'none'}'", "tasks.manifest.name='heard'") == 2
    assert 'ComSlConfig.st is 0.35, and no task of the data has speech and translation' in capsys.readouterr().err
    for name, change, message in (
        ('untold', {'translation': {}}, 'field "translation" is missing. There is none into \'en\''),
        ('welsh', {'lang': 'cy'}, "the language model has no code for the language 'cy' (Welsh)"),
        ('nameless', {'lang': ''}, 'the language of the text is not stated'),
        ('unsaid', {'text': ''}, 'field "text" is missing. The transcript is needed'),
    ):
        json_lines.write(folder / f'{name}.jsonl', [*LINES[:3], LINES[3] | change])
        bindings = [
            f"tasks.manifest.path='{folder / name}.jsonl'", f"tasks.manifest.name='{name}'",
            *(f"{each}/loader.SpeechTextLoader.on_bad_example='raise'" for each in ('train', 'eval')),
            f"MODEL_DIR='{folder / 'none'}'",
        ]  # fmt: skip
        assert run(folder, *bindings) == 2
        said = capsys.readouterr().err
        assert f'{name}.jsonl:4' in said and message in said


STAGES = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax import train
from slm_jax.encoders import whisper
from slm_jax.llms import mbart
from slm_jax.systems import comsl
VOCAB_SIZE = 160
EMBED_DIM = 16
NUM_HEADS = 2
MLP_DIM = 16
SPEECH_ENCODER = '{folder}/whisper'
SPEECH_TASKS = @clips/tasks.manifest()
tasks.manifest.name = 'pairs_of_stages'
clips/tasks.manifest:
  name = 'clips_of_stages'
  path = '{folder}/clips.jsonl'
  task = 'ast'
  target_lang = 'en'
mbart.MBartConfig:
  num_encoder_layers = 1
  num_decoder_layers = 1
comsl.ComSlConfig.erm_layer = 1
whisper.WhisperConfig:
  num_layers = 1
  emb_dim = 16
  num_heads = 2
  mlp_dim = 16
  window_seconds = 1.0
TRANSLATION_STEPS = 2
SPEECH_STEPS = 2
JOINT_STEPS = 2
THAW_STEP = 1
WARMUP_STEPS = 1
EVAL_PERIOD = 2
ENCODER_SECONDS = 1.0
BATCH_SECONDS = 4.0
NUM_BUCKETS = 1
train.train.num_samples = 0
train.train.tensorboard = False
"""


@pytest.mark.slow
def test_three_stages_in_one_command(folder, monkeypatch, capsys):
    monkeypatch.setenv('SLM_JAX_CACHE', str(folder / 'cache'))
    sizes = {'emb_dim': 16, 'num_heads': 2, 'mlp_dim': 16}
    text = mbart.MBart(
        mbart.MBartConfig(vocab_size=160, num_encoder_layers=1, num_decoder_layers=1, max_positions=512, **sizes)
    )
    heard = speech_encoder.SpeechEncoder(
        frontend=frontends.WhisperFrontend(),
        encoder=whisper.WhisperEncoder(whisper.WhisperConfig(num_layers=1, window_seconds=1.0, **sizes)),
    )
    samples = np.zeros((1, 16_000), np.int16), np.array([16_000], np.int32)
    tokenizer = folder / 'mbart_tiny'
    languages = {name: json.loads((tokenizer / 'card.json').read_text())[name] for name in ('languages', 'swapped')}
    for kind, params, card, files in (
        ('speech_encoder', heard.init(jax.random.key(0), *samples)['params'], {}, []),
        ('llm', llms.initial_params(text, jax.random.key(1)), languages, [tokenizer / 'tokenizer.model']),
    ):
        name = {'speech_encoder': 'whisper', 'llm': 'text'}[kind]
        params = flax.linen.unbox(params)
        foundations.save(folder / name, params, {'name': name, 'kind': kind, **card}, files, dtype='float32')
    (folder / 'stages.gin').write_text(STAGES.format(folder=folder))
    command = [
        'pretrain', 'comsl_tiny', str(folder / 'out'), f'--gin_file={folder / "stages.gin"}',
        f"--gin.TEXT_MODEL='{folder / 'text'}'", f"--gin.TEXT_MANIFEST='{folder / 'pairs.jsonl'}'",
    ]  # fmt: skip
    assert cli.main([*command, '--tokenizer', str(tokenizer)]) == 2
    assert '--tokenizer: comsl_tiny has that of its text model; leave it out.' in capsys.readouterr().err
    assert cli.main(command) == 0, capsys.readouterr().err
    stages = folder / 'out' / 'stages'
    card = foundations.card(stages / 'joint')
    first = {part: entry['name'] for part, entry in card['initialised_from'].items()}
    assert first == {
        'llm': str(stages / 'translation'), 'speech_encoder': str(stages / 'speech'), 'adapter': str(stages / 'speech'),
    }  # fmt: skip
    assert {part: entry['name'] for part, entry in card['foundations'].items()} == {
        'speech_encoder': str(folder / 'whisper')
    }
    before = sorted(stages.glob('*/checkpoints/*'))
    assert cli.main(command) == 0 and sorted(stages.glob('*/checkpoints/*')) == before  # nothing is trained again
    gin.clear_config()
    assert model_lib.load(str(stages / 'joint')).text_vocabulary.languages['fr_XX']
