"""What Whisper's encoder costs; that it is right is in tests/importers/test_import_encoders.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.encoders import whisper


def test_attention_on_a_cpu_keeps_few_scores():
    if jax.default_backend() != 'cpu':
        pytest.skip('on a CPU only')
    clip = jax.ShapeDtypeStruct((2, 1500, 4, 4), jnp.float32)
    memory = jax.jit(whisper._attention).lower(clip, clip, clip).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 8 * 1500**2  # those of all eight heads


def test_attention_and_its_gradient_are_those_of_jax():
    arrays = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 7, 4, 8), np.float32))

    def found_by(attend):
        return jax.jit(jax.value_and_grad(lambda arrays: jnp.sum(jnp.sin(attend(*arrays)))))(arrays)

    found, expected = found_by(whisper._attention), found_by(jax.nn.dot_product_attention)
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-5), found, expected)
