"""What a language model forgets while its adapter learns to listen: adapter alone, LoRA of ranks 4, 16, 64, all of it.

Or while SSR learns its second stage: all of it, LoRA, and all of it beside texts (--mixture), the variant 'multitask'.

    python tests/benchmarks/bench_forgetting.py OUT --gin_file runs/slm_base_llm.gin --gin_file corpus.gin \\
        --gin.ADAPTER=slm_base --before slm_base --steps 300 --speech 'WER=--manifest test.jsonl'
    python tests/benchmarks/bench_forgetting.py OUT --gin_file runs/slm_tiny_voice_prompts.gin --before t5_tiny \\
        --steps 100 --speech 'prompts=--task voice_prompts_asr --limit 200'
    python tests/benchmarks/bench_forgetting.py OUT --gin_file runs/ssr_next_token.gin --gin_file corpus.gin \\
        --gin.ALIGNER_FROM=aligner --gin.ADAPTER=distil --before distil --steps 300 \\
        --variants whole,lora16,multitask --mixture "{'speech': 1.0, 'texts': 1.0}" \\
        --speech 'stories=--manifest tests/stories.jsonl --score_choices'

The gin files are those of a training. Each variant is trained alike, from the same start, and evaluated alike: on
speech (--speech: options of `slm-jax evaluate`), and on texts that nothing was trained on. These are the questions of
slm_jax/corpora/questions.jsonl, read and not heard (--questions: other options), and the second half of each text of
--texts after its first half, of which the perplexity per token is shown. The first row is --before, what the trainings
begin at: a model, whose prompt they have, or a language model, which hears nothing. LoRA is models/lora.gin, with alpha
twice the rank. What was done in OUT is not done again.
"""

import argparse
import json
import math
import pathlib
import shlex

import numpy as np
from ablations import rates, run

from slm_jax import cli, corpora
from slm_jax.data import json_lines
from slm_jax.inference import model as model_lib

_QUESTIONS = pathlib.Path(corpora.__file__).with_name('questions.jsonl')
_ASKED = f'--manifest {_QUESTIONS} --text_field text --reference_field answers --instruction "Answer the question."'
_LORA = """from slm_jax.adapters import lora
include 'models/lora.gin'
LORA_RANK = {rank}
lora.LoraConfig.alpha = {alpha}
LORA_MODULES = ({modules!r},)"""
_VARIANTS = {
    'adapter': "TRAINABLE = ('adapter/.*',)",
    'lora4': 4,
    'lora16': 16,
    'lora64': 64,
    'whole': "TRAINABLE = ('adapter/.*', 'llm/.*')",
    'multitask': "TRAINABLE = ('adapter/.*', 'llm/.*')\nMIXTURE_OR_TASK_NAME = {mixture}",
}
_ROWS = 8  # of a batch of texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--gin_file', action='append', required=True)
    parser.add_argument('--before', required=True, metavar='MODEL')
    parser.add_argument('--steps', type=int, required=True)
    parser.add_argument('--variants', default='adapter,lora4,lora16,lora64,whole')
    parser.add_argument('--mixture', metavar='GIN', help="of speech and texts, of the variant 'multitask'")
    parser.add_argument('--modules', default='llm/.*/(query|value)', help='that LoRA updates')
    parser.add_argument('--speech', action='append', default=[], metavar='NAME=OPTIONS', help='of slm-jax evaluate')
    parser.add_argument('--questions', default=_ASKED, metavar='OPTIONS', help='of slm-jax evaluate')
    parser.add_argument('--texts', default=_QUESTIONS, metavar='JSONL', help='with a field "text"')
    args, bindings = parser.parse_known_args()
    if wrong := [each for each in bindings if not each.startswith('--gin.')]:
        parser.error(f'{wrong[0]} is not known')
    if 'multitask' in args.variants.split(',') and not args.mixture:
        parser.error("the variant 'multitask' needs a --mixture")
    cli.quiet_libraries()
    args.out.mkdir(parents=True, exist_ok=True)
    speech = dict(each.split('=', 1) for each in args.speech)
    heads = ['what trains', 'parameters', 'CPU-minutes', *speech, 'questions as text', 'perplexity of text']
    rows = [heads, ['---'] * len(heads)]
    columns, hears = {**speech, 'questions': args.questions}, model_lib.load(args.before).hears
    for name in ('before', *args.variants.split(',')):
        model = args.before if name == 'before' else args.out / name
        rows.append([name, '', ''] if name == 'before' else [name, *trained(args, name, model, bindings)])
        for column, options in columns.items():
            asked = column == 'questions' or name != 'before' or hears
            rows[-1].append(scored(model, args.out / f'{name}.{column}', options) if asked else '')
        rows[-1].append(perplexity(model, args))
        print('', *(f'| {" | ".join(row)} |' for row in rows), sep='\n', flush=True)


def trained(args: argparse.Namespace, name: str, model_dir: pathlib.Path, bindings: list[str]) -> list[str]:
    """Trains a variant to its last step; returns how many parameters that were, and what it took."""
    gin, spent, variant = args.out / f'{name}.gin', args.out / f'{name}.seconds', _VARIANTS[name]
    text = variant
    if name == 'multitask':
        text = variant.format(mixture=args.mixture)
    if isinstance(variant, int):
        text = _LORA.format(rank=variant, alpha=2.0 * variant, modules=args.modules)
    gin.write_text(f'from __gin__ import dynamic_registration\n{text}\n')
    run(
        ['train', *(f'--gin_file={each}' for each in (*args.gin_file, gin)), f'--gin.MODEL_DIR={model_dir}']
        + [f'--gin.TRAIN_STEPS={args.steps}', f'--gin.WARMUP_STEPS={max(1, args.steps // 10)}']
        + [f'--gin.EVAL_PERIOD={args.steps}', *bindings],
        spent,
    )
    count = json.loads((model_dir / 'card.json').read_text())['num_params']['trained']
    return [f'{count / 1e6:.2f}M', f'{sum(map(float, spent.read_text().split())) / 60:.0f}']


def scored(model: str | pathlib.Path, out: pathlib.Path, options: str) -> str:
    """The rates of an evaluation, which is made if it is not there."""
    if not (out / 'results.json').exists():
        run(['evaluate', str(model), '--out', str(out), *shlex.split(options)])
    return rates([out])


def perplexity(model_dir: str | pathlib.Path, args: argparse.Namespace) -> str:
    """Per token of the second half of each text, after its first half as a request; its end counts."""
    import jax

    model = model_lib.load(model_dir)
    score = jax.jit(model.system.score_batch)
    vocabulary, pairs = model.text_vocabulary, []
    for line in json_lines.read(args.texts):
        words = line['text'].split()
        first, second = (' '.join(half) for half in (words[: len(words) // 2], words[len(words) // 2 :]))
        pairs.append((model.prompt.tokens(vocabulary, first, ''), [*vocabulary.encode(second), 1]))
    widths = [-(-max(map(len, side)) // 8) * 8 for side in zip(*pairs)]
    total = count = 0.0
    for group in (pairs[start : start + _ROWS] for start in range(0, len(pairs), _ROWS)):
        tokens, targets = (np.zeros((_ROWS, width), np.int32) for width in widths)
        for row, (prompt, target) in enumerate(group):
            tokens[row, : len(prompt)], targets[row, : len(target)] = prompt, target
        batch = {
            'speech_samples': np.zeros((_ROWS, 0), np.int16),
            'speech_lengths': np.zeros(_ROWS, np.int32),
            'encoder_input_tokens': tokens,
            'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            'decoder_target_tokens': targets,
            'decoder_loss_weights': (targets > 0).astype(np.float32),
        }
        total += float(score(model.params, batch)[: len(group)].sum())
        count += float(batch['decoder_loss_weights'].sum())
    return f'{math.exp(-total / count):.4g}'


if __name__ == '__main__':
    main()
