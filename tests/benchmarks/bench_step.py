"""Where a training step of SLM spends its floating-point operations and its time.

    python tests/benchmarks/bench_step.py

Frozen parts need no gradient of their parameters: of what a forward pass costs, the least is 1 for the speech
encoder, 2 for the language model (the gradient flows through it to the adapter), 3 for the adapter. XLA counts both
the compiled step and, part by part, the compiled forward passes that make up this least; it counts the body of a loop
once, however often it runs, so what is counted has its layers one after another instead. The times are of parts
compiled apart, which need not add up to the step's.

Of a decoder-only language model (the shapes of Qwen2.5-0.5B) the operations are set against those of its products with
weights: two a weight and token forward, and as many backward, to the prompt. The output layer has target tokens only.
"""

import functools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import slm_step

from slm_jax import llms
from slm_jax.llms.decoder_only import DecoderOnly, DecoderOnlyConfig
from slm_jax.systems.text_to_text import token_loss


def counted(function: Callable, *arguments) -> float:
    """Floating-point operations of a call, as XLA counts them."""
    with (
        mock.patch.object(nn, 'scan', functools.partial(nn.scan, unroll=True)),
        mock.patch.object(jax.lax, 'map', lambda body, rows: jnp.stack([body(row) for row in rows])),
    ):
        lowered = jax.jit(lambda *arguments: function(*arguments)).lower(*arguments)
    return lowered.compile().cost_analysis()['flops']


def timed(function: Callable, *arguments, rounds: int) -> float:
    """Median seconds of a compiled call."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def decoder_only(rows: int, prompt_length: int, target_length: int) -> None:
    """Prints the operations of a frozen decoder-only model, and their ratio to what its weights need."""
    llm = DecoderOnly(
        DecoderOnlyConfig(
            vocab_size=151_936, emb_dim=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64, mlp_dim=4864,
            qkv_bias=True, logits_via_embedding=True, rope_theta=1e6,
        )
    )  # fmt: skip
    params = nn.unbox(jax.eval_shape(lambda: llms.initial_params(llm, jax.random.key(0))))
    prompt = jax.ShapeDtypeStruct((rows, prompt_length, llm.config.emb_dim), jnp.float32)
    tokens = jnp.ones((rows, target_length), jnp.int32)
    batch = {'decoder_target_tokens': tokens, 'decoder_loss_weights': jnp.ones(tokens.shape)}

    def answer(params, prompt):
        mask = jnp.ones(prompt.shape[:2], bool)
        logits = llm.apply({'params': params}, prompt, mask, tokens, tokens, method='logits')
        return token_loss(logits, batch, 0.0)[0]

    kernels = sum(
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params['decoder']) if 'kernel' in str(path[-1])
    )
    read = rows * (prompt_length + target_length - 1)  # the first token of a target is the last of its prompt
    weights = kernels * read + llm.config.vocab_size * llm.config.emb_dim * rows * target_length
    forward = counted(answer, params, prompt)
    both = counted(jax.value_and_grad(answer, argnums=1), params, prompt)
    print(f'decoder-only, {prompt_length} + {target_length} tokens: forward {forward / 1e9:.0f} GFLOP, ', end='')
    print(f'{forward / (2 * weights):.3f} of 2N; with the gradient {both / 1e9:.0f}, {both / (4 * weights):.3f} of 4N')


def main() -> None:
    args = slm_step.parse_arguments(__doc__)
    system, params, batch = slm_step.model_and_batch(args)
    step, state, frozen, optimizer = slm_step.training(system, params)
    speech_encoder, adapter, llm = system.speech_encoder, system.adapter, system.llm
    speech = batch['speech_samples'], batch['speech_lengths']
    tokens = batch['decoder_target_tokens']

    def encode(params, *features):
        return speech_encoder.encoder.apply({'params': params}, *features)

    features = jax.jit(speech_encoder.frontend)(*speech)
    encoding = encode, params['speech_encoder']['encoder'], *features
    frames, frame_lengths = jax.jit(encode)(*encoding[1:])
    adapted, _ = jax.jit(adapter.apply)({'params': params['adapter']}, frames, frame_lengths)
    prompt = jnp.concatenate([adapted, adapted[:, :12]], axis=1)
    mask = jnp.ones(prompt.shape[:2], bool)

    def answer(params, prompt):
        logits = llm.apply({'params': params}, prompt, mask, tokens, tokens, method='logits')
        return token_loss(logits, batch, 0.0)[0]

    def adapt(params, frames):
        return jnp.sum(adapter.apply({'params': params}, frames, frame_lengths)[0])

    def update(state, gradient):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        return optax.apply_updates(state.trainable, updates), opt_state

    # How often a forward pass is needed at least, that pass, and what a step runs.
    updating = update, state, state.trainable
    parts = {
        'frontend': (1, (speech_encoder.frontend, *speech), (speech_encoder.frontend, *speech)),
        'speech encoder, frozen': (1, encoding, encoding),
        'adapter, trained': (
            3,
            (adapt, params['adapter'], frames),
            (jax.value_and_grad(adapt), params['adapter'], frames),
        ),
        'language model, frozen': (
            2,
            (answer, params['llm'], prompt),
            (jax.value_and_grad(answer, argnums=1), params['llm'], prompt),
        ),
        'optimizer': (1, updating, updating),
    }
    flops = counted(step, state, frozen, batch)
    seconds = timed(step, state, frozen, batch, rounds=args.rounds)
    print(f'{args.rows} clips of {args.seconds} s, {args.target_length} target tokens, {jax.devices()[0].device_kind}')
    print(f'{"":24} {"forward":>9} {"least":>9} {"time":>9}\n{"":24} {"GFLOP":>9} {"GFLOP":>9} {"ms":>9}')
    least = 0.0
    for name, (factor, forward, used) in parts.items():
        part_flops = counted(*forward)
        part_seconds = timed(*used, rounds=args.rounds)
        needed = factor * part_flops
        least += needed
        print(f'{name:24} {part_flops / 1e9:9.3f} {needed / 1e9:9.3f} {1000 * part_seconds:9.1f}')
    print(f'{"sum":24} {"":9} {least / 1e9:9.3f}')
    print(f'{"training step":24} {"":9} {flops / 1e9:9.3f} {1000 * seconds:9.1f}')
    print(f'compiled over least: {flops / least:.3f}')
    decoder_only(args.rows, prompt.shape[1], args.target_length)


if __name__ == '__main__':
    main()
