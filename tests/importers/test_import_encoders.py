"""Speech encoders: what transformers makes of a waveform, we make of it.

The goldens are small models that transformers saved, with its outputs (tests/testdata/encoder_goldens/make.py). The
slow tests make more of them here, and need torch and transformers: pip install -e .[hf].
"""

import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_import_bad_input import arrays, write

import gin
from slm_jax import cli, configuration, foundations, import_
from slm_jax.inference import model
from slm_jax.systems.speech_encoder import SpeechEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 'encoder_goldens'
FAMILIES = ('whisper', 'gemma3n', 'gemma4', 'w2v_bert', 'w2v_bert_with_adapter')


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def imported(source, out):
    """What the foundation makes of samples and their lengths."""
    import_.import_checkpoint(str(source), str(out), 'float32')
    configuration.parse_gin([str(out / 'model.gin')], [])
    encoder = configuration.configured(SpeechEncoder)()
    params = foundations.load(out)
    return jax.jit(lambda samples, lengths: encoder.apply({'params': params}, samples, lengths)[:2])


def batched(clips, length):
    """Clips in one batch of `length` samples, noise behind them, and their lengths."""
    rng = np.random.default_rng(1)
    samples = rng.integers(-20_000, 20_000, (len(clips), length)).astype(np.int16)
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip)] = clip
    return jnp.asarray(samples), jnp.array([len(clip) for clip in clips])


def check(encode, clips, expected):
    """In a batch, and each clip alone."""
    longest = max(map(len, clips))
    for rows in (range(len(clips)), *([i] for i in range(len(clips)))):
        for extra in (0, 5003) if len(rows) > 1 and longest < 470_000 else (0,):
            length = max(len(clips[i]) for i in rows) + extra
            frames, lengths = encode(*batched([clips[i] for i in rows], length))
            for i, found, count in zip(rows, frames, lengths, strict=True):
                assert count == len(expected[i])
                np.testing.assert_allclose(found[:count], expected[i], rtol=0, atol=1e-4)
                assert not np.any(found[count:])


@functools.cache
def clips():
    """The clips of the goldens."""
    with np.load(GOLDENS.parent / 'transformers_goldens' / 'frontends.npz') as goldens:
        samples = goldens['samples']
    return [samples, samples[3000:15_001], samples[:7777]]


@pytest.mark.parametrize('family', FAMILIES)
def test_frames_are_those_of_transformers(family, tmp_path):
    encode = imported(GOLDENS / family, tmp_path / 'out')
    with np.load(GOLDENS / family / 'outputs.npz') as golden:
        check(encode, clips(), [golden[str(i)] for i in range(3)])


@pytest.mark.parametrize('family', FAMILIES)
def test_text_only_rows_and_short_clips(family, tmp_path):
    encode = imported(GOLDENS / family, tmp_path / 'out')
    frames, lengths = encode(*batched([clips()[0], clips()[0][:1], clips()[0][:0]], 24_000))
    assert lengths[0] > 0 and lengths[2] == 0
    assert np.all(np.isfinite(frames)) and not np.any(frames[2])


@pytest.mark.parametrize('family', FAMILIES)
def test_what_an_import_leaves(family, tmp_path, capsys):
    out = tmp_path / 'deep' / family
    assert cli.main(['import', str(GOLDENS / family), str(out)]) == 0
    assert 'licence: apache-2.0' in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ['card.json', 'model.gin', 'params']
    configuration.parse_gin([str(out / 'model.gin')], [])
    assert model.query('%ENCODER_SECONDS') == (30 if family == 'whisper' else None)
    assert foundations.card(out)['kind'] == 'speech_encoder'
    stored = foundations.flatten(foundations.abstract(out))
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype('bfloat16')}
    assert all(path.startswith('encoder/') for path in stored)


@pytest.mark.parametrize('family', ['gemma3n', 'gemma4'])
def test_the_tower_of_a_whole_gemma(family, tmp_path):
    import_.import_checkpoint(str(GOLDENS / family), str(tmp_path / 'tower'))
    source = tmp_path / 'source'
    source.mkdir()
    other = {f'model.{part}.norm.weight': ['F32', [2], b'\0' * 8] for part in ('embed_audio', 'language_model')}
    tower = {f'model.audio_tower.{name}': tensor for name, tensor in arrays(GOLDENS / family).items()}
    write(source / 'model.safetensors', other | tower)
    audio = json.loads((GOLDENS / family / 'config.json').read_text())
    config = {'model_type': family, 'audio_config': audio, 'text_config': {'hidden_size': 8}, 'vision_config': {}}
    (source / 'config.json').write_text(json.dumps(config))
    import_.import_checkpoint(str(source), str(tmp_path / 'whole'))
    fingerprints = [foundations.card(tmp_path / name)['fingerprint'] for name in ('tower', 'whole')]
    assert fingerprints[0] == fingerprints[1]


def test_what_whisper_computes_at_least_follows_its_window(tmp_path):
    import_.import_checkpoint(str(GOLDENS / 'whisper'), str(tmp_path / 'out'))
    configuration.parse_gin([str(tmp_path / 'out' / 'model.gin')], ['whisper.WhisperConfig.window_seconds=4.0'])
    assert model.query('%ENCODER_SECONDS') == 5.0
    assert configuration.configured(SpeechEncoder)().encoder.config.window_seconds == 4.0


def test_whisper_hears_30_seconds(tmp_path):
    encode = imported(GOLDENS / 'whisper', tmp_path / 'out')
    with pytest.raises(ValueError, match='30 s.*TASK_FEATURE_LENGTHS.*chunk_seconds 30'):
        encode(jnp.zeros((1, 480_640), jnp.int16), jnp.array([16_000]))


# From here on with transformers itself. `slow`, and skipped without torch and transformers.


@functools.cache
def reference():
    """The functions of make.py."""
    for name in ('torch', 'transformers'):
        pytest.importorskip(name, reason=f'{name} makes the reference: pip install -e .[hf]')
    return runpy.run_path(str(GOLDENS / 'make.py'))


def noise(seconds, seed=0):
    """A clip of odd length, louder and softer."""
    rng = np.random.default_rng(seed)
    n = int(16_000 * seconds) | 1
    return (3000 * rng.standard_normal(n) * (1 + np.sin(np.arange(n) / 9000))).astype(np.int16)


# Family, what makes its feature extractor unlike the golden's, and its configuration.
VARIANTS = {
    'whisper large-v3': ('whisper', dict(feature_size=128), dict(num_mel_bins=128, encoder_attention_heads=4)),
    'whisper with one layer': ('whisper', {}, dict(encoder_layers=1, d_model=64, encoder_ffn_dim=256)),
    'w2v-BERT with relative positions': ('w2v_bert', {}, dict(position_embeddings_type='relative', hidden_act='gelu')),
    'w2v-BERT with rotary positions': (
        'w2v_bert',
        {},
        dict(position_embeddings_type='rotary', rotary_embedding_base=500, layer_norm_eps=1e-2),
    ),
    'w2v-BERT without positions': ('w2v_bert', {}, dict(position_embeddings_type=None, hidden_act='relu')),
    'w2v-BERT with a long left': ('w2v_bert', {}, dict(left_max_position_embeddings=64, conv_depthwise_kernel_size=31)),
    'w2v-BERT with three adapter layers': (
        'w2v_bert_with_adapter',
        {},
        dict(
            num_adapter_layers=3,
            output_hidden_size=12,
            adapter_act='gelu_new',
            adapter_stride=3,
            use_intermediate_ffn_before_adapter=False,
        ),
    ),
    'gemma 4 at its own chunks and mel bins': (
        'gemma4',
        dict(feature_size=128),
        dict(subsampling_conv_channels=(128, 32), attention_chunk_size=12, attention_context_left=13),
    ),
    'gemma 4 with all its numbers': (
        'gemma4',
        dict(feature_size=40),
        dict(
            attention_logit_cap=5.0,
            residual_weight=0.3,
            gradient_clipping=1.5,
            rms_norm_eps=1e-3,
            conv_kernel_size=3,
            attention_chunk_size=7,
            attention_context_left=7,
            num_attention_heads=4,
            subsampling_conv_channels=(40, 3),
            output_proj_dims=5,
            use_clipped_linears=False,
        ),
    ),
    'gemma 3n looking ahead': ('gemma3n', {}, dict(conf_attention_context_right=4, conf_reduction_factor=2)),
    'gemma 3n with all its numbers': (
        'gemma3n',
        {},
        dict(
            conf_attention_logit_cap=5.0,
            conf_residual_weight=0.3,
            gradient_clipping=1.5,
            rms_norm_eps=1e-3,
            sscp_conv_group_norm_eps=0.1,
            conf_conv_kernel_size=3,
            conf_attention_chunk_size=12,
            conf_attention_context_left=13,
            sscp_conv_channel_size=(8, 3),
            conf_reduction_factor=1,
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_random_models_agree(variant, tmp_path):
    make = reference()
    family, features, changes = VARIANTS[variant]
    golden_extractor, settings = make['FAMILIES'][family]
    extractor = type(golden_extractor)(**features)
    model = make['random_model'](family, seed=11, **settings | changes)
    make['save'](model, family, extractor, tmp_path / 'source', max_shard_size='20KB')
    found = [noise(2.4), clips()[1], noise(29.9), noise(0.31)]
    expected = make['encode'](model, family, extractor, found)
    check(imported(tmp_path / 'source', tmp_path / 'out'), found, expected)
