"""Makes the goldens of this folder with `transformers` and PyTorch: pip install -e .[hf]; python make.py

A file for each family: prompts of odd lengths, targets, their logits, and what `generate` writes greedily and with four
beams, each row alone. Parameters are not stored: `parameters` makes them anew, alike here and in the tests.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).parent
MAX_LENGTH = 9
LENGTHS = (11, 1, 6)
_HF = dict(vocab_size=48, hidden_size=12, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0, eos_token_id=1)
_OURS = dict(vocab_size=48, emb_dim=12, num_layers=3, num_heads=4, mlp_dim=20)
_LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
_OPT = dict(norm='layer', norm_epsilon=1e-5, positions='learned', max_positions=40, num_kv_heads=4, head_dim=3)
_BIASED = dict(qkv_bias=True, out_bias=True, mlp_bias=True)
# By family: the class of transformers, what differs from _HF, what differs from _OURS, and a seed with which the
# sequences that are generated do not all end at once.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    'llama2': (
        'Llama',
        dict(num_key_value_heads=4, head_dim=4, rms_norm_eps=1e-2, mlp_bias=True,
             rope_parameters=dict(rope_type='linear', factor=2.5, rope_theta=500.0)),
        dict(num_kv_heads=4, head_dim=4, norm_epsilon=1e-2, mlp_bias=True, rope_theta=500.0,
             rope_scaling=dict(type='linear', factor=2.5)),
        83,
    ),
    'llama3': (
        'Llama',
        dict(num_key_value_heads=2, head_dim=16, attention_bias=True, tie_word_embeddings=True,
             rope_parameters=dict(rope_type='llama3', rope_theta=5000.0, **_LLAMA3)),
        dict(num_kv_heads=2, head_dim=16, qkv_bias=True, out_bias=True, logits_via_embedding=True, rope_theta=5000.0,
             rope_scaling=dict(rope_type='llama3', **_LLAMA3)),
        316,
    ),
    'smollm2': (
        'Llama',
        dict(num_attention_heads=6, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True,
             rope_parameters=dict(rope_type='default', rope_theta=1e5)),
        dict(num_heads=6, num_kv_heads=2, head_dim=4, logits_via_embedding=True, rope_theta=1e5,
             rope_scaling=dict(rope_type='default')),
        152,
    ),
    'mistral': (
        'Mistral',
        dict(num_key_value_heads=1, head_dim=6, sliding_window=4),
        dict(num_kv_heads=1, head_dim=6, sliding_window=4),
        332,
    ),
    'qwen2': (
        'Qwen2',
        dict(num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=True, use_sliding_window=True,
             sliding_window=3, max_window_layers=1, rope_parameters=dict(rope_type='default', rope_theta=1e6)),
        dict(num_heads=6, num_kv_heads=3, head_dim=2, qkv_bias=True, logits_via_embedding=True, rope_theta=1e6,
             sliding_window=3, sliding_layers=(1, 2)),
        272,
    ),
    'qwen3': (
        'Qwen3',
        dict(num_key_value_heads=2, head_dim=10, attention_bias=True),
        dict(num_kv_heads=2, head_dim=10, qk_norm=True, qkv_bias=True, out_bias=True),
        151,
    ),
    'opt': (
        'OPT',
        dict(max_position_embeddings=40),
        dict(**_OPT, **_BIASED, mlp_activations=('relu',), logits_via_embedding=True),
        252,
    ),
    'opt_post_norm': (
        'OPT',
        dict(max_position_embeddings=40, do_layer_norm_before=False, word_embed_proj_dim=8),
        dict(**_OPT, **_BIASED, mlp_activations=('relu',), logits_via_embedding=True, norm_first=False,
             final_norm=False, embed_dim=8),
        114,
    ),
    'opt_no_bias': (
        'OPT',
        dict(max_position_embeddings=40, enable_bias=False, activation_function='gelu', tie_word_embeddings=False),
        dict(**_OPT, mlp_activations=('gelu_exact',)),
        42,
    ),
}  # fmt: skip
_LLAMA_NAMES = {
    'token_embedder': 'model.embed_tokens',
    'decoder/layers/pre_self_attention_layer_norm': 'model.layers.{}.input_layernorm',
    'decoder/layers/self_attention/query': 'model.layers.{}.self_attn.q_proj',
    'decoder/layers/self_attention/key': 'model.layers.{}.self_attn.k_proj',
    'decoder/layers/self_attention/value': 'model.layers.{}.self_attn.v_proj',
    'decoder/layers/self_attention/out': 'model.layers.{}.self_attn.o_proj',
    'decoder/layers/self_attention/query_norm': 'model.layers.{}.self_attn.q_norm',
    'decoder/layers/self_attention/key_norm': 'model.layers.{}.self_attn.k_norm',
    'decoder/layers/pre_mlp_layer_norm': 'model.layers.{}.post_attention_layernorm',
    'decoder/layers/mlp/wi_0': 'model.layers.{}.mlp.gate_proj',
    'decoder/layers/mlp/wi_1': 'model.layers.{}.mlp.up_proj',
    'decoder/layers/mlp/wo': 'model.layers.{}.mlp.down_proj',
    'decoder/decoder_norm': 'model.norm',
    'decoder/logits_dense': 'lm_head',
}
_OPT_NAMES = {path: name.replace('model.', 'model.decoder.') for path, name in _LLAMA_NAMES.items()} | {
    'decoder/layers/pre_self_attention_layer_norm': 'model.decoder.layers.{}.self_attn_layer_norm',
    'decoder/layers/self_attention/out': 'model.decoder.layers.{}.self_attn.out_proj',
    'decoder/layers/pre_mlp_layer_norm': 'model.decoder.layers.{}.final_layer_norm',
    'decoder/layers/mlp/wi': 'model.decoder.layers.{}.fc1',
    'decoder/layers/mlp/wo': 'model.decoder.layers.{}.fc2',
    'decoder/decoder_norm': 'model.decoder.final_layer_norm',
    'decoder/position_embedder': 'model.decoder.embed_positions',
    'decoder/project_in': 'model.decoder.project_in',
    'decoder/project_out': 'model.decoder.project_out',
}


def config(family: str) -> dict[str, Any]:
    """Fields of our configuration."""
    return _OURS | FAMILIES[family][2]


def parameters(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Parameters by path, all far from their initial values, so that nothing can be left out unseen."""
    rng = np.random.RandomState(seed)  # whose numbers are the same in all versions of numpy
    values = {}
    head = 'decoder/logits_dense/kernel' if 'decoder/logits_dense/kernel' in shapes else 'token_embedder/embedding'
    for path in sorted(shapes):
        value, name = rng.randn(*shapes[path]), path.rpartition('/')[2]
        if name == 'scale':
            value = 1 + 0.3 * value
        elif name == 'bias':
            value = 0.5 * value
        elif name == 'kernel':
            value *= shapes[path][-2] ** -0.5
        if path == head:
            value *= 0.3
            ends = value[1] if name == 'embedding' else value[:, 1]
            ends *= 25  # an end is certain or impossible; see tests/testdata/t5_goldens/make.py
        values[path] = value.astype(np.float32)
    return values


def random_model(family: str, params: Mapping[str, np.ndarray], **changes):
    """The model of transformers that has these parameters; `changes` are of its settings."""
    import torch
    import transformers

    class_name, settings, *_ = FAMILIES[family]
    settings = settings | changes
    names = _OPT_NAMES if class_name == 'OPT' else _LLAMA_NAMES
    mlp = {'ffn_dim' if class_name == 'OPT' else 'intermediate_size': _OURS['mlp_dim']}
    tied = settings.get('tie_word_embeddings', class_name == 'OPT')
    hf_config = getattr(transformers, f'{class_name}Config')(**(_HF | mlp | {'tie_word_embeddings': tied} | settings))
    hf_config._attn_implementation = 'eager'
    model = getattr(transformers, f'{class_name}ForCausalLM')(hf_config).eval()
    expected = {name for name, _ in model.named_parameters()}
    for path, value in params.items():
        module, _, leaf = path.rpartition('/')
        layers = range(len(value)) if '/layers/' in path else (None,)
        for layer in layers:
            one = value if layer is None else value[layer]
            if leaf == 'kernel':
                one = one.T
            if module == 'decoder/position_embedder':
                one = np.concatenate([np.zeros((2, one.shape[1]), np.float32), one])  # OPT's offset
            name = f'{names[module].format(layer)}.{"bias" if leaf == "bias" else "weight"}'
            expected.remove(name)
            model.get_parameter(name).data = torch.tensor(np.ascontiguousarray(one))
    assert not expected, expected
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=1)
    return model


def batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts, which of their positions are valid, and targets."""
    rng = np.random.RandomState(seed)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    tokens = np.where(mask, rng.randint(2, _OURS['vocab_size'], mask.shape), 0)
    return tokens, mask, rng.randint(2, _OURS['vocab_size'], (len(mask), 7))


def outputs(model, seed: int) -> dict[str, np.ndarray]:
    """What the reference makes of each row alone: logits of the target, and what it writes.

    Ours never writes padding, so neither does the reference here. For when beams agree see
    tests/testdata/t5_goldens/make.py.
    """
    import torch

    tokens, mask, targets = batch(seed)
    found: dict[str, list[np.ndarray]] = {'logits': [], 'greedy': [], 'beams': []}
    options = dict(max_new_tokens=MAX_LENGTH, do_sample=False, suppress_tokens=[0], renormalize_logits=True)
    for row, valid, target in zip(tokens, mask, targets, strict=True):
        prompt = torch.tensor(row[valid])[None]
        text = torch.cat([prompt, torch.tensor(target[:-1])[None]], dim=1)
        with torch.no_grad():
            found['logits'].append(model(text).logits[0, prompt.shape[1] - 1 :].numpy())
            for name, beams in (('greedy', dict(num_beams=1)), ('beams', dict(num_beams=4, length_penalty=0.0,
                                                                             early_stopping='never'))):  # fmt: skip
                written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **beams, **options)
                written = written[0, prompt.shape[1] :].numpy()
                found[name].append(np.pad(written, (0, MAX_LENGTH - len(written))))
    return {name: np.stack(rows).astype(np.float32 if name == 'logits' else np.int32) for name, rows in found.items()}


def log_probability(model, seed: int, row: int, text: np.ndarray) -> float:
    """Of a text up to its end, after a prompt of `batch`: tells which of two beam searches found the better."""
    import torch

    tokens, mask, _ = batch(seed)
    prompt, size = tokens[row][mask[row]], np.argmax(text == 1) + 1 if (text == 1).any() else len(text)
    with torch.no_grad():
        logits = model(torch.tensor(np.concatenate([prompt, text[: size - 1]]))[None]).logits[0, len(prompt) - 1 :]
    logits[:, 0] = -torch.inf  # padding is never written
    return float(torch.log_softmax(logits, -1)[torch.arange(size), torch.tensor(text[:size]).long()].sum())


if __name__ == '__main__':
    import jax

    from slm_jax import foundations
    from slm_jax.llms import decoder_only, initial_params
    from slm_jax.training.state import unboxed

    for family, (*_, seed) in FAMILIES.items():
        module = decoder_only.DecoderOnly(decoder_only.DecoderOnlyConfig(**config(family)))
        made = unboxed(jax.eval_shape(lambda module=module: initial_params(module, jax.random.key(0))))
        shapes = {path: leaf.shape for path, leaf in foundations.flatten(made).items()}
        np.savez_compressed(HERE / f'{family}.npz', **outputs(random_model(family, parameters(shapes, seed)), seed))
