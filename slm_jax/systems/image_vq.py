"""Trains an autoencoder of images through a codebook: reconstruction, codebook and commitment, and dead codes revived.

The training loop keeps no state but parameters, so codes are moved by gradients (arXiv 1711.00937, equation 3) and not
by running means; and a code that no place of the batch has is drawn, with a small weight, to a random one of its
vectors, until one has it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding
from slm_jax.codebooks.image_model import ImageVq as Model
from slm_jax.systems import Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class ImageVq:
    """A batch brings `images`, uint8 [rows, height, width, 3], and `image_lengths`, 0 for an empty row, else 1."""

    model: Model
    commitment: float = 0.25
    revival: float = 0.1

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        del batch  # no shape depends on it
        size = self.model.config.image_size
        return {'image_codebook': self.model.init(rng, jnp.zeros((1, size, size, 3)))['params']}

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Mean square and absolute error of pixels in [-1, 1], and what moves the codes; of the global batch."""
        present = (batch['image_lengths'] > 0).astype(jnp.float32)
        images = batch['images'].astype(jnp.float32) / 127.5 - 1.0
        again, vectors, codes, tokens = self.model.apply({'params': params['image_codebook']}, images)
        count = jnp.sum(present)

        def mean(values: Float[Array, 'b h w c']) -> Float[Array, '']:
            return jnp.sum(values.mean(axis=(1, 2, 3)) * present) / jnp.maximum(count, 1.0)

        square, absolute = mean(jnp.square(again - images)), mean(jnp.abs(again - images))
        to_codes = mean(jnp.square(vectors - jax.lax.stop_gradient(codes)))
        to_vectors = mean(jnp.square(codes - jax.lax.stop_gradient(vectors)))
        loss = square + absolute + to_vectors + self.commitment * to_codes
        weights = jnp.repeat(present, tokens.shape[1] * tokens.shape[2])
        uses = jnp.zeros(self.model.config.num_codes).at[tokens.reshape(-1)].add(weights)
        if rng is not None:
            codebook = self.model.apply({'params': params['image_codebook']}, method='codebook')
            places = jax.random.categorical(rng, jnp.log(weights), shape=(len(codebook),))
            drawn = jax.lax.stop_gradient(vectors.reshape(-1, vectors.shape[-1])[places])
            loss += self.revival * jnp.mean(jnp.where(uses[:, None] > 0, 0.0, jnp.square(codebook - drawn)))
        shares = uses / jnp.maximum(jnp.sum(uses), 1.0)
        entropy = -jnp.sum(shares * jnp.log2(jnp.maximum(shares, 1e-12)))
        metrics = {'loss': loss, 'square_error': square, 'absolute_error': absolute, 'code_bits': entropy}
        return loss, {name: (value * count, count) for name, value in metrics.items()}

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """There is no text to generate.

        Raises:
            TypeError: always.
        """
        raise TypeError('an image codebook writes no text: see its images (slm-jax codebook decode)')
