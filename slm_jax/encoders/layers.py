"""Layers that several encoders are made of, with biases, and with the names of their axes."""

from typing import Any

import flax.linen as nn
import jax

FRAMES = ('batch', 'length', 'embed')  # axes of what goes from layer to layer


def stack_of(block: type[nn.Module], num_layers: int, layer: int | None, **split_rngs: bool) -> type[nn.Module]:
    """A scanned stack of `num_layers`; of these only the first `layer` are run, if that is given.

    Its parameters are those of all layers.

    Raises:
        ValueError: there is no such layer.
    """
    if layer is not None and not 1 <= layer <= num_layers:
        raise ValueError(
            f'layer is {layer}; the encoder has layers 1 to {num_layers}, and None stands for what it gives as a whole.'
        )
    scanned = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True, **split_rngs},
        in_axes=nn.broadcast,
        length=layer or num_layers,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    if layer is None:
        return scanned
    return nn.map_variables(scanned, 'params', lambda held: jax.tree.map(lambda leaf: leaf[:layer], held))


def dense(features: int, axes: tuple[str, str], dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    """A linear map; its bias has the second axis."""
    return nn.Dense(
        features,
        use_bias,
        dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


def conv(features: int, size: int, stride: int, padding: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution over time."""
    axes = ('conv_time', 'conv_in', 'conv_out')
    return nn.Conv(
        features,
        (size,),
        stride,
        padding,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[2:]),
        name=name,
    )


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Of the last axis, in float32."""
    return nn.LayerNorm(
        epsilon,
        dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
        name=name,
    )
