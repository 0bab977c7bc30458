"""T5 against what T5X computed, and against itself: scanned, cached, padded, one by one."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from scanned_t5 import stack_layers

from slm_jax import llms
from slm_jax.llms import layers, t5

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 't5x_goldens'


def config(**changes):
    sizes = dict(
        vocab_size=128, emb_dim=32, num_heads=2, num_encoder_layers=2, num_decoder_layers=3,
        head_dim=16, mlp_dim=64,
    )  # fmt: skip
    return t5.T5Config(**(sizes | changes))


def load(name):
    with np.load(GOLDENS / f'{name}.npz') as arrays:
        golden = {key: jnp.asarray(arrays[key]) for key in arrays.files}
    flat = {k.removeprefix('params/'): v for k, v in golden.items() if k.startswith('params/')}
    return golden, traverse_util.unflatten_dict(flat, sep='/')


def text_batch(golden):
    names = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
    return [golden[f'batch/{name}'] for name in names]


@pytest.fixture(scope='module', params=[False, True], ids=['unscanned', 'scanned'])
def setting(request):
    golden, params = load('t5_1_1_scan' if request.param else 't5_1_1')
    return t5.T5(config(scan_layers=request.param)), params, golden


def test_parameter_names_and_shapes_are_those_of_t5x(setting):
    module, params, golden = setting
    made = jax.eval_shape(module.init, jax.random.key(0), *text_batch(golden))['params']
    made = traverse_util.flatten_dict(nn.unbox(made), sep='/')
    expected = traverse_util.flatten_dict(params, sep='/')
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in expected.items()}


def test_attention_is_of_the_decoder_to_what_is_read(setting):
    module, params, golden = setting
    read, inputs, targets = text_batch(golden)
    mask = read > 0

    def weighed(noise, heads=None):
        prompt = module.apply({'params': params}, read, method='embed')
        prompt = jnp.where(mask[..., None], prompt, noise)
        given = (prompt, mask, inputs, targets, heads)
        return module.apply({'params': params}, *given, method='attention', mutable=['intermediates'])[0]

    def weights(noise):
        return np.asarray(jax.jit(weighed)(noise))

    found = weights(0.0)
    assert found.shape == (6, *targets.shape, read.shape[1]), 'three layers of two heads'
    valid = np.broadcast_to(targets > 0, found.shape[:3])
    np.testing.assert_allclose(found.sum(axis=3), 1.0, rtol=1e-5)
    assert (found[valid][:, :] * ~np.broadcast_to(mask[:, None], found.shape)[valid] == 0).all()
    np.testing.assert_array_equal(weights(9.0)[valid], found[valid])
    np.testing.assert_array_equal(weighed(0.0, [(2, 1), (0, 0)]), weighed(0.0)[np.array([5, 0])])
    assert not np.allclose(found[0][valid[0]], found[1][valid[0]])


def test_attention_is_the_same_in_both_layouts():
    golden, params = load('t5_1_1')
    stacked = stack_layers(params)
    read, inputs, targets = text_batch(golden)
    found = []
    for module, its in ((t5.T5(config()), params), (t5.T5(config(scan_layers=True)), stacked)):
        prompt = module.apply({'params': its}, read, method='embed')
        attention = functools.partial(module.apply, method='attention', mutable=['intermediates'])
        found.append(jax.jit(attention)({'params': its}, prompt, read > 0, inputs, targets)[0])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_logical_axes(setting):
    module, _, golden = setting
    made = jax.eval_shape(module.init, jax.random.key(0), *text_batch(golden))['params']
    axes = nn.get_partition_spec(made)
    assert axes['token_embedder']['embedding'] == P('vocab', 'embed')
    if module.config.scan_layers:
        layer = axes['encoder']['encoder']
        assert layer['attention']['query']['kernel'] == P('embed', 'layers', 'heads', 'kv')
        assert layer['attention']['out']['kernel'] == P('heads', 'layers', 'kv', 'embed')
        assert layer['relpos_bias']['rel_embedding'] == P('heads', 'layers', 'relpos_buckets')
        assert layer['pre_mlp_layer_norm']['scale'] == P('embed', 'layers')
    else:
        layer = axes['decoder']['layers_2']
        assert layer['self_attention']['key']['kernel'] == P('embed', 'joined_kv')
        assert layer['mlp']['wo']['kernel'] == P('mlp', 'embed')


@pytest.mark.parametrize('remat_policy', ['none', 'minimal', 'full'])
def test_logits_loss_and_scores_are_those_of_t5x(setting, remat_policy):
    module, params, golden = setting
    module = t5.T5(config(scan_layers=module.config.scan_layers, remat_policy=remat_policy))
    logits = jax.jit(module.apply)({'params': params}, *text_batch(golden))
    np.testing.assert_allclose(logits, golden['logits'], rtol=1e-5, atol=1e-5)
    targets = golden['batch/decoder_target_tokens']
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    scores = jnp.sum(log_probs * golden['batch/decoder_loss_weights'], axis=1)
    np.testing.assert_allclose(scores, golden['scores'], rtol=1e-5)
    np.testing.assert_allclose(-scores.sum(), golden['loss'], rtol=1e-5)  # T5X: sum over tokens.


@pytest.mark.parametrize('kind', ['bidirectional', 'causal'])
def test_relative_position_buckets(kind):
    with np.load(GOLDENS / 'relative_position_buckets.npz') as golden:
        offsets = golden['relative_position']
        buckets = layers.relative_position_bucket(offsets, kind == 'bidirectional')
        np.testing.assert_array_equal(buckets, golden[kind])


def test_bias_matrix_is_the_bucket_of_every_pair():
    bias = layers.RelativePositionBias(2, jnp.float32, True)
    variables = nn.unbox(bias.init(jax.random.key(0), 5))
    offsets = np.arange(40)[None, :] - np.arange(40)[:, None]
    table = variables['params']['rel_embedding']
    expected = table[:, layers.relative_position_bucket(offsets, True)]
    np.testing.assert_array_equal(bias.apply(variables, 40)[0], expected)


def test_scanned_equals_unscanned():
    golden, params = load('t5_1_1')
    scanned = t5.T5(config(scan_layers=True)).apply({'params': stack_layers(params)}, *text_batch(golden))
    np.testing.assert_allclose(scanned, golden['logits'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('beams', [1, 3])
def test_cached_decode_equals_teacher_forcing(setting, beams):
    module, params, golden = setting
    inputs, decoder_inputs, _ = text_batch(golden)
    # Long enough for a step to read 32, 64 and all positions of the cache.
    decoder_inputs = jnp.tile(decoder_inputs, (1, 70 // decoder_inputs.shape[1] + 1))[:, :70]
    mask = inputs > 0
    prompt = module.apply({'params': params}, inputs, method='embed')
    # No beam writes what another does.
    tokens = jnp.repeat(decoder_inputs, beams, axis=0)
    tokens = (tokens + jnp.arange(len(tokens))[:, None] % beams) % module.config.vocab_size
    repeated = jnp.repeat(prompt, beams, axis=0), jnp.repeat(mask, beams, axis=0)
    expected = jax.jit(functools.partial(module.apply, method='logits'))({'params': params}, *repeated, tokens)
    expected, tokens = np.asarray(jax.nn.log_softmax(expected)), np.asarray(tokens)
    # As `llms.cached_step`, compiled.
    cache, cross = jax.jit(lambda params: llms.started(module, params, prompt, mask, 77, beams))(params)
    axis = module.config.cache_batch_axis
    cache['decoder']['written_by'] = jnp.repeat(cache['decoder']['written_by'], beams, axis)
    step = jax.jit(llms.continued(module, params, cross))
    for i in range(tokens.shape[1]):
        log_probs, cache = step(tokens[:, i : i + 1], cache)
        np.testing.assert_allclose(log_probs, expected[:, i], rtol=1e-5, atol=1e-5)


def test_a_cache_for_fewer_beams_is_refused():
    golden, params = load('t5_1_1')
    module, (inputs, *_) = t5.T5(config()), text_batch(golden)
    prompt = module.apply({'params': params}, inputs, method='embed')
    step, cache = llms.cached_step(module, params, prompt, inputs > 0, max_decode_length=8)
    cache['decoder']['written_by'] = jnp.repeat(cache['decoder']['written_by'], 2, axis=0)
    with pytest.raises(ValueError, match='give cached_step beams=2'):
        step(jnp.zeros((2 * len(inputs), 1), jnp.int32), cache)


def test_padding_noise_and_batch_size_change_nothing(setting):
    module, params, golden = setting
    inputs, decoder_inputs, targets = text_batch(golden)
    mask = inputs > 0
    embeddings = module.apply({'params': params}, inputs, method='embed')
    noise = 10 * jax.random.normal(jax.random.key(1), embeddings.shape)

    @jax.jit
    def logits(embeddings, mask, decoder_inputs, targets):
        return module.apply({'params': params}, embeddings, mask, decoder_inputs, targets, method='logits')

    clean = logits(embeddings, mask, decoder_inputs, targets)
    noisy = logits(
        jnp.where(mask[..., None], embeddings, noise), mask,
        jnp.where(targets > 0, decoder_inputs, 7), targets,
    )  # fmt: skip
    valid = targets > 0
    np.testing.assert_allclose(clean[valid], noisy[valid], rtol=1e-6, atol=1e-6)
    for i, (length, size) in enumerate(zip(mask.sum(1), valid.sum(1))):
        row = slice(i, i + 1)
        alone = logits(
            embeddings[row, :length], mask[row, :length], decoder_inputs[row, :size],
            targets[row, :size],
        )  # fmt: skip
        np.testing.assert_allclose(alone[0], clean[i, :size], rtol=1e-5, atol=1e-5)


def test_embeddings_may_stand_in_the_place_of_what_the_decoder_reads(setting):
    module, params, golden = setting
    inputs, before, targets = text_batch(golden)

    @jax.jit
    def logits(params, read):
        prompt = module.apply({'params': params}, inputs, method='embed')
        given = prompt, inputs > 0, before, targets, True, read
        return module.apply({'params': params}, *given, method='logits')

    embedded = module.apply({'params': params}, before, method='embed')
    plain = logits(params, None)
    np.testing.assert_array_equal(logits(params, embedded.at[:, 0].set(9.0)), plain)  # the first is not read
    assert np.abs(logits(params, embedded.at[:, 1].set(9.0)) - plain)[:, 1:].max() > 1e-3


def test_dropout_only_when_asked():
    golden, params = load('t5_1_1')
    module = t5.T5(config(dropout_rate=0.5))
    batch, rngs = text_batch(golden), {'dropout': jax.random.key(0)}
    for options in ({}, {'rngs': rngs}, {'deterministic': False}):
        logits = module.apply({'params': params}, *batch, **options)
        np.testing.assert_allclose(logits, golden['logits'], rtol=1e-5, atol=1e-5)
    dropped = module.apply({'params': params}, *batch, deterministic=False, rngs=rngs)
    assert np.abs(dropped - golden['logits']).max() > 0.1


def test_gradient_is_finite_in_bfloat16():
    golden, params = load('t5_1_1')
    module = t5.T5(config(dtype='bfloat16', remat_policy='minimal'))

    def loss(params):
        return jnp.mean(module.apply({'params': params}, *text_batch(golden)) ** 2)

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all()


def test_shared_embedding_has_no_output_layer():
    golden, _ = load('t5_1_1')
    module = t5.T5(config(logits_via_embedding=True))
    logits, variables = module.init_with_output(jax.random.key(0), *text_batch(golden))
    assert 'logits_dense' not in variables['params']['decoder'] and logits.shape[-1] == 128


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match='remat_policy.*minimal'):
        config(remat_policy='some')
    golden, params = load('t5_1_1')
    encoded, mask = jnp.zeros((3, 4, 32)), jnp.ones((3, 4), bool)
    with pytest.raises(ValueError, match=r'pass \[rows, 1\]'):
        t5.T5(config()).apply(
            {'params': params}, encoded, mask, text_batch(golden)[1], decode=True,
            max_decode_length=4, method='decode', mutable=['cache', 'cross'],
        )  # fmt: skip
