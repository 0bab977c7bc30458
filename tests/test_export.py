"""What is exported is what was trained: read back, imported again, and by transformers itself (slow)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from slm_jax import cli, configuration, decoding, export, foundations, import_
from slm_jax.exporters import ExportError
from slm_jax.exporters import t5 as exporter
from slm_jax.foundations import named
from slm_jax.importers import t5 as importers_t5
from slm_jax.importers.hugging_face import tensors
from slm_jax.inference import model as model_lib
from slm_jax.llms import t5
from slm_jax.systems import text_to_text
from slm_jax.training import checkpoints, origins, state

SIZES = dict(
    vocab_size=384, emb_dim=16, num_heads=2, num_encoder_layers=3, num_decoder_layers=2, head_dim=6, mlp_dim=20
)
# Activations, whether the embedding is the output layer too, and whether layers are scanned.
KINDS = {
    't5 1.0': (('relu',), True, False),
    't5 1.1': (('gelu', 'linear'), False, False),
    'ul2, scanned': (('silu', 'linear'), False, True),
    'gelu, tied': (('gelu',), True, False),
}


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def config(kind):
    activations, tied, scanned = KINDS[kind]
    return t5.T5Config(**SIZES, mlp_activations=activations, logits_via_embedding=tied, scan_layers=scanned)


def leaves_of(cfg, seed=0):
    """Parameters by path, none of which is what it would be at the start; layers share their position biases."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in importers_t5.shapes(cfg).items():
        value = rng.standard_normal(leaf.shape) * (1.0 if 'embedding' in path else leaf.shape[0] ** -0.5)
        if path.endswith('scale'):
            value = 1 + 0.3 * value
        if path.endswith('rel_embedding') and cfg.scan_layers:
            value[:] = value[:, :1]
        leaves[path] = jnp.asarray(value, jnp.float32)
    return leaves


def trained(folder, cfg, leaves, sentencepiece_model, frozen=()):
    """The directory of a training of a T5; leaves whose path starts with one of `frozen` stayed in the foundation."""
    llm = folder / 'llm'
    foundations.save(llm, foundations.unflatten(leaves), {'name': 'llm', 'kind': 'llm'}, [sentencepiece_model])
    blocks = {
        path: foundations.Blocks(leaf.shape, leaf.dtype, lambda start, stop, leaf=leaf: leaf[start:stop])
        for path, leaf in leaves.items()
    }
    (llm / 'model.gin').write_text(importers_t5.model_file(cfg, foundations.unflatten(blocks), 'a test', llm))
    model_lib.configure({'kind': 'llm'}, [str(llm / 'model.gin')], [])
    text = configuration.operative_config()
    changed = {path: leaf + 0.1 if path.endswith('wo/kernel') else leaf for path, leaf in leaves.items()}
    own = {f'llm/{path}': leaf for path, leaf in changed.items() if not path.startswith(frozen)}
    (found,) = origins.find({'llm': str(llm)})
    card = {'name': 't5', 'kind': checkpoints.KIND, 'config': text, 'foundations': {}}
    if frozen:
        card['foundations'] = {'llm': found.describe()}
        changed |= {path: leaf for path, leaf in leaves.items() if path.startswith(frozen)}
    save(folder / 'run', foundations.unflatten(own), card)
    return folder / 'run', changed


def save(directory, params, card):
    saved = checkpoints.Checkpoints(directory)
    number = jnp.int32(7)
    saved.save(state.TrainState(number, jnp.int32(-1), params, {'count': number}), jax.random.key(0), card)
    saved.close()


def test_an_adapter_with_its_card(tmp_path, capsys):
    rng = np.random.default_rng(0)
    params = {'adapter': {'dense': {'kernel': rng.standard_normal((3, 5)), 'bias': rng.standard_normal(5)}}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    params['adapter']['half'] = jnp.arange(7, dtype=jnp.bfloat16)
    needed = {'llm': {'name': 't5_tiny', 'fingerprint': {'structure': 'a', 'content': 'b', 'num_params': 3}}}
    save(tmp_path / 'run', params, {'name': 'slm', 'kind': checkpoints.KIND, 'foundations': needed})
    out = tmp_path / 'deep' / 'out'
    assert cli.main(['export', str(tmp_path / 'run'), str(out)]) == 0
    assert 'card.json, trainable.safetensors' in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    card = json.loads((out / 'card.json').read_text())
    assert card['foundations'] == needed and card['step'] == 7
    (out / 'trainable.safetensors').rename(out / 'model.safetensors')
    found = tensors.tensors(out)
    expected = foundations.flatten(params)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        np.testing.assert_array_equal(tensor.open(), expected[name])
    assert json.dumps(json.dumps(needed)).encode() in (out / 'model.safetensors').read_bytes()


def test_a_model_that_answers(tmp_path, capsys):
    """In bfloat16, without the optimizer; its card is good on another machine."""
    rng = np.random.default_rng(0)
    params = {'adapter': {'kernel': jnp.asarray(rng.standard_normal((3, 5)), jnp.float32), 'steps': jnp.arange(3)}}
    public = {'structure': 'a', 'content': named.FOUNDATIONS['whisper_base'].content['float32'], 'num_params': 3}
    own = {'structure': 'a', 'content': 'b', 'num_params': 3}
    card = {'name': 'slm', 'kind': checkpoints.KIND, 'config': ''}
    card['foundations'] = {
        'speech_encoder': {'name': '/mine/cache/whisper_base', 'fingerprint': public},
        'llm': {'name': '/mine/llm', 'fingerprint': own},
    }
    card['initialised_from'] = {'adapter': {'name': '/mine/runs/ctc', 'fingerprint': own}}
    save(tmp_path / 'run', params, card)
    written = json.loads((tmp_path / 'run/card.json').read_text())
    (tmp_path / 'run/card.json').write_text(json.dumps(written | {'evaluations': {'a-test': {'step': 7}}}))
    out = tmp_path / 'slm_other'
    assert cli.main(['export', str(tmp_path / 'run'), str(out), '--model']) == 0
    assert 'card.json, checkpoints' in capsys.readouterr().out
    card = foundations.card(out)
    assert card['name'] == 'slm_other' and card['step'] == 7 and card['evaluations'] == {'a-test': {'step': 7}}
    assert [entry['name'] for entry in card['foundations'].values()] == ['whisper_base', '/mine/llm']
    assert card['initialised_from']['adapter']['name'] == 'ctc'
    found, inner = checkpoints.load_for_inference(out)
    assert inner == {key: value for key, value in card.items() if key != 'evaluations'}
    np.testing.assert_array_equal(found['adapter']['kernel'], params['adapter']['kernel'].astype(jnp.bfloat16))
    assert found['adapter']['kernel'].dtype == jnp.bfloat16 and found['adapter']['steps'].dtype == jnp.int32
    (origin,) = origins.find({'adapter': str(out)})
    wanted = {'adapter': {'kernel': jax.ShapeDtypeStruct((3, 5), jnp.float32)}}
    again = origins.load([origin], wanted)['adapter']['kernel']
    np.testing.assert_array_equal(again, found['adapter']['kernel'].astype(jnp.float32))
    damaged = next(file for file in (out / 'checkpoints/7/trainable').rglob('*') if file.stat().st_size > 200)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b'x')
    with pytest.raises(checkpoints.CheckpointError, match='is damaged'):
        checkpoints.load_for_inference(out)


@pytest.mark.parametrize(('kind', 'frozen'), [('t5 1.0', ()), ('t5 1.1', ('encoder/', 'token')), ('ul2, scanned', ())])
def test_a_t5_that_is_imported_again_is_the_same(kind, frozen, tmp_path, sentencepiece_model):
    run, leaves = trained(tmp_path, config(kind), leaves_of(config(kind)), sentencepiece_model, frozen)
    files = export.export(str(run), str(tmp_path / 'out'))
    assert files == ['card.json', 'config.json', 'model.safetensors', 'spiece.model', 'tokenizer_config.json']
    import_.import_checkpoint(str(tmp_path / 'out'), str(tmp_path / 'again'), 'float32')
    gin.clear_config()
    cfg = model_lib.load(tmp_path / 'again').system.llm.config
    assert cfg.mlp_activations == KINDS[kind][0] and cfg.logits_via_embedding == KINDS[kind][1]
    found = foundations.flatten(foundations.load(tmp_path / 'again'))
    if KINDS[kind][2]:  # a T5 as shallow is imported unscanned
        stacked, leaves = leaves, {}
        for path in found:
            stack, *rest = path.split('/')
            layer = rest[0].removeprefix('layers_')
            if rest[0] == 'relpos_bias':
                leaves[path] = stacked[f'{stack}/{path}'][:, 0]
            elif layer.isdigit():
                leaves[path] = stacked[f'{stack}/{stack}/{"/".join(rest[1:])}'][:, int(layer)].reshape(
                    found[path].shape
                )
            else:
                leaves[path] = stacked[path]
    assert found.keys() == leaves.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, leaves[path], err_msg=path)
    vocabularies = [foundations.vocabulary(tmp_path / name) for name in ('llm', 'again')]
    assert vocabularies[0].serialized == vocabularies[1].serialized
    assert vocabularies[0].vocab_size == vocabularies[1].vocab_size


def test_what_cannot_be_exported(tmp_path, sentencepiece_model):
    cfg = config('ul2, scanned')
    leaves = leaves_of(cfg)
    leaves['decoder/decoder/relpos_bias/rel_embedding'] += jnp.arange(2.0)[:, None]
    run, _ = trained(tmp_path, cfg, leaves, sentencepiece_model, ('encoder/',))
    out = tmp_path / 'out'

    def refused(match, path=run, step=None):
        with pytest.raises(ValueError, match=match):
            export.export(str(path), str(out), step)
        assert not out.exists() and not list(tmp_path.glob('.out*'))

    refused('decoder/decoder/relpos_bias/rel_embedding: the layers have.*scan_layers = False')
    refused('step|checkpoint', step=3)
    refused('is a foundation', path=tmp_path / 'llm')
    refused('No foundation', path=tmp_path / 'nothing')
    foundations.save(tmp_path / 'llm', foundations.unflatten(leaves_of(cfg, 1)), {'name': 'llm', 'kind': 'llm'})
    refused('was trained with llm = .*cannot be used with')
    for activations in (('tanh',), ('gelu', 'gelu'), ('linear',), ('linear', 'gelu')):
        with pytest.raises(ExportError, match='T5Config.mlp_activations is .*relu, gelu, silu'):
            exporter.config(t5.T5Config(**SIZES, mlp_activations=activations))
    out.mkdir()
    with pytest.raises(FileExistsError, match='is there already'):
        export.export(str(run), str(out))


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_transformers_agrees(kind, tmp_path, sentencepiece_model):
    torch = pytest.importorskip('torch', reason='torch runs the reference: pip install -e .[hf]')
    transformers = pytest.importorskip('transformers', reason='the reference: pip install -e .[hf]')
    cfg = config(kind)
    run, leaves = trained(tmp_path, cfg, leaves_of(cfg), sentencepiece_model)
    export.export(str(run), str(tmp_path / 'out'))
    reference, info = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / 'out', output_loading_info=True
    )
    assert not info['unexpected_keys'] and not info['mismatched_keys']
    params = {'params': foundations.unflatten(leaves)}
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, 384, (4, 13)) * (np.arange(13) < np.array([13, 5, 9, 1])[:, None])
    targets = rng.integers(1, 384, (4, 7))
    before = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    inputs = {'input_ids': torch.tensor(tokens), 'attention_mask': torch.tensor(tokens > 0).long()}
    with torch.no_grad():
        expected = reference.eval()(**inputs, decoder_input_ids=torch.tensor(before)).logits.numpy()
        generated = reference.generate(**inputs, max_new_tokens=12, do_sample=False, num_beams=1)[:, 1:].numpy()
    np.testing.assert_allclose(t5.T5(cfg).apply(params, tokens, before, targets), expected, rtol=0, atol=1e-4)
    system = text_to_text.TextToText(t5.T5(cfg))
    decode = decoding.DecodeConfig(method='greedy', max_decode_length=12)
    found = system.predict({'llm': params['params']}, {'encoder_input_tokens': jnp.asarray(tokens)}, decode)
    width = generated.shape[1]
    np.testing.assert_array_equal(np.asarray(found)[:, :width], generated)
    assert not np.asarray(found)[:, width:].any()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
    text = 'You have three new messages.'
    assert tokenizer(text).input_ids[:-1] == foundations.vocabulary(tmp_path / 'llm').encode(text)
