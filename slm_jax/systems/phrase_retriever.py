"""Which phrases are said in a recording: keys of speech and of phrases, trained to be near where one is said.

The contrast is with the phrases, and the recordings, of all other rows of a batch (InfoNCE, arXiv 1807.03748, both
ways). A recording is as near to a phrase as the nearest of its keys, in training the smooth maximum of all, from which
all learn.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from slm_jax import decoding
from slm_jax.adapters.phrase_keys import PhraseKeysConfig, SpeechKeys, TextKeys
from slm_jax.systems import Batch, Metrics, Params
from slm_jax.systems.speech_encoder import SpeechEncoder, stored

_SCALE = 20.0  # of cosines, at first


@dataclasses.dataclass(frozen=True)
class PhraseRetriever:
    """`decoder_target_tokens` are the letters of a phrase that is said in the row, as tasks of kind 'phrase' draw it.

    Parameters: `speech_encoder`, which is left as it is, and `retriever` = {'speech', 'text', 'scale'}.
    """

    speech_encoder: SpeechEncoder
    config: PhraseKeysConfig

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        return self.speech_encoder.max_seconds

    def init(self, rng: Key[Array, ''], batch: Batch) -> Params:
        """Fresh parameters; see `System`."""
        encoder_rng, speech_rng, text_rng = jax.random.split(rng, 3)
        (frames, lengths, _), encoder = self.speech_encoder.init_with_output(
            encoder_rng, batch['speech_samples'], batch['speech_lengths'], **stored(batch)
        )
        return {
            'speech_encoder': encoder.get('params', {}),
            'retriever': {
                'speech': SpeechKeys(self.config).init(speech_rng, frames, lengths)['params'],
                'text': TextKeys(self.config).init(text_rng, batch['decoder_target_tokens'])['params'],
                'scale': jnp.full((1,), np.log(_SCALE), jnp.float32),
            },
        }

    def speech_keys(
        self, params: Params, batch: Batch, rng: Key[Array, ''] | None = None
    ) -> tuple[Float[Array, 'b s k'], Int[Array, ' b']]:
        """Keys of each recording, and how many it has."""
        frames, lengths, _ = self.speech_encoder.apply(
            {'params': params.get('speech_encoder', {})},
            batch['speech_samples'],
            batch['speech_lengths'],
            rng is None,
            **stored(batch),
            rngs=None if rng is None else {'dropout': rng},
        )
        keys = SpeechKeys(self.config)
        rngs = None if rng is None else {'dropout': jax.random.fold_in(rng, 1)}
        frames = jax.lax.stop_gradient(frames)
        return keys.apply({'params': params['retriever']['speech']}, frames, lengths, rng is None, rngs=rngs)

    def phrase_keys(
        self, params: Params, letters: Int[Array, 'b l'], rng: Key[Array, ''] | None = None
    ) -> Float[Array, 'b k']:
        """The key of each phrase."""
        rngs = None if rng is None else {'dropout': jax.random.fold_in(rng, 2)}
        return TextKeys(self.config).apply({'params': params['retriever']['text']}, letters, rng is None, rngs=rngs)

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ''] | None) -> tuple[Float[Array, ''], Metrics]:
        """Cross-entropy of which phrase a recording has, and of which recording has a phrase.

        `found`: how often its own phrase is the nearest of all of the batch.
        """
        letters = batch['decoder_target_tokens']
        keys, lengths = self.speech_keys(params, batch, rng)
        phrases = self.phrase_keys(params, letters, rng)
        near = jnp.einsum('bsk,pk->bps', keys, phrases)
        valid = (jnp.arange(keys.shape[1]) < lengths[:, None])[:, None]
        near = jnp.where(valid, near * jnp.exp(params['retriever']['scale'][0]), -1e9)
        logits = jax.nn.logsumexp(near, axis=-1) - jnp.log(jnp.maximum(lengths, 1))[:, None]
        there = jnp.any(letters != 0, axis=1) & (lengths > 0)
        # The same phrase in another row is no other phrase.
        same = jnp.all(letters[:, None] == letters[None], axis=-1) & ~jnp.eye(len(letters), dtype=bool)
        logits = jnp.where(same | ~(there[:, None] & there[None]), -1e9, logits)
        labels = jnp.arange(len(letters))
        both = [optax.softmax_cross_entropy_with_integer_labels(each, labels) for each in (logits, logits.T)]
        count = jnp.sum(there).astype(jnp.float32)
        found = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & there)
        total = jnp.sum(jnp.where(there, sum(both), 0.0)) / 2
        return total / jnp.maximum(count, 1.0), {'loss': (total, count), 'found': (found, count)}

    def predict(self, params: Params, batch: Batch, decode: decoding.DecodeConfig) -> Int[Array, 'b l']:
        """There is nothing to generate: `slm-jax retrieve` finds phrases.

        Raises:
            TypeError: always.
        """
        raise TypeError('A phrase retriever writes no text: slm-jax retrieve finds phrases with it.')
