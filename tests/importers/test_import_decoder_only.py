"""Decoder-only LLMs of Hugging Face's layout: what transformers computes, we compute; what is not known is refused.

Directories are written here, with numbers that only their names decide. The slow tests let transformers write them and
need it and torch: pip install -e .[hf].
"""

import json
import pathlib
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import gin
from slm_jax import cli, configuration, foundations, import_
from slm_jax.exporters import safetensors
from slm_jax.foundations import tokenizers
from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face.tensors import Tensor
from slm_jax.llms import decoder_only

SPECIAL = ('<|end|>', '<|turn|>', '<|user|>', '<|unused|>', '<|pad|>')
ROWS = 264  # 256 bytes, 5 special tokens, 3 rows without a token
END, TURN, USER, UNUSED, PAD = range(256, 261)
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else 'A:' }}{{ m.content }}<|turn|>{% endfor %}"
    '{% if add_generation_prompt %}A:{% endif %}'
)
LLAMA = {
    'model_type': 'llama', 'vocab_size': ROWS, 'hidden_size': 12, 'intermediate_size': 20, 'num_hidden_layers': 2,
    'num_attention_heads': 3, 'num_key_value_heads': 1, 'head_dim': 6, 'tie_word_embeddings': False,
    'eos_token_id': [END, TURN],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_configuration():
    """gin is as it was afterwards."""
    yield
    gin.clear_config()


def byte_tokenizer(special=SPECIAL):
    """One token a byte, and special ones: the content of a tokenizer.json."""
    library = pytest.importorskip('tokenizers')
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = library.Tokenizer(library.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str()


def shapes(flags):
    """Names and shapes of the tensors of a Llama."""
    width, heads, inner = flags['hidden_size'], flags['head_dim'], flags['intermediate_size']
    found = {'model.embed_tokens.weight': (flags['vocab_size'], width), 'model.norm.weight': (width,)}
    for layer in range(flags['num_hidden_layers']):
        name = f'model.layers.{layer}'
        found |= {f'{name}.{norm}.weight': (width,) for norm in ('input_layernorm', 'post_attention_layernorm')}
        for part, count in (('q', 'num_attention_heads'), ('k', 'num_key_value_heads'), ('v', 'num_key_value_heads')):
            found[f'{name}.self_attn.{part}_proj.weight'] = (flags[count] * heads, width)
        found[f'{name}.self_attn.o_proj.weight'] = (width, flags['num_attention_heads'] * heads)
        found |= {f'{name}.mlp.{part}_proj.weight': (inner, width) for part in ('gate', 'up')}
        found[f'{name}.mlp.down_proj.weight'] = (width, inner)
    if not flags['tie_word_embeddings']:
        found['lm_head.weight'] = (flags['vocab_size'], width)
    return found


def numbers(name, shape):
    """Of a tensor, by its name alone."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def write(path, flags=None, arrays=None, **files):
    """A directory: flags, arrays by name, and other files."""
    path.mkdir()
    flags = LLAMA | (flags or {})
    if arrays is None:
        arrays = {name: numbers(name, shape) for name, shape in shapes(flags).items()}
    tensors = {name: Tensor(path, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
    safetensors.write(path / 'model.safetensors', tensors, {'format': 'pt'})
    contents = {
        'config.json': json.dumps({key: value for key, value in flags.items() if value != 'absent'}),
        'tokenizer.json': byte_tokenizer(),
        'tokenizer_config.json': json.dumps(
            {'eos_token': '<|end|>', 'pad_token': '<|pad|>', 'chat_template': TEMPLATE}
        ),
    }
    for name, content in (contents | files).items():
        if content is not None:
            (path / name).write_text(content)
    return path


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
    'opt_350m': ('OPT', dict(ffn_dim=20, max_position_embeddings=40, do_layer_norm_before=False, word_embed_proj_dim=8)),
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
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=_library().from_str(byte_tokenizer()))
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


def _library():
    import tokenizers as library

    return library.Tokenizer
