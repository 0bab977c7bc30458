"""Public checkpoints as foundations; the program is `slm-jax import` (`slm_jax/import_.py`).

An importer turns what somebody else saved into the parts that a foundation is written from. It reads no tensor
before that: leaves are `foundations.Blocks`, read while they are written, so memory does not grow with the model.
"""

import dataclasses
import pathlib
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, or not of a kind that can be imported exactly."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an importer makes of a checkpoint.

    Attributes:
        kind: the part of a system that it becomes, such as 'llm'.
        params: nested dictionary of `foundations.Blocks`.
        gin: text of the model file.
        card: what the card says besides `kind` and where it came from.
        tokenizer: SentencePiece file; None where there is none.
    """

    kind: str
    params: dict[str, Any]
    gin: str
    card: dict[str, Any]
    tokenizer: pathlib.Path | None
