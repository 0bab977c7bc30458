"""Adapters of several kinds, or one that learns by several objectives: trained alike, evaluated alike, in one table.

    python tests/benchmarks/bench_adapter_kinds.py kinds OUT --gin_file corpus.gin --steps 1000 \\
        --evaluate 'WER=--manifest test.jsonl' --evaluate 'orders=--manifest orders.jsonl --slots all'
    slm-jax answers clips.jsonl answers.jsonl --model qwen2.5_coder_0.5b
    python tests/benchmarks/bench_adapter_kinds.py objectives OUT --gin_file answers.gin --gin.ADAPTER=runs/ctc \\
        --steps cross_entropy=300,distil=200,both=200 --evaluate …

corpus.gin says MIXTURE_OR_TASK_NAME and LABELS, and what else runs/slm_base_llm.gin wants. Frames are read that
`slm-jax prepare … --encode models/slm_base.gin` stored (--gin.ENCODED=False: recordings). `kinds` are fresh adapters of
similar size between Whisper base and Qwen 0.5B; `objectives` train the same adapter, ADAPTER. The order of the clips is
the same in all. What was done in OUT is not done again: the same command goes on.
"""

import argparse
import json
import pathlib
import resource
import shlex
import subprocess
import sys

_SLM_ADAPTER = """
slm.SLM.adapter = @adapter.SlmAdapter()
slm.SLM.label_tokens = None
decoding.DecodeConfig.ctc_weight = 0.0
adapter.SlmAdapterConfig:
  output_dim = %EMBED_DIM
  output_scale = %EMBED_SCALE
  reduction_factor = %REDUCTION_FACTOR
  num_heads = 8
  head_dim = 64
  mlp_dim = 2048
  reduction = '{reduction}'
  emb_dim = {width}
  num_layers = {layers}
"""
_HEAD = """from __gin__ import dynamic_registration
from slm_jax import decoding
from slm_jax.adapters import slm as adapter
from slm_jax.systems import slm
"""
_FRESH = """
ADAPTER = None
FOUNDATIONS = {'speech_encoder': %SPEECH_ENCODER, 'llm': %LLM}
LEARNING_RATE = 1e-3
"""
# Name: (what it is, gin). Trained parameters are 9.9M to 10.9M.
_VARIANTS = {
    'kinds': {
        'stack': ('4 frames, two matrices', _SLM_ADAPTER.format(reduction='stack', width=3520, layers=0)),
        'mlp': ('MLP on 8 frames, 4 apart', _SLM_ADAPTER.format(reduction='conv', width=2048, layers=0)),
        'transformer': ('4 frames, Transformer', _SLM_ADAPTER.format(reduction='stack', width=512, layers=2)),
        'conv': ('convolution, Transformer', _SLM_ADAPTER.format(reduction='conv', width=512, layers=2)),
        'token_ctc': ('tokens by CTC', ''),
        'token_ctc_too': (
            'tokens by CTC, which it learns by too', "slm.SLM.objective = {'cross_entropy': 1.0, 'ctc': 1.0}"
        ),
    },
    'objectives': {
        'cross_entropy': ('cross-entropy', "slm.SLM.objective = 'cross_entropy'"),
        'distil': ('distillation', "slm.SLM.objective = 'distil'"),
        'both': ('half of each', "slm.SLM.objective = {'cross_entropy': 0.5, 'distil': 0.5}"),
    },
}  # fmt: skip
_RATES = ('wer', 'bleu', 'contains', 'f1')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=_VARIANTS)
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--gin_file', action='append', default=[])
    parser.add_argument('--steps', required=True, help='of all, or NAME=STEPS,NAME=STEPS of those that are wanted')
    parser.add_argument(
        '--evaluate', action='append', default=[], metavar='NAME=OPTIONS', help='of slm-jax evaluate; a column'
    )
    args, bindings = parser.parse_known_args()
    if wrong := [each for each in bindings if not each.startswith('--gin.')]:
        parser.error(f'{wrong[0]} is not known')
    variants = _VARIANTS[args.what]
    steps = dict.fromkeys(variants, args.steps)
    if '=' in args.steps:
        steps = dict(pair.split('=') for pair in args.steps.split(','))
    evaluations = dict(each.split('=', 1) for each in args.evaluate)
    args.out.mkdir(parents=True, exist_ok=True)
    heads = ['', 'trained', 'steps', 'CPU-minutes', 'loss', *evaluations]
    rows = [heads, ['---'] * len(heads)]
    for name, count in steps.items():
        what, text = variants[name]
        start = _FRESH if args.what == 'kinds' else ''
        rows.append([what, *trained(args, name, _HEAD + start + text, int(count), bindings)])
        rows[-1] += [evaluated(args.out / name, column, options) for column, options in evaluations.items()]
        print('', *(f'| {" | ".join(row)} |' for row in rows), sep='\n', flush=True)


def trained(args: argparse.Namespace, name: str, text: str, steps: int, bindings: list[str]) -> list[str]:
    """Trains one to its last step; returns the cells that say what it is then."""
    gin, spent, model_dir = args.out / f'{name}.gin', args.out / f'{name}.seconds', args.out / name
    gin.write_text(text)
    run(
        ['train', *(f'--gin_file={each}' for each in ('runs/slm_base_llm.gin', gin, *args.gin_file))]
        + [f'--gin.MODEL_DIR={model_dir}', f'--gin.TRAIN_STEPS={steps}', f'--gin.WARMUP_STEPS={max(1, steps // 10)}']
        + [f'--gin.EVAL_PERIOD={steps}', '--gin.ENCODED=True', *bindings],
        spent,
    )
    card = json.loads((model_dir / 'card.json').read_text())
    minutes = sum(map(float, spent.read_text().split())) / 60
    return [
        f'{card["num_params"]["trained"] / 1e6:.1f}M', str(steps), f'{minutes:.0f}',
        f'{card["evaluation"]["validation/loss"]:.3f}',
    ]  # fmt: skip


def evaluated(model_dir: pathlib.Path, column: str, options: str) -> str:
    """The first rate of each kind of example in an evaluation, which is made if it is not there."""
    out = model_dir.with_name(f'{model_dir.name}.{column}')
    if not (out / 'results.json').exists():
        run(['evaluate', str(model_dir), '--out', str(out), *shlex.split(options)])
    return rates(out)


def rates(out: pathlib.Path) -> str:
    """The first rate of each kind of example of the evaluation that is there."""
    cells = []
    for groups in json.loads((out / 'results.json').read_text())['scores'].values():
        scores = groups.get('overall') or next(iter(groups.values()))
        rate = next(rate for rate in _RATES if rate in scores)
        cells.append(f'{rate} {scores[rate]:.1f}')
    return ', '.join(cells)


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
