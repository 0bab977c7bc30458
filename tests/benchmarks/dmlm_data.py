"""What tables/dmlm.toml is trained on: digits spoken in two languages, pictures, and their units and tokens.

    python tests/benchmarks/dmlm_data.py OUT --encoder whisper_base --layer 4 --k 200
    python tests/benchmarks/ablations.py tests/benchmarks/tables/dmlm.toml TABLE \\
        --gin_file OUT/whisper_base.4.200/data.gin …

Strings of digits are read as in spoken_digits.py: by flite's slt, in whose units texts are to be spoken, and by others;
and in French, to be translated. --people adds recordings of people, and --sentences, a text file, what slt reads
besides, for the codebook and a vocoder. OUT/ENCODER.LAYER.K gets the codebook, the units of each task and data.gin; all
codebooks share the rest. What is there is not made again.
"""

import argparse
import collections
import pathlib
import random
import subprocess
import sys

import ablations
from spoken_digits import SPLITS, make, read, spoken

from slm_jax.data import json_lines

# The files of each task's splits, of which folders.
_UNITS = {
    'asr': {'train': ('slt', 'others', 'people'), 'validation': ('slt',), 'test': ('others', 'people')},
    't2s': {'train': ('slt',), 'validation': ('slt',), 'test': ('slt',)},
    's2tt': {'train': ('french',), 'validation': ('french',), 'test': ('french',)},
    'vocoder': {'train': ('slt', 'sentences'), 'validation': ('slt',)},
}
_READ_BY = {'asr': ('dmlm_asr', 'dmlm_speech_lm', 'dmlm_text_lm'), 't2s': ('dmlm_t2s',), 's2tt': ('dmlm_s2tt',)}
_OF_IMAGES = ('dmlm_caption', 'dmlm_draw', 'dmlm_image_lm')
_VALIDATION = 40  # lines a task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--encoder', default='whisper_base')
    parser.add_argument('--layer', type=int)
    parser.add_argument('--k', type=int, default=200)
    parser.add_argument('--people', metavar='MANIFEST', help='of recorded digits, a word each, with "speaker"')
    parser.add_argument('--sentences', metavar='FILE')
    args = parser.parse_args()
    out = args.out.resolve()
    make(out, ('slt', 'others', 'french'))
    if args.sentences:
        read(pathlib.Path(args.sentences), out / 'sentences_train', 'train', ['flite/slt'])
    rows = [*spoken(out), *people(args.people)]
    json_lines.write(out / 'all.jsonl', (row for _, _, row in rows))
    json_lines.write(out / 'fit.jsonl', (row for _, split, row in rows if split == 'train'))
    draw(out)
    encode(out, args)


def people(manifest: str | None) -> list[tuple[str, str, dict]]:
    """(name, split, row): 250 recordings of each speaker of a manifest but the last, whose are 100 of the test."""
    if manifest is None:
        return []
    path, spoken_by, rng = pathlib.Path(manifest).resolve(), collections.defaultdict(list), random.Random(0)
    for row in json_lines.read(path):
        spoken_by[row['speaker']].append(row | {'audio': str(path.parent / row['audio'])})
    *others, last = sorted(spoken_by)
    train = [row for speaker in others for row in rng.sample(spoken_by[speaker], 250)]
    rng.shuffle(spoken_by[last])
    chosen = {'train': train, 'test': spoken_by[last][:100]}
    return [
        ('people', split, row | {'id': f'people_{split}/{place}'})
        for split, rows in chosen.items()
        for place, row in enumerate(rows)
    ]


def draw(out: pathlib.Path) -> None:
    """OUT/pictures with their tokens, OUT/image the codebook of them."""
    pictures = out / 'pictures'
    if not pictures.exists():
        run = [sys.executable, '-m', 'slm_jax.corpora.pictures', str(pictures), '--count', '3000', '--seed', '0']
        subprocess.run(run, check=True)
    files = {split: pictures / f'{split}_tokens.jsonl' for split in SPLITS}
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
    rows = json_lines.read(units)
    for task, by_split in _UNITS.items():
        for split, names in by_split.items():
            wanted = tuple(f'{name}_{split}/' for name in names)
            found = [row for row in rows if row['id'].startswith(wanted)]
            json_lines.write(folder / f'{task}_{split}.jsonl', found[:_VALIDATION] if split == 'validation' else found)
    files = {
        name: {split: str(folder / f'{task}_{split}.jsonl') for split in _UNITS[task]}
        for task, names in _READ_BY.items()
        for name in names
    }
    json_lines.write(
        out / 'pictures' / 'few.jsonl', json_lines.read(out / 'pictures' / 'validation_tokens.jsonl')[:_VALIDATION]
    )
    of_images = {split: str(out / 'pictures' / f'{split}_tokens.jsonl') for split in SPLITS}
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
