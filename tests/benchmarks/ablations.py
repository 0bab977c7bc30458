"""Variants that are trained alike, over several seeds, and evaluated alike: one table.

    python tests/benchmarks/ablations.py tests/benchmarks/tables/comsl.toml OUT --gin.TEXT_MODEL=out/mbart_tiny … \\
        --evaluate 'prompts=--task voice_prompts_ast --split test' --seeds 0 1 2
    python tests/benchmarks/ablations.py tests/benchmarks/tables/adapter_kinds.toml OUT --gin_file corpus.gin \\
        --evaluate 'WER=--manifest test.jsonl' --only mlp token_ctc

A table is TOML:

    files = ['runs/slm_base_llm.gin']         the gin files of all trainings
    gin = '''LEARNING_RATE = 1e-3'''          bindings of all of them, with their imports
    metrics = ['validation/loss']             columns: of the last evaluation while training, '' where there is none
    [variants.mlp]
    what = 'MLP on 8 frames'                  its name in the table
    files = […]                               instead of the table's
    like = 'stack'                            begins with that variant's gin
    gin = '''…'''                             after the table's
    once = true                               is trained with the first seed alone, for all who come after it
    after = {ADAPTER = 'ctc'}                 macros: the model directories of variants before it
    options = '--beam_size 1'                 of its evaluations
    evaluated = false                         it cannot write: there are none
    [variants.cascade]
    what = 'recognition, then translation'    nothing is trained:
    of = 'translation'                        this variant's model is evaluated,
    text_from = 'recognition'                 on what that variant's has heard

--gin_file and --gin.NAME=VALUE come after all of these. The order of the data follows the seed as well. A cell is the
mean over seeds, then each seed's, then the mean of their 95% bootstrap intervals over examples. What was done in OUT is
not done again: the same command goes on.
"""

import argparse
import json
import pathlib
import resource
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

_RATES = (('wer',), ('bleu', 'chrf'), ('contains',), ('f1',), ('accuracy',))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', type=pathlib.Path)
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--gin_file', action='append', default=[])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--only', nargs='+', metavar='VARIANT')
    parser.add_argument(
        '--evaluate', action='append', default=[], metavar='NAME=OPTIONS', help='of slm-jax evaluate; a column'
    )
    args, bindings = parser.parse_known_args()
    if wrong := [each for each in bindings if not each.startswith('--gin.')]:
        parser.error(f'{wrong[0]} is not known')
    table = tomllib.loads(args.table.read_text())
    evaluations = dict(each.split('=', 1) for each in args.evaluate)
    args.out.mkdir(parents=True, exist_ok=True)
    heads = ['', 'trained', 'CPU-minutes', *table['metrics'], *evaluations]
    rows = [heads, ['---'] * len(heads)]
    variants = table['variants']
    for name in args.only or variants:
        seeds = args.seeds[:1] if variants[name].get('once') else args.seeds
        rows.append([variants[name]['what']])
        if 'of' in variants[name]:
            rows[-1] += [''] * (len(heads) - 1 - len(evaluations))
        else:
            spent = [train(args, table, name, seed, bindings) for seed in seeds]
            rows[-1] += trained([directory(args, variants, name, seed) for seed in seeds], spent, table['metrics'])
        for column, options in evaluations.items():
            able = seeds if variants[name].get('evaluated', True) else []
            outs = [evaluate(args, variants, name, seed, column, options) for seed in able]
            rows[-1].append(rates(outs) if outs else '')
        print('', *(f'| {" | ".join(row)} |' for row in rows), sep='\n', flush=True)


def train(args: argparse.Namespace, table: Mapping[str, Any], name: str, seed: int, bindings: list[str]) -> float:
    """Trains a variant to its last step; returns the CPU-seconds that this took."""
    variants = table['variants']
    variant, model_dir = variants[name], directory(args, variants, name, seed)
    own, spent = args.out / f'{name}.gin', model_dir.with_name(f'{model_dir.name}.seconds')
    own.write_text('\n'.join(['from __gin__ import dynamic_registration', table['gin'], *_gin(variants, name), '']))
    before = {macro: directory(args, variants, each, seed) for macro, each in variant.get('after', {}).items()}
    run(
        ['train', *(f'--gin_file={each}' for each in (*variant.get('files', table['files']), own, *args.gin_file))]
        + [f'--gin.{macro}={str(path)!r}' for macro, path in before.items()]
        + [f'--gin.MODEL_DIR={str(model_dir)!r}', f'--gin.RANDOM_SEED={seed}', *bindings],
        spent,
    )
    return sum(map(float, spent.read_text().split()))


def _gin(variants: Mapping[str, Any], name: str) -> list[str]:
    variant = variants[name]
    before = _gin(variants, variant['like']) if 'like' in variant else []
    return [*before, variant.get('gin', '')]


def write_prepare(data: pathlib.Path, lengths: Mapping[str, int], *bindings: str) -> None:
    """DATA/prepare.gin, with which `slm-jax prepare` stores what DATA/data.gin names; nothing is trained by it."""
    lines = [
        'from __gin__ import dynamic_registration',
        "include 'runs/train.gin'",
        f'include {str(data / "data.gin")!r}',
        f'MODEL_DIR = {str(data / "never_trained")!r}',
        'MODEL = None',
        'TRAIN_STEPS = 1',
        f'TASK_FEATURE_LENGTHS = {dict(lengths)}',
        *bindings,
    ]
    (data / 'prepare.gin').write_text(''.join(f'{line}\n' for line in lines))


def directory(args: argparse.Namespace, variants: Mapping[str, Any], name: str, seed: int) -> pathlib.Path:
    """Of a variant's model."""
    variant = variants[name]
    if 'of' in variant:
        return directory(args, variants, variant['of'], seed)
    return args.out / f'{name}.{args.seeds[0] if variant.get("once") else seed}'


def trained(model_dirs: Sequence[pathlib.Path], seconds: Sequence[float], metrics: Sequence[str]) -> list[str]:
    """The cells on what was trained, for how long, and on the metrics of the last evaluations while training."""
    cards = [json.loads((each / 'card.json').read_text()) for each in model_dirs]
    cells = [f'{cards[0]["num_params"]["trained"] / 1e6:.1f}M', f'{statistics.mean(seconds) / 60:.0f}']
    for metric in metrics:
        values = [card['evaluation'][metric] for card in cards if metric in card['evaluation']]
        cells.append(_mean(values, '.3f') if values else '')
    return cells


def evaluate(
    args: argparse.Namespace, variants: Mapping[str, Any], name: str, seed: int, column: str, options: str
) -> pathlib.Path:
    """The directory of an evaluation, which is made if it is not there."""
    variant, found = variants[name], args.out / f'{name}.{seed}.{column}'
    given = shlex.split(f'{options} {variant.get("options", "")}')
    if heard := variant.get('text_from'):
        given += ['--text_from', str(args.out / f'{heard}.{seed}.{column}' / 'predictions.jsonl')]
    if not (found / 'results.json').exists():
        run(['evaluate', str(directory(args, variants, name, seed)), '--out', str(found), *given])
    return found


def rates(outs: Sequence[pathlib.Path]) -> str:
    """A cell: of each kind of example its first rates, over all of them or else of the first group."""
    cells = []
    results = [json.loads((out / 'results.json').read_text())['scores'] for out in outs]
    for kind in results[0]:
        scores = [each[kind].get('overall') or next(iter(each[kind].values())) for each in results]
        for rate in next(rates for rates in _RATES if rates[0] in scores[0]):
            cell = f'{rate} {_mean([each[rate] for each in scores], ".1f")}'
            if all(rate in each.get('intervals', {}) for each in scores):
                low, high = (statistics.mean(ends) for ends in zip(*(each['intervals'][rate] for each in scores)))
                cell += f' [{low:.1f}, {high:.1f}]'
            cells.append(cell)
    return ', '.join(cells)


def _mean(values: Sequence[float], form: str) -> str:
    """Their mean, and where there are several in parentheses each."""
    each = f' ({" ".join(f"{value:{form}}" for value in values)})' * (len(values) > 1)
    return f'{statistics.mean(values):{form}}{each}'


def run(arguments: list[str], spent: pathlib.Path | None = None) -> None:
    """Runs a program of slm-jax; `spent` gets a line with its CPU seconds, however it ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run([sys.executable, '-m', 'slm_jax.cli', *arguments], check=True)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if spent:
            with spent.open('a') as file:
                file.write(f'{after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime:.1f}\n')


if __name__ == '__main__':
    main()
