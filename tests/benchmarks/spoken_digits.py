"""Spoken digits: strings of one to three, read by flite and espeak-ng in several languages, as words.

    python tests/benchmarks/spoken_digits.py OUT french spanish

OUT/LANGUAGE_SPLIT.jsonl has the strings, those that are not English with the English words as translation, and
OUT/NAME_SPLIT what `slm-jax synthesize` reads of them. A string is of one split in all languages: of those of two and
three digits a tenth is for validation and a tenth to test. No voice of a test is heard in training, but for that of
slt. What is there is not made again.
"""

import argparse
import hashlib
import itertools
import pathlib
from collections.abc import Collection

import ablations

from slm_jax.corpora.numerals import number
from slm_jax.data import json_lines

# Language, and the voices of each split.
VOICES = {
    'slt': ('en', {'train': ['flite/slt'], 'validation': ['flite/slt'], 'test': ['flite/slt']}),
    'others': (
        'en',
        {
            'train': ['flite/kal16', 'flite/rms']
            + [f'espeak-ng/{each}' for each in ('en-us+m3', 'en-gb+f2', 'en-gb-scotland+m5', 'en-us+f4')],
            'test': ['flite/awb', 'espeak-ng/en-gb-x-rp+f3', 'espeak-ng/en-us+m7'],
        },
    ),
} | {
    name: (
        lang,
        {
            'train': [
                f'espeak-ng/{first}+m3',
                f'espeak-ng/{second}+f2',
                f'espeak-ng/{third}+m5',
                f'espeak-ng/{first}+f4',
            ],
            'validation': [f'espeak-ng/{first}+m6'],
            'test': [f'espeak-ng/{first}+f3', f'espeak-ng/{second}+m7'],
        },
    )
    for name, lang, (first, second, third) in (
        ('french', 'fr', ('fr-fr', 'fr-be', 'fr-ch')),
        ('spanish', 'es', ('es', 'es-419', 'es')),
        ('italian', 'it', ('it', 'it', 'it')),
        ('russian', 'ru', ('ru', 'ru', 'ru')),
    )
}
SPLITS = ('train', 'validation', 'test')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('names', nargs='+', choices=VOICES)
    args = parser.parse_args()
    make(args.out, args.names)


def make(out: pathlib.Path, names: Collection[str]) -> None:
    """The strings and speech of these."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        lang, by_split = VOICES[name]
        texts = strings(lang)
        for split, voices in by_split.items():
            json_lines.write(out / f'{lang}_{split}.jsonl', texts[split])
            read(out / f'{lang}_{split}.jsonl', out / f'{name}_{split}', split, voices)


def strings(lang: str) -> dict[str, list[dict]]:
    """The lines of each split."""
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for digits in itertools.chain(*(itertools.product(range(10), repeat=length) for length in (1, 2, 3))):
        said, english = (' '.join(number(digit, each) for digit in digits) for each in (lang, 'en'))
        tenth = int(hashlib.md5(english.encode()).hexdigest(), 16) % 10 if len(digits) > 1 else None
        row = {'text': said, 'lang': lang}
        if lang != 'en':
            row |= {'translation': {'en': english}, 'target_lang': 'en'}
        rows[{0: 'test', 1: 'validation'}.get(tenth, 'train')].append(row)
    return rows


def read(texts: pathlib.Path, out: pathlib.Path, split: str, voices: Collection[str]) -> None:
    """Lets the voices read texts into a folder, if it is not there."""
    if not out.exists():
        said_by = itertools.chain(*(('--voice', voice) for voice in voices))
        ablations.run(['synthesize', str(texts), str(out), '--split', split, *said_by])


def spoken(out: pathlib.Path) -> list[tuple[str, str, dict]]:
    """(name, split, row) of all that was read, with recordings by their paths from OUT."""
    rows = []
    for folder in sorted(each for each in out.iterdir() if (each / 'audio').is_dir()):
        name, split = folder.name.rsplit('_', 1)
        for row in json_lines.read(folder / f'{split}.jsonl'):
            row |= {'id': f'{folder.name}/{row["id"].rpartition("/")[2]}', 'audio': f'{folder.name}/{row["audio"]}'}
            rows.append((name, split, row))
    return rows


if __name__ == '__main__':
    main()
