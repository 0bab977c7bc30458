"""The two layouts of a T5's parameters, for the small models of the goldens: 2 heads of 16, 2 + 3 layers."""

import jax.numpy as jnp
from flax import traverse_util


def stack_layers(params):
    """The scanned tree that holds the same model as an unscanned one."""
    flat = traverse_util.flatten_dict(params, sep='/')
    heads, head_dim = 2, 16
    stacked = {}
    for name, value in flat.items():
        stack, _, rest = name.partition('/')
        if rest.startswith('layers_0/'):
            rest = rest.removeprefix('layers_0/')
            count = sum(k.startswith(f'{stack}/layers_') and k.endswith(rest) for k in flat)
            layers = [flat[f'{stack}/layers_{i}/{rest}'] for i in range(count)]
            if rest.endswith('out/kernel'):
                layers = [x.reshape(heads, head_dim, -1) for x in layers]
            elif 'attention/' in rest:
                layers = [x.reshape(-1, heads, head_dim) for x in layers]
            stacked[f'{stack}/{stack}/{rest}'] = jnp.stack(layers, axis=1)
        elif rest.startswith('relpos_bias'):
            count = {'encoder': 2, 'decoder': 3}[stack]
            stacked[f'{stack}/{stack}/{rest}'] = jnp.stack([value] * count, axis=1)
        elif not rest.startswith('layers_'):
            stacked[name] = value
    return traverse_util.unflatten_dict(stacked, sep='/')
