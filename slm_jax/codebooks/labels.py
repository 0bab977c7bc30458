"""What files of a codebook's units or tokens carry: its label, by its directory alone."""

import os
import pathlib

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
