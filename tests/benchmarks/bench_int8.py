"""A trained model with its frozen parts in float32, bfloat16 and int8: bytes held, and the loss on its validation data.

    python tests/benchmarks/bench_int8.py runs/slm

The batches are those of its training's evaluations, by the configuration in its card; `--batches` takes the first few.
"""

import argparse
import contextlib
import itertools
import time

import jax

from slm_jax import cli
from slm_jax.inference import model as model_lib
from slm_jax.training import loop, partitioning, state


def measure(model_dir: str, dtype: str, batches: int | None) -> tuple[float, int, dict[str, float]]:
    """(seconds of loading, bytes of the frozen parameters, weighted means of the loss and of all other metrics)."""
    started = time.perf_counter()
    model = jax.block_until_ready(model_lib.load(model_dir, bindings=[f'FROZEN_DTYPE={dtype}']))
    seconds = time.perf_counter() - started
    _, frozen = state.split(model.params, model.card['trainable'])
    model_lib.configure(model.card, [], [], training=True)
    loader = model_lib.query('slm_jax.train.train.eval_loaders')['validation']
    loader = loader() if callable(loader) else loader
    metrics = jax.jit(lambda params, batch: model.system.loss(params, batch, None)[1])
    mean = loop.MeanMetrics()
    with contextlib.closing(loader.examples()) as examples:
        for batch, _ in itertools.islice(examples, batches):
            mean.add(metrics(model.params, partitioning.shard_batch(batch, model.mesh)))
    return seconds, sum(leaf.nbytes for leaf in jax.tree.leaves(frozen)), mean.means()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL_DIR')
    parser.add_argument('--batches', type=int, help='default: all')
    args = parser.parse_args()
    cli.quiet_libraries()
    print('| frozen parts | MB | loaded in, s | loss | change | accuracy |\n| --- | --- | --- | --- | --- | --- |')
    first = None
    for dtype in ('float32', 'bfloat16', 'int8'):
        seconds, size, means = measure(args.model, dtype, args.batches)
        first = first or means['loss']
        change, accuracy = means['loss'] / first - 1, means['accuracy']
        print(f'| {dtype} | {size / 1e6:.2f} | {seconds:.1f} | {means["loss"]:#.6g} | {change:+.3%} | {accuracy:.4f} |')


if __name__ == '__main__':
    main()
