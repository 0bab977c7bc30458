"""Whisper's attention as a CPU computes it."""

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.encoders import whisper


def test_attention_by_head_is_attention():
    """Values and gradients, with scores so large that their exponentials overflow."""
    query, key, value, weights = 4 * jax.random.normal(jax.random.key(0), (4, 2, 50, 3, 8))

    query = 10 * query

    def values_and_gradients(attend):
        attend = jax.jit(attend)
        gradients = jax.grad(lambda *inputs: jnp.sum(attend(*inputs) * weights), (0, 1, 2))
        return attend(query, key, value), *gradients(query, key, value)

    assert jnp.einsum('bqhk,bshk->bhqs', query, key).max() > 100 * np.sqrt(8)
    found, expected = map(values_and_gradients, (whisper._attend_by_head, jax.nn.dot_product_attention))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_on_a_cpu_the_scores_of_one_head_are_in_memory_and_not_those_of_a_batch():
    encoder = whisper.WhisperEncoder(whisper.WhisperConfig(num_layers=1, emb_dim=4, num_heads=2, mlp_dim=4))
    inputs = jnp.zeros((8, 3000, 2)), jnp.full(8, 3000)
    params = jax.eval_shape(encoder.init, jax.random.key(0), *inputs)
    compiled = jax.jit(encoder.apply).lower(params, *inputs).compile()
    scores = 4 * 1500**2  # bytes of one head's
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * scores  # all have 16
