"""A vector-quantised autoencoder of small images (VQ-VAE, arXiv 1711.00937): a grid of codes, and the image of a grid.

Codes and what is quantised have unit length (ViT-VQGAN, arXiv 2110.04627): all codes are then near something, and few
die.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slm_jax.encoders.layers import layer_norm

_IMAGE = ('batch', 'height', 'width', 'channels')


@dataclasses.dataclass(frozen=True)
class ImageVqConfig:
    """Sizes.

    Attributes:
        image_size: pixels of a side.
        num_codes, code_dim: of the codebook.
        channels: of each halving of the sides; 32 pixels and two of them are 8 x 8 codes.
    """

    image_size: int = 32
    num_codes: int = 256
    code_dim: int = 8
    channels: tuple[int, ...] = (32, 64)
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.image_size < 1 or self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f'ImageVqConfig.image_size is {self.image_size}; {len(self.channels)} channels halve it so often, so a '
                f'multiple of {2 ** len(self.channels)} was expected.'
            )

    @property
    def grid(self) -> int:
        """Codes of a side."""
        return self.image_size // 2 ** len(self.channels)


class _Residual(nn.Module):
    """x + two convolutions of its norm."""

    config: ImageVqConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
        dtype, channels = self.config.dtype, x.shape[-1]
        y = nn.silu(layer_norm(1e-6, dtype, 'norm')(x))
        y = nn.silu(_conv(channels, 3, 1, dtype, 'conv_in')(y))
        return nn.with_logical_constraint(x + _conv(channels, 1, 1, dtype, 'conv_out')(y), _IMAGE)


class ImageVq(nn.Module):
    """Parameters: `down_…`, `up_…`, and `codes`."""

    config: ImageVqConfig

    def setup(self):
        config = self.config
        numbers = range(len(config.channels))
        self.down = [_conv(config.channels[i], 4, 2, config.dtype, f'down_{i}') for i in numbers]
        self.down_residual = [_Residual(config, name=f'down_residual_{i}') for i in numbers]
        self.down_out = _conv(config.code_dim, 1, 1, config.dtype, 'down_out')
        self.up_in = _conv(config.channels[-1], 3, 1, config.dtype, 'up_in')
        self.up_residual = [_Residual(config, name=f'up_residual_{i}') for i in numbers]
        self.up = [_conv(config.channels[max(i - 1, 0)], 3, 1, config.dtype, f'up_{i}') for i in numbers]
        self.up_out = _conv(3, 3, 1, config.dtype, 'up_out')
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
        self.codes = self.param('codes', init, (config.num_codes, config.code_dim), jnp.float32)

    def vectors(self, images: Float[Array, 'b h w 3']) -> Float[Array, 'b g g d']:
        """What is quantised, of images in [-1, 1]."""
        x = images.astype(self.config.dtype)
        for down, residual in zip(self.down, self.down_residual):
            x = residual(down(x))
        return _unit(self.down_out(x).astype(jnp.float32))

    def codebook(self) -> Float[Array, 'k d']:
        """The codes, of unit length."""
        return _unit(self.codes)

    def images(self, vectors: Float[Array, 'b g g d']) -> Float[Array, 'b h w 3']:
        """Images of codes, in [-1, 1] or a little beyond."""
        x = self.up_in(vectors.astype(self.config.dtype))
        for up, residual in reversed(list(zip(self.up, self.up_residual))):
            x = residual(x)
            x = up(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
            x = nn.with_logical_constraint(x, _IMAGE)
        return self.up_out(nn.silu(x)).astype(jnp.float32)

    def __call__(self, images: Float[Array, 'b h w 3']) -> tuple[Array, Array, Array, Int[Array, 'b g g']]:
        """(images again, what was quantised, its codes, their numbers); the gradient passes the codes by."""
        vectors, codebook = self.vectors(images), self.codebook()
        tokens = quantised(vectors, codebook)
        codes = codebook[tokens]
        again = self.images(vectors + jax.lax.stop_gradient(codes - vectors))
        return again, vectors, codes, tokens

    def encode(self, images: Float[Array, 'b h w 3']) -> Int[Array, 'b g g']:
        """The tokens of images."""
        return quantised(self.vectors(images), self.codebook())

    def decode(self, tokens: Int[Array, 'b g g']) -> Float[Array, 'b h w 3']:
        """The images of tokens."""
        return self.images(self.codebook()[tokens])


def quantised(vectors: Float[Array, 'b g g d'], codebook: Float[Array, 'k d']) -> Int[Array, 'b g g']:
    """The nearest code of each; all have unit length."""
    likeness = jnp.einsum('...d,kd->...k', vectors, codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(likeness, axis=-1).astype(jnp.int32)


def _unit(x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _conv(features: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    axes = ('conv_height', 'conv_width', 'conv_in', 'conv_out')
    return nn.Conv(
        features,
        (size, size),
        stride,
        'SAME',
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[3:]),
        name=name,
    )
