"""The plan of very many examples with synthetic lengths: seconds and memory until the first batch of a late step.

    python tests/benchmarks/bench_plan.py
    python tests/benchmarks/bench_plan.py --examples 1000000 --tasks 100 --step 0

The lengths themselves (8 bytes an example) are counted in the memory, and not in the time.
"""

import argparse
import resource
import time

import numpy as np

from slm_jax.data import plan as plan_lib


def lengths(examples: int, task: int, rate: float) -> plan_lib.TaskLengths:
    """Clips of 0.5 to 30 s, 8 s in the middle."""
    rng = np.random.default_rng(task)
    samples = np.empty(examples, np.int32)
    for start in range(0, examples, 2**20):
        part = samples[start : start + 2**20]
        part[:] = (16000 * np.exp(2.1 + 0.6 * rng.standard_normal(len(part), np.float32))).clip(8000, 480000)
    targets = (samples // 5000 + 3).astype(np.uint16)
    return plan_lib.TaskLengths(np.arange(examples, dtype=np.uint32), samples, targets % 7 + 5, targets, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--examples', type=int, default=100_000_000)
    parser.add_argument('--tasks', type=int, default=1)
    parser.add_argument('--step', type=int, default=1_000_000)
    parser.add_argument('--seconds_per_batch', type=float, default=3840.0)
    parser.add_argument('--row_multiple', type=int, default=64)
    args = parser.parse_args()
    tasks = [lengths(args.examples // args.tasks, task, 1.0 + task % 3) for task in range(args.tasks)]

    def spent() -> str:
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return f'{time.perf_counter() - wall:.2f} s, {time.process_time() - cpu:.2f} CPU s, peak {megabytes:.0f} MB'

    wall, cpu = time.perf_counter(), time.process_time()
    plan = plan_lib.Plan(tasks, args.seconds_per_batch, row_multiple=args.row_multiple)
    print(f'plan of {args.examples} examples of {args.tasks} tasks: {spent()}; {len(plan.buckets)} shapes')
    batch = plan.batch(args.step)
    print(f'and the batch of step {args.step}, {len(batch.rows)} rows: {spent()}')
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(args.step, args.step + 1000):
        plan.batch(step)
    print(f'1000 batches more: {spent()}')


if __name__ == '__main__':
    main()
