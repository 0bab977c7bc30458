"""T5X's own checkpoints: what T5X computed, we compute from what it saved; what cannot be imported is refused."""

import os
import pathlib
import shutil
import tarfile

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen

import gin
from slm_jax import cli, configuration, foundations, import_
from slm_jax.importers import CheckpointError
from slm_jax.inference import model as model_lib
from slm_jax.llms import t5

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'
GOLDENS = TESTDATA / 't5x_goldens'
TOKENIZER = TESTDATA / 't5_goldens' / 't5_1_1' / 'spiece.model'  # with 100 sentinels the 128 ids of the goldens
LAYOUTS = {'unscanned': 't5_1_1', 'scanned': 't5_1_1_scan'}
CONFIG = """\
from __gin__ import dynamic_registration
from t5x.examples.t5 import network
DROPOUT_RATE = 0.25
network.T5Config:
  dtype = 'bfloat16'
  num_heads = 2
  mlp_activations = ('gelu', 'linear')
  dropout_rate = %DROPOUT_RATE
"""


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def unpacked(name, folder):
    """A model directory as T5X leaves it, with its tokenizer."""
    with tarfile.open(GOLDENS / f'{name}_checkpoint.tar.gz') as archive:
        archive.extraction_filter = getattr(tarfile, 'data_filter', None)  # before Python 3.11.4 there is none
        archive.extractall(folder)
    path = folder / f'{name}_checkpoint'
    (path / 'config.gin').write_text(CONFIG)
    shutil.copy(TOKENIZER, path)
    return path


@pytest.fixture
def source(tmp_path):
    """A checkpoint that may be damaged, unscanned."""
    return unpacked('t5_1_1', tmp_path)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_logits_and_loss_are_those_of_t5x(layout, tmp_path, capsys):
    path, out = unpacked(LAYOUTS[layout], tmp_path), tmp_path / 'out'
    assert cli.main(['import', str(path), str(out), '--dtype', 'float32']) == 0
    assert 'licence: not stated' in capsys.readouterr().out
    configuration.parse_gin([str(out / 'model.gin')], [])
    llm, params = configuration.configured(t5.T5)(), foundations.load(out)
    assert llm.config.scan_layers == (layout == 'scanned') and llm.config.dropout_rate == 0.25
    with np.load(GOLDENS / f'{LAYOUTS[layout]}.npz') as golden:
        inputs, before, targets = (
            golden[f'batch/{name}']
            for name in ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
        )
        logits = llm.apply({'params': params}, inputs, before, targets)
        np.testing.assert_allclose(logits, golden['logits'], rtol=1e-5, atol=1e-5)
        scores = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        loss = -jnp.sum(scores * golden['batch/decoder_loss_weights'])
        np.testing.assert_allclose(loss, golden['loss'], rtol=1e-5)
        leaves = foundations.flatten(params)  # the parameters and nothing of the optimizer
        assert leaves.keys() == {key.removeprefix('params/') for key in golden.files if key.startswith('params/')}
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, golden[f'params/{path}'])


def test_what_an_import_leaves(source, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(source / 'checkpoint_0', source / 'checkpoint_12')
    (source / 'checkpoint_100').mkdir()  # not whole: no index
    card = import_.import_checkpoint(str(source), str(out))
    assert card['revision'] == 'checkpoint_12' and card['configuration']['T5Config']['num_heads'] == 2
    assert sorted(path.name for path in out.iterdir()) == ['card.json', 'model.gin', 'params', 'tokenizer.model']
    assert {leaf.dtype for leaf in jax.tree.leaves(foundations.abstract(out))} == {jnp.dtype('bfloat16')}
    assert foundations.vocabulary(out).vocab_size == 128
    assert model_lib.load(out).system.llm.config.mlp_activations == ('gelu', 'linear')
    step = import_.import_checkpoint(str(source / 'checkpoint_0'), str(tmp_path / 'step'))
    assert step['fingerprint'] == card['fingerprint']  # files one above a checkpoint are found from it


def test_tied_relu_bytes_bfloat16_and_arrays_in_the_index(tmp_path):
    """What the goldens do not have; the index is then as T5X writes it where no array is partitioned."""
    cfg = t5.T5Config(384, 8, 2, 1, 2, 6, 10, ('relu',), logits_via_embedding=True)
    tokens = jnp.ones((1, 3), jnp.int32)
    params = t5.T5(cfg).init(jax.random.key(3), tokens, tokens, tokens)['params']
    params = jax.tree.map(lambda leaf: np.asarray(leaf, ml_dtypes.bfloat16), linen.unbox(params))
    content = {'version': 3, 'optimizer': {'target': params, 'state': {'step': np.int32(0)}}}
    (tmp_path / 'checkpoint').write_bytes(flax.serialization.msgpack_serialize(content))
    (tmp_path / 'config.gin').write_text(
        'VOCABULARY = @seqio.ByteVocabulary()\nseqio.ByteVocabulary.extra_ids = 125\n'
        "network.T5Config.mlp_activations = ['relu']\nnetwork.T5Config.float32_attention_logits = True\n"
    )
    import_.import_checkpoint(str(tmp_path), str(tmp_path / 'out'))
    llm = model_lib.load(tmp_path / 'out').system.llm
    assert llm.config.logits_via_embedding and llm.config.float32_attention_logits
    assert llm.config.mlp_activations == ('relu',) and llm.config.head_dim == 6
    assert foundations.vocabulary(tmp_path / 'out').vocab_size == 384
    jax.tree.map(np.testing.assert_array_equal, foundations.load(tmp_path / 'out'), params)


def refused(source, match):
    out = source.parent / 'out'
    with pytest.raises(CheckpointError, match=match):
        import_.import_checkpoint(str(source), str(out))
    assert not out.exists() and not list(source.parent.glob('.out*'))


def edited_index(source, edit):
    path = source / 'checkpoint_0' / 'checkpoint'
    content = flax.serialization.msgpack_restore(path.read_bytes())
    edit(content['optimizer']['target'])
    path.write_bytes(flax.serialization.msgpack_serialize(content))


NAME = 'encoder/layers_1/mlp/wo/kernel'
FOLDER = 'target.encoder.layers_1.mlp.wo.kernel'


def spec(target):
    return target['encoder']['layers_1']['mlp']['wo']['kernel']


@pytest.mark.parametrize(
    ('line', 'match'),
    [
        ('network.T5Config.num_heads = 4', 'by its arrays num_heads is 2, config.gin says 4'),
        ('network.T5Config.logits_via_embedding = True', 'by its arrays logits_via_embedding is False'),
        ("network.T5Config.mlp_activations = ('gelu', 'snake')", 'mlp_activations is .*snake'),
        ("network.T5Config.mlp_activations = ('gelu',)", 'arrays have no place.*wi_0'),
        ('network.T5Config.dropout_rate = %gin.REQUIRED', 'dropout_rate is'),
        ('network.T5Config.window = 7', 'T5Config.window = 7, which no T5 here has'),
        ('network.T5Config.num_heads =', 'config.gin cannot be read as gin'),
        ('seqio.SentencePieceVocabulary.extra_ids = 300', '28 pieces and 300 sentinels are more than the vocab_size'),
    ],
)
def test_what_config_gin_says(source, line, match):
    (source / 'config.gin').write_text(f'{CONFIG}{line}\n')
    refused(source, match)


def test_files_that_are_wanted_beside_it(source):
    (source / 'config.gin').unlink()
    refused(source, r"no array tells the activations(.|\n)*network.T5Config.mlp_activations = \('gelu', 'linear'\)")
    (source / 'config.gin').write_text(CONFIG)
    (source / 'spiece.model').unlink()
    refused(source, 'has no tokenizer')


def test_no_t5x_directory(source):
    index = source / 'checkpoint_0' / 'checkpoint'
    whole = index.read_bytes()
    index.write_bytes(whole[:-100])
    refused(source, 'checkpoint is damaged, or no index')
    index.write_text('model_checkpoint_path: "model.ckpt-1"')  # TensorFlow's
    refused(source, 'checkpoint is damaged, or no index')
    index.write_bytes(flax.serialization.msgpack_serialize({'params': {}}))
    refused(source, 'checkpoint is damaged, or no index')
    index.unlink()
    refused(source, 'no config.json.*no file `checkpoint`')


def test_arrays_of_the_index(source):
    edited_index(source, lambda target: target['encoder']['layers_1']['mlp'].pop('wo'))
    refused(source, f'array {NAME} is missing')
    source = unpacked('t5_1_1', source.parent / 'again')
    edited_index(source, lambda target: target['encoder'].update(adapter=target['encoder']['encoder_norm']))
    refused(source, '1 arrays have no place.*encoder/adapter/scale')
    edited_index(source, lambda target: target['encoder'].pop('adapter'))
    edited_index(source, lambda target: target.pop('token_embedder'))
    refused(source, 'array token_embedder/embedding of 2 axes is missing, so this is no T5')
    source = unpacked('t5_1_1', source.parent / 'more')
    edited_index(source, lambda target: spec(target)['metadata'].update(shape=[32, 64]))
    refused(source, rf'{NAME} is \[32, 64\] in the index, \[64, 32\] in .zarray')
    edited_index(source, lambda target: spec(target)['kvstore'].update(path='../../secret/'))
    refused(source, f"names '../../secret', which holds {NAME}")
    edited_index(source, lambda target: spec(target)['kvstore'].update(path='target.encoder.encoder_norm.scale/'))
    refused(source, rf'{NAME} is \[32, 64\] in the index, \[32\] in .zarray')
    edited_index(source, lambda target: spec(target).pop('kvstore'))
    refused(source, 'means nothing|no array|is missing|have no place')


def test_files_of_the_arrays(source):
    place = source / 'checkpoint_0' / FOLDER
    chunk = place / '0.0'
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-50])
    refused(source, f'{FOLDER}: {NAME} is truncated, damaged or incomplete')
    chunk.write_bytes(os.urandom(len(whole)))
    refused(source, f'{FOLDER}: {NAME} is truncated, damaged or incomplete')
    chunk.unlink()  # zarr would read zeros
    refused(source, f'{FOLDER}: {NAME} is truncated, damaged or incomplete')
    chunk.write_bytes(whole)
    described = (place / '.zarray').read_text()
    (place / '.zarray').write_text(described.replace('<f4', '<i4'))
    refused(source, f'array {NAME} is int32, of no floating-point type')
    (place / '.zarray').write_text('{')
    refused(source, f'{FOLDER} is damaged')
    shutil.rmtree(place)
    refused(source, f"names '{FOLDER}', which holds {NAME} and is not there")


def test_what_is_no_number(source):
    """In an array with a directory, and in one that the index holds."""
    import tensorstore

    place = source / 'checkpoint_0' / FOLDER
    store = tensorstore.open({'driver': 'zarr', 'kvstore': f'file://{place}/'}).result()
    value = store[3, 5].read().result()
    store[3, 5] = np.nan
    refused(source, rf'{FOLDER}: {NAME} holds NaN or infinity \(1 of')
    store[3, 5] = value
    scale = np.full(32, np.inf, np.float32)
    edited_index(source, lambda target: target['decoder']['decoder_norm'].update(scale=scale))
    refused(source, r'checkpoint: decoder/decoder_norm/scale holds NaN or infinity \(32 of 32')
