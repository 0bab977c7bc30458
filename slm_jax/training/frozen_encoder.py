"""The frozen speech encoder by itself, and trainings that read its stored output frames in the place of recordings."""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import BFloat16, Int16

from slm_jax.adapters import lora
from slm_jax.foundations import FoundationError
from slm_jax.systems.speech_encoder import SpeechEncoder, frames_of
from slm_jax.training import origins, setup, state

_FORMAT = 1  # part of every key: raise it when other frames come of the same encoder
_PART = 'speech_encoder/encoder/'
NOTE = (
    'in the place of recordings, stored frames of {} are read: SpecAugment and dropout of the speech encoder are off, '
    'and its parameters are not loaded'
)
# What of a configuration leaves the frames of a frozen encoder as they are.
_OF_TRAINING = re.compile(r'\b(dropout_rate|remat_policy)=[^,)]+(, )?')


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """Recordings to frames, one at a time, so that nothing depends on what else is encoded.

    A clip is filled up to one of few lengths, each half as long again as the one before it: the same program runs on
    it everywhere. Parameters are float32 on CPU, else bfloat16. Another machine makes and loads its own.

    Attributes:
        speech: how it computes; without CTC head and masks.
        foundations: {part: name or directory} of what it consists of.
        name, fingerprint: of these.
        configuration: in words, of what decides the frames.
        layer: of which the frames are; None: of the whole encoder.
    """

    speech: SpeechEncoder = dataclasses.field(compare=False)
    foundations: Mapping[str, str] = dataclasses.field(compare=False)
    name: str = dataclasses.field(compare=False)
    fingerprint: str
    configuration: str
    layer: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its frames, and its name."""
        return {
            'name': self.name,
            'fingerprint': self.fingerprint,
            'configuration': self.configuration,
            'format': _FORMAT,
            **({} if self.layer is None else {'layer': self.layer}),
        }

    @functools.cached_property
    def key(self) -> str:
        """Another for every encoder that makes other frames."""
        described = json.dumps(self.identity | {'name': ''}, sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    @property
    def most_samples(self) -> float:
        """Longest recording that it takes."""
        return math.inf if self.speech.max_seconds is None else self.speech.max_seconds * 16_000

    @property
    def frames_per_second(self) -> float:
        """How many frames a second of a recording has, to a tenth.

        Raises:
            ValueError: the encoder has no such layer.
        """

        def frames(batch):
            given = batch['speech_samples'], batch['speech_lengths']
            params = self.speech.init(jax.random.key(0), *given)
            return self.speech.apply(params, *given, self.layer, method='inner')[0]

        count = frames_of(frames)  # some encoders add frames at the ends, which do not count
        return round((count(10) - count(2)) / 8, 1)

    def shapes(self, batch: setup.BatchShapes) -> setup.BatchShapes:
        """Shapes of a batch, with frames in the place of samples."""
        return shapes(self.speech, batch)

    def __call__(self, samples: Int16[np.ndarray, ' n']) -> BFloat16[np.ndarray, 't d']:
        """Frames of a recording at 16 kHz."""
        params, encode = _program(self)
        padded = 16_000
        while padded < len(samples):
            padded = padded * 3 // 2
        filled = np.zeros((1, int(min(padded, self.most_samples))), np.int16)
        filled[0, : len(samples)] = samples
        frames, length = encode(params, filled, np.array([len(samples)], np.int32))
        return np.asarray(frames)[: int(length)]


def of(system: Any, foundations: Mapping[str, str]) -> FrozenEncoder:
    """The frozen encoder of a system.

    Args:
        system: see `slm_jax.systems.System`.
        foundations: where parameters start from, as `slm_jax.train.train` has them.

    Raises:
        ValueError: it has none, or its foundation is not named, not to be found or damaged.
    """
    return of_speech(of_system(system), foundations)


def of_speech(speech: SpeechEncoder, foundations: Mapping[str, str], layer: int | None = None) -> FrozenEncoder:
    """A speech encoder, frozen; arguments and errors as of `of`, and the layer whose frames are wanted."""
    speech = speech.clone(ctc_vocab_size=None, augmentation=None, frame_augmentation=None)
    parts = {part: str(name) for part, name in foundations.items() if part.split('/')[0] == 'speech_encoder'}
    found = [origin for origin in origins.find(parts) if any(path.startswith(_PART) for path in origin.paths)]
    if not found:
        raise FoundationError(
            "FOUNDATIONS names no 'speech_encoder', so there is none whose frames could be stored or read. Give the "
            "model's: --gin.FOUNDATIONS=\"{'speech_encoder': NAME_OR_DIR, …}\""
        )
    return FrozenEncoder(
        speech,
        {origin.subtree: origin.name for origin in found},
        ', '.join(origin.name for origin in found),
        ', '.join(origin.fingerprint['content'] for origin in found),
        _OF_TRAINING.sub('', repr((speech.frontend, speech.encoder))),
        layer,
    )


def of_system(system: Any) -> SpeechEncoder:
    """The part of a system that makes frames.

    Raises:
        ValueError: it has none.
    """
    speech = getattr(system, 'speech_encoder', None)
    if not isinstance(speech, SpeechEncoder):
        raise ValueError(
            f'{type(system).__name__} has no speech encoder that stays as it is, so there are no frames to store or '
            'read. Choose a model that has one, such as models/slm_tiny.gin, or set ENCODED to False.'
        )
    return speech


@functools.lru_cache(1)
def _program(encoder: FrozenEncoder) -> tuple[state.Params, Callable]:
    """The parameters on this machine's first device, and what encodes a clip with them."""
    found = origins.find(encoder.foundations)
    if (here := ', '.join(origin.fingerprint['content'] for origin in found)) != encoder.fingerprint:
        raise FoundationError(
            f'the speech encoder {encoder.name} has the fingerprint {here} on this machine and {encoder.fingerprint} '
            'where this began. Put the same foundation on all machines.'
        )

    def init(rng):
        second = jnp.zeros((1, 16_000), jnp.int16), jnp.full((1,), 16_000, jnp.int32)
        return {'speech_encoder': encoder.speech.init(rng, *second)['params']}

    boxed = jax.eval_shape(init, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    unboxed = state.unboxed(boxed)
    abstract = origins.place(unboxed, jax.tree.map(lambda _: device, unboxed))
    origins.check(found, {}, abstract)
    params = origins.load(found, origins.hold(abstract, boxed))['speech_encoder']

    @jax.jit
    def encode(params, samples, lengths):
        given = {'params': params}
        frames, frame_lengths = encoder.speech.apply(given, samples, lengths, encoder.layer, method='inner')
        return frames[0].astype(jnp.bfloat16), frame_lengths[0]

    return params, encode


def shapes(speech: SpeechEncoder, batch: setup.BatchShapes) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes of a batch, with frames in the place of samples."""
    (rows, samples), dtype = batch['speech_samples']

    def frames(rng):
        clip = jnp.zeros((1, samples or 16_000), jnp.int16)
        return speech.init_with_output(rng, clip, jnp.zeros((1,), jnp.int32))[0][0]

    _, length, width = jax.eval_shape(frames, jax.random.key(0)).shape
    return {
        **batch,
        'speech_samples': ((rows, 0), dtype),
        'speech_frames': ((rows, length if samples else 0, width), np.dtype(jnp.bfloat16)),
        'speech_frame_lengths': ((rows,), np.dtype(np.int32)),
    }


def left_out(layout: setup.Layout) -> setup.Layout:
    """The layout of a training that reads frames: the speech encoder's parameters are held nowhere.

    Raises:
        ValueError: the system has no such encoder, or trains it.
    """
    of_system(layout.system)
    if any(path.startswith(_PART) for path in state.flatten(layout.trainable)):
        raise ValueError(
            'ENCODED: the speech encoder trains (TRAINABLE), and stored frames would stay what they are. Set ENCODED '
            'to False, or leave speech_encoder/encoder out of TRAINABLE.'
        )
    if any(path.startswith(f'{lora.PART}/{_PART}') for path in state.flatten(layout.boxed)):
        raise ValueError(
            'ENCODED: LoRA updates the speech encoder (LoraConfig.modules), and stored frames are those without it. '
            'Set ENCODED to False, or leave speech_encoder/encoder out of LoraConfig.modules.'
        )
    held = {path: leaf for path, leaf in state.flatten(layout.held).items() if not path.startswith(_PART)}
    return dataclasses.replace(layout, held=state.unflatten(held))
