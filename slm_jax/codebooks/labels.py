"""Which codebook it is: the label that files of its units carry, and whether it is of the encoder beside it."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from slm_jax import foundations
from slm_jax.codebooks import codebook


def of(directory: str | os.PathLike) -> str:
    """NAME@FINGERPRINT of a codebook of speech, or of a training of one of images.

    Raises:
        ValueError: it is not there, damaged, or neither.
    """
    card = foundations.card(directory)
    if card.get('kind') == codebook.KIND:
        return codebook.label(card)
    from slm_jax.training import checkpoints

    params = {}
    if card.get('kind') == checkpoints.KIND:
        params, card = checkpoints.load_for_inference(pathlib.Path(foundations.find(directory)))
    if 'image_codebook' not in params:
        raise codebook.CodebookError(
            f'{directory} is no codebook: give a directory of `slm-jax codebook fit`, or of a training with '
            'codebooks/image.gin.'
        )
    return f'{card["name"]}@{foundations.fingerprint(params["image_codebook"])["content"][:12]}'


def check(system: Any, foundations: Mapping[str, str]) -> None:
    """Refuses a codebook that is not of the speech encoder beside it.

    Args:
        system: see `slm_jax.systems`; most have none.
        foundations: {part: name or directory}.

    Raises:
        CodebookError: it is of another encoder or layer; names both.
    """
    if 'codebook' in foundations and getattr(system, 'speech_encoder', None) is not None:
        from slm_jax.training import frozen_encoder

        encoder = frozen_encoder.of_speech(system.speech_encoder, foundations, system.layer)
        codebook.Codebook.load(foundations['codebook']).check(encoder.identity)
