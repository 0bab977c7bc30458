"""Decoder-only models against transformers, and against themselves: cached, in beams, padded, one by one.

The goldens are outputs of small random models (tests/testdata/decoder_only_goldens/make.py). The slow tests make more
of them here, and need torch and transformers: pip install -e .[hf].
"""

import dataclasses
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from slm_jax import decoding, foundations, llms
from slm_jax.llms import layers
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 'decoder_only_goldens'
MAKE = runpy.run_path(str(GOLDENS / 'make.py'))
SEARCHES = {'greedy': {'method': 'greedy'}, 'beams': {'method': 'beam', 'alpha': 0.0}}


def made(family, seed, **changes):
    """(model, parameters) of a family, as make.py has them."""
    llm = DecoderOnly(DecoderOnlyConfig(**MAKE['config'](family) | changes))
    shapes = nn.unbox(jax.eval_shape(lambda: llms.initial_params(llm, jax.random.key(0))))
    shapes = {path: leaf.shape for path, leaf in foundations.flatten(shapes).items()}
    return llm, MAKE['parameters'](shapes, seed)


def logits_and_texts(llm, params, seed):
    """What the reference's outputs are compared with; in the masked positions of the prompts there is noise."""
    tokens, mask, targets = MAKE['batch'](seed)
    inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]

    @jax.jit
    def outputs(params, tokens):
        prompt = llm.apply({'params': params}, tokens, method='embed')
        prompt = jnp.where(mask[..., None], prompt, 10 * jax.random.normal(jax.random.key(1), prompt.shape))
        found = {'logits': llm.apply({'params': params}, prompt, mask, inputs, method='logits')}
        for name, options in SEARCHES.items():
            config = decoding.DecodeConfig(max_decode_length=MAKE['MAX_LENGTH'], **options)
            step, cache = llms.cached_step(llm, params, prompt, mask, config.max_decode_length, config.beams)
            found[name], _ = decoding.decode(
                step, cache, len(tokens), config, cache_batch_axis=llm.config.cache_batch_axis
            )
        return found

    return outputs(foundations.unflatten(params), tokens)


@pytest.mark.parametrize('family', MAKE['FAMILIES'])
def test_logits_and_texts_are_those_of_transformers(family):
    seed = MAKE['FAMILIES'][family][-1]
    found = logits_and_texts(*made(family, seed), seed)
    with np.load(GOLDENS / f'{family}.npz') as golden:
        np.testing.assert_allclose(found['logits'], golden['logits'], rtol=0, atol=1e-4)
        for name in SEARCHES:
            np.testing.assert_array_equal(found[name], golden[name], err_msg=name)


def test_attention_before_a_token_is_that_after_a_prompt_which_ends_there():
    llm, params = made('qwen3', 0, sliding_window=4, sliding_layers=(0,))
    params, heads = foundations.unflatten(params), ((2, 1), (0, 3), (2, 0))
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 3, llm.config.vocab_size)
    tokens = jnp.where(jnp.arange(9) < jnp.array([[9], [6]]), tokens, 0)
    target = jnp.array([[0, 7, 8, 9], [0, 5, 4, 3]])

    def weighed(tokens, target, heads):
        variables, prompt = {'params': params}, llm.apply({'params': params}, tokens, method='embed')
        options = {'heads': heads, 'method': 'attention', 'mutable': ['intermediates']}
        return llm.apply(variables, prompt, tokens > 0, target, **options)[0]

    weights = jax.jit(weighed, static_argnums=2)

    found = np.asarray(weights(tokens, target, heads))
    assert found.shape == (3, 2, 4, 9)
    every = weighed(tokens, target, [(n, h) for n in range(3) for h in range(4)])
    np.testing.assert_allclose(weighed(tokens, target, heads), np.asarray(every)[[9, 3, 8]])
    for row, length in enumerate((9, 6)):
        for written in range(4):
            text = np.concatenate([tokens[row, :length], target[row, 1 : written + 1]])
            text = np.pad(text, (0, 12 - len(text)))[None]  # one length, compiled once
            alone = np.asarray(weights(text, target[:1, :1], heads))[:, 0, 0]
            np.testing.assert_allclose(found[:, row, written, :length], alone[:, :length], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(alone.sum(axis=1), 1.0, rtol=1e-5)
    assert (found[1, 0, 3] == 0).sum() == 8, 'of the layer that sees four positions: one of the prompt and three tokens'
    with pytest.raises(ValueError, match=r'alignment_heads is \(\(3, 0\),\); \(layer, head\) .* of 3 layers, from 0'):
        weights(tokens, target, ((3, 0),))


@pytest.mark.parametrize('family', ['qwen3', 'opt'])
def test_a_long_text_attends_in_parts(family, monkeypatch):
    """Outputs and gradients are those of attention at once, with windows and with several texts in a row."""
    llm, params = made(family, 0, sliding_window=4, sliding_layers=(0,))
    params, tokens = foundations.unflatten(params), jax.random.randint(jax.random.key(0), (2, 21), 3, 40)
    numbers = jnp.repeat(jnp.array([[1, 2, 2], [1, 1, 1]]), 7, axis=1)
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(14)]), jnp.arange(21)

    def loss(params):
        x = llm.apply({'params': params}, tokens, method='embed')
        y = llm.apply({'params': params}, x, numbers, jnp.stack(positions), method='outputs')
        return jnp.sum(y**2), y

    (_, at_once), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    monkeypatch.setattr(layers, '_QUERIES', 8)
    (_, in_parts), its_gradient = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(in_parts, at_once, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), its_gradient, gradient)


def test_the_weights_of_a_long_text_are_never_there_at_once():
    llm, params = made('qwen3', 0)
    params, length = foundations.unflatten(params), 16_384
    x = jax.ShapeDtypeStruct((1, length, llm.config.emb_dim), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, length), bool)
    read = lambda x, mask: llm.apply({'params': params}, x, mask, 8, 1, method='start', mutable=['cache', 'cross'])[1]
    memory = jax.jit(read).lower(x, mask).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * llm.config.num_heads * length**2 / 2


def test_names_and_axes_of_parameters():
    llm, params = made('qwen3', 0)
    assert {path: value.shape for path, value in params.items()} == {
        'decoder/decoder_norm/scale': (12,),
        'decoder/layers/mlp/wi_0/kernel': (3, 12, 20),
        'decoder/layers/mlp/wi_1/kernel': (3, 12, 20),
        'decoder/layers/mlp/wo/kernel': (3, 20, 12),
        'decoder/layers/pre_mlp_layer_norm/scale': (3, 12),
        'decoder/layers/pre_self_attention_layer_norm/scale': (3, 12),
        'decoder/layers/self_attention/key/bias': (3, 20),
        'decoder/layers/self_attention/key/kernel': (3, 12, 20),
        'decoder/layers/self_attention/key_norm/scale': (3, 10),
        'decoder/layers/self_attention/out/bias': (3, 12),
        'decoder/layers/self_attention/out/kernel': (3, 40, 12),
        'decoder/layers/self_attention/query/bias': (3, 40),
        'decoder/layers/self_attention/query/kernel': (3, 12, 40),
        'decoder/layers/self_attention/query_norm/scale': (3, 10),
        'decoder/layers/self_attention/value/bias': (3, 20),
        'decoder/layers/self_attention/value/kernel': (3, 12, 20),
        'decoder/logits_dense/kernel': (12, 48),
        'token_embedder/embedding': (48, 12),
    }
    boxed = jax.eval_shape(lambda: llms.initial_params(llm, jax.random.key(0)))
    axes = foundations.flatten(nn.get_partition_spec(boxed))
    assert axes['token_embedder/embedding'] == P('vocab', 'embed')
    assert axes['decoder/layers/self_attention/query/kernel'] == P('layers', 'embed', 'joined_kv')
    assert axes['decoder/layers/self_attention/query/bias'] == P('layers', 'joined_kv')
    assert axes['decoder/layers/self_attention/query_norm/scale'] == P('layers', 'kv')
    assert axes['decoder/layers/mlp/wo/kernel'] == P('layers', 'mlp', 'embed')
    assert axes['decoder/logits_dense/kernel'] == P('embed', 'vocab')


def text(llm, params, lengths=(9, 0, 4), target_length=70):
    """Prompts with their mask, and inputs of targets."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, llm.config.vocab_size, (len(lengths), max(lengths)))
    prompt = llm.apply({'params': params}, tokens, method='embed')
    targets = rng.integers(2, llm.config.vocab_size, (len(lengths), target_length))
    targets[:, 0] = 0
    return prompt, np.arange(max(lengths)) < np.array(lengths)[:, None], targets


@pytest.mark.parametrize('family', ['qwen2', 'opt_post_norm'])
def test_a_cached_step_is_a_row_of_the_logits(family):
    beams = 3
    llm, params = made(family, 0, max_positions=90)
    params = foundations.unflatten(params)
    prompt, mask, targets = text(llm, params)  # long enough for a step to read 32, 64 and all positions
    # No beam writes what another does; the first input stands for the last of the prompt, whatever it is.
    tokens = np.repeat(targets, beams, axis=0)
    tokens[:, 1:] = (tokens[:, 1:] - 2 + np.arange(len(tokens))[:, None] % beams) % 46 + 2
    repeated = jnp.repeat(prompt, beams, axis=0), np.repeat(mask, beams, axis=0)
    expected = jax.jit(functools.partial(llm.apply, method='logits'))({'params': params}, *repeated, tokens)
    expected = np.asarray(jax.nn.log_softmax(expected[..., 1:]))
    # As `llms.cached_step`, compiled.
    cache, cross = jax.jit(lambda params: llms.started(llm, params, prompt, mask, 77, beams))(params)
    cache['decoder']['written_by'] = jnp.repeat(cache['decoder']['written_by'], beams, axis=1)
    step = jax.jit(llms.continued(llm, params, cross))
    for i in range(tokens.shape[1]):
        log_probs, cache = step(tokens[:, i : i + 1], cache)
        log_probs = np.asarray(log_probs)
        np.testing.assert_allclose(log_probs[:, 1:], expected[:, i], rtol=1e-5, atol=2e-5)
        assert np.all(log_probs[:, 0] < -1e9)  # padding


def test_what_is_masked_and_the_batch_change_nothing():
    llm, params = made('qwen2', 272)
    params = foundations.unflatten(params)
    prompt, mask, targets = text(llm, params, target_length=8)
    config = decoding.DecodeConfig('beam', 12, alpha=0.0)

    @jax.jit
    def outputs(prompt, mask, targets):
        step, cache = llms.cached_step(llm, params, prompt, mask, 12, 4)
        written = decoding.decode(step, cache, len(prompt), config, cache_batch_axis=1)
        return llm.apply({'params': params}, prompt, mask, targets, method='logits'), *written

    clean = outputs(prompt, mask, targets)
    assert all(np.isfinite(found).all() for found in clean)
    assert len({tuple(row) for row in np.array(clean[1])}) == 3
    wider = jnp.where(mask[..., None], prompt, jnp.nan), mask
    wider = jnp.pad(wider[0], ((0, 0), (0, 7), (0, 0)), constant_values=jnp.inf), np.pad(mask, ((0, 0), (0, 7)))
    noisy = outputs(*wider, targets)
    np.testing.assert_allclose(noisy[0], clean[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(noisy[1], clean[1])
    for row, length in enumerate(mask.sum(axis=1)):
        one, length = slice(row, row + 1), max(length, 1)
        alone = outputs(prompt[one, :length], mask[one, :length], targets[one])
        np.testing.assert_allclose(alone[0], clean[0][one], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(alone[1], clean[1][one])


def test_another_end_is_written_as_the_end():
    llm, params = made('smollm2', 0)
    params = foundations.unflatten(params)
    prompt, mask, _ = text(llm, params)
    likeliest = np.argmax(first_log_probs(llm, params, prompt, mask)[:, 2:], axis=1) + 2
    others = DecoderOnly(dataclasses.replace(llm.config, other_ends=(int(likeliest[0]), 5)))
    before, after = (first_log_probs(model, params, prompt, mask) for model in (llm, others))
    assert np.all(after[:, [0, likeliest[0], 5]] < -1e9)
    kept = np.setdiff1d(np.arange(2, 48), [likeliest[0], 5])
    shift = after[:, kept] - before[:, kept]  # of the sum over what may be written
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-5)
    end = before[:, [1, likeliest[0], 5]].max(axis=1)
    np.testing.assert_allclose(after[:, 1], end + shift[:, 0], atol=1e-5)


def first_log_probs(llm, params, prompt, mask):
    step, cache = llms.cached_step(llm, params, prompt, mask, 4)
    return np.array(step(jnp.zeros((len(prompt), 1), jnp.int32), cache)[0])


def test_gradient_to_the_prompt():
    llm, params = made('qwen2', 0)
    params = foundations.unflatten(params)
    prompt, mask, targets = text(llm, params, target_length=5)

    def gradient(**changes):
        llm, _ = made('qwen2', 0, **changes)

        def loss(prompt):
            logits = llm.apply({'params': params}, prompt.astype(llm.config.dtype), mask, targets, method='logits')
            assert logits.dtype == jnp.float32
            return jnp.mean(jax.nn.log_softmax(logits) ** 2)

        return jax.jit(jax.grad(loss))(prompt)

    expected = gradient()
    assert np.all(expected[~mask] == 0) and np.all(np.any(expected[mask], axis=-1))
    # Small elements are sums of large ones, whose order is the compiler's.
    atol = 3e-7 * np.abs(expected).max()
    np.testing.assert_allclose(gradient(remat_policy='full'), expected, rtol=1e-5, atol=atol)
    half = gradient(remat_policy='minimal', dtype='bfloat16')
    assert np.linalg.norm(half - expected) < 0.1 * np.linalg.norm(expected)


def test_no_logits_of_the_prompt():
    """What a gradient costs does not grow by the output layer where the prompt grows."""
    config = dict(MAKE['config']('llama3'), vocab_size=10_000, num_layers=1)
    llm = DecoderOnly(DecoderOnlyConfig(**config))
    params = nn.unbox(jax.eval_shape(lambda: llms.initial_params(llm, jax.random.key(0))))

    def flops(length):
        def loss(prompt, params):
            return llm.apply({'params': params}, prompt, jnp.ones((1, length), bool), jnp.zeros((1, 4), jnp.int32),
                             method='logits').sum()  # fmt: skip

        prompt = jax.ShapeDtypeStruct((1, length, 12), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(prompt, params).compile().cost_analysis()['flops']

    of_a_position = 4 * 12 * 10_000  # forward and backward
    assert flops(40) - flops(20) < 20 * of_a_position / 4


def test_errors_name_the_field_and_the_remedy():
    for field, value, message in (
        ('norm', 'batch', "DecoderOnlyConfig.norm is 'batch'; it must be 'rms' or 'layer'"),
        ('rope_scaling', {'rope_type': 'yarn', 'factor': 2}, "one of the types \\['default', 'linear', 'llama3'\\]"),
        ('rope_scaling', {'type': 'llama3', 'factor': 2}, "with \\['low_freq_factor', 'high_freq_factor'"),
        ('num_kv_heads', 3, 'num_kv_heads is 3; it must be a divisor of the 4 heads'),
        ('positions', 'learned', 'max_positions is None; it must be stated'),
        ('mlp_activations', ('swish2',), 'one or two of'),
        ('mlp_activations', (), 'one or two of'),
        ('sliding_layers', (3,), r'sliding_layers is \(3,\); it must be of 0 to 2'),
        ('other_ends', (1,), 'other_ends'),
        ('remat_policy', 'some', 'one of .*minimal'),
    ):
        with pytest.raises(ValueError, match=message):
            DecoderOnlyConfig(**MAKE['config']('mistral') | {field: value})
    llm, params = made('opt', 0)
    prompt, mask, targets = text(llm, foundations.unflatten(params), target_length=33)
    with pytest.raises(ValueError, match='has 40 positions .*may have 41: give it shorter'):
        llm.apply({'params': foundations.unflatten(params)}, prompt, mask, targets, method='logits')


# What makes a model unlike the golden of its family: settings of transformers, and ours.
OTHERS = {
    'llama2, one head of keys': ('llama2', dict(num_key_value_heads=1, head_dim=8, mlp_bias=False, attention_bias=True),
                                 dict(num_kv_heads=1, head_dim=8, mlp_bias=False, qkv_bias=True, out_bias=True)),
    'llama3, untied': ('llama3', dict(tie_word_embeddings=False, attention_bias=False, mlp_bias=True),
                       dict(logits_via_embedding=False, qkv_bias=False, out_bias=False, mlp_bias=True)),
    'mistral, other window': ('mistral', dict(sliding_window=2, num_key_value_heads=2, tie_word_embeddings=True),
                              dict(sliding_window=2, num_kv_heads=2, logits_via_embedding=True)),
    'qwen2, no window': ('qwen2', dict(use_sliding_window=False, tie_word_embeddings=False),
                         dict(sliding_window=None, sliding_layers=None, logits_via_embedding=False)),
    'qwen3, some windows': (
        'qwen3',
        dict(use_sliding_window=True, sliding_window=4, attention_bias=False, tie_word_embeddings=True,
             layer_types=['sliding_attention', 'full_attention', 'sliding_attention']),
        dict(sliding_window=4, sliding_layers=(0, 2), qkv_bias=False, out_bias=False, logits_via_embedding=True),
    ),
    'opt, projected': ('opt', dict(word_embed_proj_dim=20), dict(embed_dim=20)),
    'opt, post norm alone': ('opt_post_norm', dict(word_embed_proj_dim=12, tie_word_embeddings=False),
                             dict(embed_dim=None, logits_via_embedding=False)),
    'opt, no final norm': ('opt_no_bias', dict(_remove_final_layer_norm=True), dict(final_norm=False)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', [*MAKE['FAMILIES'], *OTHERS])
def test_logits_and_texts_of_models_made_here(name):
    for library in ('torch', 'transformers'):
        pytest.importorskip(library, reason=f'{library} makes the reference: pip install -e .[hf]')
    family, settings, changes = OTHERS.get(name, (name, {}, {}))
    for seed in range(1000, 1003):
        llm, params = made(family, seed, **changes)
        found = {key: np.array(value) for key, value in logits_and_texts(llm, params, seed).items()}
        model = MAKE['random_model'](family, params, **settings)
        expected = MAKE['outputs'](model, seed)
        np.testing.assert_allclose(found['logits'], expected['logits'], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found['greedy'], expected['greedy'])
        for row in np.flatnonzero((found['beams'] != expected['beams']).any(axis=1)):
            # Where beam searches may differ, see make.py: one of the texts has ended, and ours is not worse among such.
            ours, theirs = found['beams'][row], expected['beams'][row]
            likelier = [MAKE['log_probability'](model, seed, row, text) for text in (ours, theirs)]
            assert 1 in ours and (1 not in theirs or likelier[0] > likelier[1]), (seed, row, ours, theirs, likelier)
