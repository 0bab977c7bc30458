"""What a chip moves and holds when there are more of them: SLM-XXL's training step on 4 to 512 chips of TPU v5p.

    python tests/benchmarks/bench_scaling.py --jobs 2
    python tests/benchmarks/bench_scaling.py --paper

A row of 15 s, 64 + 128 tokens, on each chip: the batch grows with the chips, and ideally nothing else does. model = 4,
fsdp the rest. Four compilations, two to three minutes of a core each; what the file has is not run again. Under the
table stands what grew and where in the model. `--paper` compiles nothing: it prints chip-hours of the paper's run.
"""

import sys
from typing import Any

import precompiled_cells as cells

from slm_jax.training import chips

CHIP = chips.CHIPS['v5p']
GROWN = 0.05


def all_cells(gin_file: str) -> list[cells.Cell]:
    result = []
    for shape in ('2x2x1', '2x2x4', '4x4x4', '4x8x16'):
        count = chips.num_chips(shape)
        arguments = (
            f'--gin_file={gin_file}', f'--topology={CHIP.name}:{shape}', f'--mesh=fsdp={count // 4},model=4',
            '--steps=train', f'--rows={count}', '--seconds=15', '--inputs=64', '--targets=128',
        )  # fmt: skip
        result.append(cells.Cell(f'{count} chips', arguments))
    return result


def show(found: dict[str, Any]) -> str:
    steps = {name: entry['steps'][0] for name, entry in found.items() if entry['steps'][0]['collectives'] is not None}
    kinds = sorted({kind for step in steps.values() for kind in step['collectives']})
    rows = [('chips', 'temporaries, GB', *(f'{kind}, GB' for kind in kinds), 'sent, GB', 'estimate, s', 'MFU')]
    for name, step in steps.items():
        moved, estimate = step['collectives'], step['estimate']
        rows.append(
            (
                name.split()[0],
                cells.gigabytes(step['bytes']['temporary']),
                *(cells.gigabytes(moved.get(kind, 0)) for kind in kinds),
                cells.gigabytes(step['sent_bytes']),
                f'{estimate["seconds"]:.3g}',
                f'{estimate["mfu"]:.0%}',
            )
        )
    pairs = zip(steps.items(), list(steps.items())[1:])
    return '\n'.join(
        [cells.table(rows), '', *(line for (_, old), (name, new) in pairs for line in grown(name, old, new))]
    )


def grown(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is larger by more than a twentieth than with fewer chips, and where it comes from."""
    lines = []
    before, after = (_places(step) for step in (old, new))
    for kind, count in new['collectives'].items():
        more = count - old['collectives'].get(kind, 0)
        if more <= GROWN * old['sent_bytes']:
            continue
        places = sorted(
            ((after[key] - before.get(key, 0), key[1]) for key in after if key[0] == kind), reverse=True
        )  # fmt: skip
        where = '; '.join(f'{cells.gigabytes(size)} GB at {place}' for size, place in places[:3] if size > 0)
        lines.append(f'- {name}: {cells.gigabytes(more)} GB more of {kind}: {where or "many small ones"}')
    more = new['bytes']['temporary'] - old['bytes']['temporary']
    if more > GROWN * old['bytes']['temporary']:
        lines.append(f'- {name}: {cells.gigabytes(more)} GB more of temporaries')
    return lines


def _places(step: dict[str, Any]) -> dict[tuple[str, str], int]:
    result: dict[tuple[str, str], int] = {}
    for each in step['largest_collectives']:
        key = each['kind'], each['op_name']
        result[key] = result.get(key, 0) + each['result_bytes'] * each['times']
    return result


# Of the paper (arXiv 2310.00230) are known: USM-2B, a 13B mT0 (mT5-XXL), an adapter of 156M, encoder and language model
# frozen. Neither its steps, batch and chips nor its hours of speech are known here: the latter is assumed.
HOURS = 100_000.0  # of speech, each heard once
MFU = 0.4  # of a well-tuned step at this size
SECONDS, INSTRUCTION, ANSWER = 15.0, 32, 64  # of an average example
_FRAMES, _REDUCED = 25.0, 6.25  # a second: of the encoder, and after the adapter's reduction


def paper() -> str:
    """Chip-hours, by the rule of `chips.model_flops`: 2N frozen, 4N where the gradient passes, 6N trained."""
    encoder = chips.Part(2.0e9, SECONDS * _FRAMES, 'frozen')
    adapter = chips.Part(156e6, SECONDS * _REDUCED, 'trained')
    # A stack of mT5-XXL is 24 layers; a decoder's has a second attention. The output layer is one more product.
    attention, feed_forward = 4 * 4096 * 4096, 3 * 4096 * 10240
    prompt = chips.Part(24 * (attention + feed_forward), SECONDS * _REDUCED + INSTRUCTION, 'passed')
    answer = chips.Part(24 * (2 * attention + feed_forward) + 4096 * 250_112, ANSWER, 'passed')
    example = chips.model_flops([encoder, adapter, prompt, answer])
    examples = HOURS * 3600 / SECONDS
    rows = [('chip', 'chip-hours', 'hours of 64 chips')]
    for name in ('v4', 'v5e', 'v5p', 'v6e', 'a100', 'h100'):
        hours = chips.chip_hours(chips.CHIPS[name], example * examples, MFU)
        rows.append((name, f'{hours:,.0f}', f'{hours / 64:.1f}'))
    return (
        f'{cells.table(rows)}\n\nAn estimate: {example:.3g} FLOPs an example of {SECONDS:g} s, '
        f'{INSTRUCTION} + {ANSWER} tokens; {examples:,.0f} examples ({HOURS:,.0f} h of speech, heard once: assumed); '
        f'MFU {MFU:.0%} (assumed). In proportion to the hours: {example * 3600 / SECONDS * 1000:.3g} FLOPs for 1,000.'
    )


if __name__ == '__main__':
    print(paper()) if '--paper' in sys.argv else cells.main(__doc__, all_cells, 'tests/benchmarks/scaling.jsonl', show)
