"""The contract with T5X: a system under its own train.py is the same system, and what is frozen stays so."""

import json
import os
import subprocess
import sys

import flax
import jax
import numpy as np
import pytest

pytest.importorskip('t5x', reason='T5X is on no package index; docs/t5x.md says how to install it')

import toy
from t5x import optimizers, partitioning, trainer, utils

from slm_jax import configuration, foundations, t5x_bridge
from slm_jax.decoding import DecodeConfig
from slm_jax.foundations import FoundationError, flatten
from slm_jax.training.state import merge

BATCH = next(toy.ToyLoader().batches(0))[1]
LENGTHS = {'speech': 16_000, 'inputs': 48, 'targets': 8}
MODEL = """
from __gin__ import dynamic_registration
from slm_jax.adapters import slm as adapter
from slm_jax.systems import slm
include 'models/slm_tiny.gin'
# What CTC makes of tones is no start.
slm.SLM.label_tokens = None
adapter.SlmAdapterConfig.reduction = 'stack'
adapter.SlmAdapterConfig.reduction_factor = 4
adapter.SlmAdapterConfig.output_scale = 1.0
"""
RUN = f"""
from __gin__ import dynamic_registration
import __main__ as train_script
from slm_jax import tasks
include 'runs/t5x.gin'
include 'model.gin'
tasks.manifest.name = 'tones'
tasks.manifest.path = 'tones.jsonl'
MIXTURE_OR_TASK_NAME = @tasks.manifest()
TASK_FEATURE_LENGTHS = {LENGTHS}
BATCH_SIZE = 8
WARMUP_STEPS = 5
EVAL_PERIOD = 12
train_script.train.stats_period = 1
train_script.train.eval_steps = 1
"""


def toy_model(trainable=('adapter/.*',)):
    return t5x_bridge.SystemModel(toy.ToySystem(), trainable, optimizers.adamw(1e-2), DecodeConfig(max_decode_length=1))


def initializer(model, **names):
    return t5x_bridge.FoundationInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: array.shape for name, array in BATCH.items()},
        input_types={name: array.dtype for name, array in BATCH.items()},
        partitioner=partitioning.PjitPartitioner(num_partitions=1),
        foundations=names,
    )


def step(model, state):
    """The state after T5X's training step, and its loss."""
    new, metrics = trainer.train_with_lr(state, BATCH, 1e-2, jax.random.PRNGKey(3), model, None)
    return new, metrics['loss'].compute()


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten(flax.core.unfreeze(tree)).items()}


def test_one_step_trains_the_adapter_alone_on_the_loss_of_the_system(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    model = toy_model()
    state = initializer(model, speech_encoder=str(tmp_path / 'frozen')).from_scratch(jax.random.PRNGKey(0))
    frozen = leaves(state.flax_mutables['frozen'])
    want = foundations.restore(tmp_path / 'frozen/params', foundations.abstract(tmp_path / 'frozen'))
    assert frozen.keys() == {'speech_encoder/kernel'}
    np.testing.assert_array_equal(frozen['speech_encoder/kernel'], want['kernel'])
    assert all(
        'speech_encoder' not in jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(state.param_states)
    )

    before = leaves(state.params)
    params = merge(flax.core.unfreeze(state.params), {'speech_encoder': want})
    loss, _ = model.system.loss(params, BATCH, jax.random.key(3))
    state, bridged = step(model, state)
    np.testing.assert_allclose(bridged, loss, rtol=1e-6)
    np.testing.assert_array_equal(leaves(state.flax_mutables['frozen'])['speech_encoder/kernel'], want['kernel'])
    assert np.any(leaves(state.params)['adapter/kernel'] != before['adapter/kernel'])


def test_a_frozen_parameter_from_nowhere_is_refused():
    with pytest.raises(FoundationError, match='come from nowhere'):
        initializer(toy_model()).from_scratch(jax.random.PRNGKey(0))


def test_everything_may_train():
    model = toy_model(('.*',))
    state = initializer(model).from_scratch(jax.random.PRNGKey(0))
    assert not state.flax_mutables
    new, _ = step(model, state)
    assert all(np.any(leaves(new.params)[path] != leaf) for path, leaf in leaves(state.params).items())


@pytest.mark.parametrize('trainable', [('adapter/.*',), ('.*',)])
def test_t5x_generates(tmp_path, trainable):
    import tensorflow as tf

    toy.save_frozen(tmp_path / 'frozen')
    model = toy_model(trainable)
    init = initializer(model, speech_encoder=str(tmp_path / 'frozen'))
    infer = utils.get_infer_fn(
        model.predict_batch, toy.ToyLoader().rows, init.train_state_axes, partitioning.PjitPartitioner(num_partitions=1)
    )
    dataset = tf.data.Dataset.from_tensor_slices(BATCH).enumerate()
    answers = infer(dataset, init.from_scratch(jax.random.PRNGKey(0)))
    np.testing.assert_array_equal([tokens for _, tokens in answers], BATCH['decoder_target_tokens'][:, :1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A directory with recordings of four tones, named by words."""
    import soundfile

    folder = tmp_path_factory.mktemp('t5x')
    rng = np.random.default_rng(0)
    lines = []
    for number in range(32):
        word, hertz = [('one', 400), ('two', 900), ('three', 1600), ('four', 2500)][number % 4]
        time = np.arange(int(rng.uniform(0.5, 0.9) * 16_000)) / 16_000
        wave = 5000 * np.sin(2 * np.pi * hertz * time)
        soundfile.write(folder / f'{number}.wav', wave.astype(np.int16), 16_000)
        lines.append(json.dumps({'audio': f'{number}.wav', 'text': word, 'lang': 'en'}))
    (folder / 'tones.jsonl').write_text('\n'.join(lines))
    (folder / 'model.gin').write_text(MODEL)
    (folder / 'tones.gin').write_text(RUN)
    return folder


def train(folder, steps):
    """Runs T5X's program until `steps`; what it logged of the loss, by step."""
    import tensorflow as tf
    from tensorboard.backend.event_processing import event_accumulator

    command = [
        *(sys.executable, '-m', 't5x.train', f'--gin_search_paths=.,{configuration.search_path()[1]}'),
        *('--gin_file=tones.gin', f'--gin.MODEL_DIR="{folder}/model"', f'--gin.TRAIN_STEPS={steps}'),
    ]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    events = event_accumulator.EventAccumulator(str(folder / 'model/train'), {'tensors': 0})
    events.Reload()
    return {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors('loss')}


def test_an_slm_under_t5x_train(folder, monkeypatch):
    import orbax.checkpoint

    import gin
    from slm_jax.inference import model as model_lib
    from slm_jax.tasks import manifest

    losses = train(folder, 12)
    assert sorted(losses) == [*range(1, 13)], losses
    assert np.all(np.isfinite([*losses.values()]))
    assert np.mean([losses[n] for n in (10, 11, 12)]) < 0.7 * np.mean([losses[n] for n in (1, 2)])
    assert sorted(train(folder, 14)) == [*range(1, 15)], 'it resumes'

    def checkpoint(number):
        return leaves(orbax.checkpoint.PyTreeCheckpointer().restore(folder / f'model/checkpoint_{number}/state'))

    first, last = checkpoint(0), checkpoint(14)
    frozen = {}
    for part, name in (('speech_encoder', 'usm_tiny'), ('llm', 't5_tiny')):
        frozen[part] = foundations.restore(foundations.find(name) / 'params', foundations.abstract(name))
    in_checkpoint = {path: leaf for path, leaf in last.items() if path.startswith('flax_mutables/frozen/')}
    assert len(in_checkpoint) == len(flatten(frozen))
    for path, leaf in flatten(frozen).items():
        np.testing.assert_array_equal(in_checkpoint[f'flax_mutables/frozen/{path}'], np.asarray(leaf, np.float32))
    trained = [path for path in last if path.startswith('target/')]
    assert all(path.startswith('target/adapter/') and np.any(first[path] != last[path]) for path in trained)
    slots = [path for path in last if path.startswith('state/param_states/') and not path.endswith('count')]
    assert len(slots) == 2 * len(trained) and all('/adapter/' in path for path in slots)

    # The rate of the first step is 0, so two batches in the order of T5X are seen by the parameters it started with.
    monkeypatch.chdir(folder)
    configuration.parse_gin(['model.gin'])
    system = model_lib.configured_system()
    gin.clear_config()
    config = utils.DatasetConfig(
        manifest('tones', 'tones.jsonl'), LENGTHS, 'train', 8, shuffle=True, seed=0, trim_output_features=False
    )
    dataset = utils.get_dataset(config, 0, 1, t5x_bridge.SystemModel.FEATURE_CONVERTER_CLS)
    adapter = foundations.unflatten({p.removeprefix('target/'): first[p] for p in trained})
    params = merge(adapter, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), frozen))
    key = jax.random.wrap_key_data(jax.random.split(jax.random.PRNGKey(0))[1])
    loss = jax.jit(system.loss)
    for number, batch in enumerate(dataset.take(2).as_numpy_iterator()):
        ours, _ = loss(params, batch, jax.random.fold_in(key, number))
        np.testing.assert_allclose(losses[number + 1], ours, rtol=1e-4)
