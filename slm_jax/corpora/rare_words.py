"""The rare words of a manifest's texts as its phrases, and a pool of others: a test of contextual biasing.

    python -m slm_jax.corpora.rare_words TEXTS MANIFEST OUT --pool POOL.txt

TEXTS is a manifest of what a model was trained on. OUT has the lines of MANIFEST with `phrases`: the words of their
text that TEXTS does not have at all, so that no phrase of the test was met; with --common 5000 those not among its most
frequent 5,000, as the biasing lists of LibriSpeech have them (Le et al., arXiv 2104.02194). POOL.txt gets the rare
words of both, of which others are drawn (`evaluate --phrases own+100 --phrase_pool POOL.txt`).
"""

import argparse
import collections
import json
import os

from slm_jax import paths
from slm_jax.data import ctc_text, json_lines, manifests

_SHORTEST = 4  # letters: what is shorter is seldom a name


def write(
    texts: str | os.PathLike,
    manifest: str | os.PathLike,
    out: str | os.PathLike,
    pool: str | os.PathLike,
    common: int | None = None,
) -> tuple[int, int, int]:
    """Writes OUT and the pool; returns how many lines there are, how many have phrases, and the pool's size.

    Args:
        common: words of TEXTS that are not rare, the most frequent; None: all.

    Raises:
        ValueError: a file that cannot be read, a line without text, or no rare word.
    """
    counts = collections.Counter(word for row in _rows(texts) for word in ctc_text.normalize(row['text']).split())
    known = {word for word, _ in counts.most_common(common)}
    found, rare = [], {word for word in counts if word not in known and len(word) >= _SHORTEST}
    here, there = paths.path(manifest).parent, paths.path(out).parent
    for row in _rows(manifest):
        words = dict.fromkeys(ctc_text.normalize(row['text']).split())
        row['phrases'] = [word for word in words if word not in known and len(word) >= _SHORTEST]
        rare.update(row['phrases'])
        audio = next((name for name in manifests.AUDIO if isinstance(row.get(name), str)), None)
        if audio:
            row[audio] = manifests.moved(row[audio], here, there)
        found.append(row)
    told = sum(bool(row['phrases']) for row in found)
    if not told:
        raise ValueError(f'{manifest}: all its words are in {texts}. Give texts of another kind, or --common.')
    paths.write(paths.path(pool), ''.join(f'{word}\n' for word in sorted(rare)))
    paths.write(paths.path(out), ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in found))
    return len(found), told, len(rare)


def _rows(path: str | os.PathLike) -> list[dict]:
    rows = json_lines.read(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get('text'), str):
            raise ValueError(f'{path}: object {number}: field "text" is missing. Give a manifest with transcripts.')
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.rare_words',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('texts')
    parser.add_argument('manifest')
    parser.add_argument('out')
    parser.add_argument('--pool', required=True, metavar='FILE')
    parser.add_argument('--common', type=int, metavar='N')
    args = parser.parse_args(argv)
    try:
        lines, told, rare = write(args.texts, args.manifest, args.out, args.pool, args.common)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{error}\n')
    print(f'{told} of {lines} lines have phrases; {rare} rare words')


if __name__ == '__main__':
    main()
