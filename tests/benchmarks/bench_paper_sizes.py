"""A training step of ComSL, SSR-Connector and DMLM at their papers' sizes on a slice of TPU v5e, by compiling for it.

    python tests/benchmarks/bench_paper_sizes.py

Parameters are float32 and sharded over all chips (fsdp). What the file has is not run again. Prints the table.
"""

import bench_pods
import precompiled_cells as cells

_SIZES = {  # model file: (slice, rows, seconds of audio, tokens of the prompt and of the target)
    'comsl_medium': ('v5e:4x4', 32, 11, 8, 64),
    'ssr_llama3_8b': ('v5e:4x4', 16, 15, 8, 64),
    'dmlm_opt_1.3b': ('v5e:2x4', 16, 1, 8, 2040),
    'dmlm_opt_6.7b': ('v5e:4x8', 32, 1, 8, 2040),
}


def all_cells(unused_gin_file: str) -> list[cells.Cell]:
    from slm_jax.training import topologies

    return [
        cells.Cell(
            f'{name}, {topology}',
            (
                f'--gin_file=models/{name}.gin', f'--topology={topology}', '--steps=train', f'--rows={rows}',
                f'--mesh=data=1,fsdp={topologies.parse(topology).size},model=1', f'--seconds={seconds}',
                f'--inputs={inputs}', f'--targets={targets}',
            ),
        )
        for name, (topology, rows, seconds, inputs, targets) in _SIZES.items()
    ]  # fmt: skip


if __name__ == '__main__':
    cells.main(__doc__, all_cells, 'tests/benchmarks/paper_sizes.jsonl', bench_pods.show)
