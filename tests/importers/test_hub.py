"""hf: downloads what is read, and nothing else."""

import fnmatch
import inspect
import json
import pathlib
import shutil
import sys
import types

import pytest
from test_import_bad_input import arrays, write
from test_import_ctranslate2 import model_bin, variables

from slm_jax import import_
from slm_jax.importers import CheckpointError

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'
COMMIT = '0123456789abcdef0123456789abcdef01234567'
# What stands beside the weights of public models.
OTHERS = [
    'tf_model.h5', 'flax_model.msgpack', 'rust_model.ot', 'onnx/encoder_model.onnx', 'pytorch_model.bin',
    'model.fp32-00001-of-00002.safetensors', 'model.safetensors.index.fp32.json', 'flax_model-00001-of-00002.msgpack',
    'vocab.json', 'merges.txt', 'normalizer.json', 'special_tokens_map.json', 'training_args.bin', '.gitattributes',
    'consolidated.safetensors', 'original/model.safetensors',
]  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of one repository: its directory, and the names that were downloaded."""
    repository, snapshot, fetched = tmp_path / 'repository', tmp_path / 'snapshots' / COMMIT, []

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        assert repo_id == 'owner/name' and revision in (None, 'v1', COMMIT)
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in sorted(repository.rglob('*')):
            name = str(path.relative_to(repository))
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                if name not in fetched:
                    fetched.append(name)
                    (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, snapshot / name)
        return str(snapshot)

    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=snapshot_download))
    return repository, fetched


def publish(repository, golden):
    shutil.copytree(TESTDATA / golden, repository)
    for name in OTHERS:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text('not to be read')


def test_a_language_model(hub, tmp_path):
    repository, fetched = hub
    publish(repository, 't5_goldens/t5_1_1')
    shutil.copy(repository / 'spiece.model', repository / 'tokenizer.model')
    card = import_.import_checkpoint('hf:owner/name@v1', str(tmp_path / 'out'))
    assert sorted(fetched) == [
        'README.md', 'config.json', 'generation_config.json', 'model.safetensors', 'spiece.model',
        'tokenizer_config.json',
    ]  # fmt: skip
    assert card['revision'] == COMMIT and card['source'] == 'hf:owner/name@v1'
    local = import_.import_checkpoint(str(TESTDATA / 't5_goldens' / 't5_1_1'), str(tmp_path / 'local'))
    assert card['fingerprint'] == local['fingerprint']


def test_a_speech_encoder(hub, tmp_path):
    repository, fetched = hub
    publish(repository, 'encoder_goldens/whisper')
    (repository / 'tokenizer.json').write_text('{}')
    import_.import_checkpoint('hf:owner/name', str(tmp_path / 'out'))
    assert sorted(fetched) == ['README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json']


def test_shards(hub, tmp_path):
    repository, fetched = hub
    publish(repository, 't5_goldens/t5_1_1')
    whole = arrays(repository)
    (repository / 'model.safetensors').unlink()
    weight_map = {name: f'model-0000{1 + number % 2}-of-00002.safetensors' for number, name in enumerate(whole)}
    for shard in set(weight_map.values()):
        write(repository / shard, {name: whole[name] for name in whole if weight_map[name] == shard})
    (repository / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    import_.import_checkpoint('hf:owner/name', str(tmp_path / 'out'))
    assert {name for name in fetched if 'model' in name and name != 'spiece.model'} == {
        'model.safetensors.index.json', *weight_map.values()
    }  # fmt: skip
    (repository / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': 3}}))
    shutil.rmtree(tmp_path / 'snapshots')
    fetched.clear()
    with pytest.raises(CheckpointError, match='index.json has no weight_map from tensors to files'):
        import_.import_checkpoint('hf:owner/name', str(tmp_path / 'other'))


@pytest.mark.parametrize(
    ('family', 'part'),
    [('whisper', 'model.encoder.'), ('gemma4', 'model.audio_tower.'), ('w2v_bert', 'wav2vec2_bert.')],
)
def test_of_the_shards_of_a_larger_model_those_with_the_encoder(hub, tmp_path, family, part):
    """From the Hub, and of a directory that has no others."""
    repository, fetched = hub
    publish(repository, f'encoder_goldens/{family}')
    encoder = arrays(repository)
    if family != 'whisper':  # whose golden has a decoder
        encoder = {f'{part}{name}': tensor for name, tensor in encoder.items()}
    encoder = {'lm_head.weight': ['F32', [2], b'\0' * 8], 'vision.norm.weight': ['F32', [2], b'\0' * 8]} | encoder
    (repository / 'model.safetensors').unlink()
    own = [name for name in encoder if name.startswith(part)]
    weight_map = {name: f'{own.index(name) % 2}.safetensors' if name in own else '2.safetensors' for name in encoder}
    for shard in set(weight_map.values()):
        write(repository / shard, {name: encoder[name] for name in encoder if weight_map[name] == shard})
    (repository / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    cards = [import_.import_checkpoint('hf:owner/name', str(tmp_path / 'out'))]
    assert sorted(fetched) == [
        '0.safetensors', '1.safetensors', 'README.md', 'config.json', 'model.safetensors.index.json',
        'preprocessor_config.json',
    ]  # fmt: skip
    (repository / '2.safetensors').unlink()
    for source in (repository, TESTDATA / 'encoder_goldens' / family):
        cards.append(import_.import_checkpoint(str(source), str(tmp_path / f'out{len(cards)}')))
    assert cards[0]['fingerprint'] == cards[1]['fingerprint'] == cards[2]['fingerprint']


def test_a_whisper_of_ctranslate2(hub, tmp_path):
    repository, fetched = hub
    publish(repository, 'encoder_goldens/whisper')
    (repository / 'model.bin').write_bytes(model_bin(variables()))
    (repository / 'config.json').write_text('{"lang_ids": [5]}')
    card = import_.import_checkpoint('hf:owner/name@v1', str(tmp_path / 'out'))
    assert sorted(fetched) == ['README.md', 'config.json', 'model.bin', 'preprocessor_config.json']
    assert card['revision'] == COMMIT and card['licence'] == 'apache-2.0'


def test_pytorch_files_where_there_is_nothing_else(hub, tmp_path):
    repository, fetched = hub
    publish(repository, 't5_goldens/t5_1_1')
    (repository / 'model.safetensors').unlink()
    with pytest.raises(CheckpointError, match='pytorch_model.bin is'):
        import_.import_checkpoint('hf:owner/name', str(tmp_path / 'out'))
    assert 'pytorch_model.bin' in fetched and not any('safetensors' in name for name in fetched)
    (repository / 'pytorch_model.bin').unlink()
    fetched.clear()
    shutil.rmtree(tmp_path / 'snapshots')
    with pytest.raises(CheckpointError, match='has neither model.safetensors nor pytorch_model.bin'):
        import_.import_checkpoint('hf:owner/name', str(tmp_path / 'out'))


def test_what_the_library_takes():
    hub = pytest.importorskip('huggingface_hub', reason='hf:owner/name is fetched by it: pip install -e .[hf]')
    inspect.signature(hub.snapshot_download).bind('owner/name', revision=None, allow_patterns=['config.json'])
