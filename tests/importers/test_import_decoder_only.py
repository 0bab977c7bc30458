"""Decoder-only LLMs of Hugging Face's layout: what transformers computes, we compute; what is not known is refused.

Directories are written here, with numbers that only their names decide. The slow tests let transformers write them and
need it and torch: pip install -e .[hf].
"""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm
import tokenizers as library
from tiny_llm import LLAMA, PAD, ROWS, TEMPLATE, TURN, byte_tokenizer, numbers, write

import gin
from slm_jax import cli, configuration, foundations, import_
from slm_jax.foundations import tokenizers
from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face import decoder_only as importer
from slm_jax.llms import decoder_only


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def imported(source, out):
    """The LLM of the model file, its parameters and its card."""
    card = import_.import_checkpoint(str(source), str(out), 'float32')
    lines = (out / 'model.gin').read_text().splitlines()
    (out / 'x.gin').write_text('\n'.join(line for line in lines if 'prompts' not in line))
    configuration.parse_gin([str(out / 'x.gin')], [])
    return configuration.configured(decoder_only.DecoderOnly)(), foundations.load(out), card


def theirs(card, rows):
    """The checkpoint's ids by ours."""
    moved = tokenizers.rearranged(card['swapped'])
    return np.array([moved.get(row, row) for row in range(rows)])


def test_what_an_import_leaves(tmp_path, capsys):
    source = write(tmp_path / 'source', {'rope_theta': 5e4}, **{'README.md': '---\nlicense: llama3\n---\n'})
    out = tmp_path / 'deep' / 'llm'
    assert cli.main(['import', str(source), str(out), '--dtype', 'float32']) == 0
    assert 'licence: llama3' in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ['card.json', 'model.gin', 'params', 'tokenizer.json']
    card, params = foundations.card(out), foundations.flatten(foundations.load(out))
    assert card['swapped'] == [[0, PAD], [1, TURN]] and card['chat_template'] == TEMPLATE and card['kind'] == 'llm'
    assert card['files'].keys() == {'tokenizer.json'}
    head, embedding = (numbers(name, (ROWS, 12)) for name in ('lm_head.weight', 'model.embed_tokens.weight'))
    order = theirs(card, ROWS)
    np.testing.assert_array_equal(params['token_embedder/embedding'], embedding[order])
    np.testing.assert_array_equal(params['decoder/logits_dense/kernel'], head[order].T)
    keys = [numbers(f'model.layers.{layer}.self_attn.k_proj.weight', (6, 12)).T for layer in range(2)]
    np.testing.assert_array_equal(params['decoder/layers/self_attention/key/kernel'], keys)
    text = (out / 'model.gin').read_text()
    for line in (
        "CHAT_TEMPLATE = '<|user|>{user}<|turn|>A:'", 'LLM_MODULE = @decoder_only.DecoderOnly()',
        '  other_ends = (256,)',
        'EMBED_DIM = 12', '  rope_theta = 50000.0', 'prompts.Prompt.chat = %CHAT_TEMPLATE',
    ):  # fmt: skip
        assert f'\n{line}\n' in text
    vocabulary = foundations.vocabulary(out)
    ids = vocabulary.encode('<|user|>Ünï<|turn|>!')
    assert ids[0] == tiny_llm.USER and ids[-2] == 1 and vocabulary.decode(ids) == 'Ünï'


def test_large_leaves_are_read_in_blocks(tmp_path, monkeypatch):
    source = write(tmp_path / 'source')
    expected = import_.import_checkpoint(str(source), str(tmp_path / 'whole'))
    monkeypatch.setattr(foundations, '_BLOCK_BYTES', 1000)
    monkeypatch.setattr(importer, '_ROWS', 50)
    made = import_.import_checkpoint(str(source), str(tmp_path / 'blocks'))
    assert made['fingerprint'] == expected['fingerprint']


def changed(flags=None, without=(), **arrays):
    """(flags, arrays) of a Llama with other tensors."""
    flags = LLAMA | (flags or {})
    found = {name: numbers(name, shape) for name, shape in tiny_llm.shapes(flags).items() if name not in without}
    return flags, found | {name.replace('__', '.'): value for name, value in arrays.items()}


HEADS = {
    'tied': (changed({'tie_word_embeddings': True}), True),
    'tied, and saved twice': (
        changed({'tie_word_embeddings': True}, lm_head__weight=numbers('model.embed_tokens.weight', (ROWS, 12))), True),
    'alike': (changed(lm_head__weight=numbers('model.embed_tokens.weight', (ROWS, 12))), True),
    'of its own': (changed(), False),
    'differs': (changed({'tie_word_embeddings': True}, lm_head__weight=numbers('x', (ROWS, 12))),
        'lm_head.weight differs from model.embed_tokens.weight.*Set tie_word_embeddings to false'),
    'missing': (changed(without=['lm_head.weight']), 'lm_head.weight is missing.*AutoModelForCausalLM'),
    'not said': (changed({'tie_word_embeddings': 'absent'}, without=['lm_head.weight']), 'lm_head.weight is missing'),
}  # fmt: skip


@pytest.mark.parametrize('case', HEADS)
def test_heads(case, tmp_path):
    (flags, arrays), expected = HEADS[case]
    source, out = write(tmp_path / 'source', flags, arrays), tmp_path / 'out'
    if isinstance(expected, bool):
        assert imported(source, out)[0].config.logits_via_embedding is expected
    else:
        refused(source, expected)


def refused(source, match):
    out = source.parent / 'out'
    with pytest.raises(CheckpointError, match=match):
        import_.import_checkpoint(str(source), str(out))
    assert not out.exists() and not list(source.parent.glob('.out*'))


@pytest.mark.parametrize(
    ('flags', 'match'),
    [
        ({'attention_chunk': 7}, "unknown flag 'attention_chunk' = 7"),
        ({'hidden_act': 'gelu_fast'}, "hidden_act is 'gelu_fast'; there are relu"),
        ({'hidden_act': 3}, 'hidden_act is 3; it must be a text'),
        ({'rms_norm_eps': -1}, 'rms_norm_eps is -1; it must be a number above 0'),
        ({'num_key_value_heads': 2}, 'num_key_value_heads 2 do not divide num_attention_heads 3'),
        ({'num_key_value_heads': 0}, 'num_key_value_heads is 0'),
        ({'head_dim': 5}, 'head_dim is 5; rotary positions want an even number'),
        ({'hidden_size': 'absent'}, 'hidden_size is None; it must be a positive number'),
        ({'attention_bias': 'yes'}, "attention_bias is 'yes'; it must be true or false"),
        ({'mlp_bias': True}, 'no tensor model.layers.0.mlp.gate_proj.bias'),
        ({'quantization_config': {'bits': 4}}, 'quantization_config is .*only None is supported'),
        ({'rope_scaling': {'type': 'yarn', 'factor': 2.0}}, "rope_type is 'yarn'; there are default, linear, llama3"),
        ({'rope_scaling': {'rope_type': 'linear'}}, "rope_type is 'linear', and factor is missing"),
        ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'low_freq_factor is missing'),
        ({'rope_parameters': {'partial_rotary_factor': 0.5}}, "'partial_rotary_factor' = 0.5 of rotary positions"),
        ({'rope_parameters': [1]}, r'rope_parameters is \[1\]; it must be an object'),
        ({'rope_theta': '1e4'}, "rope_theta is '1e4'"),
        ({'model_type': 'mistral', 'sliding_window': 0}, 'sliding_window is 0'),
        ({'model_type': 'mistral', 'layer_types': []}, "unknown flag 'layer_types'"),
        (
            {'model_type': 'qwen3', 'use_sliding_window': True, 'layer_types': ['full_attention']},
            'for each of 2 layers',
        ),
        ({'model_type': 'qwen2', 'layer_types': ['sliding_attention'] * 2}, 'no sliding_window is in use'),
        ({'model_type': 'qwen2', 'use_sliding_window': True, 'max_window_layers': -1}, 'max_window_layers is -1'),
        ({'model_type': 'llama', 'sliding_window': 4}, "unknown flag 'sliding_window'"),
        (
            {'model_type': 'gpt_neox'},
            "model_type is 'gpt_neox'; what can be imported is .*llama, mistral, qwen2, qwen3",
        ),
        ({'eos_token_id': '</s>'}, 'eos_token_id is .*it must be a number, or a list of numbers'),
        ({'eos_token_id': 9000}, r'the end of a text \(eos_token_id\) is 9000; the model has 264 embeddings'),
        ({'vocab_size': 260}, 'it has 261 ids, the model 260 embeddings. This tokenizer is of another'),
    ],
)
def test_flags_that_cannot_be_honoured(flags, match, tmp_path):
    arrays = {name: numbers(name, shape) for name, shape in tiny_llm.shapes(LLAMA).items()}
    refused(write(tmp_path / 'source', flags, arrays), match)


def test_opt_without_what_it_needs(tmp_path):
    flags = {'model_type': 'opt', 'vocab_size': ROWS, 'hidden_size': 12, 'ffn_dim': 20, 'num_hidden_layers': 2}
    flags |= {'num_attention_heads': 5, 'max_position_embeddings': 40}
    file = tmp_path / 'config.json'
    with pytest.raises(CheckpointError, match='num_attention_heads 5 do not divide hidden_size 12'):
        importer.config(file, flags)
    with pytest.raises(CheckpointError, match='layer_norm_elementwise_affine is False; only True'):
        importer.config(file, flags | {'num_attention_heads': 3, 'layer_norm_elementwise_affine': False})


NAN = np.full((12,), np.nan, np.float32)
TENSORS = {
    'missing': (changed(without=['model.norm.weight']), 'no tensor model.norm.weight, which decoder/decod'),
    'no embedding': (changed(without=['model.embed_tokens.weight']), 'no tensor embed_tokens.weight, or more than one'),
    'of no use': (changed(model__extra__weight=numbers('x', (2,))), '1 tensors have no place.*first is model.extra'),
    'more layers': (changed(**{'model__layers__2__mlp__up_proj__weight': numbers('x', (20, 12))}), 'have no place'),
    'another shape': (changed(model__norm__weight=numbers('x', (13,))), r'model.norm.weight is \[13\]; .*it is \[12\]'),
    'other rows': (changed(model__embed_tokens__weight=numbers('x', (ROWS + 1, 12))), r'is \[265, 12\]; .*\[264, 12\]'),
    'numbers that are none': (changed(model__norm__weight=NAN), 'model.norm.weight holds NaN or infinity'),
    'two types': (changed(model__norm__weight=numbers('x', (12,)).astype('float16')), 'norm.weight is float16.*in one'),
}  # fmt: skip


@pytest.mark.parametrize('case', TENSORS)
def test_tensors_that_do_not_fit(case, tmp_path):
    (flags, arrays), match = TENSORS[case]
    refused(write(tmp_path / 'source', flags, arrays), match)


def test_old_buffers_are_left_behind(tmp_path):
    flags, arrays = changed(**{'model__layers__0__self_attn__rotary_emb__inv_freq': numbers('x', (3,))})
    imported(write(tmp_path / 'source', flags, arrays), tmp_path / 'out')


@pytest.mark.parametrize(
    ('files', 'match'),
    [
        ({'tokenizer.json': None}, 'has no tokenizer.json. If it has a SentencePiece file.*save_pretrained'),
        ({'tokenizer.json': '{"version": "1.0"}'}, 'tokenizer.json is no tokenizer that the library `tokenizers` can'),
        ({'tokenizer_config.json': '[]'}, 'tokenizer_config.json holds no JSON object'),
        ({'tokenizer_config.json': '{"chat_template": 7}'}, 'chat_template is 7; it must be a text'),
        ({'tokenizer_config.json': '{"add_bos_token": true}'}, r'texts begin with bos_token \(add_bos_token\)'),
        (
            {'chat_template.jinja': '{{ messages'},
            'chat_template.jinja: the chat template does not run for user.*delete',
        ),
        ({'chat_template.jinja': 'Hello.'}, 'chat_template.jinja: the chat template has no place, or more than one'),
        ({'generation_config.json': '{"eos_token_id": [1.5]}'}, 'generation_config.json: eos_token_id is'),
    ],
)
def test_files_of_the_text_that_cannot_be_had(files, match, tmp_path):
    refused(write(tmp_path / 'source', **files), match)


# What transformers saves for each family, at settings of its own.
LIVE = {
    'llama2': ('Llama', dict(num_key_value_heads=3, attention_bias=True, mlp_bias=True)),
    'llama3': ('Llama', dict(num_key_value_heads=1, head_dim=8, rope_parameters={
        'rope_type': 'llama3', 'rope_theta': 5e5, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
        'original_max_position_embeddings': 16})),
    'linear': ('Llama', dict(tie_word_embeddings=True, rope_parameters={
        'rope_type': 'linear', 'rope_theta': 1e4, 'factor': 2.0})),
    'mistral': ('Mistral', dict(num_key_value_heads=1, sliding_window=4, head_dim=6)),
    'qwen2': ('Qwen2', dict(num_key_value_heads=1, use_sliding_window=True, sliding_window=3, max_window_layers=1)),
    'qwen3': ('Qwen3', dict(num_key_value_heads=3, head_dim=10, attention_bias=True, tie_word_embeddings=True)),
    'qwen3_layers': ('Qwen3', dict(num_key_value_heads=1, use_sliding_window=True, sliding_window=3, head_dim=4,
        layer_types=['sliding_attention', 'full_attention'])),
    'opt': ('OPT', dict(ffn_dim=20, max_position_embeddings=40)),
    'opt_350m': ('OPT', dict(ffn_dim=20, max_position_embeddings=40, do_layer_norm_before=False,
        word_embed_proj_dim=8)),
    'galactica': ('OPT', dict(ffn_dim=20, max_position_embeddings=40, enable_bias=False, activation_function='gelu',
        _remove_final_layer_norm=True, tie_word_embeddings=False)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', LIVE)
def test_what_transformers_saves_computes_the_same(name, tmp_path):
    torch = pytest.importorskip('torch', reason='it makes the reference: pip install -e .[hf]')
    transformers = pytest.importorskip('transformers', reason='it makes the reference: pip install -e .[hf]')
    family, settings = LIVE[name]
    sizes = dict(vocab_size=ROWS, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, eos_token_id=TURN)
    if family != 'OPT':
        sizes['intermediate_size'] = 20
    config = getattr(transformers, f'{family}Config')(**sizes | settings, pad_token_id=PAD, bos_token_id=None)
    torch.manual_seed(1)
    model = getattr(transformers, f'{family}ForCausalLM')(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    source = tmp_path / 'source'
    model.save_pretrained(source)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=library.Tokenizer.from_str(byte_tokenizer()))
    reference.eos_token, reference.chat_template = '<|end|>', TEMPLATE
    reference.save_pretrained(source)
    llm, params, card = imported(source, tmp_path / 'out')
    assert card['swapped'] == [[0, PAD], [1, TURN]]
    prompt = np.random.default_rng(0).integers(2, 250, 13)
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0].numpy()
    embedded = llm.apply({'params': params}, jnp.asarray(prompt[None, :5]), method='embed')
    target = jnp.concatenate([jnp.zeros(1, int), prompt[5:]])[None]
    found = llm.apply({'params': params}, embedded, jnp.ones((1, 5), bool), target, method='logits')[0]
    np.testing.assert_allclose(found, expected[4:][:, theirs(card, ROWS)], rtol=0, atol=1e-4)
