"""Reduction kind x depth of the adapter, three seeds each, on the voice prompts.

    python tests/benchmarks/bench_reductions.py --steps 150

Trains SLM's adapter on the packaged foundations anew for every line and seed, by the run file of the quickstart, on
recognition alone, and prints cross-entropy and accuracy of the validation split's characters (each with the true ones
before it), mean and range over the seeds. The first kind starts from the embeddings of CTC's labels, the others from
nothing.
"""

import argparse
import statistics
import tempfile

from slm_jax import cli, configuration

KINDS = {
    'ctc_blank, from labels': ('ctc_blank', 1),
    'ctc_blank': ('ctc_blank', 1),
    'discard': ('discard', 4),
    'stack': ('stack', 4),
    'mean': ('mean', 4),
    'conv': ('conv', 4),
}
METRICS = ('validation/loss', 'validation/accuracy')


def train(kind: str, depth: int, seed: int, steps: int) -> tuple[float, ...]:
    """The metrics after training once."""
    from slm_jax import train

    reduction, factor = KINDS[kind]
    labels = [] if 'labels' in kind else ['slm.SLM.label_tokens=None', 'adapter.SlmAdapterConfig.output_scale=1.0']
    with tempfile.TemporaryDirectory() as model_dir:
        configuration.parse_gin(
            ['runs/slm_tiny_voice_prompts.gin'],
            [
                f'MODEL_DIR={model_dir!r}',
                "MIXTURE_OR_TASK_NAME='voice_prompts_asr'",
                f'TRAIN_STEPS={steps}',
                f'EVAL_PERIOD={steps}',
                f'WARMUP_STEPS={steps // 5}',
                'NUM_BUCKETS=4',
                'train.train.num_samples=0',
                f'RANDOM_SEED={seed}',
                f'adapter.SlmAdapterConfig.reduction={reduction!r}',
                f'adapter.SlmAdapterConfig.reduction_factor={factor}',
                f'adapter.SlmAdapterConfig.num_layers={depth}',
                *labels,
            ],
        )
        evaluation = configuration.configured(train.train)()['evaluation']
    return tuple(evaluation[metric] for metric in METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=150)
    parser.add_argument('--depths', type=int, nargs='+', default=[1, 3])
    parser.add_argument('--seeds', type=int, default=3)
    args = parser.parse_args()
    cli.quiet_libraries()
    print('| reduction | layers | loss (range) | accuracy, % (range) |\n| --- | --- | --- | --- |', flush=True)
    for kind in KINDS:
        for depth in args.depths:
            runs = [train(kind, depth, seed, args.steps) for seed in range(args.seeds)]
            losses, accuracies = zip(*runs, strict=True)
            cells = [
                f'{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})'
                for values, digits in ((losses, 2), ([100 * value for value in accuracies], 1))
            ]
            print(f'| {kind} | {depth} | {cells[0]} | {cells[1]} |', flush=True)


if __name__ == '__main__':
    main()
