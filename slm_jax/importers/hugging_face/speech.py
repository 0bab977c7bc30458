"""What importers of speech encoders share: flags, tensors by name, the model file.

Encoders name their parameters almost as `transformers` does, so a path is a tensor's name but for what an importer
says. Layers stand side by side at axis 0, as `nn.scan` has them.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax import foundations
from slm_jax.importers import CheckpointError, Imported, finite
from slm_jax.importers.hugging_face.directory import Directory
from slm_jax.importers.hugging_face.tensors import Tensor, prefix, read_json, tensors

# What transformers writes into any configuration and no number depends on.
WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_decoder_ids forced_eos_token_id
    gradient_checkpointing id2label init_std initializer_range is_encoder_decoder label2id length_penalty max_length
    min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache vocab_size
    """.split()
)
# Flags of any configuration that are taken at one value alone.
_FIXED = {'quantization_config': None, 'pruned_heads': {}, 'is_decoder': False, 'add_cross_attention': False}
# Frames a second that an adapter leaves, or fewer where the encoder gives fewer.
_ADAPTED_RATE = 12.5
PREPROCESSORS = ('preprocessor_config.json', 'processor_config.json')

_GIN = """\
# {source}: its speech encoder, {parameters:,} parameters, as `slm-jax import` found it.
from __gin__ import dynamic_registration
from slm_jax.audio import frontends
from {package} import {module}
from slm_jax.systems import speech_encoder

SPEECH_ENCODER = {out!r}
REDUCTION_FACTOR = {reduction_factor}  # of an adapter: {rate:g} frames a second become {reduced:g}
{fixed}
{bindings}
{encoder}.config = @{config}()
speech_encoder.SpeechEncoder:
  frontend = @{frontend}()
  encoder = @{encoder}()
"""


def check_flags(
    file: pathlib.Path, flags: Mapping[str, Any], sizes: Mapping[str, str], fixed: Mapping[str, Any], read: set[str]
) -> dict[str, Any]:
    """Refuses what cannot be honoured.

    Args:
        file: that the flags are in.
        flags: by name.
        sizes: flags that are positive numbers and must be there, with our names.
        fixed: flags with the one value that is supported, which is their default.
        read: flags that the caller looks at, or that have no effect on an encoder.

    Returns:
        The sizes by our names.

    Raises:
        CheckpointError: a flag that is unknown, missing, or at a value that cannot be honoured; names it.
    """
    fixed = {**_FIXED, **fixed}
    if unknown := sorted(flags.keys() - sizes.keys() - fixed.keys() - read - WITHOUT_EFFECT):
        raise CheckpointError(
            f'{file}: unknown flag {unknown[0]!r} = {flags[unknown[0]]!r}. Whether numbers depend on it nobody here '
            'knows; if they do not, delete it.'
        )
    check_fixed(file, flags, fixed)
    for key in sizes:
        if type(flags.get(key)) is not int or flags[key] < 1:
            raise CheckpointError(f'{file}: {key} is {flags.get(key)!r}; it must be a positive number.')
    return {name: flags[key] for key, name in sizes.items()}


def check_fixed(file: pathlib.Path, flags: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuses flags at another value than the one that is supported."""
    for key, expected in fixed.items():
        if flags.get(key) not in (None, expected):  # absent and null mean the default
            raise CheckpointError(f'{file}: {key} is {flags[key]!r}; only {expected!r} is supported.')


def check_preprocessor(directory: Directory, fixed: Mapping[str, Any]) -> None:
    """Refuses a feature extractor other than ours; a directory may have none. `fixed` as for `check_flags`."""
    for path in (directory.path / name for name in PREPROCESSORS):
        if path.is_file():
            values = read_json(path)
            check_fixed(path, values.get('feature_extractor', values), fixed)


def convert(
    directory: Directory,
    out: pathlib.Path,
    encoder: nn.Module,
    frontend: Any,
    feature_dim: int,
    names: Callable[[str], str],
    landmark: str,
    unused: tuple[str, ...] = (),
    encoder_seconds: Callable[[Any], float] | None = None,
    found: Mapping[str, Tensor] | None = None,
    sizes: str = 'config.json',
) -> Imported:
    """Takes a speech encoder out of a checkpoint.

    Args:
        directory: the checkpoint, whose flags have been checked.
        out: where the foundation will stand.
        encoder: as configured by the flags, with a `config`.
        frontend: that makes its features.
        feature_dim: their width.
        names: from the path of a parameter to the name of its tensor, {} in the place of the layer's number.
        landmark: name of a tensor; what stands before it in the checkpoint is the prefix of all.
        unused: tensors of the encoder that are for training alone.
        encoder_seconds: of audio that the encoder computes at least, however short a clip is: a function of its
            configuration, in its module; None: no more than the clip.
        found: the tensors by name; None: those of the directory.
        sizes: file that says the sizes.

    Raises:
        CheckpointError: a tensor that is missing, of another shape or type, or of no use; names it.
    """
    path, config = directory.path, encoder.config
    if config.emb_dim % config.num_heads:
        raise CheckpointError(
            f'{path / sizes}: {config.num_heads} attention heads do not divide the width, {config.emb_dim}.'
        )
    found = tensors(path, landmark) if found is None else found
    part = prefix(found, landmark, path)
    left = {name: tensor for name, tensor in found.items() if name.startswith(part)}
    for name in unused:
        left.pop(part + name, None)
    first, leaves = found[part + landmark], {}
    features = jnp.zeros((1, 16, feature_dim))
    boxed = jax.eval_shape(encoder.init, jax.random.key(0), features, jnp.array([16]))['params']
    for leaf_path, leaf in foundations.flatten(nn.unbox(boxed)).items():
        name = part + names(leaf_path)
        stacked = '{}' in name
        made_of = [name.format(layer) for layer in range(leaf.shape[0] if stacked else 1)]
        for name in made_of:
            if name not in found:
                raise CheckpointError(f'{path}: the weights have no tensor {name}, which {leaf_path} is made of.')
            tensor = left.pop(name)
            if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype != first.dtype:
                raise CheckpointError(
                    f'{tensor.file}: tensor {name} is {tensor.dtype}, {part}{landmark} is {first.dtype}. Save '
                    'the model in one floating-point type.'
                )
        read = {name: found[name] for name in made_of}
        leaves[f'encoder/{leaf_path}'] = blocks(leaf_path, leaf.shape, read, stacked, sizes)
    if left:
        name, tensor = next(iter(left.items()))
        raise CheckpointError(
            f'{tensor.file}: {len(left)} tensors have no place in the encoder of this {sizes}, the first is {name}.'
        )
    parameters = sum(math.prod(leaf.shape) for leaf in leaves.values())
    gin = _model_file(directory, out, encoder, frontend, parameters, encoder_seconds)
    return Imported('speech_encoder', foundations.unflatten(leaves), gin, {}, None)


def blocks(
    path: str, shape: tuple[int, ...], made_of: Mapping[str, Tensor], stacked: bool, sizes: str = 'config.json'
) -> foundations.Blocks:
    """A leaf that reads its tensors: PyTorch has the outputs of a kernel first, then the inputs, then its extent."""
    own = shape[1:] if stacked else shape
    order = tuple(range(len(own)))
    if path.endswith('kernel'):
        order = (3, 2, 0, 1) if len(own) == 4 else order[::-1]
    expected = tuple(own[axis] for axis in order)
    for name, tensor in made_of.items():
        if [size for size in tensor.shape if size != 1] != [size for size in expected if size != 1]:
            raise CheckpointError(
                f'{tensor.file}: tensor {name} is {list(tensor.shape)}; by {sizes} it is {list(expected)}, '
                'whatever axes of 1 there are.'
            )
    sources = list(made_of.items())

    def ours(name: str, tensor: Tensor) -> np.ndarray:
        array = tensor.open().reshape(expected).transpose(np.argsort(order))
        return finite(array, f'{tensor.file}: tensor {name}')

    def read(start: int, stop: int) -> np.ndarray:
        return np.stack([ours(*source) for source in sources[start:stop]]) if stacked else ours(*sources[0])[start:stop]

    return foundations.Blocks(shape, sources[0][1].dtype, read)


def _model_file(
    directory: Directory,
    out: pathlib.Path,
    encoder: nn.Module,
    frontend: Any,
    parameters: int,
    encoder_seconds: Callable[[Any], float] | None,
) -> str:
    package, _, module = type(encoder).__module__.rpartition('.')
    config = f'{module}.{type(encoder.config).__name__}'
    front = f'frontends.{type(frontend).__name__}'
    bindings = [
        f'{name}.{field.name} = {getattr(part, field.name)!r}'
        for name, part in ((config, encoder.config), (front, frontend))
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != field.default
    ]
    fixed = ''
    if encoder_seconds is not None:
        name = f'{module}.{encoder_seconds.__name__}'
        fixed = f'ENCODER_SECONDS = @{name}()  # are computed of any clip at least\n{name}.config = @{config}()\n'
    rate = _frame_rate(encoder, frontend)
    factor = max(1, round(rate / _ADAPTED_RATE))
    return _GIN.format(
        source=directory.source, parameters=parameters, package=package, module=module, out=str(out), config=config,
        encoder=f'{module}.{type(encoder).__name__}', frontend=front, bindings='\n'.join(bindings),
        rate=rate, reduction_factor=factor, reduced=rate / factor, fixed=fixed,
    )  # fmt: skip


def _frame_rate(encoder: nn.Module, frontend: Any) -> float:
    """Frames a second, by shapes alone; what a clip has at its ends does not count."""

    def frames(seconds: int):
        samples = jnp.zeros((1, seconds * 16_000), jnp.int16)
        features = frontend(samples, jnp.array([samples.shape[1]]))
        return encoder.init_with_output(jax.random.key(0), *features)[0][0]

    shorter, longer = (jax.eval_shape(functools.partial(frames, seconds)).shape[1] for seconds in (8, 24))
    return (longer - shorter) / 16
