"""What is known of a training before there is an array."""

import jax
import jax.numpy as jnp
import optax
import pytest
import toy

from slm_jax.decoding import DecodeConfig
from slm_jax.training import partitioning, setup


@pytest.fixture(scope='module')
def layout():
    partitioner = partitioning.Partitioner()
    return setup.lay_out(toy.ToySystem(), ('adapter/.*',), partitioner, partitioner.mesh())


def test_steps_compile_without_any_array(layout):
    optimizer = optax.adam(1e-2)
    abstract = setup.abstract_state(layout, optimizer)
    steps = setup.steps(layout, optimizer, abstract, DecodeConfig(), lambda text: None)
    batch = layout.batch(toy.ToyLoader().batch_shapes()[0])
    rng = jax.eval_shape(jax.random.key, 0)
    assert steps.train.compiled(batch, abstract, layout.held, rng).memory_analysis() is not None
    assert steps.evaluate.compiled(batch, layout.trainable, layout.held) is not None
    assert steps.decode.compiled(batch, layout.trainable, layout.held) is not None


def test_the_largest_shape_is_the_one_that_computes_most(layout):
    """A system that computes a window for every row, as Whisper does: many short clips need more than a long one."""

    class Windowed(toy.ToySystem):
        def loss(self, params, batch, rng):
            frames = batch['speech_samples'][:, :1] / 100 * jnp.arange(300)
            attention = jax.nn.softmax(frames[:, :, None] * frames[:, None])
            loss, metrics = super().loss(params, batch, rng)
            return loss + jnp.tanh(attention @ attention).mean(), metrics

    windowed = setup.lay_out(Windowed(), ('adapter/.*',), layout.partitioner, layout.mesh)
    estimated = []
    for rows, samples in ((2, 6400), (40, 320), (8, 1600)):
        shapes = toy.ToyLoader(rows).batch_shapes()[0]
        batch = windowed.batch({**shapes, 'speech_samples': ((rows, samples), jnp.int16)})
        estimated.append(setup.activation_bytes(windowed, batch, jax.eval_shape(jax.random.key, 0)))
        assert 1 < estimated[-1] / (2 * rows * 300 * 300 * 4) < 1.1
    assert max(estimated) == estimated[1]


def test_frozen_parameters_that_the_system_does_not_read_are_not_held(layout):
    class Deaf(toy.ToySystem):
        reads = ('adapter/.*',)

    assert layout.held.keys() == {'speech_encoder'} and not layout.notes
    deaf = setup.lay_out(Deaf(), ('adapter/.*',), layout.partitioner, layout.mesh)
    assert deaf.held == {} and deaf.frozen.keys() == {'speech_encoder'}
    assert deaf.notes == {'64 frozen parameters are not read, so not loaded: speech_encoder/kernel (1)'}


def test_a_metric_that_no_evaluation_gives_is_refused(layout):
    setup.check_metric(layout, 'dev/loss', ['dev'])
    with pytest.raises(ValueError, match="best_metric is 'dev/wer'; evaluation gives dev/loss"):
        setup.check_metric(layout, 'dev/wer', ['dev'])
    with pytest.raises(ValueError, match='evaluation gives nothing'):
        setup.check_metric(layout, 'dev/loss', [])
