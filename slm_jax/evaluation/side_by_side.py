"""Scores of several evaluations of the same examples as one table.

    python -m slm_jax.evaluation.side_by_side before=runs/a after=runs/b --metric wer

Each is NAME=DIR, with DIR/results.json, as `slm-jax evaluate` writes it.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from slm_jax import cli, paths


def table(results: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """A row for each group of examples of which all evaluations have the metric, a column for each evaluation.

    Args:
        results: of results.json, by the name of the evaluation.
        metric: as in results.json.

    Raises:
        ValueError: there is no such group.
    """
    scores = [
        {group: row[metric] for kind in each['scores'].values() for group, row in kind.items() if metric in row}
        for each in results.values()
    ]
    groups = [group for group in scores[0] if all(group in other for other in scores)]
    if not groups:
        raise ValueError(f'--metric {metric}: no group of examples has it in all of {", ".join(results)}.')
    rows = [[metric.upper(), *results], *([group, *(f'{each[group]:.1f}' for each in scores)] for group in groups)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(argv: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.evaluation.side_by_side',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('evaluations', nargs='+', metavar='NAME=DIR')
    parser.add_argument('--metric', default='wer', help='as in results.json (default: wer)')
    args = parser.parse_args(argv)
    try:
        results = {}
        for given in args.evaluations:
            name, _, place = given.rpartition('=')
            file = paths.path(place) / 'results.json'
            results[name or place] = json.loads(file.read_text(encoding='utf-8'))
        print(table(results, args.metric))
    except (ValueError, OSError) as error:
        return cli.fail('side_by_side', error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
