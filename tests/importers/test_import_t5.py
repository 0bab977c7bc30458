"""Checkpoints of the T5 family: what transformers computes, we compute.

The goldens are small models that transformers saved, with its outputs (tests/testdata/t5_goldens/make.py). The slow
tests make more of them here, and need torch and transformers: pip install -e .[hf].
"""

import functools
import json
import pathlib
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from slm_jax import cli, configuration, decoding, foundations, import_
from slm_jax.inference import model as model_lib
from slm_jax.llms import t5
from slm_jax.systems import text_to_text

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 't5_goldens'
FAMILIES = ('t5_1_0', 't5_1_1', 'mt5', 'umt5', 'byt5')


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def imported(source, out):
    """The T5 of the model file, its parameters and its card."""
    card = import_.import_checkpoint(str(source), str(out), 'float32')
    configuration.parse_gin([str(out / 'model.gin')], [])
    llm = configuration.configured(t5.T5)()
    return llm, foundations.load(out), card


def check(llm, params, golden, likelihood=None):
    """The logits of valid positions, and what is generated.

    With `likelihood` of (row, tokens), one row of beam search may differ if it is likelier: make.py says when.
    """
    names = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
    logits = jax.jit(llm.apply)({'params': params}, *(golden[name] for name in names))
    np.testing.assert_allclose(logits, golden['logits'], rtol=0, atol=1e-4)
    batch = {'encoder_input_tokens': jnp.asarray(golden['encoder_input_tokens'])}
    for name, options in (('greedy', {'method': 'greedy'}), ('beams', {'method': 'beam', 'alpha': 0.0})):
        config = decoding.DecodeConfig(max_decode_length=golden[name].shape[1], **options)
        tokens = jax.jit(text_to_text.TextToText(llm).predict, static_argnums=2)({'llm': params}, batch, config)
        tokens, expected = np.array(tokens), golden[name]
        differ = np.flatnonzero((tokens != expected).any(axis=1))
        if likelihood and name == 'beams' and len(differ) == 1:
            row = differ[0]
            assert likelihood(row, tokens[row]) > likelihood(row, expected[row]) + 0.1
            tokens[row] = expected[row]
        np.testing.assert_array_equal(tokens, expected, err_msg=name)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_and_generated_tokens_are_those_of_transformers(family, tmp_path):
    with np.load(GOLDENS / family / 'outputs.npz') as golden:
        assert len({tuple(row) for row in golden['greedy']} | {tuple(row) for row in golden['beams']}) >= 3
        llm, params, _ = imported(GOLDENS / family, tmp_path / 'out')
        check(llm, params, golden)
    assert llm.config.scan_layers == (family == 'umt5')


def test_what_an_import_leaves(tmp_path, capsys):
    out = tmp_path / 'deep' / 't5'
    assert cli.main(['import', str(GOLDENS / 't5_1_1'), str(out)]) == 0
    assert 'licence: apache-2.0' in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ['card.json', 'model.gin', 'params', 'tokenizer.model']
    assert list(out.parent.iterdir()) == [out]
    card = foundations.card(out)
    assert card['kind'] == 'llm' and card['source'] == str(GOLDENS / 't5_1_1') and card['licence'] == 'apache-2.0'
    assert card['configuration']['d_model'] == 12 and card['revision'] is None
    stored = foundations.flatten(foundations.abstract(out))
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype('bfloat16')}
    configuration.parse_gin([str(out / 'model.gin')], [])
    embedding = np.asarray(foundations.load(out)['token_embedder']['embedding'], np.float32)
    assert gin.query_parameter('EMBED_SCALE/macro.value') == pytest.approx(np.sqrt(np.mean(embedding**2)), rel=1e-2)
    assert stored['decoder/logits_dense/kernel'].shape == (12, 176)
    llm = model_lib.load(out).system.llm  # the model file beside the card is found
    assert llm.config.dropout_rate == 0.1 and not llm.config.logits_via_embedding


def test_a_snapshot_of_the_hub_knows_its_revision(tmp_path):
    source = tmp_path / ('0123456789' * 4)
    shutil.copytree(GOLDENS / 't5_1_0', source)
    (source / 'README.md').unlink()
    card = import_.import_checkpoint(str(source), str(tmp_path / 'out'))
    assert card['revision'] == source.name and card['licence'] is None


@pytest.mark.parametrize('family', FAMILIES)
def test_vocabularies(family, tmp_path):
    import_.import_checkpoint(str(GOLDENS / family), str(tmp_path / 'out'))
    vocabulary = foundations.vocabulary(tmp_path / 'out')
    assert vocabulary.decode(vocabulary.encode('the line is good')) == 'the line is good'
    assert (vocabulary.eos_id, vocabulary.unk_id) == (1, 2)
    if family == 'byt5':
        assert vocabulary.encode('é') == [0xC3 + 3, 0xA9 + 3] and vocabulary.vocab_size == 384
        return
    last = vocabulary.vocab_size - 1
    assert vocabulary.tokenizer.id_to_piece(last) == '▁<extra_id_0>'
    assert vocabulary.tokenizer.id_to_piece(last - 1) == '▁<extra_id_1>'
    sentinels = {'umt5': 20}.get(family, 100)
    assert vocabulary.tokenizer.id_to_piece(last - sentinels + 1) == f'▁<extra_id_{sentinels - 1}>'
    assert vocabulary.extra_ids == (0 if family == 'mt5' else sentinels)


def test_scanned_layers_share_the_bias_of_the_first(tmp_path, monkeypatch):
    from slm_jax.importers.hugging_face import t5 as importer

    monkeypatch.setattr(importer, '_MAX_UNSCANNED_LAYERS', 2)
    llm, params, _ = imported(GOLDENS / 't5_1_0', tmp_path / 'out')
    assert llm.config.scan_layers
    with np.load(GOLDENS / 't5_1_0' / 'outputs.npz') as golden:
        check(llm, params, golden)


def test_large_leaves_are_written_in_blocks(tmp_path, monkeypatch):
    expected = import_.import_checkpoint(str(GOLDENS / 'umt5'), str(tmp_path / 'whole'))
    monkeypatch.setattr(foundations, '_BLOCK_BYTES', 1000)
    made = import_.import_checkpoint(str(GOLDENS / 'umt5'), str(tmp_path / 'blocks'))
    assert made['fingerprint'] == expected['fingerprint']
    foundations.load(tmp_path / 'blocks')


# From here on with transformers itself. `slow`, and skipped without torch and transformers.


@functools.cache
def reference():
    """The functions of make.py."""
    for name in ('torch', 'transformers'):
        pytest.importorskip(name, reason=f'{name} makes the reference: pip install -e .[hf]')
    return runpy.run_path(str(GOLDENS / 'make.py'))


# Family, then what makes it unlike the golden of its family.
VARIANTS = {
    't5 tied': ('t5_1_0', {}),
    't5 gated and tied': ('t5_1_0', dict(feed_forward_proj='gated-gelu')),
    't5 with more layers than are unrolled': ('t5_1_1', dict(num_layers=14, num_decoder_layers=13)),
    'ul2': ('t5_1_1', dict(feed_forward_proj='gated-silu')),
    'one decoder layer': ('t5_1_1', dict(num_decoder_layers=1)),
    'wide heads': ('mt5', dict(d_kv=32, num_heads=3, d_model=40, d_ff=56)),
    'mt5': ('mt5', {}),
    'umt5': ('umt5', dict(num_layers=4, num_decoder_layers=4)),
    'byt5': ('byt5', dict(num_layers=6, num_decoder_layers=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_random_models_agree(variant, tmp_path):
    make = reference()
    family, changes = VARIANTS[variant]
    class_name, settings, own_head, _ = make['FAMILIES'][family]
    for seed in (11, 12):
        model = make['random_model'](class_name, settings | changes, own_head, seed, vocab_size=400)
        source, out = tmp_path / f'source{seed}', tmp_path / f'out{seed}'
        make['save'](model, family, source)
        llm, params, _ = imported(source, out)
        golden = make['outputs'](model, rows=5, length=37, seed=seed)
        inputs = golden['encoder_input_tokens']
        check(llm, params, golden, lambda row, tokens: make['log_probability'](model, inputs[row], tokens))


@pytest.mark.slow
def test_every_way_to_save_gives_the_same(tmp_path):
    make = reference()
    torch = pytest.importorskip('torch')
    model = make['random_model'](*make['FAMILIES']['t5_1_1'])
    make['save'](model, 't5_1_1', tmp_path / 'whole')
    make['save'](model, 't5_1_1', tmp_path / 'shards', max_shard_size='8KB')
    assert len(list((tmp_path / 'shards').glob('*.safetensors'))) > 3
    for name, options in (('zip', {}), ('old', {'_use_new_zipfile_serialization': False})):
        shutil.copytree(tmp_path / 'whole', tmp_path / name)
        (tmp_path / name / 'model.safetensors').unlink()
        torch.save(model.state_dict(), tmp_path / name / 'pytorch_model.bin', **options)
    content = {
        name: import_.import_checkpoint(str(tmp_path / name), str(tmp_path / f'{name} out'))['fingerprint']
        for name in ('whole', 'shards', 'zip', 'old')
    }
    assert all(fingerprint == content['whole'] for fingerprint in content.values())


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_kept(dtype, tmp_path):
    make = reference()
    torch = pytest.importorskip('torch')
    model = make['random_model'](*make['FAMILIES']['t5_1_1']).to(getattr(torch, dtype))
    if dtype == 'float16':  # transformers keeps these in float32
        for layer in (*model.encoder.block, *model.decoder.block):
            layer.layer[-1].DenseReluDense.wo.float()
    make['save'](model, 't5_1_1', tmp_path / 'source')
    llm, params, _ = imported(tmp_path / 'source', tmp_path / 'out')
    check(llm, params, make['outputs'](model.float()))


@pytest.mark.slow
def test_a_model_that_transformers_5_saved_keeps_its_head(tmp_path):
    """It writes tie_word_embeddings = true whatever was so, and says with another flag whether logits are scaled."""
    make = reference()
    transformers = pytest.importorskip('transformers')
    model = make['random_model'](*make['FAMILIES']['t5_1_1'])
    make['save'](model, 't5_1_1', tmp_path / 'first')
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'first')
    again.save_pretrained(tmp_path / 'again')
    shutil.copy(tmp_path / 'first' / 'spiece.model', tmp_path / 'again')
    flags = json.loads((tmp_path / 'again' / 'config.json').read_text())
    assert flags['tie_word_embeddings'] and not flags['scale_decoder_outputs']
    llm, params, _ = imported(tmp_path / 'again', tmp_path / 'out')
    check(llm, params, make['outputs'](model))
