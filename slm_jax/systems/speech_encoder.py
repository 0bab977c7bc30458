"""Waveform -> frames: a frontend, SpecAugment in training, an encoder and its CTC head, as one part of a system."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slm_jax.audio.spec_augment import SpecAugmentConfig, spec_augment
from slm_jax.encoders.ctc import CtcHead
from slm_jax.encoders.layers import FRAMES
from slm_jax.encoders.whisper import OneWindowConfig
from slm_jax.systems import Batch


class SpeechEncoder(nn.Module):
    """Parameters: `encoder` and, where `ctc_vocab_size` is given, `ctc`.

    `augmentation` changes the features that are encoded, `frame_augmentation` the frames, stored ones as well.
    """

    frontend: Any
    encoder: nn.Module
    ctc_vocab_size: int | None = None
    augmentation: SpecAugmentConfig | None = None
    frame_augmentation: SpecAugmentConfig | None = None

    @property
    def max_seconds(self) -> float | None:
        """Longest audio that it takes at once; None: any."""
        config = getattr(self.encoder, 'config', None)
        return config.seconds if isinstance(config, OneWindowConfig) else self.frontend.max_seconds

    def setup(self):
        if self.ctc_vocab_size is not None:
            self.ctc = CtcHead(self.ctc_vocab_size)

    def __call__(
        self,
        speech_samples: Int[Array, 'b n'],
        speech_lengths: Int[Array, ' b'],
        deterministic: bool = True,
        stored: tuple[Float[Array, 'b t d'], Int[Array, ' b']] | None = None,
    ) -> tuple[Float[Array, 'b t d'], Int[Array, ' b'], Float[Array, 'b t v'] | None]:
        """Frames, zero beyond each clip's own, their number, and CTC logits if there is a head.

        Augments and drops out only when not `deterministic`, with an rng named 'dropout'.
        `stored` frames and their number are taken as they are, see `stored`.
        """
        if stored is not None:
            frames, frame_lengths = stored
            frames = nn.with_logical_constraint(frames.astype(self.encoder.config.dtype), FRAMES)
        else:
            features, lengths = self.frontend(speech_samples, speech_lengths)
            if not deterministic and self.augmentation is not None:
                features, lengths = spec_augment(self.make_rng('dropout'), features, lengths, self.augmentation)
            frames, frame_lengths = self.encoder(features, lengths, deterministic)
        if not deterministic and self.frame_augmentation is not None:
            frames, frame_lengths = spec_augment(
                self.make_rng('dropout'), frames, frame_lengths, self.frame_augmentation
            )
        return frames, frame_lengths, self.ctc(frames) if self.ctc_vocab_size is not None else None

    def inner(
        self, speech_samples: Int[Array, 'b n'], speech_lengths: Int[Array, ' b'], layer: int | None
    ) -> tuple[Float[Array, 'b t d'], Int[Array, ' b']]:
        """Frames of a layer within the encoder, the first being 1, or of the whole; zero beyond each clip's own."""
        return self.encoder(*self.frontend(speech_samples, speech_lengths), layer=layer)


def stored(batch: Batch) -> dict[str, Any]:
    """What `SpeechEncoder` is given besides of a batch that brings frames in the place of samples."""
    if 'speech_frames' not in batch:
        return {}
    return {'stored': (batch['speech_frames'], batch['speech_frame_lengths'])}


def frames_of(frames: Callable[[Batch], Array]) -> Callable[[int], int]:
    """How many frames, axis 1 of what is given for a batch, so many seconds of audio have; by shapes alone."""

    def count(seconds: int) -> int:
        batch = {'speech_samples': jnp.zeros((1, seconds * 16_000), jnp.int16)}
        batch['speech_lengths'] = jnp.full((1,), seconds * 16_000)
        return jax.eval_shape(lambda: frames(batch)).shape[1]

    return count


def unheard(
    batch: Batch, ctc_logits: Float[Array, 'b t v'] | None, frame_lengths: Int[Array, ' b']
) -> Bool[Array, ' b']:
    """Whether a row has a recording, and nothing is to be heard in it: by its samples, its number of frames, or CTC."""
    samples, lengths = batch['speech_samples'], batch['speech_lengths']
    valid = jnp.arange(samples.shape[1]) < lengths[:, None]
    nothing = frame_lengths == 0
    if samples.shape[1]:  # else there are stored frames, which do not tell
        nothing |= ~jnp.any((samples != samples[:, :1]) & valid, axis=1)
    if ctc_logits is not None:
        sound = 1.0 - jax.nn.softmax(ctc_logits.astype(jnp.float32))[..., 0]
        frames = jnp.arange(sound.shape[1]) < frame_lengths[:, None]
        # Only of a single short sound, as the name of a letter, may CTC have a mere inkling.
        nothing |= jnp.max(sound, axis=1, where=frames, initial=0.0) < jnp.where(lengths < 16_000, 0.03, 0.5)
    return nothing & (lengths > 0)
