"""Evaluation from a directory alone: a tiny SLM on tiny foundations, made here, untrained."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax import configuration, evaluate, foundations, infer
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries

SIZES = """
from __gin__ import dynamic_registration
from slm_jax.adapters import slm as adapter
from slm_jax.encoders import usm
from slm_jax.llms import t5
from slm_jax import decoding
from slm_jax.systems import slm
from slm_jax.systems import speech_encoder
include 'models/slm_tiny.gin'
TASK_FEATURE_LENGTHS = {'speech': 64000, 'inputs': 64, 'targets': 64}
adapter.SlmAdapterConfig.num_layers = 1
adapter.SlmAdapterConfig.output_dim = 32
adapter.SlmAdapterConfig.emb_dim = 32
adapter.SlmAdapterConfig.mlp_dim = 32
usm.UsmConfig.num_layers = 1
usm.UsmConfig.emb_dim = 32
usm.UsmConfig.subsample_channels = (4, 4)
t5.T5Config.vocab_size = 384
t5.T5Config.emb_dim = 32
t5.T5Config.mlp_dim = 32
t5.T5Config.head_dim = 8
t5.T5Config.num_encoder_layers = 1
t5.T5Config.num_decoder_layers = 1
speech_encoder.SpeechEncoder.ctc_vocab_size = 384
slm.SLM.label_tokens = None
decoding.DecodeConfig.method = 'greedy'
decoding.DecodeConfig.ctc_weight = 0.0
"""
QUICK = ('--max_decode_length', '8', '--batch_seconds', '20')


@pytest.fixture(scope='module')
def world(tmp_path_factory, sentencepiece_model):
    """A folder with `sizes.gin`, two foundations and the directory of a training, `slm`."""
    import slm_jax.tasks  # noqa: F401  registers with gin what a run's configuration has
    from slm_jax.training import checkpoints, origins, state

    folder = tmp_path_factory.mktemp('world')
    sizes = folder / 'sizes.gin'
    sizes.write_text(SIZES)
    configuration.parse_gin([str(sizes)])
    system = model_lib.configured_system()
    config = configuration.operative_config()
    shapes = state.unboxed(model_lib.abstract_params(system))
    rng = np.random.default_rng(0)

    def some(leaf):
        return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)

    params = jax.tree.map(some, shapes)
    names = {'speech_encoder': 'usm', 'llm': 't5'}
    for part, name in names.items():
        card = {'name': name, 'kind': part}
        foundations.save(folder / name, params[part], card, [sentencepiece_model])
    found = origins.find({part: str(folder / name) for part, name in names.items()})
    saved = checkpoints.Checkpoints(folder / 'slm')
    for step in (3, 7):
        number = jnp.int32(step)
        trained = {'adapter': jax.tree.map(lambda x, s=step: x + s - 7, params['adapter'])}
        now = state.TrainState(number, jnp.int32(-1), trained, {'count': number})
        card = {
            'name': 'slm',
            'kind': checkpoints.KIND,
            'foundations': {origin.subtree: origin.describe() for origin in found},
            'config': config,
        }
        saved.save(now, jax.random.key(0), card)
    saved.close()
    return folder


def run(*argv):
    return evaluate.main([*map(str, argv), *QUICK])


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text('utf-8').splitlines()]


def test_a_model_from_its_directory_alone(world, manifest, tmp_path, capsys):
    out = tmp_path / 'out'
    question = ('--instruction', 'Transcribe the {language} speech.', '--reference_field', 'text')
    with manifest.open('a') as file:
        file.write('{"audio": "gone.wav", "text": "x", "lang": "en"}\nno JSON\n')
    assert run(world / 'slm', '--manifest', manifest, *question, '--out', out, '--on_bad_example', 'skip') == 0
    said = capsys.readouterr()
    assert 'report: ' in said.out
    assert '2 bad examples skipped:' in said.err and 'gone.wav: cannot' in said.err and ':26: not JSON' in said.err
    predictions = read(out / 'predictions.jsonl')
    assert [p['id'] for p in predictions] == [f'{manifest}:{n}' for n in range(1, 25)]
    assert {p['instruction'] for p in predictions} == {
        'Transcribe the English speech.',
        'Transcribe the French speech.',
    }
    assert any(p['prediction'] for p in predictions)
    results = json.loads((out / 'results.json').read_text())
    assert set(results['scores']['transcription']) == {'en', 'fr', 'overall', 'average'}
    assert results['model']['step'] == 7 and results['model']['system'] == 'SLM'
    assert results['decode']['max_decode_length'] == 8
    assert set(results['foundations']) == {'speech_encoder', 'llm'}
    assert results['data']['examples'] == 24 and results['data']['audio_seconds'] > 20
    assert {'jax', 'jiwer', 'sacrebleu', 'slm_jax'} <= set(results['versions'])
    assert results['command'].startswith('slm-jax evaluate')
    assert '<audio' in (out / 'report.html').read_text()
    card = json.loads((world / 'slm' / 'card.json').read_text())
    [(label, noted)] = card['evaluations'].items()
    assert label.startswith(f'{tmp_path.name}-manifest-Transcribe') and noted['step'] == 7
    assert noted['scores'] == results['scores']

    again = tmp_path / 'again'
    assert run('--predictions', out / 'predictions.jsonl', '--out', again) == 0
    assert json.loads((again / 'results.json').read_text())['scores'] == results['scores']


def test_batched_as_alone(world, manifest):
    model = model_lib.load(world / 'slm', decode={'max_decode_length': 8})
    question = queries.Question('Say {language}.')
    asked = list(queries.from_manifest(manifest, [question], model.text_vocabulary, 30))
    # Of one length class, so that two programs are compiled and not a dozen.
    asked = [query for query in asked if 1.5 < len(query.samples) / 16000 <= 2.0]
    [(group, batch)] = queries.batched(asked)
    together = model.texts(batch)[: len(group)]
    alone = []
    for query in asked:
        [(_, batch)] = queries.batched([query])
        alone.append(model.texts(batch)[0])
    assert together == alone
    assert len(set(alone)) > 1, 'it hears something'


def test_a_foundation_alone_and_a_cascade(world, manifest, tmp_path):
    heard = tmp_path / 'heard'
    gin = f'--gin_file={world / "sizes.gin"}'
    field = ('--reference_field', 'text')
    assert run(world / 'usm', gin, '--manifest', manifest, *field, '--out', heard) == 0
    results = json.loads((heard / 'results.json').read_text())
    assert results['model']['system'] == 'EncoderCtc' and results['model']['step'] is None
    assert 'CTC' in results['decode']['method']
    assert 'evaluations' not in json.loads((world / 'usm' / 'card.json').read_text())

    english = [line for line in read(manifest) if line['lang'] == 'en']
    path = manifest.with_name('english.jsonl')
    for number, line in enumerate(english):
        line['id'] = f'{manifest}:{number}'
    texts = [{'id': line['id'], 'prediction': line['text'], 'reference': ''} for line in english]
    path.write_text(''.join(json.dumps(line) + '\n' for line in english))
    (heard / 'texts.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in texts))
    out = tmp_path / 'cascade'
    cascade = ('--text_from', heard / 'texts.jsonl', '--target_lang', 'fr')
    assert run(world / 't5', gin, '--manifest', path, *cascade, '--out', out) == 0
    results = json.loads((out / 'results.json').read_text())
    assert set(results['scores']['translation']) == {'en-fr'}
    assert results['model']['system'] == 'TextToText'
    assert '<audio' not in (out / 'report.html').read_text(), 'nothing was heard'

    assert run(world / 't5', gin, '--manifest', path, '--text_field', 'text', '--out', out) == 0


def test_without_its_foundations_model_file_it_asks(world, manifest, capsys):
    assert run(world / 'usm', '--manifest', manifest) == 1
    assert 'which system is it? Give --gin_file' in capsys.readouterr().err


def test_shuffled_audio(world, manifest, tmp_path):
    out = tmp_path / 'shuffled'
    assert run(world / 'slm', '--manifest', manifest, '--shuffle_audio', '--out', out) == 0
    assert json.loads((out / 'results.json').read_text())['data']['shuffle_audio'] is True
    assert 'audio of another clip' in (out / 'report.html').read_text()
    card = json.loads((world / 'slm' / 'card.json').read_text())
    assert any(label.endswith('-shuffled') for label in card['evaluations'])


def test_an_older_step_and_a_missing_one(world, capsys):
    assert model_lib.load(world / 'slm', step=3).step == 3
    with pytest.raises(ValueError, match='no checkpoint of step 5; the newest is 7'):
        model_lib.load(world / 'slm', step=5)


def test_another_foundation_is_refused(world, tmp_path, sentencepiece_model):
    params = foundations.load(world / 't5')
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    other = tmp_path / 'other'
    foundations.save(other, changed, {'name': 't5', 'kind': 'llm'}, [sentencepiece_model])
    with pytest.raises(ValueError, match='was trained with llm = .* and cannot be used with'):
        model_lib.load(world / 'slm', foundations={'llm': str(other)})
    same = tmp_path / 'same'
    foundations.save(same, params, {'name': 't5', 'kind': 'llm'}, [sentencepiece_model])
    model_lib.load(world / 'slm', foundations={'llm': str(same)})


def test_decode_settings_by_flag_and_by_gin(world):
    bindings = ['DecodeConfig.beam_size=3', 'DecodeConfig.method=beam']
    model = model_lib.load(world / 'slm', bindings=bindings, decode={'alpha': 0.1})
    assert (model.decode.method, model.decode.beam_size, model.decode.alpha) == ('beam', 3, 0.1)
    assert model.max_seconds == 4.0, 'what training let through'


def test_infer_from_the_directory_alone(world, manifest, capsys):
    file = str(manifest.with_name('clip01.wav'))
    argv = ['--model', str(world / 'slm'), '--instruction', 'Say.', *QUICK]
    assert infer.main([file, *argv, '--format', 'json']) == 0
    assert json.loads(capsys.readouterr().out)['instruction'] == 'Say.'


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'one of --task, --manifest and --predictions'),
        (['--task', 'a', '--manifest', 'b'], 'one of --task, --manifest and --predictions'),
        (['--manifest', 'b'], 'MODEL is missing'),
        (['nowhere', '--manifest', 'b'], "No foundation 'nowhere'"),
        (['x', '--task', 'b', '--normalizer', 'basik'], "'basik' is unknown"),
        (['SLM', '--manifest', 'absent.jsonl'], 'absent.jsonl: cannot be read'),
        (['SLM', '--task', 'voice_prompt'], 'did you mean voice_prompts'),
        (['SLM', '--task', 'voice_prompts', '--slots', 'all'], '--slots: only for a --manifest'),
        (['SLM', '--manifest', 'b', '--slots', 'colour'], '--slots colour: give --instruction'),
        (['SLM', '--manifest', 'b', '--mesh', 'model=3'], 'do not multiply to'),
        (['SLM', '--manifest', 'b', '--foundation', 'llm'], 'write NAME=VALUE'),
    ],
)
def test_errors_say_what_to_do(world, argv, message, capsys):
    assert run(*(world / 'slm' if word == 'SLM' else word for word in argv)) == 1
    assert message in capsys.readouterr().err


def test_labels():
    def label(*argv):
        return evaluate.label(evaluate.parser().parse_args(['m', *argv]))

    assert label('--task', 'prompts', '--split', 'dev') == 'prompts-dev'
    assert label('--task', 'prompts', '--shuffle_audio') == 'prompts-test-shuffled'
    assert label('--manifest', 'a/b.jsonl', '--instruction', 'What? Now!') == 'a-b-What_Now'
    assert label('--manifest', 'b.jsonl') == 'b'
    assert label('--task', 'p', '--text_from', 'x', '--decode', 'beam') == 'p-test-beam-text'
