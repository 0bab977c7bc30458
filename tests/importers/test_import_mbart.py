"""mBART-50: what transformers computes, we compute; and back again.

The goldens are a small model that transformers saved, with its outputs (tests/testdata/mbart_goldens/make.py). The slow
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
from slm_jax import configuration, decoding, foundations, import_
from slm_jax.exporters import mbart as exporter
from slm_jax.importers import CheckpointError, hugging_face
from slm_jax.importers import mbart as importers_mbart
from slm_jax.importers.hugging_face import directory
from slm_jax.llms import mbart
from slm_jax.systems import text_to_text

GOLDENS = pathlib.Path(__file__).parents[1] / 'testdata' / 'mbart_goldens'
SAID = json.loads((GOLDENS / 'texts.json').read_text(encoding='utf-8'))


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def imported(source, out, **options):
    """The mBART of the model file, its parameters and its card."""
    card = import_.import_checkpoint(str(source), str(out), 'float32', **options)
    configuration.parse_gin([str(out / 'model.gin')], [])
    return configuration.configured(mbart.MBart)(), foundations.load(out), card


@pytest.fixture(scope='module')
def foundation(tmp_path_factory):
    """Its directory, the mBART, its parameters and its card."""
    out = tmp_path_factory.mktemp('mbart') / 'foundation'
    found = imported(GOLDENS / 'mbart50', out)
    gin.clear_config()
    return out, *found


def ours(size):
    """Our ids by the reference's."""
    order = np.arange(size)
    order[:3] = 2, 0, 1
    return order


def check(llm, params, golden, languages, ended=False):
    """Hidden states and logits of valid positions, where the decoder looks, and what is generated into two languages.

    With `ended`, by beams only of rows that the reference ends: where another is cut off, T5X's search, which is ours,
    takes what ended and that of transformers what is likelier (see t5_goldens/make.py).
    """
    order = ours(llm.config.vocab_size)
    theirs = np.argsort(order)
    tokens, inputs = order[golden['encoder_input_tokens']], order[golden['decoder_input_tokens']]
    inputs[:, 0] = 0  # which is read as the end
    mask, expected = tokens > 0, golden['cross_attentions']
    heads, attention = list(np.ndindex(*expected.shape[:3:2])), {'method': 'attention', 'mutable': ['intermediates']}

    @jax.jit
    def computed(params):
        apply = functools.partial(llm.apply, {'params': params})
        prompt = apply(tokens, method='embed')
        encoded, states = apply(prompt, mask, hidden_states=True, method='encode')
        unmasked = apply(inputs, apply(prompt, None, method='encode'), None, method='decode')
        weights, _ = apply(prompt, mask, inputs, None, heads, **attention)
        return states, apply(inputs, encoded, mask, method='decode'), unmasked, weights

    states, logits, unmasked, weights = map(np.asarray, computed(params))
    np.testing.assert_allclose(states[:, mask], golden['hidden_states'][:, mask], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, golden['logits'][..., theirs], rtol=0, atol=1e-4)
    np.testing.assert_allclose(unmasked, golden['unmasked_logits'][..., theirs], rtol=0, atol=1e-4)
    for number, (layer, head) in enumerate(heads):
        np.testing.assert_allclose(weights[number], expected[layer, :, head], rtol=0, atol=1e-5)
    predict = jax.jit(text_to_text.TextToText(llm).predict, static_argnums=2)
    for language, token in languages.items():
        batch = {'encoder_input_tokens': jnp.asarray(tokens), 'first_tokens': jnp.full(len(tokens), token)}
        for name, options in (('greedy', {'method': 'greedy'}), ('beams', {'method': 'beam', 'beam_size': 5})):
            expected = order[golden[f'{name}_{language}']]
            config = decoding.DecodeConfig(max_decode_length=expected.shape[1], alpha=0.0, **options)
            found = predict({'llm': params}, batch, config)
            rows = (expected == 1).any(axis=1) | (not ended or name == 'greedy')
            np.testing.assert_array_equal(np.asarray(found)[rows], expected[rows], err_msg=f'{name} {language}')


def test_states_logits_and_generated_tokens_are_those_of_transformers(foundation):
    _, llm, params, card = foundation
    assert card['swapped'] == [[0, 1], [1, 2]] and card['languages'] == SAID['languages']
    with np.load(GOLDENS / 'outputs.npz') as golden:
        check(llm, params, golden, {code: card['languages'][code] for code in ('de_DE', 'ja_XX')})


def test_sentencepiece_gives_the_ids_of_the_reference(foundation):
    vocabulary = foundations.vocabulary(foundation[0])
    theirs = np.argsort(ours(vocabulary.vocab_size))
    for text, ids in SAID['texts'].items():
        # transformers 5 keeps a mark for space at the end, which SentencePiece does not.
        ids = ids[:-1] if text.endswith(' ') else ids
        assert theirs[vocabulary.encode(text)].tolist() == ids, text
    german = vocabulary.encode('drei neue Nachrichten')
    assert vocabulary.decode([vocabulary.languages['de_DE'], *german, 1, 0]) == 'drei neue Nachrichten'
    assert vocabulary.languages['de_DE'] not in vocabulary.encode('de_DE')
    assert (vocabulary.eos_id, vocabulary.unk_id, vocabulary.tokenizer.piece_to_id('<mask>')) == (1, 3, SAID['mask'])


def source_with_json(tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(GOLDENS / 'mbart50', source)
    (source / 'sentencepiece.bpe.model').unlink()
    shutil.copy(GOLDENS / 'tokenizer.json', source)
    return source


def test_tokenizer_json_alone(tmp_path):
    _, _, card = imported(source_with_json(tmp_path), tmp_path / 'out')
    assert card['languages'] == SAID['languages']
    vocabulary = foundations.vocabulary(tmp_path / 'out')
    theirs = np.argsort(ours(vocabulary.vocab_size))
    for text, ids in SAID['texts'].items():
        assert theirs[vocabulary.encode(text)].tolist() == ids, text
    german = [vocabulary.languages['de_DE'], *vocabulary.encode('drei neue Nachrichten'), 1]
    assert vocabulary.decode(german) == 'drei neue Nachrichten'


@pytest.mark.parametrize('kind', ['sentencepiece', 'json'])
def test_a_language_more_begins_as_another_or_as_the_mean(foundation, tmp_path, kind):
    source = GOLDENS / 'mbart50' if kind == 'sentencepiece' else source_with_json(tmp_path)
    added = {'ca_ES': 'es_XX', 'cy_GB': 'mean'}
    llm, params, card = imported(source, tmp_path / 'out', languages=added)
    _, _, before, known = foundation
    codes, rows = card['languages'], params['token_embedder']['embedding']
    assert llm.config.vocab_size == 99 == len(rows) and card['added_languages'] == added
    assert (codes['ca_ES'], codes['cy_GB']) == (97, 98)
    old = before['token_embedder']['embedding']
    np.testing.assert_array_equal(rows[:97], old)
    np.testing.assert_array_equal(rows[97], old[codes['es_XX']])
    mean = np.mean([old[token] for token in known['languages'].values()], axis=0)
    np.testing.assert_allclose(rows[98], mean, rtol=1e-5, atol=1e-6)
    vocabulary = foundations.vocabulary(tmp_path / 'out')
    assert vocabulary.vocab_size == 99
    assert vocabulary.decode([97, *vocabulary.encode('good morning'), 98, 1]) == 'good morning'
    # And back: it is imported again as it was.
    exported = tmp_path / 'exported'
    exported.mkdir()
    exporter.write(exported, llm.config, foundations.flatten(params), tmp_path / 'out')
    _, again, card_again = imported(exported, tmp_path / 'again')
    assert card_again['languages'] == codes
    assert foundations.fingerprint(again) == foundations.fingerprint(params)


def test_what_was_imported_is_exported_bit_for_bit(foundation, tmp_path):
    from slm_jax.importers.hugging_face import tensors

    out, llm, params, _ = foundation
    exporter.write(tmp_path, llm.config, foundations.flatten(params), out)
    first, then = (tensors.tensors(path) for path in (GOLDENS / 'mbart50', tmp_path))
    assert first.keys() == then.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(then[name].open(), tensor.open(), err_msg=name)
    for file in importers_mbart.TOKENIZERS:
        assert (tmp_path / file).read_bytes() == (GOLDENS / 'mbart50' / file).read_bytes()
    described, original = (json.loads((path / 'config.json').read_text()) for path in (tmp_path, GOLDENS / 'mbart50'))
    assert {key: original[key] for key in described} == described


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'decoder_ffn_dim': 32}, r'config.json: decoder_ffn_dim is 32; only 24 is supported'),
        ({'decoder_start_token_id': 44}, r'config.json: decoder_start_token_id is 44; only 2 is supported'),
        ({'activation_function': 'tanh'}, r"activation_function is 'tanh'; there are relu, "),
        ({'dropout': 2}, r'config.json: dropout is 2; it must be in \[0, 1\)'),
        ({'sparse': True}, r"unknown flag 'sparse' = True"),
        ({'encoder_attention_heads': 3, 'decoder_attention_heads': 3}, r'encoder_attention_heads 3 do not divide'),
        ({'vocab_size': 90}, r'it has 97 ids with the codes of the languages, the model 90 embeddings'),
        ({'encoder_layers': 1}, r'16 tensors have no place in the mBART of this config.json, the first is model.enc'),
        ({'encoder_layers': 3}, r'have no tensor model.encoder.layers.2.self_attn.k_proj.bias, which encoder/layers'),
    ],
)
def test_flags_that_cannot_be_honoured(tmp_path, changes, message):
    source = tmp_path / 'source'
    shutil.copytree(GOLDENS / 'mbart50', source)
    config = json.loads((source / 'config.json').read_text()) | changes
    (source / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        import_.import_checkpoint(str(source), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'tokenizer_class': 'MBartTokenizer'}, r"tokenizer_class is 'MBartTokenizer'.*An mBART-25 cannot be imported"),
        ({'additional_special_tokens': ['<x>']}, r"the added token '<x>' is no code of a language with an id"),
        ({'added_tokens_decoder': {'45': {'content': 'de_DE'}}}, r"the token 'de_DE' has the id 45 .*and 46 by sent"),
        ({'added_tokens_decoder': {'x': {}}}, r'what it says of added tokens means nothing'),
    ],
)
def test_tokenizers_of_other_models(tmp_path, settings, message):
    source = tmp_path / 'source'
    shutil.copytree(GOLDENS / 'mbart50', source)
    (source / 'tokenizer_config.json').write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        import_.import_checkpoint(str(source), str(tmp_path / 'out'))


@pytest.mark.parametrize(
    ('language', 'message'),
    [
        ('de_DE=mean', 'the model has de_DE already'),
        ('welsh=mean', "'welsh' is no code such as ca_ES"),
        ('cy_GB=xx_XX', "the model has no 'xx_XX'; its row can begin as the mean of all, or as one of ar_AR, "),
        ('cy_GB', "the model has no ''"),
    ],
)
def test_languages_that_cannot_be_added(tmp_path, capsys, language, message):
    assert import_.main([str(GOLDENS / 'mbart50'), str(tmp_path / 'out'), '--language', language]) == 2
    assert message in capsys.readouterr().err


def test_other_models_take_no_language(tmp_path, capsys):
    source = GOLDENS.parent / 't5_goldens' / 't5_1_1'
    assert import_.main([str(source), str(tmp_path / 'out'), '--language', 'cy_GB=mean']) == 2
    assert '--language is for an mBART, which this is not.' in capsys.readouterr().err


def test_the_published_configuration(tmp_path):
    config = {
        '_num_labels': 3, 'activation_dropout': 0.0, 'activation_function': 'relu', 'add_bias_logits': False,
        'add_final_layer_norm': True, 'architectures': ['MBartForConditionalGeneration'], 'attention_dropout': 0.0,
        'bos_token_id': 0, 'classif_dropout': 0.0, 'classifier_dropout': 0.0, 'd_model': 1024,
        'decoder_attention_heads': 16, 'decoder_ffn_dim': 4096, 'decoder_layerdrop': 0.0, 'decoder_layers': 12,
        'decoder_start_token_id': 2, 'dropout': 0.1, 'early_stopping': True, 'encoder_attention_heads': 16,
        'encoder_ffn_dim': 4096, 'encoder_layerdrop': 0.0, 'encoder_layers': 12, 'eos_token_id': 2,
        'forced_eos_token_id': 2, 'gradient_checkpointing': False, 'init_std': 0.02, 'is_encoder_decoder': True,
        'max_length': 200, 'max_position_embeddings': 1024, 'model_type': 'mbart', 'normalize_before': True,
        'normalize_embedding': True, 'num_beams': 5, 'num_hidden_layers': 12, 'output_past': True, 'pad_token_id': 1,
        'scale_embedding': True, 'static_position_embeddings': False, 'transformers_version': '4.4.0.dev0',
        'use_cache': True, 'vocab_size': 250054, 'tokenizer_class': 'MBart50Tokenizer',
    }  # mbart-large-50-many-to-many-mmt, from memory  # fmt: skip
    family, found = hugging_face.family(directory.Directory('mbart', tmp_path, None, None, config))
    (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': [2], 'num_beams': 5}))
    configuration.parse_gin(['models/mbart_50.gin'], ["mbart.MBartConfig.dtype='float32'"])
    cfg = configuration.configured(mbart.MBart)().config
    assert family.config(found) == cfg
    counted = sum(np.prod(leaf.shape) for leaf in importers_mbart.shapes(cfg).values())
    assert counted == 610_879_488 + 250_054  # transformers does not count the bias of the logits


# From here on with transformers itself. `slow`, and skipped without torch and transformers.


def reference():
    """The functions of make.py."""
    for name in ('torch', 'transformers'):
        pytest.importorskip(name, reason=f'{name} makes the reference: pip install -e .[hf]')
    return runpy.run_path(str(GOLDENS / 'make.py'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('seed', 'changes'),
    [
        (1, dict(encoder_layers=3, decoder_layers=1, activation_function='relu')),
        (13, dict(scale_embedding=False, d_model=20, encoder_ffn_dim=7, decoder_ffn_dim=7)),
        (6, dict(encoder_attention_heads=1, decoder_attention_heads=1, activation_function='gelu_new')),
    ],
)
def test_odd_settings(tmp_path, seed, changes):
    make = reference()
    model = make['random_model'](seed, vocab_size=101, **changes)  # more rows than ids
    model.final_logits_bias.data[:, 1] = -30.0  # padding, which is never written here
    shutil.copytree(GOLDENS / 'mbart50', tmp_path / 'source')
    (tmp_path / 'source' / 'model.safetensors').unlink()
    model.save_pretrained(tmp_path / 'source', max_shard_size='8KB')
    assert len(list((tmp_path / 'source').glob('*.safetensors'))) > 2
    llm, params, card = imported(tmp_path / 'source', tmp_path / 'out')
    languages = {code: card['languages'][code] for code in ('de_DE', 'ja_XX')}
    check(llm, params, make['outputs'](model, languages, seed=seed), languages, ended=True)


@pytest.mark.slow
def test_transformers_loads_what_is_exported(foundation, tmp_path):
    reference()
    import torch
    import transformers

    out, llm, params, card = foundation
    exporter.write(tmp_path, llm.config, foundations.flatten(params), out)
    model = transformers.MBartForConditionalGeneration.from_pretrained(tmp_path).eval().double()
    with np.load(GOLDENS / 'outputs.npz') as golden:
        tokens = torch.tensor(golden['encoder_input_tokens']).long()
        with torch.no_grad():
            logits = model(
                input_ids=tokens, attention_mask=(tokens != 1).long(),
                decoder_input_ids=torch.tensor(golden['decoder_input_tokens']).long(),
            ).logits  # fmt: skip
        np.testing.assert_array_equal(logits.float(), golden['logits'])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer('good morning', add_special_tokens=False).input_ids == SAID['texts']['good morning']
    assert {code: tokenizer.convert_tokens_to_ids(code) for code in card['languages']} == card['languages']
