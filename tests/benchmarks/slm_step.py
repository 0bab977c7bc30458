"""What the benchmarks of a training step share: options, a model, a batch of noise, the state of a training."""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slm_jax import configuration, foundations
from slm_jax.inference import model as model_lib
from slm_jax.training import loop, optimizers
from slm_jax.training import state as state_lib

# Frames are stacked, so that the amount of work does not depend on what CTC makes of noise.
_STACK = (
    'adapter.SlmAdapterConfig.reduction="stack"',
    'adapter.SlmAdapterConfig.reduction_factor=4',
    'slm.SLM.label_tokens=None',
)


def parse_arguments(description: str) -> argparse.Namespace:
    """The options on the command line: the model, the size of the batch, how often to measure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gin_file', default='models/slm_tiny.gin', help='an SLM')
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=6.0)
    parser.add_argument('--target_length', type=int, default=40)
    parser.add_argument('--rounds', type=int, default=10)
    return parser.parse_args()


def configured(args: argparse.Namespace):
    """(system, batch): an SLM that stacks frames, and clips of noise all of one length."""
    configuration.parse_gin([args.gin_file], _STACK)
    system = model_lib.configured_system()
    rng = np.random.default_rng(0)
    vocab_size, samples = system.llm.config.vocab_size, round(16_000 * args.seconds)
    targets = rng.integers(3, vocab_size // 2, (args.rows, args.target_length)).astype(np.int32)
    loudness = 2000 * (1 + np.sin(np.arange(samples) / 2500))
    noise = loudness * rng.standard_normal((args.rows, samples))
    return system, {
        'speech_samples': noise.clip(-32768, 32767).astype(np.int16),
        'speech_lengths': np.full(args.rows, samples, np.int32),
        'encoder_input_tokens': rng.integers(3, vocab_size // 2, (args.rows, 12)).astype(np.int32),
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': np.ones(targets.shape, np.float32),
    }


def model_and_batch(args: argparse.Namespace):
    """(system, parameters, batch) of `configured`: its foundations and a fresh adapter."""
    system, batch = configured(args)
    params = nn.unbox(jax.jit(system.init)(jax.random.key(0), batch))
    for part, name in model_lib.query('%FOUNDATIONS').items():
        params[part] = foundations.load(name, jnp.float32)
    return system, params, batch


def training(system, params, trainable=None):
    """(step(state, frozen, batch), its first state, what is frozen, the optimizer).

    The state has copies of what is trained: by the patterns that are given, or those of the configuration.
    """
    trainable, frozen = state_lib.split(params, trainable or model_lib.query('%TRAINABLE'))
    trainable = jax.tree.map(jnp.copy, trainable)
    optimizer = optimizers.adamw(1e-3)
    state = state_lib.TrainState(
        step=jnp.int32(0),
        bad_step=jnp.int32(-1),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
    )

    def step(state, frozen, batch):
        return loop.train_step(system, optimizer, state, frozen, batch, jax.random.key(0))

    return step, state, frozen, optimizer
