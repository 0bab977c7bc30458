"""A training step of DMLM against `transformers`' LlamaForCausalLM on the same texts, on this CPU, in one run.

    pip install -e '.[hf]'
    python tests/benchmarks/bench_dmlm.py --layers 30

Both have the sizes of SmolLM2-135M with a table that has grown, the same fresh parameters, float32 and AdamW.
That both compute the same loss is checked first. Then they take turns on two batches: rows that one text fills, and
short texts, which we pack into such rows (`data/packing.py`) and the rival pads to the longest, as its collators do.
FLOPs are those of matrix products; the rival's are counted by PyTorch.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import torch
import transformers
from flax import linen as nn
from torch.utils import flop_counter

from slm_jax import configuration, foundations
from slm_jax.data import packing
from slm_jax.inference import model as model_lib
from slm_jax.training import flops, loop, optimizers
from slm_jax.training.state import TrainState

# A layer's parameters: ours, then those of `transformers`.
_LAYER = {
    'pre_self_attention_layer_norm/scale': 'input_layernorm',
    'pre_mlp_layer_norm/scale': 'post_attention_layernorm',
    'self_attention/query/kernel': 'self_attn.q_proj',
    'self_attention/key/kernel': 'self_attn.k_proj',
    'self_attention/value/kernel': 'self_attn.v_proj',
    'self_attention/out/kernel': 'self_attn.o_proj',
    'mlp/wi_0/kernel': 'mlp.gate_proj',
    'mlp/wi_1/kernel': 'mlp.up_proj',
    'mlp/wo/kernel': 'mlp.down_proj',
}
_RATE = 1e-4


def rival(config, params) -> transformers.LlamaForCausalLM:
    """The Llama of `transformers` with our parameters, whose table has all rows."""
    leaves = {path: np.array(leaf) for path, leaf in foundations.flatten(params).items()}
    table = np.concatenate([leaves['token_embedder/embedding'], leaves['grown/embedding']])
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(table),
            hidden_size=config.emb_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={'rope_type': 'default', 'rope_theta': config.rope_theta},
            tie_word_embeddings=True,
            attn_implementation='sdpa',
        )
    )
    state = {'model.embed_tokens.weight': table, 'lm_head.weight': table}
    state['model.norm.weight'] = leaves['decoder/decoder_norm/scale']
    for ours, theirs in _LAYER.items():
        for layer, value in enumerate(leaves[f'decoder/layers/{ours}']):
            state[f'model.layers.{layer}.{theirs}.weight'] = value.T
    llama.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    return llama.train()


def padded(texts) -> dict[str, torch.Tensor]:
    """The rival's batch: a row a text, and as long as the longest."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    ids = torch.from_numpy(ids)
    there = ids > 0
    return {'input_ids': ids, 'attention_mask': there.long(), 'labels': torch.where(there, ids, -100)}


def packed(texts, length) -> dict[str, np.ndarray]:
    """Ours: rows of `length` places, every token of a text but its first learnt."""
    rows = packing.pack([len(text) - 1 for text in texts], length)
    made = [packing.row_of([(texts[i][:1], texts[i][1:]) for i in row], length) for row in rows]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--layers', type=int, default=30)
    parser.add_argument('--rows', type=int, default=4)
    parser.add_argument('--length', type=int, default=512)
    parser.add_argument('--turns', type=int, default=3)
    args = parser.parse_args()
    configuration.parse_gin(
        ['models/dmlm_smollm2.gin'],
        [f'DecoderOnlyConfig.num_layers={args.layers}', 'NEW_ROWS_LIKE=None', "OBJECTIVE='token_mean'"],
    )
    system = model_lib.configured_system()
    params = nn.unbox(jax.jit(lambda: system.init(jax.random.key(0), {}))())
    optimizer = optimizers.adamw(_RATE, clip_norm=None)
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, args.length // 2, 1000)
    short = lengths[: int(np.searchsorted(np.cumsum(lengths), args.rows * args.length))]
    for name, sizes in (('a text a row', [args.length + 1] * args.rows), ('short texts', short)):
        texts = [rng.integers(2, system.modalities.ranges['control'][1], size) for size in sizes]
        ours, theirs = packed(texts, args.length), padded(texts)
        compare(name, sum(map(len, texts)), system, optimizer, params, ours, theirs, args.turns)


def compare(name, tokens, system, optimizer, params, ours, theirs, turns) -> None:
    """Prints what a step takes of both."""
    state = TrainState(step=np.int32(0), bad_step=np.int32(-1), trainable=params, opt_state=optimizer.init(params))
    step = jax.jit(lambda state, batch: loop.train_step(system, optimizer, state, {}, batch, jax.random.key(0)))
    traced = step.trace(state, ours)
    our_flops, compiled = flops.count(traced.jaxpr.jaxpr), traced.lower().compile()
    llama = rival(system.llm.config, params['llm'])
    adamw = torch.optim.AdamW(llama.parameters(), _RATE, weight_decay=0.0)

    def our_step():
        nonlocal state
        state, record = compiled(state, ours)
        return float(record['step_loss'])

    def their_step():
        loss = llama(**theirs).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        return float(loss.detach())

    with flop_counter.FlopCounterMode(display=False) as counted:
        losses = our_step(), their_step()
    np.testing.assert_allclose(*losses, rtol=1e-4)
    times = {our_step: [], their_step: []}
    for _ in range(turns):
        for each in times:
            started = time.perf_counter()
            each()
            times[each].append(time.perf_counter() - started)
    mine, its = (statistics.median(each) for each in times.values())
    places = ours['decoder_input_tokens'].size, theirs['input_ids'].numel()
    print(
        f'{name}: {tokens} tokens, {places[0]} places here and {places[1]} there; '
        f'{our_flops / 1e12:.3f} and {counted.get_total_flops() / 1e12:.3f} TFLOP, '
        f'{mine:.2f} and {its:.2f} s a step: {its / mine:.2f} times as fast'
    )


if __name__ == '__main__':
    main()
