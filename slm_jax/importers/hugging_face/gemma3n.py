"""Gemma 3n's audio tower, a Universal Speech Model: saved alone, or out of a checkpoint of the whole model."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from slm_jax.audio.frontends import UsmFrontend
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.importers import CheckpointError, Imported
from slm_jax.importers.hugging_face import speech
from slm_jax.importers.hugging_face.directory import Directory

MODEL_TYPES = {'gemma3n': 'Gemma3n', 'gemma3n_audio': 'Gemma3nAudio'}
FILES, LANDMARK = speech.PREPROCESSORS, 'subsample_conv_projection.input_proj_linear.weight'

_SIZES = {
    'conf_num_hidden_layers': 'num_layers', 'hidden_size': 'emb_dim', 'conf_num_attention_heads': 'num_heads',
    'conf_conv_kernel_size': 'conv_kernel_size', 'conf_attention_chunk_size': 'chunk_size',
    'conf_attention_context_left': 'context_left', 'conf_reduction_factor': 'reduction_factor',
    'input_feat_size': 'num_mel_bins',
}  # fmt: skip
# Where they are absent, our defaults are the reference's.
_NUMBERS = {
    'conf_attention_context_right': 'context_right', 'conf_attention_logit_cap': 'logit_cap',
    'conf_residual_weight': 'residual_weight', 'gradient_clipping': 'activation_clip', 'rms_norm_eps': 'norm_epsilon',
    'sscp_conv_group_norm_eps': 'subsample_norm_epsilon',
}  # fmt: skip
_FIXED = {
    'sscp_conv_kernel_size': [[3, 3], [3, 3]], 'sscp_conv_stride_size': [[2, 2], [2, 2]],
    # Of older files, and transformers reads neither: the first is its sscp_conv_group_norm_eps, the second as good as
    # the lowest number, which it has now.
    'sscp_conv_eps': 1e-3, 'conf_attention_invalid_logits_value': -1e9,
}  # fmt: skip
_CHANNELS = 'sscp_conv_channel_size'
_WITHOUT_EFFECT = {'vocab_offset', 'conf_positional_bias_size'}  # positions go as far as they are needed
_PREPROCESSOR = {
    'sampling_rate': 16_000, 'frame_length': 512, 'hop_length': 160, 'fft_length': 1024, 'fft_overdrive': True,
    'min_frequency': 125.0, 'max_frequency': 7600.0, 'preemphasis': 0.97, 'preemphasis_htk_flavor': True,
    'mel_floor': 1e-5, 'dither': 0.0, 'input_scale_factor': 1.0, 'padding_value': 0.0, 'per_bin_mean': None,
    'per_bin_stddev': None,
}  # fmt: skip

_MODULES = {
    'input_proj': 'subsample_conv_projection.input_proj_linear',
    'conformer/pre_attention_norm': 'conformer.{}.attention.pre_attn_norm',
    'conformer/post_attention_norm': 'conformer.{}.attention.post_norm',
    'conformer/attention_out': 'conformer.{}.attention.post',
    'conformer/attention/pos_proj': 'conformer.{}.attention.attn.relative_position_embedding.pos_proj',
    'conformer/attention': 'conformer.{}.attention.attn',
    'conformer': 'conformer.{}',
}


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Takes the audio tower out of a Gemma 3n checkpoint; see `speech.convert` for what is raised."""
    module, frontend = encoder(directory)
    return speech.convert(directory, out, module, frontend, frontend.num_mel_bins, _name, LANDMARK)


def encoder(directory: Directory) -> tuple[UsmEncoder, UsmFrontend]:
    """The encoder that the flags describe, and its frontend; see `speech.check_flags` for what is raised."""
    file, flags = directory.path / 'config.json', tower(directory, 'gemma3n')
    sizes = speech.check_flags(file, flags, _SIZES, _FIXED, _WITHOUT_EFFECT | {_CHANNELS, *_NUMBERS})
    speech.check_preprocessor(directory, _PREPROCESSOR | {'feature_size': sizes['num_mel_bins']})
    channels = two_channels(file, flags, _CHANNELS)
    config = UsmConfig(**sizes, **numbers(file, flags, _NUMBERS), subsample_channels=channels)
    return UsmEncoder(config), UsmFrontend(config.num_mel_bins)


def tower(directory: Directory, whole: str) -> dict[str, Any]:
    """Flags of the audio tower, saved alone or in a model of the type `whole`."""
    flags = directory.config
    if flags['model_type'] != whole:
        return flags
    if not isinstance(flags.get('audio_config'), dict):
        raise CheckpointError(
            f'{directory.path / "config.json"} has no audio_config, so this {whole} has no audio tower.'
        )
    return {'quantization_config': flags.get('quantization_config')} | flags['audio_config']


def numbers(file: pathlib.Path, flags: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Flags that are numbers, by our names, as far as they are there."""
    found = {name: flags[key] for key, name in names.items() if flags.get(key) is not None}
    for key, name in names.items():
        if type(found.get(name, 0)) not in (int, float) or not 0 <= found.get(name, 0) < math.inf:
            raise CheckpointError(f'{file}: {key} is {flags[key]!r}; it must be a number, not below 0.')
    return found


def two_channels(file: pathlib.Path, flags: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Channels of the two subsampling convolutions; where they are absent, the public models'."""
    channels = flags.get(key) or UsmConfig.subsample_channels
    if not isinstance(channels, (list, tuple)) or [*map(type, channels)] != [int, int] or min(channels) < 1:
        raise CheckpointError(f'{file}: {key} is {channels!r}; it must be two positive numbers.')
    return channels[0], channels[1]


def _name(path: str) -> str:
    module, _, kind = path.rpartition('/')
    if module.startswith('subsample_'):
        part = {'kernel': 'conv', 'scale': 'norm'}[kind]
        return f'subsample_conv_projection.conv_{module.removeprefix("subsample_")}.{part}.weight'
    prefix = next(prefix for prefix in _MODULES if f'{module}/'.startswith(f'{prefix}/'))
    module = _MODULES[prefix] + module.removeprefix(prefix).replace('/', '.')
    if kind == 'depthwise_kernel':
        return f'{module}.depthwise_conv1d.weight'
    return f'{module}.per_dim_scale' if kind == 'per_dim_scale' else f'{module}.weight'
