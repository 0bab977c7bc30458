"""What is said of a step's memory."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slm_jax.training import loop, state


def test_memory_of_what_a_step_does_not_read():
    """XLA counts no argument that a program does not read; it is on the device all the same."""
    trainable, frozen = {'a': jnp.ones(1000)}, {'read': jnp.ones(1000), 'unread': jnp.ones(1_000_000)}
    of = state.TrainState(jnp.int32(0), jnp.int32(-1), trainable, optax.sgd(0.1, momentum=0.9).init(trainable))
    step = jax.jit(lambda of, frozen: jnp.sum(of.trainable['a'] * frozen['read'])).lower(of, frozen).compile()
    text = loop.memory_report(step, of, frozen, jax.devices()[0])
    assert text.startswith('memory per device: 4.02 MB = 4 MB frozen parameters + 4 kB trained parameters'), text


def test_padding_is_that_of_audio_or_of_packed_texts():
    meter = loop.Meter(types.SimpleNamespace(compile_seconds=0.0))
    heard = {'speech_lengths': np.array([8000, 4000]), 'speech_samples': np.zeros((2, 8000), np.int16)}
    packed = {'speech_lengths': np.zeros(2, int), 'speech_samples': np.zeros((2, 0), np.int16)}
    packed['decoder_segment_ids'] = np.array([[1, 1, 2, 2], [1, 1, 1, 0]])
    for batch, share in ((heard, 1 / 4), (packed, 1 / 8)):
        meter.add(batch, 4)
        rates = meter.take(1)
        assert rates['padding_share'] == share
        assert ('audio_seconds_per_second' in rates) == (batch is heard)
