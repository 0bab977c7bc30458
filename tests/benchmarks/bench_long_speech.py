"""Memory and time of long recordings: SSR, whose vectors are as many as tokens are said, beside SLM's adapter.

    python tests/benchmarks/bench_long_speech.py
    python tests/benchmarks/bench_long_speech.py --seconds 10 60 600 --rate 3.2 --most_gb 8

Whisper base and SmolLM2-135M, whose sizes matter here and whose weights do not: they are random, and an aligner that
divides the frames evenly writes --rate tokens a second. SLM's adapter gives 12.5. Recordings are noise. They are heard
in pieces of at most 30 s, as `slm-jax infer --max_seconds` hears them, and the language model reads all that comes of
them and writes one token. Each row is a process of its own:

    positions    that the language model reads
    hears        seconds until the embeddings are there
    reads        seconds until the first token is
    XLA          of the language model's program: parameters, temporaries, results; above --most_gb it is not run
    peak         of the process, as Linux knows it (VmHWM)
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slm_jax import configuration
from slm_jax.decoding import DecodeConfig
from slm_jax.encoders import aligners
from slm_jax.inference import model as model_lib
from slm_jax.inference import pieces, queries
from slm_jax.training import setup

_SECONDS = (10, 30, 60, 300, 600, 1800, 3600)
_PIECE = 30.0
_FILES = {
    'SSR': ['models/ssr_smollm2.gin'],
    'SLM': ['runs/slm_imported.gin', 'models/whisper_base.gin', 'models/smollm2_135m.gin'],
}


class Even(nn.Module):
    """An aligner that writes so many tokens a second of Whisper's frames."""

    rate: float
    needs_tokens = False

    def __call__(self, frames, frame_lengths, tokens=None, token_lengths=None, token_ends=None):
        place = jnp.arange(frames.shape[1])
        lengths = jnp.ceil(frame_lengths / 50 * self.rate).astype(jnp.int32)
        ends = (place + 1) * frame_lengths[:, None] // jnp.maximum(lengths, 1)[:, None] - 1
        boundaries, lengths = aligners.partition(ends, lengths, frame_lengths)
        return aligners.Alignment(boundaries, lengths, jnp.where(place < lengths[:, None], 3, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=int, nargs='+', default=_SECONDS)
    parser.add_argument('--rate', type=float, default=3.5, help='tokens a second')
    parser.add_argument('--most_gb', type=float, default=12.0)
    parser.add_argument('--row', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(row(args.row, args.seconds[0], args)))
        return
    heads = ('audio', 'system', 'positions', 'hears, s', 'reads, s', 'XLA, GB', 'peak, GB')
    print('', f'| {" | ".join(heads)} |', f'| {" | ".join(["---"] * len(heads))} |', sep='\n', flush=True)
    for seconds in args.seconds:
        for kind in _FILES:
            own = ['--row', kind, '--seconds', str(seconds), '--rate', str(args.rate), '--most_gb', str(args.most_gb)]
            done = subprocess.run([sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            audio = f'{seconds} s' if seconds < 60 else f'{seconds / 60:g} min'
            print(f'| {" | ".join(map(str, (audio, kind, *found)))} |', flush=True)


def row(kind: str, seconds: int, args: argparse.Namespace) -> list[str]:
    """One system and one recording."""
    unset = ['MODEL_DIR=""', 'MIXTURE_OR_TASK_NAME=""', 'TRAIN_STEPS=1'] if kind == 'SLM' else []
    configuration.parse_gin(_FILES[kind], unset)
    system = model_lib.configured_system()
    if kind == 'SSR':
        system = dataclasses.replace(system, aligner=Even(args.rate), probe_answers=False, piece_seconds=_PIECE)
    fresh = jax.jit(lambda rng: nn.unbox(system.init(rng, setup.least_batch())))
    params = fresh(jax.random.key(0))
    programs: dict = {}

    def run(name, function, batch):
        key = name, *(array.shape for array in batch.values())
        if key not in programs:
            programs[key] = jax.jit(function).lower(params, dict(batch)).compile()
        begun = time.perf_counter()
        result = jax.tree.map(np.asarray, programs[key](params, dict(batch)))
        took[name] = took.get(name, 0.0) + time.perf_counter() - begun
        return result

    # SLM's adapter hears pieces as well, of which nothing else asks it.
    hears = types.SimpleNamespace(listen=system.listen, piece=_PIECE)
    model = types.SimpleNamespace(
        system=hears, run=run, encoder_seconds=None, computed_seconds=0.0, row_multiple=1, pieces={},
        directory=types.SimpleNamespace(name=kind),
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(-3000, 3000, seconds * queries.SAMPLE_RATE).astype(np.int16)
    query = queries.Query((5,) * 20, noise, recordings=(len(noise),))
    batch = queries.batch_of([query], (seconds, 32), 1)
    took: dict[str, float] = {}
    pieces.listened(model, batch)
    took.clear()  # the second time nothing is compiled
    model.pieces = {}
    made = {name: jnp.asarray(array) for name, array in pieces.listened(model, batch).items()}
    decode = DecodeConfig(max_decode_length=1)
    compiled = jax.jit(lambda params, batch: system.predict(params, batch, decode)).lower(params, made).compile()
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    reads = 'not run'
    if needed < 1e9 * args.most_gb:
        jax.block_until_ready(compiled(params, made))
        begun = time.perf_counter()
        jax.block_until_ready(compiled(params, made))
        reads = f'{time.perf_counter() - begun:.2f}'
    with open('/proc/self/status', encoding='utf-8') as file:
        peak = int(re.search(r'VmHWM:\s+(\d+) kB', file.read())[1]) * 1024
    positions = int(made['speech_embedding_lengths'].sum())
    return [str(positions), f'{took["listen"]:.2f}', reads, f'{needed / 1e9:.2f}', f'{peak / 1e9:.2f}']


if __name__ == '__main__':
    main()
