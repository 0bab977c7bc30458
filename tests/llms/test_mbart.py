"""mBART against itself: cached, padded, with dropout, in bfloat16 and int8. tests/importers has the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from slm_jax import llms
from slm_jax.llms import mbart
from slm_jax.training import quantization

SIZES = dict(vocab_size=64, emb_dim=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, mlp_dim=24)
TOKENS = jnp.array([[7, 3, 9, 4, 1], [8, 5, 1, 0, 0]])
TARGETS = jnp.array([[40, 5, 6, 1], [41, 9, 1, 0]])
INPUTS = jnp.array([[0, 40, 5, 6], [0, 41, 9, 1]])
MASK = TOKENS > 0


def model(**changes):
    return mbart.MBart(mbart.MBartConfig(**(SIZES | dict(max_positions=80) | changes)))


@pytest.fixture(scope='module')
def params():
    """All far from their initial values."""
    fresh = nn.unbox(jax.jit(lambda: llms.initial_params(model(), jax.random.key(0)))())
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)])


def logits(module, params, embeddings, mask=MASK, inputs=INPUTS):
    return jax.jit(lambda *given: module.apply({'params': params}, *given, method='logits'))(embeddings, mask, inputs)


def embed(params, tokens=TOKENS):
    return model().apply({'params': params}, tokens, method='embed')


def test_logical_axes():
    axes = nn.get_partition_spec(jax.eval_shape(lambda: llms.initial_params(model(), jax.random.key(0))))
    layer = axes['decoder']['layers']
    assert axes['token_embedder']['embedding'] == P('vocab', 'embed')
    assert axes['encoder']['position_embedder']['embedding'] == P('abspos_buckets', 'embed')
    assert layer['encoder_decoder_attention']['query']['kernel'] == P('layers', 'embed', 'joined_kv')
    assert layer['self_attention']['out']['kernel'] == P('layers', 'joined_kv', 'embed')
    assert layer['mlp']['wi']['bias'] == P('layers', 'mlp')
    assert layer['pre_mlp_layer_norm']['scale'] == P('layers', 'embed')


@pytest.mark.parametrize('beams', [1, 3])
def test_cached_decode_equals_teacher_forcing(params, beams):
    module, length = model(), 70  # a step reads 32, 64 and all positions of the cache
    tokens = jax.random.randint(jax.random.key(2), (2 * beams, length), 2, 64).at[:, 0].set(0)
    prompt = embed(params)
    expected = logits(module, params, *(jnp.repeat(x, beams, axis=0) for x in (prompt, MASK)), tokens)
    # Of the step alone is padding impossible.
    expected, tokens = np.asarray(jax.nn.log_softmax(expected.at[..., 0].set(-1e10))), np.asarray(tokens)
    # As `llms.cached_step`, compiled.
    cache, cross = jax.jit(lambda params: llms.started(module, params, prompt, MASK, 77, beams))(params)
    axis = module.config.cache_batch_axis
    cache['decoder']['written_by'] = jnp.repeat(cache['decoder']['written_by'], beams, axis)
    step = jax.jit(llms.continued(module, params, cross))
    for i in range(length):
        log_probs, cache = step(tokens[:, i : i + 1], cache)
        np.testing.assert_allclose(np.asarray(log_probs)[:, 1:], expected[:, i, 1:], rtol=1e-5, atol=1e-5)


def test_attention_is_of_the_decoder_to_what_is_read(params):
    """tests/importers compares its weights with those of transformers."""

    @functools.partial(jax.jit, static_argnums=1)
    def weights(noise, heads=None):
        prompt = jnp.where(MASK[..., None], embed(params), noise)
        given = (prompt, MASK, INPUTS, TARGETS, heads)
        return model().apply({'params': params}, *given, method='attention', mutable=['intermediates'])[0]

    found = np.asarray(weights(0.0))
    assert found.shape == (4, *TARGETS.shape, TOKENS.shape[1]), 'two layers of two heads'
    np.testing.assert_allclose(found.sum(axis=3), 1.0, rtol=1e-5)
    assert (found[:, 1, :, 3:] == 0).all()
    np.testing.assert_allclose(weights(9.0, ((1, 1), (0, 0))), found[[3, 0]], rtol=1e-5)


def test_a_target_may_be_read_as_embeddings(params):
    """But for the first."""
    given = embed(params), MASK, jnp.zeros_like(INPUTS), None, True, embed(params, INPUTS)
    found = jax.jit(lambda params: model().apply({'params': params}, *given, method='logits'))(params)
    np.testing.assert_allclose(found, logits(model(), params, embed(params)), rtol=1e-5, atol=1e-5)


def test_padding_noise_and_batch_size_change_nothing(params):
    module, embeddings = model(), embed(params)
    clean = logits(module, params, embeddings)
    noise = 10 * jax.random.normal(jax.random.key(1), embeddings.shape)
    noisy_inputs = INPUTS.at[1, 3].set(7)
    noisy = logits(module, params, jnp.where(MASK[..., None], embeddings, noise), inputs=noisy_inputs)
    valid = TARGETS > 0
    np.testing.assert_allclose(clean[valid], noisy[valid], rtol=1e-6, atol=1e-6)
    alone = logits(module, params, embeddings[1:, :3], MASK[1:, :3], INPUTS[1:, :3])
    np.testing.assert_allclose(alone[0], clean[1, :3], rtol=1e-5, atol=1e-5)
    # Where there is no mask, all is read.
    unmasked = module.apply({'params': params}, embeddings, None, method='encode')
    assert np.abs(unmasked - module.apply({'params': params}, embeddings, MASK, method='encode'))[1, 0].max() > 0.01


def test_positions_can_be_given(params):
    def encoded(embeddings, **options):
        return model().apply({'params': params}, embeddings, None, method='encode', **options)

    embeddings, order = embed(params), jnp.array([4, 2, 0, 1, 3])
    moved = encoded(embeddings[:, order], positions=order[None])
    np.testing.assert_allclose(moved, encoded(embeddings)[:, order], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r'80 positions \(MBartConfig.max_positions\), and what its encoder reads may'):
        encoded(jnp.zeros((1, 81, 16)))
    with pytest.raises(ValueError, match=r'and an answer may have 81: give it shorter audio, text or answers'):
        llms.started(model(), params, embeddings, MASK, 81)


@pytest.mark.parametrize('rate', ['dropout_rate', 'attention_dropout_rate', 'activation_dropout_rate'])
def test_dropout_only_when_asked(params, rate):
    module, rngs = model(**{rate: 0.5}), {'dropout': jax.random.key(0)}
    expected = logits(model(), params, embed(params))
    for options in ({'rngs': rngs}, {'deterministic': False}):
        found = module.apply({'params': params}, TOKENS, INPUTS, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    dropped = module.apply({'params': params}, TOKENS, INPUTS, deterministic=False, rngs=rngs)
    assert np.abs(dropped - expected).max() > 0.05


def test_gradient_in_bfloat16_is_finite_and_leaves_the_bias_of_the_logits_alone(params):
    module = model(dtype='bfloat16', remat_policy='minimal')
    loss = lambda params: jnp.mean(module.apply({'params': params}, TOKENS, INPUTS) ** 2)
    gradient = jax.jit(jax.grad(loss))(params)
    assert not gradient['decoder'].pop('logits_bias').any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        # A key's bias adds the same to all logits of a query.
        assert leaf.any() or path[-2].key == 'key', path


def test_int8_is_near(params):
    boxed = jax.eval_shape(lambda: llms.initial_params(model(), jax.random.key(0)))
    names = {jax.tree_util.keystr(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(
        nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, P))}  # fmt: skip

    def held(path, leaf):
        if path[-1].key not in ('kernel', 'embedding'):
            return leaf
        return quantization.quantize(leaf, quantization._input_axes(names[jax.tree_util.keystr(path)]))

    quantized = jax.tree_util.tree_map_with_path(held, params)
    expected, embeddings = logits(model(), params, embed(params)), embed(params)
    found = logits(model(), quantized, embeddings)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_errors_name_the_remedy():
    for field, value in (('remat_policy', 'some'), ('activation', 'tanh'), ('num_heads', 3), ('dropout_rate', 1.0)):
        with pytest.raises(ValueError, match=rf'MBartConfig.{field} is {value!r}; it must be '):
            model(**{field: value})


def test_a_fresh_decoder_looks_for_what_is_like_its_query():
    sizes = dict(vocab_size=64, emb_dim=192, num_heads=4, num_encoder_layers=3, num_decoder_layers=2, mlp_dim=256)
    module = mbart.MBart(mbart.MBartConfig(**sizes))
    tokens = jnp.arange(2, 42)[None]

    def found(arranged):
        init = mbart.MBart.init if arranged else nn.Module.init
        params = nn.unbox(jax.jit(lambda key: init(module, key, tokens, tokens))(jax.random.key(0)))['params']
        weights = module.apply({'params': params}, module.apply({'params': params}, tokens, method='embed'),
                               tokens > 0, tokens, method='attention', mutable='intermediates')[0]  # fmt: skip
        return jnp.mean(jnp.diagonal(weights, axis1=-2, axis2=-1))

    assert found(arranged=True) > 0.5 and found(arranged=False) < 0.1
