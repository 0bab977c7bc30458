"""The adapter that writes tokens by CTC: where it starts, what it gives the LLM, invariance to padding and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax.adapters import token_ctc

COUNTS = (5, 0, 17, 2)
FRAMES, WIDTH, OUTPUT = 21, 6, 12
LENGTHS = jnp.array([21, 13, 1, 0])


def adapter(**changes):
    sizes = dict(output_dim=OUTPUT, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, label_counts=COUNTS)
    return token_ctc.TokenCtcAdapter(token_ctc.TokenCtcConfig(**(sizes | changes)))


@pytest.fixture(scope='module')
def heard():
    """(frames, embeddings of the labels, parameters at random: none is at its start)."""
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.normal(size=(len(LENGTHS), FRAMES, WIDTH)), jnp.float32)
    embeddings = jnp.asarray(3 + rng.normal(size=(len(COUNTS) + 1, OUTPUT)), jnp.float32)
    params = fresh(frames, embeddings)
    leaves, tree = jax.tree.flatten(params)
    return frames, embeddings, jax.tree.unflatten(tree, [x + rng.normal(size=x.shape).astype('f') for x in leaves])


def fresh(frames, embeddings):
    init = jax.jit(adapter().init, static_argnums=4)
    return nn.unbox(init(jax.random.key(0), frames, LENGTHS, None, True, embeddings))['params']


def both(params, frames, lengths, embeddings, **changes):
    """(embeddings, segments, logits, slots)."""

    @jax.jit
    def run(params, frames, lengths, embeddings):
        module = adapter(**changes)
        given = ({'params': params}, frames, lengths, None, True, embeddings)
        return *module.apply(*given), *module.apply(*given, method='label_logits')

    return run(params, frames, lengths, embeddings)


def test_it_starts_from_the_shares_of_the_labels_and_writes_embeddings(heard):
    frames, embeddings, _ = heard
    speech, segments, logits, slots = both(fresh(frames, embeddings), frames, LENGTHS, embeddings)
    shares = (np.array(COUNTS) + 1) / (sum(COUNTS) + len(COUNTS))
    np.testing.assert_allclose(jax.nn.softmax(logits)[0, 0], [0.5, *(shares / 2)], rtol=1e-5)
    np.testing.assert_array_equal(slots, [6, 4, 1, 0])
    # All is blank: one segment, of the labels' mean embedding.
    np.testing.assert_array_equal(segments, [1, 1, 1, 0])
    np.testing.assert_allclose(speech[0, 0], shares @ embeddings[1:], rtol=1e-5)
    assert speech.shape == (4, 6, OUTPUT) and (speech[:, 1:] == 0).all() and (speech[3] == 0).all()


def test_the_frames_of_each_embedding(heard):
    frames, embeddings, params = heard
    speech, lengths, logits, slots = both(params, frames, LENGTHS, embeddings)
    given = ({'params': params}, frames, LENGTHS, None, True, embeddings)
    spans = np.asarray(adapter().apply(*given, method='spans'))
    assert spans.shape == (2, *speech.shape[:2])
    for row, (length, count, most) in enumerate(zip(lengths, slots, LENGTHS)):
        labels = np.argmax(logits[row, :count], axis=-1)
        starts, stops = spans[:, row, :length]
        assert (starts % 4 == 0).all() and (stops > starts).all() and (stops[:-1] <= starts[1:]).all()
        assert (stops <= most).all()
        runs = np.flatnonzero((labels > 0) & (labels != np.append(-1, labels[:-1])))
        assert starts.tolist() == (4 * runs).tolist() or not labels.any()


def test_a_cosine_knows_neither_the_length_of_embeddings_nor_what_all_share(heard):
    frames, embeddings, params = heard
    logits = both(params, frames, LENGTHS, embeddings)[2]
    other = jnp.concatenate([embeddings[:1] * 0, 5 * (embeddings[1:] - 2)])
    np.testing.assert_allclose(both(params, frames, LENGTHS, other)[2], logits, rtol=1e-4, atol=1e-4)
    scale = jnp.exp(params['logit_scale'][0])
    least, most = np.min(logits[0, ..., 1:], axis=0), np.max(logits[0, ..., 1:], axis=0)
    prior = np.log((np.array(COUNTS) + 1) / (sum(COUNTS) + len(COUNTS)))
    assert (least >= prior - scale).all() and (most <= prior + scale).all()


def test_a_segment_is_the_mean_of_embeddings_under_its_probabilities_and_a_residual(heard):
    frames, embeddings, params = heard
    params = {**params, 'residual_projection': {'kernel': 0 * params['residual_projection']['kernel']}}
    speech, segments, logits, _ = both(params, frames, LENGTHS, embeddings)
    labels, mean = np.argmax(logits[0], axis=-1), jax.nn.softmax(logits[0, :, 1:]) @ embeddings[1:]
    runs = [i for i in range(6) if labels[i] and (i == 0 or labels[i] != labels[i - 1])]
    assert segments[0] == len(runs) > 1
    for place, start in enumerate(runs):
        run = next((i for i in range(start, 6) if labels[i] != labels[start]), 6)
        np.testing.assert_allclose(speech[0, place], mean[start:run].mean(axis=0), rtol=1e-5)


def test_noise_in_padding_changes_nothing(heard):
    frames, embeddings, params = heard
    padding = (jnp.arange(FRAMES) >= LENGTHS[:, None])[..., None]
    speech, segments, logits, slots = both(params, frames, LENGTHS, embeddings)
    for noise in (1e3, jnp.nan):
        changed = both(params, jnp.where(padding, noise, frames), LENGTHS, embeddings)
        np.testing.assert_array_equal(changed[0], speech)
        np.testing.assert_array_equal(changed[1], segments)
        np.testing.assert_array_equal(changed[2][1, : slots[1]], logits[1, : slots[1]])


def test_alone_as_in_a_batch(heard):
    with jax.enable_x64():  # a product of another shape may add up in another order: not what is tested
        frames, embeddings, params = jax.tree.map(lambda x: x.astype(jnp.float64), heard)
        together = both(params, frames, LENGTHS, embeddings, dtype=jnp.float64)
        for i, size in enumerate(LENGTHS.tolist()[:3]):
            alone = both(params, frames[i : i + 1, :size], LENGTHS[i : i + 1], embeddings, dtype=jnp.float64)
            for values, lengths in ((0, 1), (2, 3)):
                n = int(alone[lengths][0])
                assert n == together[lengths][i]
                np.testing.assert_allclose(alone[values][0, :n], together[values][i, :n], rtol=1e-6, atol=1e-6)


def test_whisper_base_and_a_language_model_of_width_896_take_less_than_15_million():
    config = dict(output_dim=896, emb_dim=512, num_heads=8, head_dim=64, mlp_dim=2048, label_counts=(1,) * 10)
    module = adapter(**config)
    given = (jnp.ones((1, 8, 512)), LENGTHS[:1])
    params = jax.eval_shape(module.init, jax.random.key(0), *given, label_embeddings=jnp.ones((11, 896)))
    assert 10e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 15e6


def test_errors_name_the_remedy(heard):
    frames, embeddings, _ = heard
    with pytest.raises(ValueError, match="reduction is 'ctc_blank'; choose one of a fixed rate"):
        adapter(reduction='ctc_blank')
    for counts in ((), (3, -1)):
        with pytest.raises(ValueError, match='label_counts needs a count, 0 or more, for every label'):
            adapter(label_counts=counts)
    for given, number in ((None, 0), (embeddings[1:], 3)):
        with pytest.raises(ValueError, match=f'4 .*label_counts and the embeddings of {number} labels besides blank'):
            adapter().init(jax.random.key(0), frames, LENGTHS, None, True, given)
