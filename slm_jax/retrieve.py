"""Finds phrases that may be said: `slm-jax retrieve RETRIEVER PHRASES --manifest FILE --out OUT.jsonl`.

RETRIEVER is the directory of a training (gin/runs/phrase_retriever_tiny.gin), PHRASES a text file, a phrase a line:
ten thousand to a million names. OUT has the manifest's lines with `candidates`, those that are nearest to what is said,
for a model to choose of:

    slm-jax evaluate MODEL --manifest OUT.jsonl --phrases candidates

Where lines have `phrases`, those that are said, it tells how many are among the nearest 1, 5, 10, … (recall@k); and how
long a query takes. Above 20,000 phrases they are searched by usearch (pip install 'slm_jax[retrieval]').
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax import cli, model_arguments, paths
from slm_jax.data import manifests, phrases


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog='slm-jax retrieve', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument('retriever', metavar='RETRIEVER')
    result.add_argument('phrases', metavar='PHRASES')
    result.add_argument('--manifest', required=True, metavar='FILE', help='JSONL, a recording a line')
    result.add_argument('--out', required=True, metavar='OUT', help='JSONL')
    result.add_argument('--top_k', type=int, default=10, metavar='K', help='candidates of a line (default: 10)')
    result.add_argument('--index', metavar='DIR', help='keep the index of PHRASES here, and take it if it is there')
    result.add_argument('--step', type=int, help='of the checkpoint (default: the newest)')
    result.add_argument(
        '--foundation', action='append', default=[], metavar='PART=DIR', help='where one is, if not where the card says'
    )
    return result


def retrieve(args: argparse.Namespace) -> dict[str, Any]:
    """Does what the command line says; returns what it tells.

    Raises:
        ValueError: wrong arguments, or a file or model that cannot be read.
        ImportError: usearch is wanted and not installed.
    """
    from slm_jax import import_
    from slm_jax.data import segments
    from slm_jax.inference import model, retrieval

    if not 1 <= args.top_k <= phrases.MOST:
        raise ValueError(f'--top_k {args.top_k}: a whole number from 1 to {phrases.MOST} was expected.')
    listed = phrases.read(args.phrases)
    lines = list(manifests.rows(args.manifest))
    for _, line in lines:
        if line['error'] or not line['audio']:
            raise ValueError(line['error'] or f'{line["origin"]}: field "audio" is missing.')
    given = model_arguments.pairs('--foundation', args.foundation)
    import_.ensure_for(args.retriever, given)
    retriever = retrieval.Retriever(model.load(args.retriever, step=args.step, foundations=given))
    index, built = _index(args, retriever, listed)
    rows, ranks, searched = [], [], []
    import tqdm

    for row, line in tqdm.tqdm(lines, 'Searching', unit='clip', disable=None):
        keys = retriever.of_speech(segments.read(line['audio'], line['offset'], line['duration']))
        started = time.perf_counter()
        found = [phrase for phrase, _ in index.nearest(keys, args.top_k)]
        searched.append(time.perf_counter() - started)
        audio = next(name for name in manifests.AUDIO if row.get(name) is not None)
        here, there = pathlib.Path(args.manifest).parent, pathlib.Path(args.out).parent
        rows.append({**row, audio: manifests.moved(row[audio], here, there), 'candidates': found})
        ranks += [_rank(phrase, found) for phrase in phrases.of_row(row) or ()]
    paths.write(paths.path(args.out), ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    told: dict[str, Any] = {'phrases': len(listed), 'index_seconds': built, 'queries': len(rows)}
    told |= {'keys_ms': _percentiles(retriever.seconds), 'search_ms': _percentiles(searched)}
    if ranks:
        counts = [k for k in (1, 5, 10, 50, 100) if k < args.top_k] + [args.top_k]
        told['said'] = len(ranks)
        told['recall'] = {k: 100.0 * sum(rank < k for rank in ranks) / len(ranks) for k in counts}
    return told


def _index(args: argparse.Namespace, retriever: Any, listed: Sequence[str]) -> tuple[Any, float]:
    """The index of the phrases, and the seconds in which it was made, 0 where it was there."""
    import tqdm

    from slm_jax.inference import retrieval

    if args.index and pathlib.Path(args.index).exists():
        index = retrieval.read(args.index, retriever.identity)
        if tuple(index.phrases) != tuple(listed):
            raise ValueError(
                f'{args.index}: is not of the phrases of {args.phrases}. Remove it, or give another --index.'
            )
        return index, 0.0
    started = time.perf_counter()
    with tqdm.tqdm(desc='Indexing', total=len(listed), unit='phrase', disable=None) as bar:
        index = retrieval.build(retriever, listed, bar.update)
    if args.index:
        index.write(pathlib.Path(args.index), retriever.identity)
    return index, time.perf_counter() - started


def _rank(phrase: str, found: Sequence[str]) -> float:
    """The place of a phrase among those that were found; case and punctuation do not count."""
    from slm_jax.data import ctc_text

    wanted = ctc_text.normalize(phrase)
    return next((place for place, each in enumerate(found) if ctc_text.normalize(each) == wanted), float('inf'))


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f'p{percent}': round(1000 * float(np.percentile(seconds, percent)), 2) for percent in (50, 95)}


def summary(told: Mapping[str, Any]) -> str:
    """What is told, for the terminal."""
    keys, search = told['keys_ms'], told['search_ms']
    lines = [
        f'{told["phrases"]:,} phrases' + (f', indexed in {told["index_seconds"]:.1f} s' * bool(told['index_seconds'])),
        f'{told["queries"]:,} queries: keys {keys["p50"]:g} ms (p95 {keys["p95"]:g}), search {search["p50"]:g} ms '
        f'(p95 {search["p95"]:g})',
    ]
    if 'recall' in told:
        rates = '  '.join(f'@{k} {rate:.1f}' for k, rate in told['recall'].items())
        lines.append(f'recall of {told["said"]:,} phrases that are said, %: {rates}')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(argv)
    fail = functools.partial(cli.fail, 'retrieve')
    try:
        told = retrieve(args)
    except ImportError as error:
        return fail(ImportError(f"{error}: pip install 'slm_jax[retrieval]'"))
    except (ValueError, OSError, TypeError) as error:
        return fail(error)
    print(summary(told))
    print(f'candidates: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
