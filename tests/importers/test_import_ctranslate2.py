"""Whisper as faster-whisper has it: the file is written here from the description of its format."""

import json
import os
import pathlib
import re
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest

from slm_jax import cli, foundations, import_
from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face.tensors import tensors

GOLDEN = pathlib.Path(__file__).parents[1] / 'testdata' / 'encoder_goldens' / 'whisper'
TYPES = [np.dtype(kind) for kind in ('float32', 'int8', 'int16', 'int32', 'float16', ml_dtypes.bfloat16)]
HALF = 'encoder/layer_1/ffn/linear_0'
FUSED = 'encoder/layer_1/self_attention/linear_0'


def variables(source=GOLDEN):
    """The encoder of a directory of Hugging Face by CTranslate2's names."""
    state = {name.removeprefix('model.encoder.'): tensor.open() for name, tensor in tensors(source).items()}
    found = {
        'encoder/num_heads': np.int16(json.loads((source / 'config.json').read_text())['encoder_attention_heads']),
        'encoder/position_encodings/encodings': state['embed_positions.weight'],
        'decoder/embeddings/weight': np.zeros((3, 2), np.float32),  # not looked at
        'decoder/scale_embeddings': np.int8(0),
    }

    def linear(name, *sources):
        found[f'{name}/weight'] = np.concatenate([state[f'{source}.weight'] for source in sources])
        biases = [state.get(f'{source}.bias', np.zeros_like(state[f'{sources[0]}.bias'])) for source in sources]
        found[f'{name}/bias'] = np.concatenate(biases)

    def norm(name, source):
        found[f'{name}/gamma'], found[f'{name}/beta'] = state[f'{source}.weight'], state[f'{source}.bias']

    for name in ('conv1', 'conv2'):
        linear(f'encoder/{name}', name)
    norm('encoder/layer_norm', 'layer_norm')
    for i in range(3):
        ours, theirs = f'encoder/layer_{i}', f'layers.{i}'
        norm(f'{ours}/self_attention/layer_norm', f'{theirs}.self_attn_layer_norm')
        linear(f'{ours}/self_attention/linear_0', *(f'{theirs}.self_attn.{part}_proj' for part in 'qkv'))
        linear(f'{ours}/self_attention/linear_1', f'{theirs}.self_attn.out_proj')
        norm(f'{ours}/ffn/layer_norm', f'{theirs}.final_layer_norm')
        linear(f'{ours}/ffn/linear_0', f'{theirs}.fc1')
        linear(f'{ours}/ffn/linear_1', f'{theirs}.fc2')
    return found


def string(text):
    return struct.pack('<H', len(text) + 1) + text.encode() + b'\0'


def model_bin(found, aliases=(), version=6, kind='WhisperSpec', revision=3):
    """The bytes of a file of the format."""
    parts = [struct.pack('<I', version), string(kind), struct.pack('<II', revision, len(found))]
    for name, value in sorted(found.items()):
        shape = struct.pack(f'<B{value.ndim}I', value.ndim, *value.shape)
        parts += [string(name), shape, struct.pack('<BI', TYPES.index(value.dtype), value.nbytes), value.tobytes()]
    parts += [struct.pack('<I', len(aliases)), *(string(name) for pair in aliases for name in pair)]
    return b''.join(parts)


@pytest.fixture
def source(tmp_path):
    """A directory as the converter leaves it, but for model.bin."""
    (tmp_path / 'source').mkdir()
    (tmp_path / 'source' / 'config.json').write_text(json.dumps({'lang_ids': [5], 'suppress_ids': [1]}))
    return tmp_path / 'source'


def leaves(directory):
    return {path: np.asarray(leaf) for path, leaf in foundations.flatten(foundations.load(directory)).items()}


def imported(source, content, dtype='float32'):
    (source / 'model.bin').write_bytes(content)
    shutil.rmtree(source.parent / 'out', ignore_errors=True)
    import_.import_checkpoint(str(source), str(source.parent / 'out'), dtype)
    return leaves(source.parent / 'out')


def test_it_is_the_whisper_of_hugging_face(source, capsys):
    (source / 'model.bin').write_bytes(model_bin(variables()))
    assert cli.main(['import', str(source), str(source.parent / 'out')]) == 0
    assert 'parameters in bfloat16; licence: not stated' in capsys.readouterr().out
    import_.import_checkpoint(str(GOLDEN), str(source.parent / 'reference'))
    ours, theirs = (foundations.card(source.parent / name) for name in ('out', 'reference'))
    assert ours['fingerprint'] == theirs['fingerprint'] and ours['kind'] == 'speech_encoder'
    ours, theirs = ((source.parent / name / 'model.gin').read_text().splitlines()[1:] for name in ('out', 'reference'))
    assert ours == [line.replace('reference', 'out') for line in theirs]


@pytest.mark.parametrize('dtype', ['float16', ml_dtypes.bfloat16])
def test_types_of_two_bytes(source, dtype):
    halves = {name: value.astype(dtype) if value.ndim else value for name, value in variables().items()}
    found = imported(source, model_bin(halves))
    np.testing.assert_array_equal(found['encoder/layers/fc1/kernel'][1], halves[f'{HALF}/weight'].astype('f4').T)
    key = halves[f'{FUSED}/weight'][12:24].astype('f4').T
    np.testing.assert_array_equal(found['encoder/layers/self_attn/k_proj/kernel'][1], key)


@pytest.mark.parametrize('bits', [8, 16])
def test_weights_are_divided_by_their_scales(source, bits):
    """As the converter quantises: int8 by row, int16 by matrix; what is no weight is then of any type."""
    whole = variables()
    quantised = {name: value.astype('float16') if value.dtype == 'f4' else value for name, value in whole.items()}
    for name in [name for name in whole if name.endswith('/weight')]:
        largest = np.abs(whole[name]).reshape(len(whole[name]), -1).max(axis=1)
        scale = 127 / np.maximum(largest, 1e-6) if bits == 8 else np.float32(1024 / max(largest.max(), 1e-6))
        by_row = scale.reshape(-1, *[1] * (whole[name].ndim - 1))
        quantised[name] = np.rint(whole[name] * by_row).astype(f'int{bits}')
        quantised[f'{name}_scale'] = scale.astype('float32')
    found, reference = imported(source, model_bin(quantised)), imported(source, model_bin(whole))
    assert found.keys() == reference.keys()
    for path, value in found.items():
        np.testing.assert_allclose(value, reference[path], rtol=1e-3, atol=np.abs(reference[path]).max() / 120)
    expected = quantised[f'{FUSED}/weight'] / quantised[f'{FUSED}/weight_scale'].reshape(-1, 1)
    for part, name in enumerate(('q_proj', 'k_proj', 'v_proj')):
        rows = expected[12 * part : 12 * part + 12].T
        np.testing.assert_array_equal(found[f'encoder/layers/self_attn/{name}/kernel'][1], rows)
    del quantised[f'{HALF}/weight_scale']
    refused(source, model_bin(quantised), rf'{HALF}/weight is int{bits} without a {HALF}/weight_scale that fits it')
    quantised[f'{HALF}/weight_scale'] = np.zeros(7, np.float32)
    refused(source, model_bin(quantised), rf'{HALF}/weight is int{bits} without a {HALF}/weight_scale that fits it')
    quantised[f'{HALF}/weight_scale'] = np.zeros(20, np.float32)
    refused(source, model_bin(quantised), 'holds NaN or infinity')


def test_names_that_stand_for_others(source):
    whole = variables()
    whole['encoder/layer_1/ffn/layer_norm/beta'] = whole['encoder/layer_0/ffn/layer_norm/beta']
    expected = imported(source, model_bin(whole))
    del whole['encoder/layer_1/ffn/layer_norm/beta']
    pair = ('encoder/layer_1/ffn/layer_norm/beta', 'encoder/layer_0/ffn/layer_norm/beta')
    for path, leaf in imported(source, model_bin(whole, [pair])).items():
        np.testing.assert_array_equal(leaf, expected[path])
    refused(source, model_bin(whole, [(pair[0], 'gone')]), f'{pair[0]} stands for gone, which is not there')


def refused(source, content, match):
    out = source.parent / 'refused'
    (source / 'model.bin').write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        import_.import_checkpoint(str(source), str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'version': 5}, r'is no model of CTranslate2 in its binary format 6 \(it begins with 5\)'),
        ({'version': 7}, r'format 6 \(it begins with 7\).*ct2-transformers-converter'),
        ({'kind': 'TransformerSpec'}, 'is a TransformerSpec of revision 3; only WhisperSpec of revision 3'),
        ({'kind': 'Wav2Vec2Spec', 'revision': 1}, 'is a Wav2Vec2Spec of revision 1'),
        ({'revision': 4}, 'is a WhisperSpec of revision 4; only'),
    ],
)
def test_other_models(source, changes, match):
    refused(source, model_bin(variables(), **changes), match)


def test_damaged_files(source):
    whole = model_bin(variables())
    refused(source, b'', r'format 6 \(it begins with None\)')
    refused(source, b'PK\3\4' + whole[4:], 'is no model of CTranslate2')
    for size in (8, 19, 21, 25, 40, len(whole) // 2, len(whole) - 1):
        refused(source, whole[:size], 'is truncated|is no model|is a |no name ends|CTranslate2')
    refused(source, whole[:-200], 'is truncated: .* ends at byte')
    refused(source, whole + b'\0', '1 bytes stand behind its last variable')
    at = whole.index(string('encoder/conv1/bias')) + len(string('encoder/conv1/bias'))
    refused(
        source, whole[: at + 1] + b'\x0b' + whole[at + 2 :], r'encoder/conv1/bias, float32 \[11\], cannot be 48 byte'
    )
    refused(source, whole[: at + 5] + b'\x09' + whole[at + 6 :], 'encoder/conv1/bias is of type 9')
    refused(source, whole[: at - 1] + b'x' + whole[at:], 'no name ends at byte')


ODD = {
    'encoder/num_heads': [(None, 'no tensor encoder/num_heads with 0 axes'), (np.int16(0), 'num_heads is 0')],
    'encoder/conv1/weight': [
        (None, 'no tensor encoder/conv1/weight with 3 axes'),
        (np.zeros((12, 0, 3), 'f4'), 'no tensor encoder/conv1/weight with 3 axes'),
    ],
    f'{HALF}/weight': [
        (None, f'no tensor {HALF}/weight, which layers/fc1/kernel is made of'),
        (np.zeros((12, 20), 'f4'), rf'{HALF}/weight is \[12, 20\]; by model.bin it is \[20, 12\]'),
        (np.zeros((20, 12), 'f2'), f'{HALF}/weight is float16, encoder/conv1/weight is float32'),
        (np.full((20, 12), np.nan, 'f4'), f'{HALF}/weight holds NaN'),
    ],
    f'{FUSED}/weight': [(np.zeros((37, 12), 'f4'), rf'{FUSED}/weight is \[37, 12\], which does not part into three')],
    f'{FUSED}/bias': [(np.ones(36, 'f4'), f'{FUSED}/bias gives the keys a bias, which no Whisper has')],
    f'{FUSED}/queries_scale': [(np.float32(2), 'no place in the encoder of this model.bin, .*linear_0/queries_scale')],
    'encoder/pre_norm': [(np.int8(0), 'no place in the encoder of this model.bin, the first is encoder/pre_norm')],
}  # fmt: skip


@pytest.mark.parametrize('name', ODD)
def test_variables_that_are_missing_or_odd(source, name):
    for value, match in ODD[name]:
        changed = variables() | {name: value}
        refused(source, model_bin({name: value for name, value in changed.items() if value is not None}), match)


@pytest.mark.slow
@pytest.mark.skipif(
    'SLM_JAX_FOUNDATIONS' not in os.environ,
    reason='SLM_JAX_FOUNDATIONS names no folder with whisper_base of Hugging Face and ct2/whisper_base of CTranslate2',
)
def test_the_real_whisper_base(tmp_path):
    folder = pathlib.Path(os.environ['SLM_JAX_FOUNDATIONS'])
    cards = [
        import_.import_checkpoint(str(folder / source), str(tmp_path / name), 'float32')
        for name, source in (('ours', 'ct2/whisper_base'), ('theirs', 'whisper_base'))
    ]
    assert cards[0]['fingerprint'] == cards[1]['fingerprint']
    assert re.search('num_layers = 6', (tmp_path / 'ours' / 'model.gin').read_text())
