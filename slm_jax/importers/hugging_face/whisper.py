"""Whisper's encoder, tiny to large-v3 and turbo, out of a checkpoint of the whole model."""

import pathlib

from slm_jax.audio.frontends import WhisperFrontend
from slm_jax.encoders.whisper import WhisperConfig, WhisperEncoder, encoder_seconds
from slm_jax.importers import Imported
from slm_jax.importers.hugging_face import speech
from slm_jax.importers.hugging_face.directory import Directory

MODEL_TYPES = {'whisper': 'Whisper'}
FILES, LANDMARK = speech.PREPROCESSORS, 'conv1.weight'

_SIZES = {
    'encoder_layers': 'num_layers', 'd_model': 'emb_dim', 'encoder_attention_heads': 'num_heads',
    'encoder_ffn_dim': 'mlp_dim', 'num_mel_bins': 'num_mel_bins',
}  # fmt: skip
_FIXED = {'activation_function': 'gelu', 'max_source_positions': 1500}
# Of the decoder, of training, and of heads; the encoder of transformers reads scale_embedding and leaves it at that.
_WITHOUT_EFFECT = set(
    """
    activation_dropout alignment_heads apply_spec_augment attention_dropout classifier_proj_size
    decoder_attention_heads decoder_ffn_dim decoder_layerdrop decoder_layers dropout encoder_layerdrop lang_ids
    mask_feature_length mask_feature_min_masks mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob
    max_target_positions median_filter_width num_hidden_layers scale_embedding use_weighted_layer_sum
    """.split()
)
PREPROCESSOR = {
    'sampling_rate': 16_000, 'hop_length': 160, 'chunk_length': 30, 'n_fft': 400, 'padding_value': 0.0, 'dither': 0.0,
    'do_normalize': False,
}  # fmt: skip


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Takes the encoder out of a Whisper checkpoint; see `speech.convert` for what is raised."""
    module, frontend = encoder(directory)
    bins = frontend.num_mel_bins
    return speech.convert(directory, out, module, frontend, bins, _name, LANDMARK, encoder_seconds=encoder_seconds)


def encoder(directory: Directory) -> tuple[WhisperEncoder, WhisperFrontend]:
    """The encoder that the flags describe, and its frontend; see `speech.check_flags` for what is raised."""
    sizes = speech.check_flags(directory.path / 'config.json', directory.config, _SIZES, _FIXED, _WITHOUT_EFFECT)
    num_mel_bins = sizes.pop('num_mel_bins')
    speech.check_preprocessor(directory, PREPROCESSOR | {'feature_size': num_mel_bins})
    return WhisperEncoder(WhisperConfig(**sizes)), WhisperFrontend(num_mel_bins)


def _name(path: str) -> str:
    *module, kind = path.replace('layers/', 'layers/{}/').split('/')
    if kind == 'embed_positions':
        return 'embed_positions.weight'
    return '.'.join([*module, 'bias' if kind == 'bias' else 'weight'])
