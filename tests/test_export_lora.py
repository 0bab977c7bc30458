"""LoRA in PEFT's format and merged: read back, and by PEFT itself (slow)."""

import functools
import json

import jax
import numpy as np
import pytest
import tiny_slm

import gin
from slm_jax import cli, export, foundations
from slm_jax.adapters import lora
from slm_jax.exporters import ExportError
from slm_jax.importers.hugging_face import tensors
from slm_jax.inference import model as model_lib
from slm_jax.training import checkpoints, state

PROMPT, TARGET = (np.random.default_rng(i).integers(3, 259, (4, 9)) for i in range(2))


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def trained(folder, kind, bindings=()):
    """A training's directory, whose LoRA is random, without having trained; the system and all parameters."""
    from slm_jax import configuration
    from slm_jax.training import origins, setup

    system = tiny_slm.write(folder, kind, bindings)
    rng = np.random.default_rng(0)
    shapes = state.unboxed(jax.eval_shape(system.init, jax.random.key(0), setup.least_batch()))['lora']
    updates = jax.tree.map(lambda leaf: np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32), shapes)
    updates = jax.tree.map(jax.numpy.asarray, updates)
    found = origins.find({'llm': str(folder / 'llm'), 'speech_encoder': str(folder / 'encoder')})
    card = {'name': 'run', 'kind': checkpoints.KIND, 'config': configuration.operative_config()}
    card['foundations'] = {origin.subtree: origin.describe() for origin in found}
    saved = checkpoints.Checkpoints(folder / 'run')
    number = jax.numpy.int32(7)
    saved.save(state.TrainState(number, number, {'lora': updates}, {'count': number}), jax.random.key(0), card)
    saved.close()
    return system, {'llm': foundations.load(folder / 'llm'), 'lora': updates}


@functools.partial(jax.jit, static_argnums=0)
def logits(system, params):
    with lora.applied(system.lora, params) as parts:
        return system.llm.apply({'params': parts['llm']}, PROMPT, TARGET, TARGET)


@pytest.mark.parametrize(
    'kind', ['llama', 't5', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('scanned t5', 'mbart'))]
)
def test_merged_it_is_a_language_model(kind, tmp_path, capsys):
    system, params = trained(tmp_path, kind)
    out = tmp_path / 'out/merged'
    assert cli.main(['export', str(tmp_path / 'run'), str(out), '--merged']) == 0
    assert 'card.json, model.gin, params' in capsys.readouterr().out
    card = foundations.card(out)
    assert card['kind'] == 'llm' and card['name'] == 'merged' and card['source'] == 'llm, with LoRA of run'
    model = model_lib.load(out)
    assert model.system.llm == system.llm and model.vocabulary.vocab_size == 384
    expected = logits(system, params)
    assert np.abs(expected - logits(system, {'llm': params['llm']})).max() > 0.1
    np.testing.assert_allclose(logits(system, {'llm': model.params['llm']}), expected, rtol=0, atol=1e-4)


def test_names_in_peft(tmp_path):
    _, params = trained(tmp_path, 'llama')
    assert export.export(str(tmp_path / 'run'), str(tmp_path / 'out'), form='peft') == [
        'adapter_config.json', 'adapter_model.safetensors', 'card.json',
    ]  # fmt: skip
    described = json.loads((tmp_path / 'out/adapter_config.json').read_text())
    assert described['r'] == 2 and described['lora_alpha'] == 32 and described['task_type'] == 'CAUSAL_LM'
    assert (
        len(described['target_modules']) == 3 * 5 and 'model.layers.2.self_attn.o_proj' in described['target_modules']
    )
    (tmp_path / 'out/adapter_model.safetensors').rename(tmp_path / 'out/model.safetensors')
    found = tensors.tensors(tmp_path / 'out')
    assert len(found) == 3 * 5 * 2
    query = params['lora']['llm']['decoder']['layers']['self_attention']['query']
    for name, leaf in (('lora_A', query[lora.DOWN]), ('lora_B', query[lora.UP])):
        tensor = found[f'base_model.model.model.layers.1.self_attn.q_proj.{name}.weight'].open()
        np.testing.assert_array_equal(tensor, leaf[1].T)


def test_what_cannot_be_exported(tmp_path, capsys):
    system, _ = trained(tmp_path, 't5', ["LORA_MODULES=('.*/logits_dense', 'speech_encoder/.*/q_proj')"])
    run, out = str(tmp_path / 'run'), tmp_path / 'out'
    assert cli.main(['export', run, str(out), '--peft']) == 2
    assert 'llm/decoder/logits_dense has LoRA; in transformers the tokens' in capsys.readouterr().err
    export.export(run, str(out), form='merged')
    gin.clear_config()
    with pytest.raises(ValueError, match='is a foundation. What is exported'):
        export.export(str(out), str(tmp_path / 'more'), form='merged')
    (tmp_path / 'other').mkdir()
    trained(tmp_path / 'other', 'llama', ["LORA_MODULES=('speech_encoder/.*/q_proj',)"])
    for form in ('peft', 'merged'):
        with pytest.raises(ExportError, match='trained no LoRA of its language model, which --peft and --merged want'):
            export.export(str(tmp_path / 'other/run'), str(tmp_path / 'none'), form=form)
    with pytest.raises(SystemExit):
        cli.main(['export', run, str(tmp_path / 'none'), '--peft', '--model'])
    assert not (tmp_path / 'none').exists() and system.lora.rank == 2
    foundations.save(tmp_path / 'llm', tiny_slm.random_params(system.llm, 1), {'name': 'llm', 'kind': 'llm'})
    with pytest.raises(checkpoints.CheckpointError, match='was trained with llm = .* and cannot be used with'):
        export.export(run, str(tmp_path / 'none'), form='merged')


def reference(kind, params, cfg, folder):
    """The model of transformers with these parameters."""
    import torch
    import transformers

    from slm_jax.exporters import mbart, safetensors
    from slm_jax.exporters import t5 as exporter

    leaves = foundations.flatten(params)
    if kind == 'mbart':
        (folder / 'config.json').write_text(json.dumps(mbart.config(cfg)))
        safetensors.write(folder / 'model.safetensors', mbart.tensors(leaves, []), {'format': 'pt'})
        return transformers.MBartForConditionalGeneration.from_pretrained(folder).eval()
    if kind != 'llama':
        (folder / 'config.json').write_text(json.dumps(exporter.config(cfg)))
        safetensors.write(folder / 'model.safetensors', exporter.tensors(cfg, leaves), {'format': 'pt'})
        return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    from slm_jax.importers.hugging_face import decoder_only

    config = transformers.Qwen2Config(
        vocab_size=cfg.vocab_size, hidden_size=cfg.emb_dim, intermediate_size=cfg.mlp_dim,
        num_hidden_layers=cfg.num_layers, num_attention_heads=cfg.num_heads, num_key_value_heads=cfg.num_kv_heads,
        tie_word_embeddings=True, rms_norm_eps=cfg.norm_epsilon, head_dim=cfg.head_dim,
    )  # fmt: skip
    made, arrays = transformers.Qwen2ForCausalLM(config), {}
    for path, leaf in leaves.items():
        module, _, kind = path.rpartition('/')
        if kind == 'embedding':
            arrays['model.embed_tokens.weight'] = leaf
            continue
        name = f'{decoder_only.module_name(module, cfg)}.{"bias" if kind == "bias" else "weight"}'
        for layer in range(cfg.num_layers):
            own = leaf[layer] if '{}' in name else leaf
            arrays[name.format(layer)] = own.T if kind == 'kernel' else own
    missing, unexpected = made.load_state_dict(
        {name: torch.tensor(np.array(array)) for name, array in arrays.items()}, strict=False
    )
    assert not unexpected and missing == ['lm_head.weight']
    return made.eval()


@pytest.mark.slow
@pytest.mark.parametrize('kind', tiny_slm.LLMS)
def test_peft_agrees(kind, tmp_path):
    torch = pytest.importorskip('torch', reason='torch runs the reference: pip install -e .[hf]')
    pytest.importorskip('transformers', reason='the reference: pip install -e .[hf]')
    peft = pytest.importorskip('peft', reason='the reference: pip install -e .[hf]')
    system, params = trained(tmp_path, kind)
    export.export(str(tmp_path / 'run'), str(tmp_path / 'out'), form='peft')
    base = reference(kind, params['llm'], system.llm.config, tmp_path)
    prompt, target = torch.tensor(PROMPT), torch.tensor(TARGET)

    def said(model):
        with torch.no_grad():
            if kind == 'llama':
                return model(torch.cat([prompt, target[:, 1:]], dim=1)).logits[:, prompt.shape[1] - 1 :].numpy()
            first = torch.clamp(target, min=1) if kind == 'mbart' else target  # which has the end for token 0
            return model(input_ids=prompt, decoder_input_ids=first).logits.numpy()

    np.testing.assert_allclose(logits(system, {'llm': params['llm']}), said(base), rtol=0, atol=1e-4)
    model = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
    loaded = {name for name, value in model.named_parameters() if 'lora_B' in name and value.abs().sum() > 0}
    assert len(loaded) == len([name for name, _ in model.named_parameters() if 'lora_B' in name]) > 0
    expected = logits(system, params)
    np.testing.assert_allclose(expected, said(model), rtol=0, atol=1e-4)
    np.testing.assert_allclose(expected, said(model.merge_and_unload()), rtol=0, atol=1e-4)
