"""Makes the goldens of this folder with `transformers` and PyTorch: pip install -e .[hf]; python make.py

gemma3n_audio.npz: parameters, features and frames of a small random `Gemma3nAudioEncoder`, looking ahead.
frontends.npz: one second and a half of int16 noise and tones, and what the feature extractors make of it; half a second
of a loud tone with noise some 90 dB below it, and what those make of it that transform in float64.
"""

import pathlib

import numpy as np
import torch
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nAudioFeatureExtractor,
    Gemma4AudioFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder

HERE = pathlib.Path(__file__).parent


def waveform() -> np.ndarray:
    """Speech-like enough: a falling harmonic tone over noise, with a pause."""
    rng = np.random.default_rng(0)
    time = np.arange(24_000) / 16_000
    pitch = 2 * np.pi * np.cumsum(180 - 40 * time) / 16_000
    tone = sum(np.sin(k * pitch) / k for k in range(1, 30))
    signal = 3000 * tone * (np.sin(2 * np.pi * 2 * time) > -0.5) + 30 * rng.standard_normal(len(time))
    return np.clip(signal, -32768, 32767).astype(np.int16)


def tone() -> np.ndarray:
    """Louder and softer, as w2v-BERT's normalisation over time would magnify what stays the same."""
    time = np.arange(8_000) / 16_000
    signal = (2 + np.sin(2 * np.pi * 4 * time)) * 10_000 * np.sin(2 * np.pi * 1000 * time)
    return np.round(signal + np.random.default_rng(0).standard_normal(8_000)).astype(np.int16)


def frontends() -> None:
    samples = waveform()
    floats = samples.astype(np.float32) / 32768
    arrays = {'samples': samples}
    arrays['usm'] = Gemma3nAudioFeatureExtractor()([floats], return_tensors='np')['input_features'][0]
    for bins in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bins)
        features = extractor([floats], sampling_rate=16_000, return_tensors='np')['input_features'][0]
        arrays[f'whisper_{bins}'] = features.T[:170]  # the rest is the silence after the clip
    arrays['tone'] = tone()
    floats = arrays['tone'].astype(np.float32) / 32768
    found = Gemma4AudioFeatureExtractor()([floats], return_tensors='np')
    arrays['tone_gemma4'] = found['input_features'][found['input_features_mask']]
    for name, extractor in (('usm', Gemma3nAudioFeatureExtractor()), ('w2v_bert', SeamlessM4TFeatureExtractor())):
        features = extractor([floats], sampling_rate=16_000, return_tensors='np')['input_features'][0]
        arrays[f'tone_{name}'] = features
    np.savez_compressed(HERE / 'frontends.npz', **arrays)


def gemma3n_audio() -> None:
    config = Gemma3nAudioConfig(
        hidden_size=32,
        conf_num_attention_heads=4,
        conf_num_hidden_layers=3,
        conf_attention_chunk_size=6,
        conf_attention_context_left=9,
        conf_attention_context_right=4,
        conf_reduction_factor=2,
        sscp_conv_channel_size=(8, 4),
    )
    torch.manual_seed(0)
    model = Gemma3nAudioEncoder(config).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter) * 0.2
        parameter.data = noise + 1 if parameter.ndim == 1 and 'per_dim' not in name else noise
    mel = torch.randn(2, 101, 128)
    with torch.no_grad():
        frames = model(mel, torch.zeros(2, 101, dtype=torch.bool)).last_hidden_state
    arrays = {f'params/{name}': value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(HERE / 'gemma3n_audio.npz', features=mel.numpy(), frames=frames.numpy(), **arrays)


if __name__ == '__main__':
    frontends()
    gemma3n_audio()
