"""Public checkpoints as foundations; the program is `slm-jax import` (`slm_jax/import_.py`).

An importer turns what somebody else saved into the parts that a foundation is written from. It reads no tensor
before that: leaves are `foundations.Blocks`, read while they are written, so memory does not grow with the model.
"""

import dataclasses
from typing import Any

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, or not of a kind that can be imported exactly."""


def finite(block: np.ndarray, what: str) -> np.ndarray:
    """`block`, if all of it are numbers.

    Args:
        block: of a tensor.
        what: file and tensor, for the message.

    Raises:
        CheckpointError: NaN or infinity is in it.
    """
    if not (good := np.isfinite(block)).all():
        raise CheckpointError(
            f'{what} holds NaN or infinity ({good.size - np.count_nonzero(good)} of {good.size} values looked at). No '
            'model computes with that: fetch the file again, or take a checkpoint from before its training broke.'
        )
    return block


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an importer makes of a checkpoint.

    Attributes:
        kind: the part of a system that it becomes, such as 'llm'.
        params: nested dictionary of `foundations.Blocks`.
        gin: text of the model file.
        card: what the card says besides `kind` and where it came from.
        tokenizer: name in the foundation and content of its file; None where there is none.
    """

    kind: str
    params: dict[str, Any]
    gin: str
    card: dict[str, Any]
    tokenizer: tuple[str, bytes] | None
