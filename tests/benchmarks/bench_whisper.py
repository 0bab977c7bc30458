"""Whisper's encoder against `transformers`' `WhisperEncoder`, on this machine's CPU, in one run.

    pip install -e '.[hf]'
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tests/benchmarks/bench_whisper.py --windows 4

A random model of Whisper base's sizes is imported as a real one is; time does not depend on the values. That both
compute the same is checked first. Then they take turns on windows of 30 s: from features, and from the waveform. Last,
clips of 3 s in shorter windows (`WhisperConfig.window_seconds`) take turns with the same clips in 30 s.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from slm_jax import configuration, foundations, import_
from slm_jax.systems.speech_encoder import SpeechEncoder

_SIZES = dict(
    d_model=512,
    encoder_layers=6,
    encoder_attention_heads=8,
    encoder_ffn_dim=2048,
    decoder_layers=1,
    decoder_attention_heads=8,
    decoder_ffn_dim=512,
)
_WINDOWS = (None, 5.0, 2.0, 1.0)


def models() -> tuple:
    """The rival, its feature extractor, ours and its parameters."""
    torch.manual_seed(0)
    rival = transformers.WhisperModel(transformers.WhisperConfig(**_SIZES)).eval()
    extractor = transformers.WhisperFeatureExtractor()
    with tempfile.TemporaryDirectory() as folder:
        source, out = pathlib.Path(folder, 'source'), pathlib.Path(folder, 'out')
        rival.save_pretrained(source)
        extractor.save_pretrained(source)
        import_.import_checkpoint(str(source), str(out), 'float32')
        configuration.parse_gin([str(out / 'model.gin')], [])
        ours = configuration.configured(SpeechEncoder)()
        return rival.encoder, extractor, ours, foundations.load(out)


def turns(rounds: int, functions: list[Callable[[], Any]]) -> list[list[float]]:
    """The seconds of each function's rounds; they take turns."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, taken, strict=True):
            started = time.perf_counter()
            np.asarray(function())
            seconds.append(time.perf_counter() - started)
    return taken


def short_clips(model: SpeechEncoder, params: dict, clips: int, rounds: int) -> None:
    """Prints the clips a second of each window, from waveforms of 3 s."""
    samples = np.random.default_rng(0).normal(0, 3000, (clips, 48_000)).astype(np.int16)
    lengths = np.full(clips, 48_000)

    def encode(window_seconds: float | None) -> Callable[[], Any]:
        config = dataclasses.replace(model.encoder.config, window_seconds=window_seconds)
        windowed = model.clone(encoder=model.encoder.clone(config=config))
        function = jax.jit(lambda params, samples: windowed.apply({'params': params}, samples, lengths)[0])
        np.asarray(function(params, samples))
        return lambda: function(params, samples)

    rates = [clips / np.median(seconds) for seconds in turns(rounds, [encode(window) for window in _WINDOWS])]
    for window, rate in zip(_WINDOWS, rates, strict=True):
        print(
            f'{clips} × 3 s from the waveform, window_seconds = {window}, median of {rounds} rounds: '
            f'{rate:.2f} clips a second, {rate / rates[0]:.1f} times as many as with None'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--windows', type=int, default=4, help='windows of 30 s in a batch')
    parser.add_argument('--clips', type=int, default=8, help='clips of 3 s in a batch')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--threads', type=int, default=2, help="PyTorch's; JAX takes every core it may run on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rival, extractor, model, params = models()

    samples = np.random.default_rng(0).normal(0, 3000, (args.windows, 480_000)).astype(np.int16)
    lengths = np.full(args.windows, 480_000)
    features = model.frontend(samples, lengths)[0]

    def extract() -> torch.Tensor:
        clips = list(samples.astype(np.float32) / 32768)
        return extractor(clips, sampling_rate=16_000, return_tensors='pt')['input_features']

    def encode(features: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return rival(features).last_hidden_state.numpy()

    their_features = extract()
    encoder = jax.jit(lambda params, features: model.encoder.apply({'params': params}, features, lengths // 160)[0])
    whole = jax.jit(lambda params, samples: model.apply({'params': params}, samples, lengths)[0])
    pairs = {
        'features': (lambda: encoder(params['encoder'], features), lambda: encode(their_features)),
        'the waveform': (lambda: whole(params, samples), lambda: encode(extract())),
    }
    for start, pair in pairs.items():
        difference = np.abs(np.asarray(pair[0]()) - pair[1]()).max()
        if difference > 1e-3:
            raise SystemExit(f'from {start}: {difference:.1e} apart, they do not compute the same: no comparison')
        taken = turns(args.rounds, list(pair))
        (ours, middle), (theirs, their_middle) = ((min(seconds), np.median(seconds)) for seconds in taken)
        print(
            f'{args.windows} × 30 s from {start}, {difference:.0e} apart, least (median) of {args.rounds} rounds: '
            f'slm_jax {ours:.3f} ({middle:.3f}) s, PyTorch {theirs:.3f} ({their_middle:.3f}) s, '
            f'ratio {ours / theirs:.2f} ({middle / their_middle:.2f})',
            flush=True,
        )
    short_clips(model, params, args.clips, args.rounds)


if __name__ == '__main__':
    main()
