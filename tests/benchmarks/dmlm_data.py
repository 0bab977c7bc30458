"""What tables/dmlm.toml is trained on: spoken digits in two languages, pictures, and their units and tokens.

    python tests/benchmarks/dmlm_data.py OUT --encoder whisper_base --layer 4 --k 200
    python tests/benchmarks/ablations.py tests/benchmarks/tables/dmlm.toml TABLE \\
        --gin_file OUT/whisper_base.4.200/data.gin …

Debian's flite and espeak-ng read strings of one to three digits: flite's slt, in whose units texts are to be spoken,
and others, in English; in French others again, with the English words as translation. Of the strings of two and three
digits a tenth is for validation and a tenth to test, by other voices. --people adds recordings of people, and
--sentences, a text file, what slt reads besides, for the codebook and a vocoder. OUT/ENCODER.LAYER.K gets the codebook,
the units of each task and data.gin; all codebooks share the rest. What is there is not made again.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterable

import ablations

from slm_jax.corpora.numerals import number

# Language, and the voices of each split. No voice of a test is heard in training, but for slt's.
_SPOKEN = {
    'slt': ('en', {split: ('flite/slt',) for split in ('train', 'validation', 'test')}),
    'others': (
        'en',
        {
            'train': (
                'flite/kal16',
                'flite/rms',
                'espeak-ng/en-us+m3',
                'espeak-ng/en-gb+f2',
                'espeak-ng/en-gb-scotland+m5',
                'espeak-ng/en-us+f4',
            ),
            'test': ('flite/awb', 'espeak-ng/en-gb-x-rp+f3', 'espeak-ng/en-us+m7'),
        },
    ),
    'french': (
        'fr',
        {
            'train': ('espeak-ng/fr-fr+m3', 'espeak-ng/fr-be+f2', 'espeak-ng/fr-ch+m5', 'espeak-ng/fr-fr+f4'),
            'validation': ('espeak-ng/fr-fr+m6',),
            'test': ('espeak-ng/fr-fr+f3', 'espeak-ng/fr-be+m7'),
        },
    ),
}
# The files of each task's splits, of which folders.
_UNITS = {
    'asr': {'train': ('slt', 'others', 'people'), 'validation': ('slt',), 'test': ('others', 'people')},
    't2s': {'train': ('slt',), 'validation': ('slt',), 'test': ('slt',)},
    's2tt': {'train': ('french',), 'validation': ('french',), 'test': ('french',)},
    'vocoder': {'train': ('slt', 'sentences'), 'validation': ('slt',)},
}
_READ_BY = {'asr': ('dmlm_asr', 'dmlm_speech_lm', 'dmlm_text_lm'), 't2s': ('dmlm_t2s',), 's2tt': ('dmlm_s2tt',)}
_OF_IMAGES = ('dmlm_caption', 'dmlm_draw', 'dmlm_image_lm')
_SPLITS = ('train', 'validation', 'test')
_VALIDATION = 40  # lines a task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--encoder', default='whisper_base')
    parser.add_argument('--layer', type=int)
    parser.add_argument('--k', type=int, default=200)
    parser.add_argument('--people', nargs=2, metavar=('TRAIN', 'TEST'), help='manifests of recorded digits')
    parser.add_argument('--sentences', metavar='FILE')
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_texts(out)
    speak(out, args.sentences)
    rows = [*spoken(out), *people(args.people)]
    write(out / 'all.jsonl', (row for _, _, row in rows))
    write(out / 'fit.jsonl', (row for _, split, row in rows if split == 'train'))
    draw(out)
    encode(out, args)


def write(path: pathlib.Path, rows: Iterable[dict]) -> None:
    """JSON lines."""
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


def lines(path: pathlib.Path) -> list[dict]:
    """The rows of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_texts(out: pathlib.Path) -> None:
    """OUT/LANGUAGE_SPLIT.jsonl; a string is of one split in both languages."""
    strings = [*itertools.chain(*(itertools.product(range(10), repeat=length) for length in (1, 2, 3)))]
    for lang in ('en', 'fr'):
        rows: dict[str, list[dict]] = {split: [] for split in _SPLITS}
        for digits in strings:
            said, english = (' '.join(number(digit, each) for digit in digits) for each in (lang, 'en'))
            tenth = int(hashlib.md5(english.encode()).hexdigest(), 16) % 10 if len(digits) > 1 else None
            row = {'text': said, 'lang': lang}
            if lang != 'en':
                row |= {'translation': {'en': english}, 'target_lang': 'en'}
            rows[{0: 'test', 1: 'validation'}.get(tenth, 'train')].append(row)
        for split, of_split in rows.items():
            write(out / f'{lang}_{split}.jsonl', of_split)


def speak(out: pathlib.Path, sentences: str | None) -> None:
    """OUT/NAME_SPLIT, of each of `_SPOKEN` and of the sentences."""
    wanted = [
        (name, split, out / f'{lang}_{split}.jsonl', voices)
        for name, (lang, by_split) in _SPOKEN.items()
        for split, voices in by_split.items()
    ]
    if sentences:
        wanted.append(('sentences', 'train', pathlib.Path(sentences), ('flite/slt',)))
    for name, split, text, voices in wanted:
        if not (found := out / f'{name}_{split}').exists():
            said_by = itertools.chain(*(('--voice', voice) for voice in voices))
            ablations.run(['synthesize', str(text), str(found), '--split', split, *said_by])


def spoken(out: pathlib.Path) -> list[tuple[str, str, dict]]:
    """(name, split, row) of all that was spoken."""
    rows = []
    for folder in sorted(each for each in out.iterdir() if (each / 'audio').is_dir()):
        name, split = folder.name.rsplit('_', 1)
        for row in lines(folder / f'{split}.jsonl'):
            row |= {'id': f'{folder.name}/{row["id"]}', 'audio': f'{folder.name}/{row["audio"]}'}
            rows.append((name, split, row))
    return rows


def people(manifests: list[str] | None) -> list[tuple[str, str, dict]]:
    """(name, split, row) of recordings of people."""
    rows = []
    for split, manifest in zip(('train', 'test'), manifests or ()):
        path = pathlib.Path(manifest).resolve()
        for place, row in enumerate(lines(path)):
            row |= {'id': f'people_{split}/{place}', 'audio': str(path.parent / row['audio'])}
            rows.append(('people', split, row))
    return rows


def draw(out: pathlib.Path) -> None:
    """OUT/pictures with their tokens, OUT/image the codebook of them."""
    pictures = out / 'pictures'
    if not pictures.exists():
        run = [sys.executable, '-m', 'slm_jax.corpora.pictures', str(pictures), '--count', '3000', '--seed', '0']
        subprocess.run(run, check=True)
    files = {split: pictures / f'{split}_tokens.jsonl' for split in _SPLITS}
    if not all(file.exists() for file in files.values()):
        bindings = {
            'MODEL_DIR': str(out / 'image'),
            'IMAGES': str(pictures / 'train.jsonl'),
            'IMAGES_VALIDATION': str(pictures / 'validation.jsonl'),
            'TRAIN_STEPS': 1000,
        }
        ablations.run(['train', '--gin_file=codebooks/image.gin', *(f'--gin.{k}={v!r}' for k, v in bindings.items())])
        for split, file in files.items():
            manifest = str(pictures / f'{split}.jsonl')
            ablations.run(['codebook', 'encode', str(out / 'image'), str(file), '--manifest', manifest])


def encode(out: pathlib.Path, args: argparse.Namespace) -> None:
    """OUT/ENCODER.LAYER.K: its codebook, the units of the tasks, data.gin."""
    folder = out / f'{args.encoder}.{args.layer or "last"}.{args.k}'
    folder.mkdir(exist_ok=True)
    codebook, units = folder / 'codebook', folder / 'all.jsonl'
    if not codebook.exists():
        kept = ['--frames', str(out / f'{args.encoder}.{args.layer or "last"}.frames')]
        fit = ['codebook', 'fit', str(codebook), '--encoder', args.encoder, '--manifest', str(out / 'fit.jsonl')]
        ablations.run([*fit, *kept, f'--gin.K={args.k}', f'--gin.LAYER={args.layer}'])
    if not units.exists():
        ablations.run(['codebook', 'encode', str(codebook), str(units), '--manifest', str(out / 'all.jsonl')])
    rows = lines(units)
    for task, by_split in _UNITS.items():
        for split, names in by_split.items():
            wanted = tuple(f'{name}_{split}/' for name in names)
            found = [row for row in rows if row['id'].startswith(wanted)]
            write(folder / f'{task}_{split}.jsonl', found[:_VALIDATION] if split == 'validation' else found)
    files = {
        name: {split: str(folder / f'{task}_{split}.jsonl') for split in _UNITS[task]}
        for task, names in _READ_BY.items()
        for name in names
    }
    write(out / 'pictures' / 'few.jsonl', lines(out / 'pictures' / 'validation_tokens.jsonl')[:_VALIDATION])
    of_images = {split: str(out / 'pictures' / f'{split}_tokens.jsonl') for split in _SPLITS}
    of_images['validation'] = str(out / 'pictures' / 'few.jsonl')
    files |= dict.fromkeys(_OF_IMAGES, of_images)
    (folder / 'data.gin').write_text(
        f"""from __gin__ import dynamic_registration
from slm_jax.tasks import dmlm as dmlm_tasks
SPEECH = None
SPEECH_UNITS = {args.k}
SPEECH_CODEBOOK = {str(codebook)!r}
IMAGE_TOKENS = 256
IMAGE_SIZE = (8, 8)
IMAGE_CODEBOOK = {str(out / 'image')!r}
LANGUAGES = ('en', 'fr')
ROW_LENGTH = 128
dmlm_tasks.manifests.files = {files!r}
"""
    )


if __name__ == '__main__':
    main()
