"""What cannot be imported exactly is refused, by the name of the file, tensor or flag; OUT is then not there."""

import io
import json
import pathlib
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest

from slm_jax import foundations, import_
from slm_jax.importers import CheckpointError, hugging_face
from slm_jax.importers.hugging_face.directory import Directory

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 't5_goldens'
ENCODERS = GOLDENS.with_name('encoder_goldens')


@pytest.fixture
def source(tmp_path):
    """A T5 1.1 that may be damaged."""
    shutil.copytree(GOLDENS / 't5_1_1', tmp_path / 'source')
    return tmp_path / 'source'


def refused(source, match):
    out = source.parent / 'out'
    with pytest.raises(CheckpointError, match=match):
        import_.import_checkpoint(str(source), str(out))
    assert not out.exists() and not list(source.parent.glob('.out*'))


def arrays(source):
    """Bytes by name, with types and shapes."""
    data = (source / 'model.safetensors').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + size])
    header.pop('__metadata__', None)
    body = data[8 + size :]
    return {name: [e['dtype'], e['shape'], body[slice(*e['data_offsets'])]] for name, e in header.items()}


def write(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {'dtype': dtype, 'shape': shape, 'data_offsets': [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + b''.join(data for _, _, data in tensors.values()))


def edit(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v != 'absent'}))


@pytest.mark.parametrize(
    ('flag', 'value'),
    [
        ('relative_attention_num_buckets', 64),
        ('relative_attention_max_distance', 256),
        ('layer_norm_epsilon', 1e-5),
        ('decoder_start_token_id', 2),
        ('pad_token_id', 3),
        ('eos_token_id', 2),
        ('is_encoder_decoder', False),
        ('quantization_config', {'bits': 4}),
        ('feed_forward_proj', 'double-gelu'),
        ('dense_act_fn', 'gelu'),
        ('dropout_rate', 2.0),
        ('d_kv', 'absent'),
        ('num_layers', 0),
        ('encoder_window', 7),
        ('feed_forward_proj', 5),
        ('dense_act_fn', ['gelu_new']),
        ('is_gated_act', 'yes'),
        ('tie_word_embeddings', 'false'),
        ('scale_decoder_outputs', 0),
        ('vocab_size', '176'),
    ],
)
def test_flags(source, flag, value):
    edit(source / 'config.json', **{flag: value})
    refused(source, f'config.json.*{flag}')


def test_a_start_token_that_only_the_generation_has(source):
    edit(source / 'config.json', decoder_start_token_id='absent')
    edit(source / 'generation_config.json', decoder_start_token_id=5)
    refused(source, 'generation_config.json: decoder_start_token_id is 5')


def test_family_and_directory(source):
    edit(source / 'config.json', model_type='bert')
    refused(source, "model_type is 'bert'.*t5, mt5, umt5")
    (source / 'config.json').write_text('{')
    refused(source, 'config.json cannot be read as JSON')
    (source / 'config.json').unlink()
    refused(source, 'has no config.json')
    shutil.rmtree(source)
    refused(source, 'is no directory')


def test_a_model_type_that_is_not_said(source):
    """Published UMT5 has `architectures` alone."""
    edit(source / 'config.json', model_type='absent', architectures=['MT5ForConditionalGeneration', 'Other'])
    import_.import_checkpoint(str(source), str(source.parent / 'mt5'))
    assert foundations.card(source.parent / 'mt5')['configuration']['model_type'] == 'mt5'
    edit(source / 'config.json', architectures=['BertModel'])
    refused(
        source,
        r"no model_type, and architectures is \['BertModel'\].*Add \"model_type\".* umt5, mbart, whisper",
    )
    edit(source / 'config.json', architectures='absent')
    refused(source, 'no model_type and no architectures.*Add "model_type"')
    edit(source / 'config.json', model_type=['t5'])
    refused(source, r"model_type is \['t5'\]; what can be imported is t5")


@pytest.mark.parametrize(
    ('name', 'model_type'),
    [
        ('T5WithLMHeadModel', 't5'), ('UMT5EncoderModel', 'umt5'), ('WhisperModel', 'whisper'),
        ('Gemma3nForConditionalGeneration', 'gemma3n'), ('Gemma3nAudioEncoder', 'gemma3n_audio'),
        ('Gemma4ForConditionalGeneration', 'gemma4'), ('Gemma4AudioModel', 'gemma4_audio'),
        ('Wav2Vec2BertForCTC', 'wav2vec2-bert'), ('Wav2Vec2BertModel', 'wav2vec2-bert'),
    ],
)  # fmt: skip
def test_architectures(name, model_type):
    found = Directory('', pathlib.Path(), None, None, {'architectures': [name]})
    assert hugging_face.family(found)[1].config['model_type'] == model_type


def test_out_is_never_overwritten(source):
    (source.parent / 'out').mkdir()
    (source.parent / 'out' / 'precious').touch()
    with pytest.raises(FileExistsError, match='is there already'):
        import_.import_checkpoint(str(source), str(source.parent / 'out'))
    assert (source.parent / 'out' / 'precious').exists()


def test_tensors(source):
    whole, path = arrays(source), source / 'model.safetensors'
    name = 'encoder.block.1.layer.0.SelfAttention.k.weight'

    def changed(**entry):
        tensors = {k: list(v) for k, v in whole.items()}
        for index, key in enumerate(('dtype', 'shape', 'data')):
            tensors[name][index] = entry.get(key, tensors[name][index])
        write(path, tensors)

    write(path, {k: v for k, v in whole.items() if k != name})
    refused(source, f'no tensor {name}')
    write(path, {k: v for k, v in whole.items() if k != 'lm_head.weight'})
    refused(source, 'lm_head.weight is missing')
    write(path, whole | {'decoder.adapter.weight': ['F32', [2], b'\0' * 8]})
    refused(source, 'model.safetensors: 1 tensors.*decoder.adapter.weight')
    changed(shape=[12, 8])
    refused(source, rf'tensor {name} is \[12, 8\]; by config.json it is \[8, 12\]')
    changed(dtype='F16', data=whole[name][2][::2])
    refused(source, f'tensor {name} is float16, shared.weight is float32')
    changed(dtype='I32')
    refused(source, f'tensor {name} is int32')
    changed(dtype='F4')
    refused(source, f'tensor {name} is of type F4')
    changed(data=whole[name][2][:-4])
    refused(source, f'tensor {name}.*cannot be in bytes')
    write(path, whole | {'encoder.embed_tokens.weight': ['F32', [176, 12], b'\0' * 176 * 12 * 4]})
    refused(source, 'encoder.embed_tokens.weight differs from shared.weight')
    edit(source / 'config.json', num_layers=2)
    write(path, whole)
    refused(source, '9 tensors have no place.*encoder.block.2')


@pytest.mark.parametrize('bad', ['nan', '-inf'])
def test_what_is_no_number(source, encoder, bad):
    """In the first tensor that is read, in one of many layers, in another floating-point type, and in encoders."""
    for name in ('shared.weight', 'decoder.block.1.layer.2.DenseReluDense.wo.weight'):
        whole = arrays(source)
        data = np.frombuffer(whole[name][2], np.float32).copy()
        data[-3] = bad
        write(source / 'model.safetensors', whole | {name: [*whole[name][:2], data.tobytes()]})
        refused(source, rf'model.safetensors: tensor {name} holds NaN or infinity \(1 of \d+ values')
        half = {
            key: ['F16', shape, np.frombuffer(old, np.float32).astype(np.float16)]
            for key, (_, shape, old) in whole.items()
        }
        half[name][2][5] = bad
        write(source / 'model.safetensors', {key: [*entry[:2], entry[2].tobytes()] for key, entry in half.items()})
        refused(source, f'tensor {name} holds NaN or infinity')
        write(source / 'model.safetensors', whole)
    speech, name = encoder('whisper'), 'model.encoder.layers.1.fc1.weight'
    whole = arrays(speech)
    data = np.frombuffer(whole[name][2], np.float32).copy()
    data[7] = bad
    write(speech / 'model.safetensors', whole | {name: [*whole[name][:2], data.tobytes()]})
    refused(speech, f'model.safetensors: tensor {name} holds NaN or infinity')


def test_files(source):
    path = source / 'model.safetensors'
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(source, 'model.safetensors is truncated: tensor')
    path.write_bytes(whole + b'\0' * 8)
    refused(source, rf'model.safetensors: its tensors end at byte {len(whole)}, the file at {len(whole) + 8}')
    path.write_bytes(whole[:50])
    refused(source, 'cut off in its header')
    path.write_bytes(whole[:8] + b'\0' * len(whole[8:]))
    refused(source, 'not a safetensors file')
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr('data', b'\0' * 10_000_000)
    path.write_bytes(archive.getvalue())
    refused(source, 'not a safetensors file')
    path.unlink()
    refused(source, 'has neither model.safetensors')


def test_shards(source):
    whole = arrays(source)
    (source / 'model.safetensors').unlink()
    names = sorted(whole)
    parts = {'one.safetensors': names[:20], 'two.safetensors': names[20:]}
    for shard, own in parts.items():
        write(source / shard, {name: whole[name] for name in own})
    index = source / 'model.safetensors.index.json'
    weight_map = {name: shard for shard, own in parts.items() for name in own}
    index.write_text(json.dumps({'weight_map': weight_map}))
    import_.import_checkpoint(str(source), str(source.parent / 'good'))
    (source / 'two.safetensors').rename(source / 'gone')
    refused(source, "names the shard 'two.safetensors'.*not there")
    (source / 'gone').rename(source.parent / 'two.safetensors')
    index.write_text(json.dumps({'weight_map': {k: v.replace('two', '../two') for k, v in weight_map.items()}}))
    refused(source, "names the shard '../two.safetensors'")
    index.write_text(json.dumps({'weight_map': dict.fromkeys(weight_map, 'one.safetensors')}))
    refused(source, f'one.safetensors has no tensor {names[20]}')


def test_tokenizers(source):
    spiece = source / 'spiece.model'
    edit(source / 'tokenizer_config.json', extra_ids=200)
    refused(source, 'spiece.model: 28 pieces and 200 sentinels are more than the vocab_size.*176')
    edit(source / 'tokenizer_config.json', extra_ids=100, added_tokens_decoder={'90': {'content': '<extra_id_0>'}})
    refused(source, '<extra_id_0> has the id 90')
    edit(source / 'tokenizer_config.json', extra_ids='100', added_tokens_decoder={})
    refused(source, "extra_ids of the tokenizer is '100'")
    edit(source / 'tokenizer_config.json', extra_ids=100)
    spiece.write_bytes(b'no model')
    refused(source, 'spiece.model is no SentencePiece model')
    spiece.unlink()
    refused(source, 'has no tokenizer: none of spiece.model')


class Evil:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path('evil'),))


def test_pickles_and_bombs_in_place_of_weights(source, monkeypatch):
    pytest.importorskip('torch', reason='PyTorch reads .bin: pip install -e .[hf]')
    monkeypatch.chdir(source)
    (source / 'model.safetensors').unlink()
    path = source / 'pytorch_model.bin'
    path.write_bytes(pickle.dumps(Evil()))
    refused(source, 'pytorch_model.bin is damaged, or holds more than plain tensors')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(Evil()))
        archive.writestr('archive/version', '3')
    refused(source, 'pytorch_model.bin is damaged, or holds more than plain tensors')
    assert not (source / 'evil').exists()
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data/0', b'\0' * 10_000_000)
    refused(source, 'archive/data/0 in it is compressed')


def test_what_is_no_state_dictionary(source):
    torch = pytest.importorskip('torch', reason='PyTorch reads .bin: pip install -e .[hf]')
    (source / 'model.safetensors').unlink()
    path = source / 'pytorch_model.bin'
    torch.save({'model': {'shared.weight': torch.zeros(2)}}, path)
    refused(source, 'pytorch_model.bin: model is no tensor but a dict')
    torch.save([torch.zeros(2)], path)
    refused(source, 'holds no dictionary of tensors but a list')
    torch.save({'shared.weight': torch.from_numpy(np.zeros((176, 12), np.float32))}, path)
    path.write_bytes(path.read_bytes()[:-300])
    refused(source, 'pytorch_model.bin is damaged')
    path.write_bytes(b'')
    refused(source, 'pytorch_model.bin is damaged.*not loaded: .')


def test_the_hub_out_of_reach(source, monkeypatch):
    hub = pytest.importorskip('huggingface_hub', reason='hf:owner/name is fetched by it: pip install -e .[hf]')

    def offline(name, **options):
        raise hub.errors.LocalEntryNotFoundError('no network')

    monkeypatch.setattr(hub, 'snapshot_download', offline)
    out = source.parent / 'out'
    with pytest.raises(CheckpointError, match='hf:google/flan-t5-base cannot be fetched.*hf download google/flan'):
        import_.import_checkpoint('hf:google/flan-t5-base', str(out))
    assert not out.exists()


@pytest.fixture
def encoder(tmp_path):
    """encoder(family) gives a directory of a speech encoder that may be damaged."""

    def copy(family):
        shutil.copytree(ENCODERS / family, tmp_path / family)
        return tmp_path / family

    return copy


@pytest.mark.parametrize(
    ('family', 'flag', 'value'),
    [
        ('whisper', 'activation_function', 'relu'),
        ('whisper', 'max_source_positions', 750),
        ('whisper', 'encoder_layers', 'absent'),
        ('whisper', 'encoder_attention_heads', 5),
        ('whisper', 'quantization_config', {'bits': 4}),
        ('whisper', 'encoder_window', 7),
        ('gemma3n', 'sscp_conv_kernel_size', [[3, 3], [5, 3]]),
        ('gemma3n', 'sscp_conv_stride_size', [[2, 2], [1, 2]]),
        ('gemma3n', 'sscp_conv_channel_size', [6]),
        ('gemma3n', 'conf_residual_weight', 'half'),
        ('gemma3n', 'conf_attention_context_right', -1),
        ('gemma3n', 'conf_num_attention_heads', 3),
        ('gemma3n', 'conf_attention_window', 7),
        ('gemma4', 'attention_context_right', 2),
        ('gemma4', 'attention_chunk_size', 4),
        ('gemma4', 'attention_context_left', 1),
        ('gemma4', 'attention_context_left', 'absent'),
        ('gemma4', 'attention_invalid_logits_value', -5.0),
        ('gemma4', 'hidden_act', 'gelu'),
        ('gemma4', 'use_clipped_linears', 'yes'),
        ('gemma4', 'subsampling_conv_channels', [30, 4]),
        ('gemma4', 'rms_norm_eps', -1.0),
        ('gemma4', 'output_proj_dims', 0),
        ('gemma4', 'num_attention_heads', 3),
        ('gemma4', 'reduction_factor', 4),
        ('w2v_bert', 'position_embeddings_type', 'alibi'),
        ('w2v_bert', 'hidden_act', 'mish'),
        ('w2v_bert', 'layer_norm_eps', 0),
        ('w2v_bert', 'feature_projection_input_dim', 80),
        ('w2v_bert', 'num_attention_heads', 5),
        ('w2v_bert', 'conv_window', 7),
        ('w2v_bert', 'hidden_act', ['swish']),
        ('w2v_bert', 'add_adapter', 'false'),
        ('w2v_bert', 'layer_norm_eps', float('inf')),
        ('gemma3n', 'rms_norm_eps', float('nan')),
        ('gemma3n', 'sscp_conv_channel_size', 5),
        ('gemma3n', 'conf_attention_invalid_logits_value', -5.0),
        ('w2v_bert_with_adapter', 'adapter_stride', 4),
        ('w2v_bert_with_adapter', 'adapter_act', 'mish'),
        ('w2v_bert_with_adapter', 'num_adapter_layers', 0),
    ],
)
def test_flags_of_encoders(encoder, family, flag, value):
    source = encoder(family)
    edit(source / 'config.json', **{flag: value})
    refused(source, 'config.json.*' + (str(value) if flag.endswith('heads') else flag))


@pytest.mark.parametrize(
    ('family', 'flag', 'value'),
    [
        ('whisper', 'hop_length', 320),
        ('whisper', 'feature_size', 128),
        ('whisper', 'dither', 1e-4),
        ('gemma3n', 'per_bin_mean', [0.5]),
        ('gemma3n', 'max_frequency', 8000.0),
        ('gemma4', 'frame_length', 512),
        ('gemma4', 'feature_size', 128),
        ('w2v_bert', 'stride', 1),
    ],
)
def test_feature_extractors(encoder, family, flag, value):
    source = encoder(family)
    path = source / 'preprocessor_config.json'
    edit(path, **{flag: value})
    refused(source, re.escape(f'preprocessor_config.json: {flag} is {value}'))
    processor = {'feature_extractor': json.loads(path.read_text())}
    path.rename(source / 'processor_config.json').write_text(json.dumps(processor))
    refused(source, re.escape(f'processor_config.json: {flag} is {value}'))


@pytest.mark.parametrize(
    ('family', 'landmark', 'name', 'expected'),
    [
        ('whisper', 'conv1.weight', 'model.encoder.layers.1.fc1.weight', [20, 12]),
        ('gemma3n', 'input_proj_linear.weight', 'conformer.1.ffw_layer_end.ffw_layer_1.weight', [64, 16]),
        ('gemma4', 'input_proj_linear.weight', 'layers.1.feed_forward2.ffw_layer_1.linear.weight', [64, 16]),
        ('w2v_bert', 'projection.weight', 'encoder.layers.1.ffn1.output_dense.weight', [12, 20]),
    ],
)
def test_tensors_of_encoders(encoder, family, landmark, name, expected):
    source = encoder(family)
    path, whole = source / 'model.safetensors', arrays(source)
    dtype, shape, data = whole[name]
    prefix = name.split('layers')[0] if family == 'whisper' else ''
    write(path, {k: v for k, v in whole.items() if k != name})
    refused(source, f'no tensor {name}')
    write(path, {k: v for k, v in whole.items() if not k.endswith(landmark)})
    refused(source, f'no tensor .*{landmark}')
    write(path, whole | {name: [dtype, shape[::-1], data]})
    refused(source, re.escape(f'model.safetensors: tensor {name} is {shape[::-1]}; by config.json it is {expected}'))
    write(path, whole | {name: ['F16', shape, data[::2]]})
    refused(source, f'tensor {name} is float16, .*{landmark} is float32')
    write(path, whole | {f'{prefix}gate.weight': ['F32', [2], b'\0' * 8]})
    refused(source, f'model.safetensors: 1 tensors.*{prefix}gate.weight')
