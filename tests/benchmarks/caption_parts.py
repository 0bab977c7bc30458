"""What is right in captions of the pictures that slm_jax/corpora/pictures.py draws: of the first thing, and in all.

    python tests/benchmarks/caption_parts.py OUT …

of predictions.jsonl of `slm-jax evaluate --task dmlm_caption`.
"""

import argparse
import pathlib
import re

from slm_jax.data import json_lines

PARTS = ('size', 'colour', 'thing', 'place')


def parts(caption: str) -> tuple[str, ...]:
    """('small', 'red', '7', 'above') of 'a small red 7 above …'; '' for what is not there."""
    words = re.match(r'a (\S*) ?(\S*) ?(\S*) ?(beside|above)?', caption)
    return tuple(word or '' for word in words.groups()) if words else ('',) * len(PARTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='+', type=pathlib.Path)
    for out in parser.parse_args().out:
        rows = json_lines.read(out / 'predictions.jsonl')
        pairs = [(parts(row['reference']), parts(row['prediction'])) for row in rows]
        right = [f'{name} {sum(a[i] == b[i] for a, b in pairs) / len(rows):.0%}' for i, name in enumerate(PARTS)]
        whole = sum(row['reference'] == row['prediction'] for row in rows) / len(rows)
        print(f'{out}: of the first thing {", ".join(right)}; the whole caption {whole:.0%}; {len(rows)} captions')


if __name__ == '__main__':
    main()
