"""The phrase retriever: what its loss tells apart, what it leaves alone, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slm_jax.adapters.phrase_keys import PhraseKeysConfig
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.foundations.tokenizers import Bytes
from slm_jax.systems.phrase_retriever import PhraseRetriever
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.training import state

PHRASES = ('one', 'two', 'three', 'four')


@pytest.fixture(scope='module')
def system():
    encoder = UsmEncoder(UsmConfig(num_layers=1, emb_dim=16, num_heads=2))
    config = PhraseKeysConfig(stride=2, emb_dim=16, key_dim=8, num_layers=1, kernel=3, dropout_rate=0.0)
    return PhraseRetriever(SpeechEncoder(None, encoder), config)


@pytest.fixture(scope='module')
def batch():
    """Stored frames of four recordings; each has a phrase of its own."""
    letters = np.zeros((4, 8), np.int32)
    for row, phrase in zip(letters, PHRASES):
        row[: len(phrase)] = Bytes().encode(phrase)
    return {
        'speech_samples': jnp.zeros((4, 0), jnp.int16),
        'speech_lengths': jnp.array([16_000, 16_000, 11_000, 16_000]),
        'speech_frames': jax.random.normal(jax.random.key(0), (4, 25, 6)),
        'speech_frame_lengths': jnp.array([25, 25, 17, 25]),
        'decoder_target_tokens': jnp.array(letters),
    }


@pytest.fixture(scope='module')
def params(system, batch):
    return state.unboxed(jax.jit(system.init)(jax.random.key(0), batch))


@pytest.fixture(scope='module')
def loss(system):
    return jax.jit(lambda params, batch: system.loss(params, batch, None))


def test_keys_have_length_one_and_know_nothing_of_what_is_beyond(system, batch, params):
    speech_keys, phrase_keys = jax.jit(system.speech_keys), jax.jit(system.phrase_keys)
    keys, lengths = speech_keys(params, batch)
    assert lengths.tolist() == [13, 13, 9, 13] and keys.shape == (4, 13, 8)
    np.testing.assert_allclose(jnp.linalg.norm(keys[0], axis=-1), 1, rtol=1e-5)
    frames = batch['speech_frames'].at[2, 17:].set(9.0)
    again, _ = speech_keys(params, batch | {'speech_frames': jnp.pad(frames, ((0, 0), (0, 6), (0, 0)))})
    np.testing.assert_allclose(again[2, :9], keys[2, :9], atol=1e-5)
    letters = batch['decoder_target_tokens']
    longer = phrase_keys(params, jnp.pad(letters, ((0, 0), (0, 5))))
    np.testing.assert_allclose(longer, phrase_keys(params, letters), atol=1e-5)


def test_stored_frames_need_no_encoder(batch, params, loss):
    """Whose parameters a training by stored frames does not load."""
    alone = {'retriever': params['retriever']}
    assert loss(alone, batch)[0] == loss(params, batch)[0]


def test_it_learns_which_phrase_is_whose_and_the_encoder_does_not(system, batch, params):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, moments):
        (loss, metrics), gradients = jax.value_and_grad(system.loss, has_aux=True)(params, batch, None)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, loss, metrics

    now, moments, losses = params, optimizer.init(params), []
    for _ in range(40):
        now, moments, loss, metrics = step(now, moments)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0] and metrics['found'] == (4, 4)
    through = jax.jit(jax.grad(lambda frames: system.loss(params, batch | {'speech_frames': frames}, None)[0]))
    assert not through(batch['speech_frames']).any()


def test_rows_that_are_empty_or_alike_are_no_contrast(loss, batch, params):
    """Empty rows count for nothing; of one phrase in two rows neither is held against the other."""
    alone, metrics = loss(params, batch)
    empty = {name: jnp.pad(array, ((0, 2), *((0, 0),) * (array.ndim - 1))) for name, array in batch.items()}
    with_empty, counted = loss(params, empty)
    np.testing.assert_allclose(with_empty, alone, rtol=1e-5)
    assert counted['loss'][1] == metrics['loss'][1] == 4
    alike = {**batch, 'decoder_target_tokens': jnp.tile(batch['decoder_target_tokens'][:1], (4, 1))}
    assert loss(params, alike)[0] == 0


def test_it_writes_nothing(system, batch, params):
    with pytest.raises(TypeError, match='writes no text: slm-jax retrieve finds phrases'):
        system.predict(params, batch, DecodeConfig())


@pytest.mark.parametrize(
    'fields, said',
    [({'kernel': 4}, 'kernel is 4; it must be odd'), ({'stride': 0}, 'stride is 0; it must be at least 1')],
)
def test_sizes_that_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        PhraseKeysConfig(**fields)
