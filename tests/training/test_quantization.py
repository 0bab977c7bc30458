"""Frozen weights in int8: the error, what is held in it, devices, training and evaluation over it, and the loss."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from slm_jax import foundations
from slm_jax.inference import model as model_lib
from slm_jax.llms import decoder_only, t5
from slm_jax.training import checkpoints, loop, origins, partitioning, quantization, state
from slm_jax.training.logs import read_losses

SIZES = dict(vocab_size=64, emb_dim=32, num_heads=4, num_encoder_layers=2, num_decoder_layers=2, head_dim=8, mlp_dim=64)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_weight_is_off_by_at_most_half_a_scale(dtype):
    weights = jax.random.normal(jax.random.key(0), (64, 3, 16), dtype) * jnp.logspace(-6, 3, 16, dtype=dtype)
    weights = weights.at[:, 1, 5].set(0)
    quantized = quantization.quantize(weights, (0,))
    assert quantized.values.dtype == jnp.int8 and quantized.scale.shape == (1, 3, 16)
    error = np.abs(quantized.unbox() - weights.astype(jnp.float32))
    assert np.all(error <= 0.5001 * quantized.scale)
    assert np.all(quantized.unbox()[:, 1, 5] == 0)
    largest = np.max(np.abs(weights.astype(jnp.float32)), axis=0, keepdims=True)
    np.testing.assert_allclose(np.max(np.abs(quantized.unbox()), axis=0, keepdims=True), largest, rtol=1e-6)
    again = quantized.replace_boxed(quantized.unbox())
    np.testing.assert_array_equal(again.values, quantized.values)
    np.testing.assert_allclose(again.scale, quantized.scale, rtol=1e-6)


def held(module, mesh, partitioner):
    """A language model's boxed abstract parameters, and how they are held in int8, by path."""
    tokens = jnp.ones((1, 8), jnp.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens, tokens)['params']
    placed = origins.place(state.unboxed(boxed), partitioner.shardings(boxed, mesh))
    return boxed, origins.hold(placed, boxed, 'int8')


@pytest.mark.parametrize('scanned', [False, True])
def test_scales_are_those_of_output_channels(scanned):
    partitioner = partitioning.Partitioner(1, 2, 4)
    mesh = jax.sharding.AbstractMesh((1, 2, 4), ('data', 'fsdp', 'model'))
    _, tree = held(t5.T5(t5.T5Config(**SIZES, scan_layers=scanned)), mesh, partitioner)
    leaves = foundations.flatten(tree)
    stack = 'encoder/encoder' if scanned else 'encoder/layers_0'

    def scale(path):
        leaf = leaves[path].scale
        return leaf.shape, tuple(leaf.sharding.spec)

    assert scale('token_embedder/embedding') == ((64, 1), ('model', None))
    assert scale('decoder/logits_dense/kernel') == ((1, 64), (None, 'model'))
    if scanned:
        assert scale(f'{stack}/attention/query/kernel') == ((1, 2, 4, 8), (None, None, 'model', None))
        assert scale(f'{stack}/attention/out/kernel') == ((1, 2, 1, 32), (None, None, None, 'fsdp'))
        assert scale(f'{stack}/mlp/wo/kernel') == ((1, 2, 32), (None, None, 'fsdp'))
    else:
        assert scale(f'{stack}/attention/query/kernel') == ((1, 32), (None, 'model'))
        assert scale(f'{stack}/attention/out/kernel') == ((1, 32), (None, 'fsdp'))
    small = {path for path, leaf in leaves.items() if not isinstance(leaf, quantization.Quantized)}
    assert {path.rpartition('/')[2] for path in small} == {'scale', 'rel_embedding'}
    assert {leaves[path].dtype for path in small} == {np.dtype('bfloat16')}


LLAMA = dict(vocab_size=64, emb_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
MODULES = {
    't5': t5.T5(t5.T5Config(**SIZES)),
    't5, scanned': t5.T5(t5.T5Config(**SIZES, scan_layers=True)),
    'llama': decoder_only.DecoderOnly(decoder_only.DecoderOnlyConfig(**LLAMA, qkv_bias=True)),
}


@pytest.mark.parametrize('name', MODULES)
def test_a_module_reads_the_float_weights(name):
    module = MODULES[name]
    tokens = jnp.arange(1, 17).reshape(2, 8)
    params = state.unboxed(jax.jit(module.init)(jax.random.key(0), tokens, tokens, tokens)['params'])
    _, abstract = held(module, partitioning.Partitioner().mesh(jax.devices()[:1]), partitioning.Partitioner())
    quantized = {
        path: quantization.quantize(leaf, abstract_leaf.axes)
        if isinstance(abstract_leaf, quantization.Quantized)
        else leaf
        for (path, leaf), abstract_leaf in zip(
            foundations.flatten(params).items(), foundations.flatten(abstract).values(), strict=True
        )
    }
    quantized = foundations.unflatten(quantized)
    apply = jax.jit(lambda params: module.apply({'params': params}, tokens, tokens, tokens))
    np.testing.assert_allclose(apply(quantized), apply(nn.unbox(quantized)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('remat_policy', ['minimal', 'none'])
@pytest.mark.parametrize('scanned', [True, False])
def test_memory_of_a_gradient(scanned, remat_policy):
    """A scan over rematerialised layers opens one at a time, else all are held; a scan copies the int8 stack."""
    width, layers = 512, 4
    config = t5.T5Config(
        vocab_size=256, emb_dim=width, num_heads=8, head_dim=width // 8, mlp_dim=4 * width, num_encoder_layers=layers,
        num_decoder_layers=1, scan_layers=scanned, remat_policy=remat_policy,
    )  # fmt: skip
    module, x = t5.T5(config), jax.ShapeDtypeStruct((1, 8, width), jnp.float32)
    _, params = held(module, partitioning.Partitioner().mesh(jax.devices()[:1]), partitioning.Partitioner())

    def loss(x, params):
        return jnp.sum(module.apply({'params': params}, x, jnp.ones((1, 8), bool), method='encode') ** 2)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(x, params).compile()
    weights = 4 * width**2 + 3 * 4 * width**2  # of one layer
    opened = 1 if scanned and remat_policy == 'minimal' else layers + 1
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(
        f'scanned {scanned}, {remat_policy}: {temporary / 1e6:.1f} MB, {temporary / (4 * weights):.1f} float32 layers'
    )
    assert temporary < layers * weights + 1.1 * opened * 4 * weights


_SHARDED = """
import json, sys
import jax
import jax.numpy as jnp
import numpy as np
from slm_jax import foundations
from slm_jax.inference import model
tokens = jnp.arange(1, 33).reshape(4, 8)
batch = {'speech_samples': jnp.zeros((4, 0), jnp.int16), 'speech_lengths': jnp.zeros(4, jnp.int32),
         'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens, 'decoder_target_tokens': tokens,
         'decoder_loss_weights': jnp.ones((4, 8))}
results = []
for mesh in ({'data': 1, 'fsdp': 2, 'model': 2}, {'data': 4, 'fsdp': 1, 'model': 1}):
    loaded = model.load('t5_tiny', mesh=mesh, bindings=['FROZEN_DTYPE=int8'])
    with loaded._partitioner.tracing(loaded.mesh):
        loss = jax.jit(lambda params: loaded.system.loss(params, batch, None)[0])(loaded.params)
    embedding = loaded.params['llm']['token_embedder']['embedding']
    shards = [leaf.addressable_shards[0].data.shape for leaf in (embedding.values, embedding.scale)]
    results.append({'loss': float(loss), 'shards': shards, 'sum': int(jnp.sum(embedding.values.astype(jnp.int32)))})
print(json.dumps(results))
"""


def test_sharded_as_whole():
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=4'
    flags = {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-c', _SHARDED], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    sharded, whole = json.loads(done.stdout.splitlines()[-1])
    assert sharded['shards'] == [[384, 96], [384, 1]] and whole['shards'] == [[768, 192], [768, 1]]
    assert sharded['sum'] == whole['sum'] != 0
    np.testing.assert_allclose(sharded['loss'], whole['loss'], rtol=1e-5)


def test_training_over_int8(tmp_path):
    toy.save_frozen(tmp_path / 'frozen')
    trained = {dtype: tmp_path / dtype for dtype in ('float32', 'int8')}
    for dtype, model_dir in trained.items():
        toy.train(model_dir, 7, frozen_dtype=dtype)
        toy.train(model_dir, 12, frozen_dtype=dtype)
    (params, card), (others, other_card) = map(checkpoints.load_for_inference, trained.values())
    assert foundations.structure(params) == foundations.structure(others)
    for same in ('foundations', 'num_params', 'trainable'):
        assert card[same] == other_card[same]
    losses = [np.concatenate([*read_losses(model_dir).values()]) for model_dir in trained.values()]
    assert np.any(losses[0] != losses[1])
    np.testing.assert_allclose(*losses, rtol=0.05)
    with pytest.raises(ValueError, match="frozen_dtype is 'int4'"):
        toy.train(tmp_path / 'int4', 1, frozen_dtype='int4')


@pytest.mark.parametrize('name', ['t5_tiny', 'usm_tiny'])
def test_half_the_bytes_of_a_foundation(name):
    size = {
        dtype: loop.bytes_per_device(model_lib.load(name, bindings=[f'FROZEN_DTYPE={dtype}']).params)
        for dtype in ('bfloat16', 'int8')
    }
    assert 0.5 < size['int8'] / size['bfloat16'] < 0.52
