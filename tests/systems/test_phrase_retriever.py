"""The phrase retriever: what its loss tells apart, what it leaves alone, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slm_jax.adapters.phrase_keys import PhraseKeysConfig
from slm_jax.audio.frontends import UsmFrontend
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.foundations.tokenizers import Bytes
from slm_jax.systems.phrase_retriever import PhraseRetriever
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.training import state

PHRASES = ('one', 'two', 'three', 'four')


@pytest.fixture(scope='module')
def system():
    encoder = UsmEncoder(UsmConfig(num_layers=1, emb_dim=16, num_heads=2, subsample_channels=(4, 4)))
    config = PhraseKeysConfig(stride=2, emb_dim=16, key_dim=8, num_layers=1, kernel=3, dropout_rate=0.0)
    return PhraseRetriever(SpeechEncoder(UsmFrontend(), encoder, ctc_vocab_size=8), config)


@pytest.fixture(scope='module')
def batch():
    """Four hums; each has a phrase of its own."""
    letters = np.zeros((4, 8), np.int32)
    for row, phrase in zip(letters, PHRASES):
        row[: len(phrase)] = Bytes().encode(phrase)
    time = np.arange(16_000) / 16_000
    hums = [9_000 * np.sin(2 * np.pi * pitch * time) for pitch in (200, 500, 1200, 2500)]
    return {
        'speech_samples': jnp.array(np.stack(hums), jnp.int16),
        'speech_lengths': jnp.array([16_000, 16_000, 12_000, 16_000]),
        'decoder_target_tokens': jnp.array(letters),
    }


@pytest.fixture(scope='module')
def params(system, batch):
    return state.unboxed(system.init(jax.random.key(0), batch))


def test_keys_have_length_one_and_know_nothing_of_padding(system, batch, params):
    keys, lengths = system.speech_keys(params, batch)
    assert lengths.tolist() == [13, 13, 10, 13] and keys.shape == (4, 13, 8)  # 25 frames a second, two a key
    np.testing.assert_allclose(jnp.linalg.norm(keys, axis=-1), 1, rtol=1e-5)
    longer = {name: jnp.pad(array, ((0, 0), (0, 9_000))) for name, array in batch.items() if name == 'speech_samples'}
    again, _ = system.speech_keys(params, batch | longer)
    np.testing.assert_allclose(again[0, :13], keys[0], atol=2e-5)
    letters = batch['decoder_target_tokens']
    np.testing.assert_allclose(
        system.phrase_keys(params, jnp.pad(letters, ((0, 0), (0, 5)))), system.phrase_keys(params, letters), atol=1e-5
    )


def test_it_learns_which_phrase_is_whose_and_the_encoder_stays(system, batch, params):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, moments):
        (loss, metrics), gradients = jax.value_and_grad(system.loss, has_aux=True)(params, batch, None)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, loss, metrics, gradients

    now, moments, losses = params, optimizer.init(params), []
    for _ in range(30):
        now, moments, loss, metrics, gradients = step(now, moments)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0] and metrics['found'] == (4, 4)
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients['speech_encoder']))


def test_rows_that_are_empty_or_alike_are_no_contrast(system, batch, params):
    """Empty rows count for nothing; of one phrase in two rows neither is held against the other."""
    loss, metrics = system.loss(params, batch, None)
    empty = {name: jnp.pad(array, ((0, 2), *((0, 0),) * (array.ndim - 1))) for name, array in batch.items()}
    with_empty, counted = system.loss(params, empty, None)
    np.testing.assert_allclose(with_empty, loss, rtol=1e-5)
    assert counted['loss'][1] == metrics['loss'][1] == 4
    alike = {**batch, 'decoder_target_tokens': jnp.tile(batch['decoder_target_tokens'][:1], (4, 1))}
    assert system.loss(params, alike, None)[0] == 0


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
