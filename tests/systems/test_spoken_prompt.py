"""Where several recordings stand among the tokens of a prompt."""

import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.data.prompts import SPEECH
from slm_jax.systems import spoken_prompt

S, L, E = 6, 7, 3


@pytest.mark.parametrize(
    ('tokens', 'lengths', 'expected'),
    [
        ([4, SPEECH, 5, 0, 0, 0, 0], [3, 0], ['t0', 's0', 's1', 's2', 't2']),
        ([4, 5, 0, 0, 0, 0, 0], [2, 0], ['s0', 's1', 't0', 't1']),
        ([SPEECH, 5, SPEECH, 6, 0, 0, 0], [2, 3], ['s0', 's1', 't1', 's2', 's3', 's4', 't3']),
        ([4, SPEECH, SPEECH, 6, 0, 0, 0], [1, 2], ['t0', 's0', 's1', 's2', 't3']),
        ([4, SPEECH, 5, SPEECH, 6, 0, 0], [0, 2], ['t0', 't2', 's0', 's1', 't4']),
        ([4, SPEECH, 5, 6, 7, 8, 9], [6, 0], ['t0', *(f's{i}' for i in range(6)), 't2', 't3', 't4', 't5', 't6']),
        ([4, 5, 6, 0, 0, 0, 0], [0, 0], ['t0', 't1', 't2']),
    ],
)
def test_each_recording_stands_at_its_mark(tokens, lengths, expected):
    speech = jnp.arange(S, dtype=jnp.float32)[None, :, None] + jnp.zeros((1, S, E))
    text = 100 + jnp.arange(L, dtype=jnp.float32)[None, :, None] + jnp.zeros((1, L, E))
    both, mask = spoken_prompt.joined(jnp.array([tokens]), text, speech, jnp.array([lengths]))
    assert both.shape == (1, S + L, E)
    found = np.asarray(both)[0, :, 0][np.asarray(mask)[0]]
    assert [f't{x - 100:.0f}' if x >= 100 else f's{x:.0f}' for x in found] == expected
    assert np.asarray(mask)[0, : len(expected)].all()
