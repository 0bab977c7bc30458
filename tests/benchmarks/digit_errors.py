"""How many digits were heard wrong: digits as words are digits, and whatever else was written does not count.

    python tests/benchmarks/digit_errors.py OUT …

of predictions.jsonl of `python -m slm_jax.evaluation.whisper_decoder`: Whisper writes "zero seven" as "0-7", "07" or
"Zero, seven.", which a word error rate tells apart.
"""

import argparse
import pathlib
import re

import jiwer

from slm_jax.corpora.numerals import DIGITS
from slm_jax.data import json_lines


def digits(text: str) -> str:
    """'0 7' of 'Zero-7.'; '-' where there is none."""
    for value, word in enumerate(DIGITS):
        text = re.sub(rf'\b{word}\b', str(value), text.lower())
    return ' '.join(re.findall(r'[0-9]', text)) or '-'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', nargs='+', type=pathlib.Path)
    for out in parser.parse_args().out:
        rows = json_lines.read(out / 'predictions.jsonl')
        said, heard = ([digits(row[field]) for row in rows] for field in ('reference', 'prediction'))
        right = sum(one == other for one, other in zip(said, heard))
        found = jiwer.process_words(said, heard)
        print(
            f'{out}: {found.wer:.1%} of digits wrong ({found.substitutions} are others, {found.insertions} too many, '
            f'{found.deletions} too few), {right} of {len(rows)} strings right'
        )


if __name__ == '__main__':
    main()
