"""Decoder-only models against transformers, and against themselves: cached, in beams, padded, one by one.

The goldens are outputs of small random models (tests/testdata/decoder_only_goldens/make.py). The slow tests make more of
them here, and need torch and transformers: pip install -e .[hf].
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from slm_jax import decoding, foundations, llms
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
