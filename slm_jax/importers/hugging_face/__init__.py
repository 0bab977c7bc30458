"""Checkpoints in the layout of Hugging Face's `transformers`; one file per family."""

import dataclasses
import re
from types import ModuleType

from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face import decoder_only, gemma3n, gemma4, mbart, t5, w2v_bert, whisper
from slm_jax.importers.hugging_face.directory import Directory

_FAMILIES = (t5, mbart, whisper, gemma3n, gemma4, w2v_bert, decoder_only)
# What transformers has after the family in the names of its classes: T5ForConditionalGeneration, WhisperModel, …
_CLASS = re.compile('(.+?)(?:For[A-Z].*|WithLMHeadModel|EncoderModel|Encoder|Model)')


def family(directory: Directory) -> tuple[ModuleType, Directory]:
    """The importer of a checkpoint, and the checkpoint with its `model_type`, which config.json may leave unsaid.

    Published UMT5 says `architectures` alone.

    Raises:
        CheckpointError: of another family, or nothing says of which.
    """
    file, config = directory.path / 'config.json', directory.config
    families = {model_type: module for module in _FAMILIES for model_type in module.MODEL_TYPES}
    known = f'what can be imported is {", ".join(families)}'
    model_type = config.get('model_type')
    if model_type is None:
        classes = {name: model_type for module in _FAMILIES for model_type, name in module.MODEL_TYPES.items()}
        said = config.get('architectures') or []
        matches = [_CLASS.fullmatch(str(name)) for name in (said if isinstance(said, list) else [said])]
        model_type = next((classes[match[1]] for match in matches if match and match[1] in classes), None)
        if model_type is None:
            also = f', and architectures is {said}' if said else ' and no architectures'
            raise CheckpointError(
                f'{file} has no model_type{also}, so nobody knows what model it is. Add "model_type" to it: {known}.'
            )
    if not isinstance(model_type, str) or model_type not in families:
        raise CheckpointError(f'{file}: model_type is {model_type!r}; {known}.')
    return families[model_type], dataclasses.replace(directory, config=config | {'model_type': model_type})
