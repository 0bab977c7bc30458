"""A trained vocoder, from its directory: units to a waveform."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int16

from slm_jax.codebooks import trained
from slm_jax.codebooks.codebook import CodebookError
from slm_jax.codebooks.vocoder_model import Vocoder as Model
from slm_jax.systems.unit_vocoder import UnitVocoder

_UNITS, _FRAMES = 64, 256  # inputs are filled up to multiples, so that few lengths are compiled
_LONGEST = 100  # frames of one unit: a predicted duration of more is none


@dataclasses.dataclass(frozen=True)
class Vocoder:
    """What `slm_jax.train` left of a `UnitVocoder`.

    Attributes:
        model: the network.
        params: its own.
        codebook: label of the codebook whose units it says (`Codebook.label`).
        card: of its directory.
    """

    model: Model
    params: Any
    codebook: str
    card: Any

    @classmethod
    def load(cls, model_dir: str | os.PathLike) -> 'Vocoder':
        """Reads a model directory.

        Raises:
            ValueError: it is not there, damaged, or no vocoder.
        """
        return cls.of(*trained.load(model_dir, UnitVocoder))

    @classmethod
    def of(cls, system: UnitVocoder, params: Any, card: Any) -> 'Vocoder':
        """What `trained.load` gives."""
        return cls(system.vocoder, params['vocoder'], card['data']['codebook'], card)

    def check(self, label: str) -> None:
        """Whether it says the units of this codebook.

        Raises:
            CodebookError: it was trained on those of another; names both.
        """
        if label != self.codebook:
            raise CodebookError(
                f'{self.card["name"]} says units of the codebook {self.codebook}, and these are of {label}. Give a '
                'vocoder that was trained on them.'
            )

    def durations(self, units: Int[np.ndarray, ' u']) -> Int[np.ndarray, ' u']:
        """How many frames each unit of a row without repetitions is likely to last."""
        given, length = _filled(units, _UNITS)
        told = np.exp(np.asarray(self._program('log_durations')(self.params, given, length))[0, : len(units)])
        return np.clip(np.round(told), 1, _LONGEST).astype(np.int32)

    def speak(
        self, units: Int[np.ndarray, ' u'], durations: Int[np.ndarray, ' u'] | None = None
    ) -> Int16[np.ndarray, ' n']:
        """What units sound like, at 16 kHz.

        Args:
            units: without repetitions.
            durations: in frames; None: as `durations` predicts them.

        Raises:
            CodebookError: a unit that the codebook does not have.
        """
        units = np.asarray(units, np.int32)
        size = self.model.config.num_units
        if len(units) and not 0 <= units.min() <= units.max() < size:
            wrong = units[(units < 0) | (units >= size)][0]
            raise CodebookError(f'unit {wrong} is out of range: {self.codebook} has {size}, 0 to {size - 1}.')
        if not len(units):
            return np.zeros(0, np.int16)
        frames = np.repeat(units, self.durations(units) if durations is None else durations)
        given, length = _filled(frames, _FRAMES)
        said = np.asarray(self._program('__call__')(self.params, given, length))[0]
        said = said[: len(frames) * self.model.config.samples]
        return (np.clip(said, -1, 1) * 32767).astype(np.int16)

    def _program(self, method: str) -> Callable:
        return _compiled(self.model, method)


@functools.cache
def _compiled(model: Model, method: str) -> Callable:
    return jax.jit(lambda params, *given: model.apply({'params': params}, *given, method=method))


def _filled(units: np.ndarray, multiple: int) -> tuple[Any, Any]:
    padded = np.zeros((1, -(-len(units) // multiple) * multiple), np.int32)
    padded[0, : len(units)] = units
    return jnp.asarray(padded), jnp.array([len(units)])
