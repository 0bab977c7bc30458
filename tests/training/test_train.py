"""The promises of training: what is trained, what a checkpoint holds, resuming, refusing, and devices."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy
from jax.experimental.compilation_cache import compilation_cache

from slm_jax import foundations
from slm_jax.data import seen
from slm_jax.training import checkpoints, loop, optimizers, partitioning, setup
from slm_jax.training.logs import read_losses
from slm_jax.training.state import merge, split

TOY = pathlib.Path(toy.__file__)
_LEAST_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


@pytest.fixture
def model_dir(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    return tmp_path / 'model'


def start(model_dir, steps, devices=1, **variables):
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', **variables}
    return subprocess.Popen(
        [sys.executable, str(TOY), str(model_dir), str(steps)], env=environment, stdout=subprocess.DEVNULL
    )


def losses(model_dir):
    """One loss a step; where a step was repeated, both must be the same to the last bit."""
    record = read_losses(model_dir)
    for step, values in record.items():
        assert len(set(values)) == 1, (step, values)
    return [record[step][0] for step in sorted(record)]


def test_split_and_merge():
    params = {'adapter': {'a': 1, 'b': 2}, 'llm': {'c': 3}}
    trained, frozen = split(params, ['adapter/.*'])
    assert trained == {'adapter': {'a': 1, 'b': 2}} and frozen == {'llm': {'c': 3}}
    assert merge(trained, frozen) == params
    with pytest.raises(ValueError, match="adaptor.*'adapter/a'"):
        split(params, ['adaptor/.*'])


@pytest.mark.parametrize('name', ['loader', 'eval_loaders'])
def test_a_teacher_stays_frozen_and_loaders_are_told_of_it(model_dir, name):
    class Taught(toy.ToySystem):
        teacher = 'speech_encoder'

    def make(**needs):
        raise ValueError(f'needs {needs}')

    loaders = {'eval_loaders': {}, name: make if name == 'loader' else {'dev': make}}
    with pytest.raises(ValueError, match="needs {'teacher': True}"):
        toy.train(model_dir, 1, system=Taught(), **loaders)
    with pytest.raises(ValueError, match=r'train.trainable names speech_encoder/…, which is the teacher by Taught.obj'):
        toy.train(model_dir, 1, system=Taught(), trainable=('.*kernel',), **loaders)


def test_only_the_adapter_is_trained_and_saved(model_dir):
    result = toy.train(model_dir, 90)
    params, card = checkpoints.load_for_inference(model_dir)
    assert list(params) == ['adapter'] and card['step'] == 90
    assert (
        card['foundations']['speech_encoder']['fingerprint']
        == foundations.card(model_dir.parent / 'frozen')['fingerprint']
    )
    assert result['evaluation']['dev/loss'] == card['evaluation']['dev/loss']
    assert np.mean(losses(model_dir)[-30:]) < np.mean(losses(model_dir)[:30])


def test_of_a_system_that_cannot_answer_no_samples_are_shown(model_dir):
    class Silent(toy.ToySystem):
        answers = False

        def predict(self, params, batch, decode):
            raise ValueError('it needs the transcript')

    # Nor is anything to be found for a part that has no parameters.
    foundations = {'speech_encoder': str(model_dir.parent / 'frozen'), 'aligner': None}
    assert toy.train(model_dir, 1, system=Silent(), foundations=foundations)['evaluation']['dev/loss'] > 0


def thawing(model_dir, steps, **options):
    """The encoder trains from step 6 on."""
    patterns = {'adapter/.*': 0, 'speech_encoder/.*': 6}
    optimizer = optimizers.adamw(1e-2, own_counts=True, rate_factors={'speech_encoder/.*': 0.5})
    return toy.train(
        model_dir, steps, trainable=patterns, optimizer=optimizer, eval_loaders={}, num_samples=0, **options
    )


def test_resumed_across_a_thaw_losses_are_those_of_an_unbroken_run(model_dir, tmp_path, capsys):
    """What trains later has no gradient before: it stays what the foundation is, and its statistics 0."""
    thawing(tmp_path / 'unbroken', 12)
    assert 'from step 6 on 64 parameters train besides' in capsys.readouterr().out
    for steps in (5, 6, 7, 12):
        thawing(model_dir, steps)
        params, card = checkpoints.load_for_inference(model_dir)
        frozen = foundations.load(tmp_path / 'frozen')['kernel']
        assert np.array_equal(params['speech_encoder']['kernel'], frozen) == (steps <= 6)
    assert losses(model_dir) == losses(tmp_path / 'unbroken')
    assert card['trainable'] == {'adapter/.*': 0, 'speech_encoder/.*': 6}


def test_before_a_thaw_nothing_is_computed_for_what_rests():
    partitioner = partitioning.Partitioner()
    patterns = {'adapter/.*': 0, 'speech_encoder/.*': 6}
    layout = setup.lay_out(toy.ToySystem(), patterns, partitioner, partitioner.mesh())
    optimizer = optimizers.adamw(1e-2)
    steps = setup.steps(layout, optimizer, abstract := setup.abstract_state(layout, optimizer), None, print)
    assert steps.train_at(5) is not steps.train_at(6) is steps.train
    arguments = (
        layout.batch(toy.ToyLoader().batch_shapes()[0]),
        abstract,
        layout.held,
        jax.eval_shape(jax.random.key, 0),
    )
    resting = {}
    for step in (5, 6):
        jaxpr = steps.train_at(step).traced(*arguments).jaxpr.jaxpr
        same = {id(var) for var in jaxpr.invars} & {id(var) for var in jaxpr.outvars}
        resting[step] = len(same)
    assert resting == {5: 3, 6: 0}  # the parameter, and two averages, are handed on


@pytest.mark.parametrize(
    'patterns, message',
    [
        ({'adapter/.*': 3}, 'train.trainable: nothing trains from step 0 on'),
        ({'adapter/.*': 0, 'speech_encoder/.*': -1}, "'speech_encoder/.*' trains from step -1 on; a whole number"),
        ({'adapter/.*': 0, 'encoder/.*': 5}, "the pattern 'encoder/.*' matches no parameter"),
    ],
)
def test_steps_that_are_none_are_refused(model_dir, patterns, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        toy.train(model_dir, 1, trainable=patterns)


def test_skipped_examples_are_listed_at_the_end_and_kept(model_dir, capsys):
    loader = toy.ToyLoader()
    loader.skipped = [('a', 'a.wav: the file is empty')]
    toy.train(model_dir, 1, loader=loader, eval_loaders={}, num_samples=0)
    assert capsys.readouterr().err.rstrip().endswith('train: 1 bad examples skipped:\n    a.wav: the file is empty')
    assert '"a.wav: the file is empty"' in (model_dir / 'skipped.jsonl').read_text()


def test_texts_that_were_met_are_noted_with_those_of_before(model_dir):
    loader = toy.ToyLoader()
    loader.seen = {'instructions': np.uint64([1]), 'targets': np.uint64([2, 3])}
    toy.train(model_dir, 1, loader=loader, eval_loaders={}, num_samples=0)
    other = model_dir.with_name('other')
    loader.seen = {'instructions': np.uint64([4]), 'targets': np.uint64([2])}
    more = {'speech_encoder': str(model_dir.with_name('frozen')), 'adapter': str(model_dir)}
    toy.train(other, 1, loader=loader, eval_loaders={}, num_samples=0, foundations=more)
    assert {kind: hashes.tolist() for kind, hashes in seen.read(other).items()} == {
        'instructions': [1, 4],
        'targets': [2, 3],
    }


def test_resumed_losses_are_those_of_an_unbroken_run(model_dir, tmp_path):
    toy.train(tmp_path / 'whole', 20)
    toy.train(model_dir, 7)
    toy.train(model_dir, 20)
    assert losses(model_dir) == losses(tmp_path / 'whole')


def killed_again_and_again(model_dir, whole, kills, seed):
    toy.train(whole, 60)
    rng = random.Random(seed)
    for _ in range(kills):
        process = start(model_dir, 60)
        time.sleep(rng.uniform(1, 7))
        process.kill()
        process.wait()
    assert start(model_dir, 60).wait() == 0
    assert losses(model_dir) == losses(whole)


def test_kill_9(model_dir, tmp_path):
    killed_again_and_again(model_dir, tmp_path / 'whole', 2, seed=0)


@pytest.mark.slow
def test_kill_9_at_20_instants(model_dir, tmp_path):
    killed_again_and_again(model_dir, tmp_path / 'whole', 20, seed=1)


def test_sigterm_saves_first(model_dir):
    process = start(model_dir, 10**6)
    while not (model_dir / 'losses.jsonl').exists() or len(read_losses(model_dir)) < 5:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    saved = int(checkpoints.newest(model_dir).name)
    assert saved == max(read_losses(model_dir)) + 1


def test_another_foundation_is_refused(model_dir):
    toy.train(model_dir, 5)
    old = foundations.card(model_dir.parent / 'frozen')['fingerprint']['content']
    toy.save_frozen(model_dir.parent / 'frozen', seed=1)
    new = foundations.card(model_dir.parent / 'frozen')['fingerprint']['content']
    with pytest.raises(checkpoints.CheckpointError, match=f'{old[:16]}.*{new[:16]}'):
        toy.train(model_dir, 10)


def test_nan_stops_at_its_step_and_keeps_what_was_trained(model_dir):
    with pytest.raises(loop.NonFiniteError, match='step 2: the loss is nan'):
        toy.train(model_dir, 20, system=toy.ToySystem(nan_at=3))
    batch = np.load(model_dir / 'bad_batch_2.npz')
    assert batch['decoder_target_tokens'][0, 0] == 3 and len(batch['speech_lengths']) == 8
    params, card = checkpoints.load_for_inference(model_dir)
    assert card['step'] == 2
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_one_host_writes_the_bad_batch(model_dir, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    assert not loop.save_batch(model_dir, 2, toy.ToyLoader()).exists()


def test_a_half_written_checkpoint_does_not_count(model_dir):
    toy.train(model_dir, 10)
    # Orbax renames a checkpoint to its number when it is whole.
    (model_dir / 'checkpoints/15.orbax-checkpoint-tmp-1').mkdir()
    assert checkpoints.newest(model_dir).name == '10'
    toy.train(model_dir, 15)
    assert checkpoints.newest(model_dir).name == '15'


def test_frozen_parameters_cost_no_gradient():
    system, batch = toy.ToySystem(), next(toy.ToyLoader(rows=512).batches(0))[1]
    params = jax.tree.map(
        lambda leaf: leaf.value, system.init(jax.random.key(0), batch), is_leaf=lambda x: hasattr(x, 'value')
    )

    def flops(trained):
        trainable, frozen = split(params, trained)
        gradient = jax.grad(lambda t: system.loss(merge(t, frozen), batch, None)[0])
        return jax.jit(gradient).lower(trainable).compile().cost_analysis()['flops']

    matrix = 2 * 512 * toy.WIDTH**2
    assert flops(('.*',)) - flops(('adapter/.*',)) > 0.9 * matrix


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_loss_is_the_same_on_many_devices(model_dir, tmp_path, devices):
    toy.train(model_dir, 6)
    many = tmp_path / 'many'
    assert start(many, 6, devices).wait() == 0
    np.testing.assert_allclose(losses(many), losses(model_dir), rtol=1e-5)


def test_card_is_readable(model_dir):
    toy.train(model_dir, 5)
    card = json.loads((model_dir / 'card.json').read_text())
    assert card['num_params'] == {'trained': toy.WIDTH**2, 'frozen': toy.WIDTH**2}
    assert re.fullmatch(r'[\d.]+', card['versions']['jax'])


def test_early_steps_are_told_and_losses_written_once_each(model_dir, capsys):
    toy.train(model_dir, 33, log_period=20, eval_period=100, checkpoint_period=100)
    told = [int(step) for step in re.findall(r'^train (\d+):', capsys.readouterr().out, re.M)]
    assert told == [1, 2, 5, 10, 20, 33]
    assert sorted(read_losses(model_dir)) == list(range(33)) and all(
        len(v) == 1 for v in read_losses(model_dir).values()
    )


def test_data_are_made_after_all_else_was_checked(model_dir):
    def loader():
        raise AssertionError('data were asked for')

    for wrong, words in (
        ({'max_to_keep': 0}, 'train.max_to_keep is 0'),
        ({'best_metric': 'dev/wer'}, 'evaluation gives dev/loss'),
        ({'trainable': ('adaptor/.*',)}, 'matches no parameter'),
        ({'foundations': {}}, 'come from nowhere'),
        ({'foundations': {'lm': str(model_dir.parent / 'frozen')}}, r"train.foundations\['lm'\].*does not have"),
    ):
        with pytest.raises(ValueError, match=words):
            toy.train(model_dir, 5, loader=loader, eval_loaders={'dev': loader}, **wrong)
    assert not model_dir.exists()


def test_compiled_steps_are_kept_where_hosts_share_them(model_dir, tmp_path):
    before = {name: jax.config.values[name] for name in ('jax_compilation_cache_dir', _LEAST_SECONDS)}
    try:
        jax.config.update(_LEAST_SECONDS, 0.0)
        toy.train(model_dir, 1, compilation_cache_dir=tmp_path / 'shared', num_samples=0)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert any(path.name.startswith('jit') for path in (tmp_path / 'shared').iterdir())


class Stops(toy.ToyLoader):
    """Data of which the fourth batch is never there."""

    def batches(self, start_step, *rows):
        for step, batch in super().batches(start_step, *rows):
            if step == 3:
                raise RuntimeError('the machine stops')
            yield step, batch


def test_a_restart_goes_on_from_the_local_disk(model_dir, tmp_path, capsys):
    options = {
        'local_checkpoint_dir': str(tmp_path / 'ssd'),
        'local_checkpoint_period': 2,
        'checkpoint_period': 50,
        'eval_period': 50,
    }
    toy.train(tmp_path / 'whole', 20)
    with pytest.raises(RuntimeError, match='the machine stops'):
        toy.train(model_dir, 20, loader=Stops(), **options)
    assert not list((model_dir / 'checkpoints').glob('[0-9]*'))
    toy.train(model_dir, 20, **options)
    assert f'resumed {model_dir} at step 2' in capsys.readouterr().out
    assert losses(model_dir) == losses(tmp_path / 'whole')
    shutil.rmtree(tmp_path / 'ssd')  # the machine was taken away
    assert toy.train(model_dir, 22, **options)['step'] == 22
    assert f'resumed {model_dir} at step 20' in capsys.readouterr().out
    shutil.rmtree(model_dir)  # a training that begins anew does not go on with the old one's
    toy.train(model_dir, 3, **options)
    assert 'resumed' not in capsys.readouterr().out
    with pytest.raises(ValueError, match='LOCAL_CHECKPOINT_DIR.*is gs://bucket/x; it is for a disk of this'):
        toy.train(model_dir, 4, **(options | {'local_checkpoint_dir': 'gs://bucket/x'}))
