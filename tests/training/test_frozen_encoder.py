"""The frozen encoder by itself: its frames are a batch's, its key is all that decides them, and trainings read them."""

import dataclasses
import functools
import json
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from slm_jax import configuration, foundations, precompile, prepare, train
from slm_jax.adapters.slm import SlmAdapter, SlmAdapterConfig
from slm_jax.audio.frontends import UsmFrontend, WhisperFrontend
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.data import feature_converter
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.encoders.whisper import WhisperConfig, WhisperEncoder
from slm_jax.inference import model
from slm_jax.llms.t5 import T5, T5Config
from slm_jax.systems.slm import SLM
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.systems.text_to_text import TextToText
from slm_jax.training import frozen_encoder, partitioning, precompiled, setup
from slm_jax.training.logs import read_losses

CONFIG = UsmConfig(num_layers=1, emb_dim=32, num_heads=2, context_right=4, subsample_channels=(4, 4))
SPEECH = SpeechEncoder(UsmFrontend(), UsmEncoder(CONFIG))
ADAPTER = SlmAdapter(
    SlmAdapterConfig(output_dim=32, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, reduction='stack')
)
LLM = T5(
    T5Config(
        vocab_size=40, emb_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=16, mlp_dim=64
    )
)
SYSTEM = SLM(SPEECH, ADAPTER, LLM)
LENGTHS = {'speech': 24_000, 'inputs': 4, 'targets': 4}


@pytest.fixture(scope='module')
def params():
    return nn.unbox(jax.jit(SYSTEM.init)(jax.random.key(0), setup.least_batch()))


@pytest.fixture(scope='module')
def directory(params, tmp_path_factory):
    path = tmp_path_factory.mktemp('foundation') / 'encoder'
    foundations.save(path, params['speech_encoder'], {'name': 'encoder', 'kind': 'speech_encoder'})
    return str(path)


@pytest.fixture(scope='module')
def encoder(directory):
    return frozen_encoder.of(SYSTEM, {'speech_encoder': directory, 'llm': 'no such thing, and not asked for'})


def examples():
    rng = np.random.default_rng(0)
    for seconds in (1.5, 0.4, 0.0, 1.0):  # one is a text
        samples = (2000 * rng.standard_normal(int(16_000 * seconds))).astype(np.int16)
        yield {'speech': samples, 'inputs': rng.integers(2, 40, 4), 'targets': rng.integers(2, 40, 3)}


def batches(encoder):
    """The same from samples, and from stored frames."""
    rows = [feature_converter.model_features(example, LENGTHS) for example in examples()]
    shape = encoder.shapes({'speech_samples': ((4, LENGTHS['speech']), np.dtype(np.int16))})['speech_frames'][0]
    made = [encoder(example['speech']) if len(example['speech']) else None for example in examples()]
    encoded = [feature_converter.with_frames(row, frames, shape[1:]) for row, frames in zip(rows, made)]
    return [{name: np.stack([row[name] for row in each]) for name in each[0]} for each in (rows, encoded)]


@functools.partial(jax.jit, static_argnums=0)
def loss_of(system, params, batch, rng=None):
    return system.loss(params, batch, rng)


@jax.jit
def frames_of(params, batch):
    return SPEECH.apply({'params': params['speech_encoder']}, batch['speech_samples'], batch['speech_lengths'])[:2]


def test_frames_at_the_ends_do_not_count_in_a_rate():
    """As Whisper's, whose window is what a clip needs and a little more."""
    whisper = WhisperEncoder(WhisperConfig(1, 8, 2, 8, window_seconds=2.0))
    encoder = frozen_encoder.FrozenEncoder(SpeechEncoder(WhisperFrontend(), whisper), {}, 'whisper', '', '')
    assert encoder.frames_per_second == 50.0


def test_losses_are_those_from_samples_to_the_type_of_the_frames(encoder, params):
    """bfloat16 has 8 bits: a frame errs by up to 2**-9 of itself. Of frames rounded alike the loss is the same.

    Both adapters drop out the same; the encoder masks and drops out nothing when it is not asked.
    """
    samples, encoded = batches(encoder)
    adapter = SlmAdapter(dataclasses.replace(ADAPTER.config, dropout_rate=0.3))
    heard = dataclasses.replace(SYSTEM, adapter=adapter)
    read = dataclasses.replace(heard, speech_encoder=SPEECH.clone(augmentation=SpecAugmentConfig()))
    held, rng = {part: params[part] for part in ('adapter', 'llm')}, jax.random.key(1)
    frames, lengths = map(np.asarray, frames_of(params, samples))
    np.testing.assert_array_equal(lengths, encoded['speech_frame_lengths'])
    np.testing.assert_allclose(frames, encoded['speech_frames'].astype(np.float32), rtol=2**-8, atol=1e-5)
    loss, metrics = loss_of(read, held, encoded, rng)
    np.testing.assert_allclose(loss, loss_of(heard, params, samples, rng)[0], rtol=1e-3)
    rounded = {**encoded, 'speech_frames': frames.astype(encoded['speech_frames'].dtype)}
    np.testing.assert_allclose(loss, loss_of(read, held, rounded, rng)[0], rtol=1e-5)
    assert metrics['speech_text_cosine'][1] == 3
    changed = dataclasses.replace(read, speech_encoder=SPEECH.clone(frame_augmentation=SpecAugmentConfig()))
    assert abs(loss_of(changed, held, encoded, rng)[0] - loss) > 1e-4  # stored frames can still be augmented
    np.testing.assert_array_equal(loss_of(changed, held, encoded, None)[0], loss_of(read, held, encoded, None)[0])


@pytest.mark.slow
def test_answers_are_those_from_samples(encoder, params):
    predict = jax.jit(functools.partial(SYSTEM.predict, decode=DecodeConfig(max_decode_length=3)))
    heard, read = (predict(params, batch) for batch in batches(encoder))
    np.testing.assert_array_equal(read, heard)
    assert np.all(read[:, 0] > 1), 'nobody is silent'


def test_a_batch_of_texts_passes_as_through_the_language_model_alone(encoder, params):
    texts = {name: array[2:3] for name, array in batches(encoder)[1].items()}
    texts['speech_frames'] = texts['speech_frames'][:, :0]
    alone = loss_of(TextToText(LLM), {'llm': params['llm']}, texts)[0]
    assert loss_of(SYSTEM, {part: params[part] for part in ('adapter', 'llm')}, texts)[0] == alone


def test_the_key_is_what_decides_the_frames(encoder, directory, params, tmp_path):
    def of(config=CONFIG, frontend=None, foundation=directory, **changes):
        speech = SpeechEncoder(frontend or UsmFrontend(), UsmEncoder(config), **changes)
        return frozen_encoder.of(SLM(speech, ADAPTER, LLM), {'speech_encoder': foundation})

    copy, other = tmp_path / 'copy', tmp_path / 'other'
    foundations.save(copy, params['speech_encoder'], {'name': 'another name', 'kind': 'speech_encoder'})
    changed = jax.tree.map(lambda leaf: leaf + 1, params['speech_encoder'])
    foundations.save(other, changed, {'name': 'encoder', 'kind': 'speech_encoder'})
    trained = dataclasses.replace(CONFIG, dropout_rate=0.1, remat_policy='full')
    alike = [of(), of(trained), of(foundation=str(copy)), of(ctc_vocab_size=20, augmentation=SpecAugmentConfig())]
    alike.append(of(frame_augmentation=SpecAugmentConfig()))
    assert {each.key for each in alike} == {encoder.key}
    others = [
        of(dataclasses.replace(CONFIG, context_right=5)),
        of(dataclasses.replace(CONFIG, dtype=jnp.bfloat16)),
        of(frontend=UsmFrontend(mean=1.0)),
        of(foundation=str(other)),
    ]
    assert len({each.key for each in others} | {encoder.key}) == 5
    with pytest.raises(ValueError, match='FOUNDATIONS names no .speech_encoder., so there is none whose frames'):
        frozen_encoder.of(SYSTEM, {'llm': 't5_tiny'})
    with pytest.raises(ValueError, match='TextToText has no speech encoder that stays as it is'):
        frozen_encoder.of(TextToText(LLM), {'llm': 't5_tiny'})


def test_another_machine_makes_the_same_or_says_that_it_has_another(encoder):
    samples = next(examples())['speech']
    there = pickle.loads(pickle.dumps(encoder))
    frozen_encoder._program.cache_clear()
    assert there(samples).tobytes() == encoder(samples).tobytes() and there.key == encoder.key
    assert frozen_encoder._program.cache_info().misses == 1
    stale = dataclasses.replace(encoder, fingerprint='0' * 64)
    with pytest.raises(ValueError, match='on this machine and 0{64} where this began. Put the same foundation on all'):
        stale(samples)


def test_what_reads_frames_holds_no_encoder(encoder):
    partitioner = partitioning.Partitioner()

    def of(trainable):
        return setup.lay_out(SYSTEM, trainable, partitioner, partitioner.mesh())

    layout = frozen_encoder.left_out(of(('adapter/.*',)))
    assert list(layout.held) == ['llm'] and set(layout.frozen) == {'llm', 'speech_encoder'}
    with pytest.raises(ValueError, match=r'ENCODED: the speech encoder trains \(TRAINABLE\)'):
        frozen_encoder.left_out(of(('adapter/.*', 'speech_encoder/encoder/subsample_0/.*')))
    size = precompiled.Size(rows=4, seconds=1.5, inputs=4, targets=4)
    training = precompiled.Training(SYSTEM, ('adapter/.*',), None, partitioner, None, DecodeConfig(), encoded=True)
    batch = training.batch(layout, size)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (array.shape, array.dtype) for name, array in batches(encoder)[1].items()
    }
    given = precompile.configured(['models/slm_tiny.gin'], ['ENCODED=True'])[0]
    gin.clear_config()
    assert given.encoded and not precompile.configured(['models/slm_tiny.gin'], [])[0].encoded
    gin.clear_config()


RUN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax import train
from slm_jax.adapters import slm as adapter
from slm_jax.encoders import usm
from slm_jax.llms import t5
from slm_jax.systems import slm
from slm_jax.systems import speech_encoder
include 'runs/train.gin'
include 'models/slm_tiny.gin'
tasks.manifest.name = 'encoded_end_to_end'
tasks.manifest.path = {{'train': '{manifest}', 'validation': '{manifest}'}}
MIXTURE_OR_TASK_NAME = @tasks.manifest()
FOUNDATIONS = {{'speech_encoder': '{folder}/encoder', 'llm': '{folder}/llm'}}
usm.UsmConfig.num_layers = 1
usm.UsmConfig.emb_dim = 16
usm.UsmConfig.num_heads = 2
usm.UsmConfig.subsample_channels = (4, 4)
t5.T5Config.vocab_size = 400
t5.T5Config.emb_dim = 16
t5.T5Config.mlp_dim = 16
t5.T5Config.num_encoder_layers = 1
t5.T5Config.num_decoder_layers = 1
speech_encoder.SpeechEncoder.ctc_vocab_size = None
slm.SLM.label_tokens = None
slm.SLM.token_labels = None
adapter.SlmAdapterConfig.reduction = 'stack'
adapter.SlmAdapterConfig.output_dim = 16
adapter.SlmAdapterConfig.emb_dim = 16
adapter.SlmAdapterConfig.mlp_dim = 16
adapter.SlmAdapterConfig.num_layers = 1
BATCH_SECONDS = 20.0
NUM_BUCKETS = 1
TRAIN_STEPS = 4
WARMUP_STEPS = 1
train.train.num_samples = 0
train.train.tensorboard = False
"""


@pytest.fixture
def run(manifest, vocabulary, tmp_path, monkeypatch):
    """run(program, …): what a small model's run file makes of it, with foundations of its own."""
    import seqio

    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    file = tmp_path / 'run.gin'
    file.write_text(RUN.format(manifest=manifest, folder=tmp_path))
    configuration.parse_gin([str(file)], [], only={'%MODEL': None})
    made = nn.unbox(jax.jit(model.configured_system().init)(jax.random.key(0), setup.least_batch()))
    for part, name in (('speech_encoder', 'encoder'), ('llm', 'llm')):
        foundations.save(tmp_path / name, made[part], {'name': name, 'kind': part})
    yield lambda program, *options: program.main(['--gin_file', str(file), *options])
    gin.clear_config()
    seqio.TaskRegistry._REGISTRY.pop('encoded_end_to_end', None)


def test_prepare_stores_what_trainings_of_this_very_encoder_read(run, tmp_path, capsys):
    arguments = [train, f'--gin.MODEL_DIR={tmp_path}/model', '--gin.ENCODED=True']
    assert run(*arguments) == 2
    assert 'has no frames of the speech encoder' in (said := capsys.readouterr().err) and 'ENCODED to False' in said
    assert run(prepare, '--encode', str(tmp_path / 'run.gin')) == 0
    assert f'24 recordings or texts, 0.01 h, encoded by {tmp_path}/encoder' in capsys.readouterr().out
    assert run(*arguments, '--gin.UsmConfig.context_right=5') == 2
    assert f'but those of {tmp_path}/encoder (fingerprint ' in (said := capsys.readouterr().err)
    assert 'with context_right=32. Encode the data by the model that is trained' in said
    assert run(*arguments, "--gin.TRAINABLE=('.*',)") == 2
    assert 'the speech encoder trains (TRAINABLE)' in capsys.readouterr().err
    assert not (tmp_path / 'model/card.json').exists()
    assert run(prepare, '--encode', str(tmp_path / 'run.gin'), '--gin.FOUNDATIONS={}') == 2
    assert "FOUNDATIONS names no 'speech_encoder'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_reads_frames_as_it_would_hear(run, tmp_path, capsys):
    assert run(prepare, '--encode', str(tmp_path / 'run.gin')) == 0
    assert run(train, f'--gin.MODEL_DIR={tmp_path}/samples', '--gin.SpeechEncoder.augmentation=None') == 0
    assert 'SpecAugment' not in capsys.readouterr().out
    assert run(train, f'--gin.MODEL_DIR={tmp_path}/frames', '--gin.ENCODED=True') == 0
    said = capsys.readouterr().out
    assert f'note: in the place of recordings, stored frames of {tmp_path}/encoder are read: SpecAugment' in said
    assert 'stored frames (' in said and 'padding' in said
    heard, read = (read_losses(tmp_path / name) for name in ('samples', 'frames'))
    assert len(heard) == 4
    np.testing.assert_allclose([*read.values()], [*heard.values()], rtol=1e-3)
    cards = [json.loads((tmp_path / name / 'card.json').read_text()) for name in ('samples', 'frames')]
    assert cards[0]['foundations'] == cards[1]['foundations'] and 'encoder' not in cards[0]['data']
    assert list((tmp_path / 'cache').glob(f'*/frames-{cards[1]["data"]["encoder"]}/frames.json'))
    np.testing.assert_allclose(*(card['evaluation']['validation/loss'] for card in cards), rtol=1e-3)
