"""LoRA beside frozen kernels of any kind: what it is at first, what merging it gives, what its gradient costs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_slm
from jax.extend import core

from slm_jax.adapters import lora
from slm_jax.adapters.lora import LoraConfig
from slm_jax.decoding import DecodeConfig
from slm_jax.foundations import flatten, unflatten
from slm_jax.llms import initial_params
from slm_jax.systems.text_to_text import generate
from slm_jax.training import quantization

CONFIG = LoraConfig(rank=3, alpha=6.0, modules=('llm/.*/(query|key|out|wo)', 'llm/decoder/.*/wi(_1)?'))
PROMPT, TARGET = (jnp.asarray(np.random.default_rng(i).integers(2, 384, (3, 7))) for i in range(2))


def made(kind, config=CONFIG, seed=None):
    """(language model, parameters with LoRA); with a seed it is no longer as it begins."""
    llm, fresh = tiny_slm.LLMS[kind], lora.Fresh(config)
    with fresh.part('llm'):
        params = fresh.apart({'llm': jax.eval_shape(lambda: initial_params(llm, jax.random.key(0)))})
    rng = np.random.default_rng(seed)
    params['lora'] = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32),
                                  params['lora'])  # fmt: skip
    if seed is None:
        leaves = flatten(params['lora'])
        params['lora'] = unflatten({path: leaf * path.endswith(lora.DOWN) for path, leaf in leaves.items()})
    return llm, params | {'llm': tiny_slm.random_params(llm)}


def logits(llm, params, config=CONFIG):
    def function(params):
        with lora.applied(config, params) as parts:
            return llm.apply({'params': parts['llm']}, PROMPT, TARGET, TARGET)

    return jax.jit(function)(params)


@pytest.mark.parametrize('kind', tiny_slm.LLMS)
def test_at_first_it_changes_no_bit_and_then_it_is_what_is_merged(kind):
    llm, params = made(kind)
    alone = logits(llm, params, None)
    np.testing.assert_array_equal(logits(llm, params), alone)
    llm, params = made(kind, seed=1)
    assert np.abs(logits(llm, params) - alone).max() > 0.1
    np.testing.assert_array_equal(logits(llm, params, dataclasses.replace(CONFIG, alpha=0)), alone)
    kernels, updates = flatten(params['llm']), flatten(params['lora']['llm'])
    modules = {path.rpartition('/')[0] for path in updates}
    assert any('/out' in module for module in modules) and any('/wo' in module for module in modules)
    for module in modules:
        scanned = {'llama': 0, 'mbart': 0, 't5': None, 'scanned t5': 1}[kind]
        both = updates[f'{module}/{lora.DOWN}'], updates[f'{module}/{lora.UP}']
        kernels[f'{module}/kernel'] = lora.merged(kernels[f'{module}/kernel'], *both, CONFIG.scale, scanned)
    weights = {'llm': unflatten(kernels)}
    np.testing.assert_allclose(logits(llm, weights, None), logits(llm, params), rtol=0, atol=1e-4)
    if kind == 'llama':  # whose step has LoRA within a scan, with a cache
        texts = [written(llm, weights, None), written(llm, params, CONFIG)]
        np.testing.assert_array_equal(*texts)


def written(llm, params, config):
    def function(params):
        with lora.applied(config, params) as parts:
            prompt = llm.apply({'params': parts['llm']}, PROMPT, method='embed')
            return generate(llm, parts['llm'], prompt, PROMPT > 0, DecodeConfig('greedy', max_decode_length=6))

    return jax.jit(function)(params)


def test_a_gradient_has_no_array_of_a_kernels_size():
    """Nor do products of the forward pass: no kernel is merged."""
    llm = tiny_slm.LLMS['llama']
    llm = llm.clone(config=dataclasses.replace(llm.config, remat_policy='full'))
    _, params = made('llama')

    def loss(updates, params):
        with lora.applied(CONFIG, params | {'lora': updates}) as parts:
            return jnp.sum(llm.apply({'params': parts['llm']}, PROMPT, TARGET) ** 2)

    sizes = {leaf.shape[1:] for path, leaf in flatten(params['llm']).items() if path.endswith('kernel')}
    assert sizes == {(16, 24), (16, 12), (24, 16), (16, 20), (20, 16)}

    def made_of(jaxpr):
        for equation in jaxpr.eqns:
            for inner in core.jaxprs_in_params(equation.params):
                yield from made_of(inner)
            yield from ((equation.primitive.name, var.aval.shape) for var in equation.outvars)

    found = set(made_of(jax.make_jaxpr(jax.grad(loss))(params['lora'], params).jaxpr))
    assert ('dot_general', (39, 3)) in found  # of 3 rows of 13 positions
    assert not {shape for _, shape in found if {shape, shape[::-1]} & sizes}


def test_it_is_added_once_where_one_method_calls_another():
    llm, params = made('llama')

    def once(params):
        with lora.applied(CONFIG, params) as parts:
            return llm.apply({'params': parts['llm']}, PROMPT, TARGET)

    def twice(params):
        with lora.applied(CONFIG, params) as parts, lora.applied(CONFIG, parts) as parts:
            return llm.apply({'params': parts['llm']}, PROMPT, TARGET)

    assert str(jax.make_jaxpr(once)(params)) == str(jax.make_jaxpr(twice)(params))


def test_beside_kernels_in_int8():
    llm, params = made('llama', seed=1)
    kernels = flatten(params['llm'])
    kernels |= {path: quantization.quantize(leaf, (1,)) for path, leaf in kernels.items() if path.endswith('kernel')}
    held = params | {'llm': unflatten(kernels)}
    opened = params | {'llm': nn.unbox(held['llm'])}
    np.testing.assert_allclose(logits(llm, held), logits(llm, opened), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('fields', 'match'),
    [
        ({'modules': ('llm/.*/q_proj',)}, r"'llm/\.\*/q_proj' matches no linear map. Patterns.*/query'"),
        ({'modules': ('llm/.*/query', 'llm/token_embedder')}, 'token_embedder.*matches no linear map'),
        ({'rank': 13}, r'rank is 13; llm/decoder/layers/self_attention/key maps 16 to 12, so there it must be 12 or'),
        ({'rank': 0}, 'LoraConfig.rank is 0; it must be 1 or more'),
        ({'alpha': -1.0}, 'LoraConfig.alpha is -1.0; it must be 0 or more'),
        ({'alpha': float('nan')}, 'LoraConfig.alpha is nan'),
        ({'modules': ()}, r'LoraConfig.modules is \(\); it must be one pattern or more'),
        ({'modules': ('llm/(',)}, r"LoraConfig.modules: 'llm/\(' is no regular expression"),
    ],
)
def test_what_cannot_be(fields, match):
    with pytest.raises(ValueError, match=match):
        made('llama', dataclasses.replace(CONFIG, **fields))


def test_one_pattern_may_stand_alone_and_a_configuration_can_be_hashed():
    assert LoraConfig(modules='llm/.*').modules == ('llm/.*',)
    assert hash(LoraConfig(modules=['a', 'b'])) == hash(LoraConfig(modules=('a', 'b')))
