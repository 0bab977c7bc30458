"""SLM-XXL's training and decoding on slices of four kinds of TPU, in bfloat16 and int8, by compiling for them.

    python tests/benchmarks/bench_pods.py --jobs 2

A row of 15 s, 64 + 128 tokens, on each chip; answers of 128 tokens, greedily, in bfloat16 alone. 16 runs, 24
compilations, about an hour of one core in all; what the file has is not run again, so it may be stopped at any time.
Prints the table.
"""

from typing import Any

import precompiled_cells as cells

SLICES = {  # two sizes of each kind: the mesh
    'v4:2x2x2': 'model=8',
    'v4:2x2x4': 'fsdp=2,model=8',
    'v5e:2x4': 'model=8',
    'v5e:4x8': 'fsdp=4,model=8',
    'v5p:2x2x1': 'model=4',
    'v5p:2x2x4': 'fsdp=4,model=4',
    'v6e:2x4': 'model=8',
    'v6e:4x4': 'fsdp=4,model=4',
}
BATCH = ('--seconds=15', '--inputs=64', '--targets=128')


def all_cells(gin_file: str) -> list[cells.Cell]:
    from slm_jax.training import topologies

    return [
        cells.Cell(
            f'{topology} {dtype}',
            (
                f'--gin_file={gin_file}', f'--topology={topology}', f'--mesh={mesh}', f'--steps={steps}', *BATCH,
                f'--rows={topologies.parse(topology).size}', f'--gin.FROZEN_DTYPE={dtype}',
            ),
        )
        for topology, mesh in SLICES.items()
        for dtype, steps in (('bfloat16', 'train,decode'), ('int8', 'train'))
    ]  # fmt: skip


def show(found: dict[str, Any]) -> str:
    head = (
        'slice, frozen in', 'mesh data, fsdp, model', 'step', 'GB of HBM', 'frozen', 'trained, optimizer',
        'temporaries', 'all-gather', 'all-reduce', 'all else', 'estimate, s', 'MFU', 'compiled in, s',
    )  # fmt: skip
    rows = [head]
    for name, entry in found.items():
        for step in entry['steps']:
            size, moved, estimate = step['bytes'], step['collectives'], step['estimate']
            rest = moved and sum(count for kind, count in moved.items() if kind not in ('all-gather', 'all-reduce'))
            total = f'{cells.gigabytes(size["total"])} of {cells.gigabytes(step["usable_bytes"])}'
            rows.append(
                (
                    name,
                    ', '.join(map(str, step['mesh'].values())),
                    step['step'],
                    total if step['fits'] else f'**{total}**',
                    cells.gigabytes(size['frozen']),
                    cells.gigabytes(size['trained'] + size['optimizer']),
                    cells.gigabytes(size['temporary']),
                    *(cells.gigabytes(moved and moved.get(kind, 0)) for kind in ('all-gather', 'all-reduce')),
                    cells.gigabytes(rest),
                    f'{estimate["seconds"]:.2g}' if estimate else '?',
                    f'{estimate["mfu"]:.0%}' if estimate else '?',
                    f'{step["compile_seconds"]:.0f}',
                )
            )
    versions = {
        f'{name} {entry["versions"][name]}' for entry in found.values() for name in ('jax', 'libtpu', 'slm_jax')
    }
    return f'{cells.table(rows)}\n\nGB of one chip, and of one step. With {", ".join(sorted(versions))}.'


if __name__ == '__main__':
    cells.main(__doc__, all_cells, 'tests/benchmarks/pods.jsonl', show)
