"""An aligner as a system: what it leaves out, what it tells, and that it is trained like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.audio import frontends
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders.aligners import Alignment, CtcAligner, ExternalAligner, TransformerConfig
from slm_jax.encoders.monotonic import MonotonicAligner, MonotonicConfig
from slm_jax.encoders.spelling import Spelling
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.systems.aligner import SpeechAligner, boundary_error
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.training import state

CTC = CtcAligner(TransformerConfig(spelling=Spelling(vocab_size=12), emb_dim=16, num_layers=1, num_heads=2, mlp_dim=16))


@pytest.fixture(scope='module')
def system():
    encoder = UsmEncoder(UsmConfig(num_layers=1, emb_dim=16, num_heads=2))
    return SpeechAligner(SpeechEncoder(frontends.UsmFrontend(), encoder), CTC)


@pytest.fixture(scope='module')
def batch():
    """Stored frames: a transcript that fits, one that does not, a text alone, nothing."""
    return {
        'speech_samples': jnp.zeros((4, 0), jnp.int16),
        'speech_lengths': jnp.array([16_000, 3_200, 0, 0]),
        'speech_frames': jax.random.normal(jax.random.key(0), (4, 25, 16)),
        'speech_frame_lengths': jnp.array([25, 5, 0, 0]),
        'decoder_target_tokens': jnp.array(
            [[5, 6, 7, 7, 8, 1, 0], [5, 6, 7, 7, 8, 1, 0], [5, 6, 1, 0, 0, 0, 0], [0] * 7]
        ),
        'token_ends': jnp.array([[0.2, -0.3, 0.4, 0.6, 1.0, 0, 0], [0.0] * 7, [0.0] * 7, [0.0] * 7]),
    }


@pytest.fixture(scope='module')
def params(system, batch):
    return state.unboxed(jax.jit(system.init)(jax.random.key(0), batch))


def test_what_does_not_fit_is_left_out_and_counted(system, batch, params):
    loss, metrics = jax.jit(lambda params, batch: system.loss(params, batch, None))(params, batch)
    assert [float(x) for x in metrics['too_many_tokens']] == [1.0, 2.0]
    assert metrics['loss'][1] == 5 and float(loss) == pytest.approx(float(metrics['loss'][0]) / 5)
    found = jax.jit(system.align)(params, batch)
    known = np.abs(np.array(found.boundaries[0, [0, 2, 3]] + 1) / 25 - [0.2, 0.4, 0.6])
    np.testing.assert_allclose(metrics['boundary_ms'], [1000 * known.sum(), 3], rtol=1e-5)
    # Training tells what does not cost a search.
    metrics = jax.eval_shape(lambda params, batch: system.loss(params, batch, jax.random.key(1))[1], params, batch)
    assert metrics.keys() == {'loss', 'too_many_tokens'}
    assert found.lengths.tolist() == [5, 0, 0, 0]
    assert not [name for name in ('speech_encoder', 'llm') if params.get(name)]  # stored frames need none


def test_boundaries_are_measured_where_words_end():
    found = Alignment(jnp.array([[4, 9, 14, 24]]), jnp.array([4]), jnp.array([[2, 2, 2, 2]]))
    total, count = boundary_error(found, jnp.array([[0.22, -0.1, 0.58, 3.0]]), 25.0)
    assert count == 2 and float(total) == pytest.approx(20 + 20)


def test_it_writes_tokens_or_says_that_it_does_not(system, batch, params):
    written = jax.jit(lambda params, batch: system.predict(params, batch, DecodeConfig()))(params, batch)
    found = jax.jit(system.align, static_argnames='written')(params, batch, written=True)
    for row, count in enumerate(found.lengths.tolist()):
        assert written[row, : count + 1].tolist() == [*found.tokens[row, :count].tolist(), 1]
        assert not np.any(written[row, count + 1 :])
    monotonic = MonotonicAligner(MonotonicConfig(spelling=Spelling(vocab_size=12), emb_dim=16, num_layers=1))
    other = SpeechAligner(system.speech_encoder, monotonic)
    with pytest.raises(ValueError, match='MonotonicAligner finds where a known transcript is said'):
        jax.eval_shape(lambda params: other.predict(params, batch, DecodeConfig()), {'aligner': {}})


def test_times_of_labels_are_those_of_the_best_path(system, batch, params):
    """The path that its boundaries come from, in seconds."""
    labels = batch['decoder_target_tokens'][:, :5] * (batch['speech_lengths'] > 0)[:, None]
    assert system.spelling.num_labels == 12
    starts, stops = jax.jit(lambda params: system.times(params, batch, labels))(params)
    assert np.isnan(starts[1:]).all() and not np.isnan(starts[0]).any()  # what does not fit has no times
    bounds = np.array(jax.jit(system.align)(params, batch).boundaries[0, :5] + 1) / 25
    assert (starts < stops)[0].all()
    assert (stops[0, :-1] < bounds[:-1] + 1e-6).all() and (bounds[:-1] < starts[0, 1:] + 1e-6).all()
    monotonic = MonotonicAligner(MonotonicConfig(spelling=Spelling(vocab_size=12), emb_dim=16, num_layers=1))
    assert SpeechAligner(system.speech_encoder, monotonic).spelling is None


def test_what_files_say_is_not_trained(system):
    with pytest.raises(ValueError, match='ExternalAligner has nothing to be trained: it goes by what files say'):
        SpeechAligner(system.speech_encoder, ExternalAligner(50.0))


def test_frames_a_second_are_those_of_the_encoder(system):
    assert system.frame_rate() == 25.0
