"""Gemma 4's audio tower, a Universal Speech Model too: saved alone, or out of a checkpoint of the whole model."""

import dataclasses
import math
import pathlib

import numpy as np

from slm_jax.audio.frontends import Gemma4Frontend
from slm_jax.encoders.usm import CLIP_BOUND, UsmConfig, UsmEncoder
from slm_jax.importers import CheckpointError, Imported
from slm_jax.importers.hugging_face import gemma3n, speech
from slm_jax.importers.hugging_face.directory import Directory, check_types
from slm_jax.importers.hugging_face.tensors import Tensor, tensors

MODEL_TYPES = {'gemma4': 'Gemma4', 'gemma4_audio': 'Gemma4Audio'}
FILES, LANDMARK = gemma3n.FILES, gemma3n.LANDMARK

_SIZES = {
    'num_hidden_layers': 'num_layers', 'hidden_size': 'emb_dim', 'num_attention_heads': 'num_heads',
    'conv_kernel_size': 'conv_kernel_size', 'attention_chunk_size': 'chunk_size', 'output_proj_dims': 'output_dim',
}  # fmt: skip
_NUMBERS = {
    'attention_logit_cap': 'logit_cap', 'residual_weight': 'residual_weight', 'gradient_clipping': 'activation_clip',
    'rms_norm_eps': 'norm_epsilon',
}  # fmt: skip
_FIXED = {'hidden_act': 'silu', 'attention_context_right': 0, 'attention_invalid_logits_value': -1e9}
_CHANNELS, _CLIPPED, _LEFT = 'subsampling_conv_channels', 'use_clipped_linears', 'attention_context_left'
_PREPROCESSOR = {
    'sampling_rate': 16_000, 'frame_length': 320, 'hop_length': 160, 'fft_length': 512, 'frame_length_ms': 20.0,
    'hop_length_ms': 10.0, 'fft_overdrive': False, 'min_frequency': 0.0, 'max_frequency': 8000.0, 'preemphasis': 0.0,
    'mel_floor': 1e-3, 'dither': 0.0, 'input_scale_factor': 1.0, 'per_bin_mean': None, 'per_bin_stddev': None,
}  # fmt: skip

_PLAIN = {
    'input_proj': 'subsample_conv_projection.input_proj_linear', 'output_proj': 'output_proj',
    'conformer/attention/pos_proj': 'layers.{}.self_attn.relative_k_proj',
}  # fmt: skip
_MODULES = {
    'conformer/ffw_layer_start': 'layers.{}.feed_forward1', 'conformer/ffw_layer_end': 'layers.{}.feed_forward2',
    'conformer/pre_attention_norm': 'layers.{}.norm_pre_attn', 'conformer/norm': 'layers.{}.norm_out',
    'conformer/post_attention_norm': 'layers.{}.norm_post_attn', 'conformer/attention_out': 'layers.{}.self_attn.post',
    'conformer/attention': 'layers.{}.self_attn', 'conformer/lconv1d': 'layers.{}.lconv1d',
}  # fmt: skip


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Takes the audio tower out of a Gemma 4 checkpoint; see `speech.convert` for what is raised."""
    module, frontend = encoder(directory)
    found = {
        name: _bound(tensor) if name.endswith(('put_min', 'put_max')) else tensor
        for name, tensor in tensors(directory.path, LANDMARK).items()
    }
    return speech.convert(directory, out, module, frontend, frontend.num_mel_bins, _name, LANDMARK, found=found)


def encoder(directory: Directory) -> tuple[UsmEncoder, Gemma4Frontend]:
    """The encoder that the flags describe, and its frontend; see `speech.check_flags` for what is raised."""
    file, flags = directory.path / 'config.json', gemma3n.tower(directory, 'gemma4')
    sizes = speech.check_flags(file, flags, _SIZES | {_LEFT: _LEFT}, _FIXED, {_CHANNELS, _CLIPPED, *_NUMBERS})
    check_types(file, flags, {bool: (_CLIPPED,)})
    chunk, left = sizes['chunk_size'], sizes.pop(_LEFT)
    if left < 2 or chunk not in (left - 1, left):
        raise CheckpointError(
            f'{file}: attention_context_left is {left} and attention_chunk_size {chunk}; of other models than those '
            'with a chunk as long as the context, or one less, the reference gives distances wrong positions.'
        )
    channels = gemma3n.two_channels(file, flags, _CHANNELS)
    if channels[0] % 4:
        raise CheckpointError(f'{file}: {_CHANNELS} is {list(channels)}; the first must be the number of mel bins.')
    speech.check_preprocessor(directory, _PREPROCESSOR | {'feature_size': channels[0]})
    numbers = gemma3n.numbers(file, flags, _NUMBERS)
    config = UsmConfig(
        **sizes,
        **numbers,
        context_left=left - 1,  # the reference's mask reaches one frame less far than its window
        num_mel_bins=channels[0],
        subsample_channels=channels,
        subsample_norm='layer',
        subsample_norm_epsilon=numbers.get('norm_epsilon', UsmConfig.norm_epsilon),
        subsample_padding=(1, 1),
        key_scale=math.log1p(math.e) / math.log(2.0),
        clipped_linears=flags.get(_CLIPPED) is not False,
    )
    return UsmEncoder(config), Gemma4Frontend(config.num_mel_bins)


def _bound(tensor: Tensor) -> Tensor:
    """A bound that may be infinite, where nothing is cut off, as one that is not."""

    def read() -> np.ndarray:
        return np.clip(tensor.open(), -CLIP_BOUND, CLIP_BOUND).astype(tensor.dtype)

    return dataclasses.replace(tensor, open=read)


def _name(path: str) -> str:
    module, _, kind = path.rpartition('/')
    if module.startswith('subsample_'):
        part = {'kernel': 'conv', 'scale': 'norm'}[kind]
        return f'subsample_conv_projection.layer{module.removeprefix("subsample_")}.{part}.weight'
    if module in _PLAIN:
        return f'{_PLAIN[module]}.{"bias" if kind == "bias" else "weight"}'
    prefix = next(prefix for prefix in _MODULES if f'{module}/'.startswith(f'{prefix}/'))
    module = _MODULES[prefix] + module.removeprefix(prefix).replace('/', '.')
    ends = {'kernel': 'linear.weight', 'scale': 'weight', 'depthwise_kernel': 'depthwise_conv1d.weight'}
    return f'{module}.{ends.get(kind, kind)}'
