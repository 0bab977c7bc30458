"""Where a training step of SLM spends its floating-point operations and its time.

    python tests/benchmarks/bench_step.py
    python tests/benchmarks/bench_step.py --gin_file=models/slm_tiny.gin --rows 8 --seconds 6

Frozen parts need no gradient of their parameters: of what a forward pass costs, the least is 1 for the speech
encoder, 2 for the language model (the gradient flows through it to the adapter), 3 for the adapter. XLA counts both
the compiled step and, part by part, the compiled forward passes that make up this least. The times are of parts
compiled apart; a whole step is less than their sum where XLA fuses across them.
"""

import argparse
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slm_jax import configuration
from slm_jax.evaluation import model as model_lib
from slm_jax.systems.text_to_text import token_loss
from slm_jax.training import loop, optimizers
from slm_jax.training import state as state_lib


def measured(function, *arguments, rounds: int) -> tuple[float, float]:
    """(floating-point operations as XLA counts them, median seconds) of a compiled call."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    return compiled.cost_analysis()['flops'], statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--gin_file', default='models/slm_tiny.gin')
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=6.0)
    parser.add_argument('--target_length', type=int, default=40)
    parser.add_argument('--rounds', type=int, default=10)
    args = parser.parse_args()

    configuration.parse_gin([args.gin_file], [])
    system = model_lib.configured_system()
    speech_encoder, adapter, llm = system.speech_encoder, system.adapter, system.llm
    rng = np.random.default_rng(0)
    samples, shape = round(16_000 * args.seconds), (args.rows, args.target_length)
    tokens = rng.integers(3, llm.config.vocab_size, shape).astype(np.int32)
    batch = {
        'speech_samples': rng.integers(-2000, 2000, (args.rows, samples)).astype(np.int16),
        'speech_lengths': np.full(args.rows, samples, np.int32),
        'encoder_input_tokens': tokens[:, :12],
        'decoder_input_tokens': tokens,
        'decoder_target_tokens': tokens,
        'decoder_loss_weights': np.ones(shape, np.float32),
    }
    params = nn.unbox(jax.jit(system.init)(jax.random.key(0), batch))
    heard = {'params': params['speech_encoder']}
    features = jax.jit(speech_encoder.frontend)(batch['speech_samples'], batch['speech_lengths'])
    encode = jax.jit(
        lambda *features: speech_encoder.encoder.apply(
            {'params': heard['params']['encoder']}, *features
        )
    )
    frames = encode(*features)
    speech, lengths = jax.jit(adapter.apply)({'params': params['adapter']}, *frames)
    prompt = jnp.concatenate([speech, speech[:, :12]], axis=1)
    mask = jnp.ones(prompt.shape[:2], bool)

    def answer(params, prompt):
        encoded = llm.apply({'params': params}, prompt, mask, method='encode')
        decoded = llm.apply({'params': params}, encoded, mask, tokens, tokens, method='decode')
        return token_loss(decoded, batch, 0.0)[0]

    def adapt(params, frames):
        return jnp.sum(adapter.apply({'params': params}, frames, frame_lengths)[0])

    frames, frame_lengths = frames
    optimizer = optimizers.adamw(1e-3)
    trainable, frozen = state_lib.split(params, model_lib.query('%TRAINABLE'))
    state = state_lib.TrainState(
        step=jnp.int32(0),
        bad_step=jnp.int32(-1),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
    )

    def update(state, gradient):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        return jax.tree.map(jnp.add, state.trainable, updates), opt_state

    parts = {
        'frontend': ((speech_encoder.frontend, batch['speech_samples'], batch['speech_lengths']),)
        * 2,
        'speech encoder, frozen': ((encode, *features),) * 2,
        'adapter, trained': (
            (adapt, params['adapter'], frames),
            (jax.value_and_grad(adapt), params['adapter'], frames),
        ),
        'language model, frozen': (
            (answer, params['llm'], prompt),
            (jax.value_and_grad(answer, argnums=1), params['llm'], prompt),
        ),
        'optimizer': ((update, state, trainable),) * 2,
    }
    factors = {'adapter, trained': 3, 'language model, frozen': 2}
    flops, seconds = measured(
        lambda state, frozen, batch: loop.train_step(system, optimizer, state, frozen, batch, jax.random.key(0)),
        state, frozen, batch, rounds=args.rounds,
    )  # fmt: skip
    print(
        f'{args.rows} clips of {args.seconds} s, {args.target_length} target tokens, {jax.devices()[0].device_kind}'
    )
    print(
        f'{"":24} {"forward":>9} {"least":>9} {"time":>9}\n{"":24} {"GFLOP":>9} {"GFLOP":>9} {"ms":>9}'
    )
    least = 0.0
    for name, (forward, used) in parts.items():
        part_flops, _ = measured(*forward, rounds=1)
        _, part_seconds = measured(*used, rounds=args.rounds)
        needed = factors.get(name, 1) * part_flops
        least += needed
        print(f'{name:24} {part_flops / 1e9:9.3f} {needed / 1e9:9.3f} {1000 * part_seconds:9.1f}')
    print(f'{"sum":24} {"":9} {least / 1e9:9.3f}')
    print(f'{"training step":24} {"":9} {flops / 1e9:9.3f} {1000 * seconds:9.1f}')
    print(f'compiled over least: {flops / least:.3f}')


if __name__ == '__main__':
    main()
