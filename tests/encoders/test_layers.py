"""What a layer within an encoder gives, of those that are scanned."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.encoders.w2v_bert import W2vBertConfig, W2vBertEncoder
from slm_jax.encoders.whisper import WhisperConfig, WhisperEncoder

ENCODERS = {
    'usm': (UsmEncoder(UsmConfig(num_layers=3, emb_dim=8, num_heads=2, subsample_channels=(2, 2))), 128, 'conformer'),
    'whisper': (WhisperEncoder(WhisperConfig(3, 8, 2, 12, window_seconds=1.0)), 80, 'layers'),
    'w2v_bert': (
        W2vBertEncoder(W2vBertConfig(3, 8, 2, 12, num_adapter_layers=0, intermediate_ffn=True)), 160, 'layers'
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', ENCODERS)
def test_a_layer_is_what_an_encoder_of_so_many_layers_has_there(name):
    """Of two of three layers: changing the third changes nothing, changing the second does; without an end of stack."""
    encoder, width, stack = ENCODERS[name]
    features = jax.random.normal(jax.random.key(0), (2, 24, width)), jnp.array([24, 11])
    features = (jnp.where((jnp.arange(24) < features[1][:, None])[..., None], features[0], 0), features[1])
    params = nn.unbox(jax.jit(encoder.init)(jax.random.key(1), *features)['params'])
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)

    def changed(index):
        return params | {stack: jax.tree.map(lambda leaf: leaf.at[index].multiply(1.5), params[stack])}

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def frames(params, layer, encoder=encoder):
        return encoder.apply({'params': params}, *features, layer=layer)

    inner, lengths = frames(params, 2)
    np.testing.assert_array_equal(inner, frames(changed(2), 2)[0])
    assert np.abs(np.asarray(inner - frames(changed(1), 2)[0])).max() > 1e-3
    assert not np.asarray(inner)[1, int(lengths[1]) :].any() and np.asarray(inner)[1, : int(lengths[1])].any()
    fewer = encoder.clone(config=dataclasses.replace(encoder.config, num_layers=2))
    short = params | {stack: jax.tree.map(lambda leaf: leaf[:2], params[stack])}
    np.testing.assert_allclose(inner, frames(short, 2, fewer)[0], atol=1e-5)
    last, whole = frames(params, 3)[0], frames(params, None)[0]
    if name == 'usm':
        np.testing.assert_allclose(last, whole, atol=1e-5)  # nothing follows its stack
    else:
        assert np.abs(np.asarray(last - whole)).max() > 1e-2


def test_a_layer_that_there_is_not_is_refused():
    encoder, width, _ = ENCODERS['usm']
    features = jnp.zeros((1, 8, width)), jnp.array([8])
    params = jax.eval_shape(encoder.init, jax.random.key(0), *features)
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f'layer is {layer}; the encoder has layers 1 to 3, and None'):
            jax.eval_shape(lambda params, layer=layer: encoder.apply(params, *features, layer=layer), params)
