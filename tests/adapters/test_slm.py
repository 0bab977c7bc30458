"""The SLM adapter: each reduction against its definition, and invariance to padding and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from slm_jax.adapters import slm

REDUCTIONS = ['discard', 'stack', 'mean', 'conv', 'ctc_blank']
FRAMES, WIDTH, LABELS = 21, 6, 5
LENGTHS = jnp.array([21, 13, 1, 0])


def config(**changes):
    sizes = dict(output_dim=12, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
    return slm.SlmAdapterConfig(**(sizes | changes))


@pytest.fixture(scope='module')
def speech():
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(len(LENGTHS), FRAMES, WIDTH))
    logits = rng.normal(size=(len(LENGTHS), FRAMES, LABELS))
    return jnp.asarray(frames, jnp.float32), jnp.asarray(logits, jnp.float32)


def make(speech, **changes):
    module = slm.SlmAdapter(config(**changes))
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), speech[0], LENGTHS, speech[1]))
    return jax.jit(module.apply), variables


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('factor', [1, 3, 4])
def test_shapes_and_lengths(speech, reduction, factor):
    apply, variables = make(speech, reduction=reduction, reduction_factor=factor)
    embeddings, lengths = apply(variables, speech[0], LENGTHS, speech[1])
    most = -(-LENGTHS // factor)
    assert embeddings.shape == (4, -(-FRAMES // factor), 12) and lengths.dtype == jnp.int32
    if reduction == 'ctc_blank':
        assert (lengths <= most).all() and (lengths[:3] > 0).all() and lengths[3] == 0
    else:
        np.testing.assert_array_equal(lengths, most)
    valid = jnp.arange(embeddings.shape[1]) < lengths[:, None]
    assert (embeddings[~valid] == 0).all()
    rms = jnp.sqrt(jnp.mean(embeddings[valid] ** 2, axis=-1))
    np.testing.assert_allclose(rms, 1, rtol=1e-3)


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_noise_in_padding_changes_nothing(speech, reduction):
    apply, variables = make(speech, reduction=reduction)
    clean, lengths = apply(variables, speech[0], LENGTHS, speech[1])
    padding = (jnp.arange(FRAMES) >= LENGTHS[:, None])[..., None]
    for noise in (1e3, jnp.nan):
        noisy = [jnp.where(padding, noise * (1 + x), x) for x in speech]
        changed, changed_lengths = apply(variables, noisy[0], LENGTHS, noisy[1])
        np.testing.assert_array_equal(changed, clean)
        np.testing.assert_array_equal(changed_lengths, lengths)


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_alone_as_in_a_batch(speech, reduction):
    with jax.enable_x64():  # a product of another shape may add up in another order: not what is tested
        check_alone_as_in_a_batch([x.astype(jnp.float64) for x in speech], reduction)


def check_alone_as_in_a_batch(speech, reduction):
    apply, variables = make(speech, reduction=reduction, dtype=jnp.float64)
    together, lengths = apply(variables, speech[0], LENGTHS, speech[1])
    for i, size in enumerate(LENGTHS.tolist()[:3]):
        frames, logits = (x[i : i + 1, :size] for x in speech)
        alone, length = apply(variables, frames, LENGTHS[i : i + 1], logits)
        n = int(length[0])
        assert n == lengths[i]
        np.testing.assert_allclose(alone[0, :n], together[i, :n], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('reduction', ['stack', 'ctc_blank'])
def test_the_frames_of_each_embedding(speech, reduction):
    module = slm.SlmAdapter(config(reduction=reduction, reduction_factor=3))
    spans = np.asarray(module.apply({}, speech[0], LENGTHS, speech[1], method='spans'))
    assert spans.shape == (2, 4, 7)
    if reduction == 'stack':
        assert spans[:, 1].T.tolist() == [[0, 3], [3, 6], [6, 9], [9, 12], [12, 13], [13, 13], [13, 13]]
    else:
        slots, lengths = slm.ctc_segments(jnp.argmax(speech[1], axis=-1), LENGTHS, 3)
        for row, slot in np.ndindex(4, 7):
            frames = np.flatnonzero(slots[row] == slot)
            assert spans[:, row, slot].tolist() == ([frames[0], frames[-1] + 1] if len(frames) else [0, 0])
    if reduction == 'ctc_blank':
        labels = jnp.zeros((LABELS, 12))
        after = module.apply({}, speech[0], LENGTHS, speech[1], True, labels, method='spans')
        np.testing.assert_array_equal(after, np.pad(spans, ((0, 0), (0, 0), (1, 0))), 'the first begins the text')


def reduced(speech, reduction, factor, lengths=LENGTHS):
    cfg = config(reduction=reduction, reduction_factor=factor)
    valid = jnp.arange(FRAMES) < lengths[:, None]
    return slm.reduced(jnp.where(valid[..., None], speech[0], 0), lengths, cfg)


@pytest.mark.parametrize('factor', [1, 3, 4])
def test_fixed_rate_reductions_follow_their_definitions(speech, factor):
    kept, stacked, means, windows = (
        np.asarray(reduced(speech, name, factor)) for name in ('discard', 'stack', 'mean', 'conv')
    )
    for row, length in enumerate(LENGTHS.tolist()):
        frames = np.asarray(speech[0][row, :length])
        for slot in range(-(-length // factor)):
            group = frames[slot * factor : (slot + 1) * factor]
            np.testing.assert_array_equal(kept[row, slot], group[0])
            np.testing.assert_allclose(means[row, slot], group.mean(0), rtol=1e-5, atol=1e-6)
            padded = np.zeros((factor, WIDTH))
            padded[: len(group)] = group
            np.testing.assert_allclose(stacked[row, slot], padded.reshape(-1))
            window = np.zeros((2 * factor, WIDTH))
            for i in range(2 * factor):
                time = slot * factor - factor // 2 + i
                if 0 <= time < length:
                    window[i] = frames[time]
            np.testing.assert_allclose(windows[row, slot], window.reshape(-1))


def test_ctc_segments_collapse_runs_and_drop_blanks():
    labels = jnp.array([[0, 2, 2, 0, 2, 3, 3, 3, 0, 9, 9, 9]])
    slots, lengths = slm.ctc_segments(labels, jnp.array([9]), 2)
    np.testing.assert_array_equal(slots, [[-1, 0, 0, -1, 1, 2, 2, 2, -1, -1, -1, -1]])
    np.testing.assert_array_equal(lengths, [3])
    frames = jnp.arange(12.0)[None, :, None]
    means = slm.mean_of_slots(frames, slots, 6)
    np.testing.assert_allclose(means[0, :, 0], [1.5, 4, 6, 0, 0, 0])


def test_ctc_segments_share_slots_when_there_are_too_many():
    labels = jnp.array([[1, 2, 3, 4, 1, 2, 3, 4, 4, 1]])
    slots, lengths = slm.ctc_segments(labels, jnp.array([10]), 4)
    np.testing.assert_array_equal(lengths, [3])
    np.testing.assert_array_equal(slots, [[0, 0, 0, 1, 1, 1, 2, 2, 2, 2]])  # 9 runs in 3 slots.


def test_ctc_segments_of_silence_and_of_nothing():
    slots, lengths = slm.ctc_segments(jnp.zeros((2, 5), jnp.int32), jnp.array([3, 0]), 4)
    np.testing.assert_array_equal(lengths, [1, 0])
    np.testing.assert_array_equal(slots, [[0, 0, 0, -1, -1], [-1] * 5])


def test_layers_are_stacked_and_axes_named(speech):
    module = slm.SlmAdapter(config(num_layers=3))
    params = jax.eval_shape(module.init, jax.random.key(0), speech[0], LENGTHS)['params']
    assert nn.unbox(params)['layers']['query']['kernel'].shape == (3, 16, 16)
    axes = nn.get_partition_spec(params)
    assert axes['layers']['query']['kernel'] == P('layers', 'embed', 'joined_kv')
    assert axes['layers']['wo']['kernel'] == P('layers', 'mlp', 'embed')
    assert axes['relpos_bias']['rel_embedding'] == P('heads', 'relpos_buckets')


@pytest.mark.parametrize('remat_policy', ['minimal', 'full'])
def test_remat_keeps_the_gradient(speech, remat_policy):
    gradients = []
    for policy in ('none', remat_policy):
        apply, variables = make(speech, remat_policy=policy)
        loss = lambda v: jnp.sum(apply(v, speech[0], LENGTHS)[0][..., 0])
        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(variables)))
    for plain, remat in zip(*gradients):
        np.testing.assert_allclose(remat, plain, rtol=1e-5, atol=1e-6)


def test_order_matters_through_relative_positions(speech):
    apply, variables = make(speech, reduction_factor=1)
    forward = apply(variables, speech[0][:1], LENGTHS[:1])[0]
    reverse = apply(variables, speech[0][:1, ::-1], LENGTHS[:1])[0][:, ::-1]
    assert np.abs(forward - reverse).max() > 1e-3


def test_bias_depends_on_the_offset_of_key_from_query():
    bias = slm.RelativePositionBias(2)
    variables = nn.unbox(bias.init(jax.random.key(0), 300))
    matrix = np.asarray(bias.apply(variables, 300)[0])
    table = np.asarray(variables['params']['rel_embedding'])
    # Bucket 0 is the query itself, 1.. keys before it, 17.. keys after it.
    pairs = ((9, 9, 0), (9, 8, 1), (0, 7, 23), (9, 10, 17), (0, 299, 31), (299, 0, 15))
    for query, key, bucket in pairs:
        np.testing.assert_array_equal(matrix[:, query, key], table[:, bucket])


def test_no_layers_is_a_projection(speech):
    apply, variables = make(speech, num_layers=0)
    assert 'layers' not in variables['params']
    assert apply(variables, speech[0], LENGTHS)[0].shape == (4, 6, 12)


def test_output_scale_and_dropout(speech):
    module = slm.SlmAdapter(config(output_scale=7.0, dropout_rate=0.5))
    variables = module.init(jax.random.key(0), speech[0], LENGTHS)
    still, lengths = module.apply(variables, speech[0], LENGTHS, deterministic=False)
    rms = jnp.sqrt(jnp.mean(still[0, : lengths[0]] ** 2, axis=-1))
    np.testing.assert_allclose(rms, 7, rtol=1e-3)
    rngs = {'dropout': jax.random.key(1)}
    dropped, _ = module.apply(variables, speech[0], LENGTHS, deterministic=False, rngs=rngs)
    assert np.abs(dropped - still).max() > 0.1


def test_slots_start_from_the_embeddings_of_their_labels(speech):
    frames, logits = speech
    labels = jnp.array([[0, 3, 3, 0, 0, 1, 4, 0]])
    sure = 50.0 * jax.nn.one_hot(labels, LABELS)
    embeddings = jax.random.normal(jax.random.key(2), (LABELS, 12))
    module = slm.SlmAdapter(config(reduction='ctc_blank', reduction_factor=1, output_scale=1e-3))
    init, apply = jax.jit(module.init, static_argnums=4), jax.jit(module.apply, static_argnums=4)
    variables = nn.unbox(init(jax.random.key(0), frames, LENGTHS, logits, True, embeddings))
    spelt, lengths = apply(variables, frames[:1, :8], jnp.array([8]), sure, True, embeddings)
    np.testing.assert_allclose(spelt[0, :4], embeddings[jnp.array([0, 3, 1, 4])], atol=0.01)
    assert lengths == 4 and (spelt[0, 4:] == 0).all()
    # Where CTC is not sure, the mean under its probabilities, blank apart.
    unsure, _ = apply(variables, frames[:1, :1], jnp.array([1]), logits[:1, :1], True, embeddings)
    mean = jax.nn.softmax(logits[0, 0, 1:]) @ embeddings[1:]
    np.testing.assert_allclose(unsure[0, 1], mean, atol=0.01)
    padded = [jnp.concatenate([x[:1, :1], jnp.full_like(x[:1, 1:4], jnp.nan)], axis=1) for x in speech]
    still, _ = apply(variables, padded[0], jnp.array([1]), padded[1], True, embeddings)
    np.testing.assert_allclose(still[0, :2], unsure[0], rtol=1e-5)
    nothing, lengths = apply(variables, frames[:1, :4], jnp.array([0]), logits[:1, :4], True, embeddings)
    assert lengths == 0 and (nothing == 0).all()
    with pytest.raises(ValueError, match='4 label_embeddings for a CTC head of 5 labels'):
        module.init(jax.random.key(0), frames, LENGTHS, logits, True, embeddings[1:])
    with pytest.raises(ValueError, match="need SlmAdapterConfig.reduction 'ctc_blank', not 'mean'"):
        slm.SlmAdapter(config(reduction='mean')).init(jax.random.key(0), frames, LENGTHS, logits, True, embeddings)


def test_errors_name_the_remedy(speech):
    with pytest.raises(ValueError, match='reduction is .*choose one of'):
        config(reduction='skip')
    with pytest.raises(ValueError, match='reduction_factor is 0'):
        config(reduction_factor=0)
    module = slm.SlmAdapter(config(reduction='ctc_blank'))
    with pytest.raises(ValueError, match='ctc_logits is None; give'):
        module.init(jax.random.key(0), speech[0], LENGTHS)
