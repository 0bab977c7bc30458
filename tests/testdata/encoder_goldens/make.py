"""Makes the goldens of this folder with `transformers` and PyTorch: pip install -e .[hf]; python make.py

A folder each of small random models as `save_pretrained` leaves them, with the configuration of their feature
extractor and outputs.npz: what the reference makes of the clips, from waveform to frames.
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder

HERE = pathlib.Path(__file__).parent
# By family: feature extractor, and the configuration of the golden.
FAMILIES = {
    'whisper': (
        transformers.WhisperFeatureExtractor(),
        dict(
            d_model=12, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=20, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=4, vocab_size=8, max_target_positions=4, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, begin_suppress_tokens=None,
        ),
    ),
    'gemma3n': (
        transformers.Gemma3nAudioFeatureExtractor(),
        dict(
            hidden_size=16, conf_num_attention_heads=2, conf_num_hidden_layers=3, conf_attention_chunk_size=5,
            conf_attention_context_left=8, sscp_conv_channel_size=(6, 4),
        ),
    ),
    'gemma4': (
        transformers.Gemma4AudioFeatureExtractor(feature_size=32),
        dict(
            hidden_size=16, num_attention_heads=2, num_hidden_layers=3, attention_chunk_size=5,
            attention_context_left=6, subsampling_conv_channels=(32, 4), output_proj_dims=12,
        ),
    ),
    'w2v_bert': (
        transformers.SeamlessM4TFeatureExtractor(),
        dict(
            hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20,
            conv_depthwise_kernel_size=7, left_max_position_embeddings=20, right_max_position_embeddings=5,
        ),
    ),
    'w2v_bert_with_adapter': (
        transformers.SeamlessM4TFeatureExtractor(),
        dict(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
            conv_depthwise_kernel_size=7, add_adapter=True, num_adapter_layers=2, output_hidden_size=8,
            use_intermediate_ffn_before_adapter=True,
        ),
    ),
}  # fmt: skip


def clips() -> list[np.ndarray]:
    """The recording of the frontends' goldens and parts of it, of odd lengths."""
    with np.load(HERE.parent / 'transformers_goldens' / 'frontends.npz') as goldens:
        samples = goldens['samples']
    return [samples, samples[3000:15_001], samples[:7777]]


def random_model(family: str, seed: int = 0, **settings):
    """A model whose parameters are all far from their initial values, so that nothing can be left out unseen."""
    torch.manual_seed(seed)
    if family == 'whisper':
        model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**settings))
    elif family.startswith('w2v_bert'):
        model = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**settings))
    elif family == 'gemma4':
        model = transformers.Gemma4AudioModel(transformers.Gemma4AudioConfig(**settings))
        bounds = [(name, bound) for name, bound in model.named_buffers() if name.endswith(('put_min', 'put_max'))]
        for name, bound in bounds[::3]:  # the others have none
            bound.data = (1 if name.endswith('max') else -1) * (1 + torch.rand(()))
    else:
        model = Gemma3nAudioEncoder(transformers.Gemma3nAudioConfig(**settings))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data = ('norm' in name and name.endswith('weight')) + 0.3 * torch.randn_like(parameter)
        elif 'embed_positions' not in name:
            parameter.data = torch.randn_like(parameter) * parameter[0].numel() ** -0.5
    return model.eval()


def save(model, family: str, extractor, directory: pathlib.Path, **options) -> None:
    """As a public directory of this family is."""
    model.save_pretrained(directory, **options)
    extractor.save_pretrained(directory)
    (directory / 'README.md').write_text('---\nlicense: apache-2.0\n---\nA random model.\n')


def features(family: str, extractor, clip: np.ndarray) -> np.ndarray:
    """[frames, width] of a clip alone, from its waveform in int16."""
    floats = clip.astype(np.float32) / 32768
    found = extractor([floats], sampling_rate=16_000, return_tensors='np')['input_features'][0]
    return found.T if family == 'whisper' else found


def encode(model, family: str, extractor, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Frames of each clip, from its waveform in int16."""
    floats = [clip.astype(np.float32) / 32768 for clip in clips]
    with torch.no_grad():
        if family == 'gemma3n':  # the padding of a batch would reach the last frames of its shorter clips
            alone = [extractor([clip], return_tensors='pt') for clip in floats]
            alone = [model(batch['input_features'], ~batch['input_features_mask']) for batch in alone]
            return [output.last_hidden_state[0].numpy() for output in alone]
        if family == 'gemma4':  # the last frames of a clip may see those that do not count
            alone = [extractor([clip], return_tensors='pt') for clip in floats]
            outputs = [model(batch['input_features'], batch['input_features_mask']) for batch in alone]
            return [output.last_hidden_state[output.attention_mask].numpy() for output in outputs]
        if family == 'w2v_bert_with_adapter':  # which the padding of a batch would reach too
            alone = [
                extractor([clip], sampling_rate=16_000, pad_to_multiple_of=None, return_tensors='pt') for clip in floats
            ]
            return [model(**batch).last_hidden_state[0].numpy() for batch in alone]
        batch = extractor(floats, sampling_rate=16_000, return_tensors='pt')
        if family == 'w2v_bert':
            frames = model(**batch).last_hidden_state.numpy()
            return [row[:count] for row, count in zip(frames, batch['attention_mask'].sum(1), strict=True)]
        frames = model.get_encoder()(batch['input_features']).last_hidden_state
        return [frames[i, : -(-len(clip) // 320)].numpy() for i, clip in enumerate(clips)]


if __name__ == '__main__':
    for family, (extractor, settings) in FAMILIES.items():
        model = random_model(family, **settings)
        save(model, family, extractor, HERE / family)
        frames = encode(model, family, extractor, clips())
        np.savez_compressed(HERE / family / 'outputs.npz', **{str(i): part for i, part in enumerate(frames)})
