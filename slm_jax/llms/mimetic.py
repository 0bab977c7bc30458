"""A start for a small T5, from which it learns copying soon."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.llms.layers import relative_position_bucket


def arrange(params: Any, config: Any) -> Any:
    """Fresh `params` of a `T5Config`, rearranged so that the model begins by copying (after arXiv 2305.09828).

    Heads 0 to 2 of the self-attentions look one, two and three tokens back, heads 3 to 5 at all that came before,
    faded over 4, 16 and 64 tokens; values and outputs are the same in both stacks. So where the tokens before are
    much alike, the states are. The cross-attention looks for what is like its query and hands it on, and in it the
    following token, which head 6 of the encoder has put there; head 7 looks at the one after.
    """
    values = nn.unbox(params)
    encoder, decoder = values['encoder'], values['decoder']
    for stack, further in ((encoder, (1, 2)), (decoder, ())):
        bias = np.zeros(stack['relpos_bias']['rel_embedding'].shape, np.float32)

        def buckets(offsets, bidirectional=stack is encoder):
            return relative_position_bucket(np.array(offsets), bidirectional)

        distances = np.arange(128, -1, -1)  # the nearest of a bucket is written last
        for head, decay in enumerate((4, 16, 64), 3):
            bias[head] = -12.0  # what lies ahead
            bias[head, buckets(-distances)] = np.maximum(-distances / decay, -12.0)
        for head, offset in [*enumerate((-1, -2, -3)), *enumerate(further, 6)]:
            bias[head, buckets([offset])] = 8.0
        stack['relpos_bias']['rel_embedding'] = jnp.asarray(bias)

    back, ahead = slice(0, 6 * config.head_dim), slice(6 * config.head_dim, 7 * config.head_dim)
    for layer in range(config.num_encoder_layers):
        attention = encoder[f'layers_{layer}']['attention']
        value, out = attention['value']['kernel'], attention['out']['kernel']
        attention['out']['kernel'] = out.at[ahead].set(value[:, ahead].T)
        if layer < config.num_decoder_layers:
            attention = decoder[f'layers_{layer}']['self_attention']
            attention['value']['kernel'] = attention['value']['kernel'].at[:, back].set(value[:, back])
            attention['out']['kernel'] = attention['out']['kernel'].at[back].set(out[back])
    for layer in range(config.num_decoder_layers):
        attention = decoder[f'layers_{layer}']['encoder_decoder_attention']
        attention['query']['kernel'] = attention['key']['kernel'] * config.head_dim**-0.5
        attention['out']['kernel'] = attention['value']['kernel'].T
    return jax.tree.map(
        lambda box, value: box.replace_boxed(value),
        params,
        values,
        is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata),
    )
