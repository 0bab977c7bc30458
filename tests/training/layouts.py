"""What steps send between devices, for test_partitioning.py.

`python layouts.py` prints, as JSON, what a small SLM does on the mesh 1,4,2 of eight simulated devices.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slm_jax.adapters.slm import SlmAdapter, SlmAdapterConfig
from slm_jax.audio.frontends import UsmFrontend
from slm_jax.decoding import DecodeConfig, search
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.llms.t5 import T5, T5Config
from slm_jax.systems.slm import SLM
from slm_jax.systems.speech_encoder import SpeechEncoder
from slm_jax.training import partitioning, setup, state
from slm_jax.training.collectives import collectives

ROWS, BEAMS, STEPS, HEADS, WIDTH, LAYERS, VOCAB = 8, 2, 6, 4, 16, 2, 510
DECODE = {
    'greedy': DecodeConfig('greedy', STEPS),
    'beam': DecodeConfig('beam', STEPS, beam_size=BEAMS),
    'ctc': DecodeConfig('beam', STEPS, beam_size=BEAMS, ctc_weight=0.5, max_length_ratio=0.5),
    'sample': DecodeConfig('sample', STEPS, top_k=5),
}


def small() -> SLM:
    """Every weight of the language model is larger than the activations of a step."""
    adapter = SlmAdapterConfig(64, 32, 2, 16, 64, num_layers=1)
    llm = T5Config(VOCAB, 64, HEADS, LAYERS, LAYERS, WIDTH, 256, scan_layers=True)
    return SLM(
        SpeechEncoder(UsmFrontend(), UsmEncoder(UsmConfig(LAYERS, 64, HEADS)), ctc_vocab_size=32),
        SlmAdapter(adapter),
        T5(llm),
        token_labels=tuple(i % 32 for i in range(VOCAB)),
    )


def batch_of(rows: int, seconds: float, inputs: int, targets: int) -> setup.BatchShapes:
    """Shapes of a batch."""
    text = ('decoder_input_tokens', 'decoder_target_tokens')
    return {
        'speech_samples': ((rows, int(16_000 * seconds)), jnp.int16),
        'speech_lengths': ((rows,), jnp.int32),
        'encoder_input_tokens': ((rows, inputs), jnp.int32),
        **{name: ((rows, targets), jnp.int32) for name in text},
        'decoder_loss_weights': ((rows, targets), jnp.float32),
    }


def sent(hlo_text: str) -> list[tuple[str, int, int, str]]:
    """(kind, bytes of the result, times, where in the model) of each collective."""
    return [(each.kind, each.result_bytes, each.times, each.op_name) for each in collectives(hlo_text).found]


def small_steps() -> dict:
    """{step: what it sends} on the mesh 1,4,2, and the tokens there and on one device."""
    system, shapes = small(), batch_of(ROWS, 1.0, 4, 4)
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(1, 30, shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
    batch['speech_samples'] = rng.integers(-9000, 9000, shapes['speech_samples'][0]).astype(np.int16)
    batch['speech_lengths'] = np.arange(8_000, 16_000, 1000, np.int32)
    params = jax.jit(lambda key: state.unboxed(system.init(key, setup.least_batch())))(jax.random.key(0))
    found: dict = {'sent': {}, 'tokens': {}}
    for mesh_of in ((1, 4, 2), (1, 1, 1)):
        partitioner = partitioning.Partitioner(*mesh_of)
        mesh = partitioner.mesh(jax.devices()[: np.prod(mesh_of)])
        layout = setup.lay_out(system, ('adapter/.*',), partitioner, mesh)
        optimizer = optax.sgd(1e-3)
        abstract = setup.abstract_state(layout, optimizer)
        placed = jax.tree.map(
            lambda leaf, like: jax.device_put(leaf, like.sharding), params, state.merge(layout.trainable, layout.frozen)
        )
        trained, frozen = state.split(placed, ('adapter/.*',))
        given = partitioning.shard_batch(batch, mesh)
        for name, decode in DECODE.items():
            step = setup.steps(layout, optimizer, abstract, decode, lambda text: None).decode
            found['tokens'].setdefault(name, []).append(np.asarray(step(given, trained, frozen)).tolist())
            if mesh.size > 1:
                found['sent'][name] = sent(step.compiled(given, trained, frozen).as_text())
        if mesh.size > 1:
            evaluate = setup.steps(layout, optimizer, abstract, DecodeConfig(), lambda text: None).evaluate
            found['sent']['evaluation'] = sent(evaluate.compiled(given, trained, frozen).as_text())
            found['best'] = best_of_all(partitioner, mesh)
    return found


def best_of_all(partitioner, mesh) -> list[bool]:
    """Whether a divided vocabulary's best are `lax.top_k`'s: many are equal, and devices do not divide all lengths."""
    alike = []
    for vocab, count in ((VOCAB, 4), (511, 7), (9, 5)):
        scores = jnp.round(2 * jax.random.normal(jax.random.key(vocab), (ROWS, BEAMS, vocab)))
        expected = jax.lax.top_k(scores.reshape(ROWS, -1), count)
        with partitioner.tracing(mesh, generation=True):
            best = jax.jit(lambda scores, count=count: search.best_of_all(scores, count))(scores)
        alike.append(all(bool(jnp.array_equal(*pair)) for pair in zip(best, expected, strict=True)))
    return alike


if __name__ == '__main__':
    json.dump(small_steps(), sys.stdout)
