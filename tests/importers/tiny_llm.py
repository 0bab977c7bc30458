"""Directories of a tiny Llama, with numbers that only their names decide, and a tokenizer of bytes."""

import json
import zlib

import numpy as np
import tokenizers

from slm_jax.exporters import safetensors
from slm_jax.importers.hugging_face.tensors import Tensor

SPECIAL = ('<|end|>', '<|turn|>', '<|user|>', '<|unused|>', '<|pad|>')
ROWS = 264  # 256 bytes, 5 special tokens, 3 rows without a token
END, TURN, USER, UNUSED, PAD = range(256, 261)
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else 'A:' }}{{ m.content }}<|turn|>{% endfor %}"
    '{% if add_generation_prompt %}A:{% endif %}'
)
SETTINGS = {'eos_token': '<|end|>', 'pad_token': '<|pad|>', 'chat_template': TEMPLATE}
LLAMA = {
    'model_type': 'llama', 'vocab_size': ROWS, 'hidden_size': 12, 'intermediate_size': 20, 'num_hidden_layers': 2,
    'num_attention_heads': 3, 'num_key_value_heads': 1, 'head_dim': 6, 'tie_word_embeddings': False,
    'eos_token_id': [END, TURN],
}  # fmt: skip


def byte_tokenizer(special=SPECIAL):
    """One token a byte, and special ones: the content of a tokenizer.json."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
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
