"""BEST-RQ pretraining of the speech encoder (arXiv 2202.01855, as in USM 2303.01037)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding
from slm_jax.encoders.best_rq import BestRqConfig, BestRqHead, codes, span_mask
from slm_jax.systems import Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class BestRq:
    """Masked frames are replaced by noise; the encoder tells the codes of what stood there.

    Parameters: `speech_encoder` = {'encoder': …}, so that CTC goes on from them, and `best_rq`, the softmaxes.
    """

    frontend: Any
    encoder: nn.Module
    config: BestRqConfig

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.frontend.max_seconds

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        encoder_rng, head_rng = jax.random.split(rng)
        features = self.frontend(batch['speech_samples'], batch['speech_lengths'])
        (frames, _), variables = self.encoder.init_with_output(encoder_rng, *features)
        head = BestRqHead(self.config).init(head_rng, frames)['params']
        return {'speech_encoder': {'encoder': variables['params']}, 'best_rq': head}

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Cross-entropy of the codes at masked frames, averaged over codebooks. Without `rng`, one fixed mask."""
        mask_rng, noise_rng, dropout_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        features, lengths = self.frontend(batch['speech_samples'], batch['speech_lengths'])
        targets = codes(features, lengths, self.config)
        masked = span_mask(mask_rng, -(-lengths // 4), targets.shape[1], self.config)
        noise = self.config.noise_std * jax.random.normal(noise_rng, features.shape)
        hidden = jnp.repeat(masked, 4, axis=1)[:, : features.shape[1], None]
        valid = (jnp.arange(features.shape[1]) < lengths[:, None])[..., None]
        features = jnp.where(hidden & valid, noise, features)
        frames, _ = self.encoder.apply(
            {'params': params['speech_encoder']['encoder']},
            features,
            lengths,
            rng is None,
            rngs={'dropout': dropout_rng},
        )
        logits = BestRqHead(self.config).apply({'params': params['best_rq']}, frames)
        weights = masked[..., None].astype(jnp.float32)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        count = jnp.sum(weights) * self.config.num_codebooks
        metrics = {
            'loss': (jnp.sum(cross_entropy * weights), count),
            'accuracy': (jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights), count),
        }
        return metrics['loss'][0] / jnp.maximum(count, 1.0), metrics

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """There is nothing to generate.

        Raises:
            TypeError: always.
        """
        raise TypeError('BEST-RQ predicts codes of masked frames, not text: evaluate its loss, or train CTC first')
