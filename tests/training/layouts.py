"""What steps send between devices, for test_partitioning.py.

`python layouts.py evaluation ctc` prints, as JSON, what these steps of a small SLM do on eight simulated devices;
`python layouts.py v5e:4x8 1,4,8 32 beam` what a step of SLM-XXL sends on a slice of TPUs.
"""

import json
import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from slm_jax import configuration
from slm_jax.adapters.slm import SlmAdapter, SlmAdapterConfig
from slm_jax.audio.frontends import UsmFrontend
from slm_jax.decoding import DecodeConfig, search
from slm_jax.encoders.usm import UsmConfig, UsmEncoder
from slm_jax.inference import model
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


def small_steps(names: Sequence[str]) -> dict:
    """{step: what it sends} on the mesh 1,4,2, of evaluation and ways to decode; and tokens there and on one device."""
    system, shapes = small(), batch_of(ROWS, 0.5, 4, 4)
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(1, 30, shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
    batch['speech_samples'] = rng.integers(-9000, 9000, shapes['speech_samples'][0]).astype(np.int16)
    batch['speech_lengths'] = np.arange(4_000, 8_000, 500, np.int32)
    params = jax.jit(lambda key: state.unboxed(system.init(key, setup.least_batch())))(jax.random.key(0))
    found: dict = {'sent': {}, 'tokens': {name: [] for name in names if name in DECODE}}
    for sizes in ((1, 4, 2), (1, 1, 1)):
        partitioner = partitioning.Partitioner(*sizes)
        mesh = partitioner.mesh(jax.devices()[: math.prod(sizes)])
        layout = setup.lay_out(system, ('adapter/.*',), partitioner, mesh)
        optimizer = optax.sgd(1e-3)
        abstract = setup.abstract_state(layout, optimizer)
        places = jax.tree.map(lambda leaf: leaf.sharding, state.merge(layout.trainable, layout.frozen))
        trained, frozen = state.split(jax.device_put(params, places), ('adapter/.*',))
        given = partitioning.shard_batch(batch, mesh)
        for name in names:
            steps = setup.steps(layout, optimizer, abstract, DECODE.get(name, DecodeConfig()), lambda text: None)
            step = steps.decode if name in DECODE else steps.evaluate
            if mesh.size > 1:
                found['sent'][name] = sent(step.compiled(given, trained, frozen).as_text())
            if name in DECODE:
                found['tokens'][name].append(np.asarray(step(given, trained, frozen)).tolist())
        if mesh.size > 1:
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


def xxl(topology: str, sizes: Sequence[int], rows: int, step: str) -> dict[str, int]:
    """Bytes that a step of SLM-XXL sends on TPUs that are not there, by kind of collective: 15 s, 64 + 128 tokens."""
    configuration.parse_gin(['models/slm_xxl.gin'], [])
    partitioner = partitioning.Partitioner(*sizes)
    devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    layout = setup.lay_out(
        model.configured_system(), ('adapter/.*',), partitioner, partitioner.mesh(devices), 'bfloat16'
    )
    optimizer = optax.adam(1e-3)
    decode = DecodeConfig() if step == 'evaluation' else DecodeConfig(step, 128)
    steps = setup.steps(layout, optimizer, setup.abstract_state(layout, optimizer), decode, lambda text: None)
    compiled = (steps.evaluate if step == 'evaluation' else steps.decode).compiled(
        layout.batch(batch_of(rows, 15.0, 64, 128)), layout.trainable, layout.held
    )
    return collectives(compiled.as_text()).by_kind


if __name__ == '__main__':
    if ':' in sys.argv[1]:
        topology, sizes, rows, step = sys.argv[1:]
        json.dump(xxl(topology, [int(size) for size in sizes.split(',')], int(rows), step), sys.stdout)
    else:
        json.dump(small_steps(sys.argv[1:]), sys.stdout)
