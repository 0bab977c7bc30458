"""Floating-point operations of a training step of ComSL, against the least that its passes need.

    python tests/benchmarks/bench_comsl.py models/comsl_medium.gin

Counted are matrix products and convolutions on the jaxpr, as XLA takes the body of a loop once. The least is counted by
hand: each pass once, forward, and twice that for the gradient. The text model's recomputation (REMAT_POLICY) is off.
"""

import argparse
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from slm_jax import configuration
from slm_jax.systems.comsl import ComSL
from slm_jax.training import flops, precompiled, state


def _attention(width: int, reads: int, queries: int, keys: int) -> int:
    """Of queries to keys, whose projections are of `reads` vectors."""
    return 2 * (2 * queries + 2 * reads) * width**2 + 4 * queries * keys * width


def by_hand(system: ComSL, seconds: float, transcript: int, translation: int) -> Mapping[str, int]:
    """Forward, for a recording of so many seconds and texts of so many tokens, by pass.

    Args:
        system: with all of its losses.
        seconds: of audio.
        transcript: tokens with its language and its end.
        translation: with its end.
    """
    speech, text, adapter = system.speech_encoder.encoder.config, system.llm.config, system.adapter.config
    frames = round(50 * seconds)
    window, d, e = speech.window(frames), speech.emb_dim, text.emb_dim
    layer = _attention(d, window, window, window) + 4 * window * d * speech.mlp_dim
    heard = 2 * window * 3 * (2 * system.speech_encoder.frontend.num_mel_bins + d) * d + speech.num_layers * layer
    half = -(-frames // 2)
    vectors = -(-half // 2)
    ratio = adapter.expansion
    adapted = 4 * ratio * (frames * d**2 + half * e**2) + 2 * 3 * 2 * e * (half * d + vectors * e)

    def encoder(length: int) -> int:
        layer = _attention(e, length, length, length) + 4 * length * e * text.mlp_dim
        return text.num_encoder_layers * layer

    def decoder(targets: int, reads: int) -> int:
        own, cross = _attention(e, targets, targets, targets), _attention(e, reads, targets, reads)
        layer = own + cross + 4 * targets * e * text.mlp_dim
        return text.num_decoder_layers * layer + 2 * targets * e * text.vocab_size

    vectors, written = vectors + 1, transcript - 1
    return {
        'speech encoder': heard,
        'adapter': adapted,
        'text model reads speech': encoder(vectors),
        'text model reads text': encoder(transcript),
        'text model reads both': encoder(vectors + transcript),
        'asr': decoder(written, vectors),
        'st': decoder(translation, vectors),
        'mt': decoder(translation, transcript),
        'asr_mix': decoder(written, vectors),
        'st_mix': decoder(translation, vectors),
        'mtp': decoder(written, transcript),
    }


def factor(system: ComSL, seconds: float, transcript: int, translation: int) -> tuple[int, Mapping[str, int]]:
    """(what one row's gradient takes, the forward passes by hand)."""
    text = dataclasses.replace(system.llm.config, remat_policy='none')
    system = dataclasses.replace(system, llm=system.llm.clone(config=text))
    shapes = precompiled.Size(1, seconds, 3, translation + 1).shapes(system)
    shapes = {**shapes, 'teacher_input_tokens': ((1, transcript), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}
    params = state.unboxed(jax.eval_shape(lambda: system.init(jax.random.key(0), _zeros(batch))))

    def loss(params, batch, rng):
        return system.loss(params, batch, rng)[0]

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, batch, jax.eval_shape(jax.random.key, 0))
    return flops.count(jaxpr.jaxpr), by_hand(system, seconds, transcript, translation)


def _zeros(batch):
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in batch.items()}


def main() -> None:
    """Prints the passes, and the factor."""
    from slm_jax.inference import model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('gin_file', nargs='?', default='models/comsl_medium.gin')
    parser.add_argument('--seconds', type=float, default=11.0)
    parser.add_argument('--transcript', type=int, default=32, help='tokens, with language and end')
    parser.add_argument('--translation', type=int, default=32, help='tokens, with the end')
    args = parser.parse_args()
    configuration.parse_gin([args.gin_file], [])
    taken, passes = factor(model.configured_system(), args.seconds, args.transcript, args.translation)
    for name, count in passes.items():
        print(f'{name:24}{3 * count / 1e9:10.1f} GFLOP')
    least = 3 * sum(passes.values())
    print(f'{"least":24}{least / 1e9:10.1f}\n{"taken":24}{taken / 1e9:10.1f}\n{"factor":24}{taken / least:10.3f}')


if __name__ == '__main__':
    main()
