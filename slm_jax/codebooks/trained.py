"""What `slm_jax.train` left of a system of this room, from its directory."""

import os
import pathlib
from typing import Any

from slm_jax.codebooks.codebook import CodebookError


def load(model_dir: str | os.PathLike, *kinds: type) -> tuple[Any, Any, Any]:
    """(system, parameters, card) of a training of one of these kinds of systems.

    Raises:
        ValueError: it is not there, damaged, or of another system.
    """
    from slm_jax import foundations
    from slm_jax.inference import model
    from slm_jax.training import checkpoints

    directory = foundations.find(model_dir)
    system = None
    if foundations.card(directory).get('kind') == checkpoints.KIND:
        params, card = checkpoints.load_for_inference(pathlib.Path(directory))
        model.configure(card, (), ())
        system = model.configured_system()
    if not isinstance(system, kinds):
        wanted = ' or '.join(kind.__name__ for kind in kinds)
        raise CodebookError(f'{model_dir}: the directory of a training of {wanted} was expected.')
    return system, params, card
