"""The USM encoder against `Gemma3nAudioEncoder`, and its invariance to padding and batching."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.encoders.usm import UsmConfig, UsmEncoder

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / 'testdata/transformers_goldens/gemma3n_audio.npz')
CONFIG = UsmConfig(
    num_layers=3,
    emb_dim=32,
    num_heads=4,
    chunk_size=6,
    context_left=9,
    context_right=4,
    reduction_factor=2,
    subsample_channels=(8, 4),
)


def reference_params() -> dict:
    """The golden's PyTorch parameters by our names; layers stacked at axis 0, kernels transposed."""

    def stacked(name):
        return np.stack([GOLDENS[f'params/conformer.{i}.{name}'] for i in range(CONFIG.num_layers)])

    def kernel(name):
        return {'kernel': stacked(f'{name}.weight').swapaxes(1, 2)}

    def scale(name):
        return {'scale': stacked(f'{name}.weight')}

    def feed_forward(name):
        norms = {norm: scale(f'{name}.{norm}') for norm in ('pre_layer_norm', 'post_layer_norm')}
        return norms | {layer: kernel(f'{name}.{layer}') for layer in ('ffw_layer_1', 'ffw_layer_2')}

    attention = {name: kernel(f'attention.attn.{name}') for name in ('q_proj', 'k_proj', 'v_proj')}
    attention['pos_proj'] = kernel('attention.attn.relative_position_embedding.pos_proj')
    attention['per_dim_scale'] = stacked('attention.attn.per_dim_scale')
    subsample = 'params/subsample_conv_projection'
    return {
        **{
            f'subsample_{i}': {
                'kernel': GOLDENS[f'{subsample}.conv_{i}.conv.weight'].transpose(2, 3, 1, 0),
                'scale': GOLDENS[f'{subsample}.conv_{i}.norm.weight'],
            }
            for i in range(2)
        },
        'input_proj': {'kernel': GOLDENS[f'{subsample}.input_proj_linear.weight'].T},
        'conformer': {
            'ffw_layer_start': feed_forward('ffw_layer_start'),
            'pre_attention_norm': scale('attention.pre_attn_norm'),
            'attention': attention,
            'attention_out': kernel('attention.post'),
            'post_attention_norm': scale('attention.post_norm'),
            'lconv1d': {
                'pre_layer_norm': scale('lconv1d.pre_layer_norm'),
                'linear_start': kernel('lconv1d.linear_start'),
                'depthwise_kernel': stacked('lconv1d.depthwise_conv1d.weight')[:, :, 0].swapaxes(1, 2),
                'conv_norm': scale('lconv1d.conv_norm'),
                'linear_end': kernel('lconv1d.linear_end'),
            },
            'ffw_layer_end': feed_forward('ffw_layer_end'),
            'norm': scale('norm'),
        },
    }


PARAMS = reference_params()


def encode(features, lengths, config=CONFIG, params=PARAMS):
    return jax.jit(lambda p, f, n: UsmEncoder(config).apply({'params': p}, f, n))(params, features, lengths)


def test_parameters_are_the_reference_s():
    init = jax.eval_shape(UsmEncoder(CONFIG).init, jax.random.key(0), jnp.zeros((1, 9, 128)), jnp.array([9]))
    shapes = jax.tree.map(lambda leaf: leaf.shape, nn.unbox(init['params']))
    assert shapes == jax.tree.map(np.shape, PARAMS)


def test_equals_gemma3n():
    frames, lengths = encode(GOLDENS['features'], np.array([101, 101]))
    assert lengths.tolist() == [13, 13]
    np.testing.assert_allclose(frames, GOLDENS['frames'], atol=1e-4)


@pytest.mark.parametrize('length', [1, 2, 37, 98])
def test_alone_or_in_a_padded_batch(length):
    features = GOLDENS['features']
    masked = np.where(np.arange(101)[None, :, None] < np.array([101, length])[:, None, None], features, 0)
    together, lengths = encode(masked, np.array([101, length]))
    alone, alone_length = encode(features[1:, :length], np.array([length]))
    assert lengths[1] == alone_length[0] == alone.shape[1]
    np.testing.assert_allclose(together[1, : lengths[1]], alone[0], atol=1e-5)
    assert not np.any(together[1, lengths[1] :])


def test_convolution_is_the_same_on_other_platforms():
    # What runs on TPU and GPU; here through XLA's CPU convolution.
    from slm_jax.encoders import usm

    x = jax.random.normal(jax.random.key(0), (2, 11, 16, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((0, 2), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    np.testing.assert_allclose(usm._conv_3x3_stride_2(x, kernel, (0, 2)), expected, atol=1e-5)


@pytest.mark.parametrize('policy', ['minimal', 'full'])
def test_rematerialisation_changes_nothing(policy):
    import dataclasses

    def loss(config):
        model = UsmEncoder(config)
        return lambda p: jnp.sum(model.apply({'params': p}, GOLDENS['features'], np.array([101, 60]))[0] ** 2)

    expected = jax.jit(jax.grad(loss(CONFIG)))(PARAMS)
    found = jax.jit(jax.grad(loss(dataclasses.replace(CONFIG, remat_policy=policy))))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)
