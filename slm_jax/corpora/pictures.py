"""Pictures of coloured shapes and digits with captions, drawn by a program: images for a codebook and for captioning.

    python -m slm_jax.corpora.pictures OUT --count 5000 --seed 0

writes OUT/images/*.png, 32 x 32 pixels, and OUT/{train,validation,test}.jsonl with id, image, caption, lang. A picture
has one thing, or two beside or above each other: 'a small red circle', 'a blue 7 above a large green square'. Picture n
depends on the seed and n alone. No caption of one split is in another: a caption's hash decides.
"""

import argparse
import hashlib
import pathlib
import random
import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8

from slm_jax import cli, paths
from slm_jax.data import json_lines

SIZE = 32
COLOURS = {
    'red': (214, 39, 40),
    'green': (44, 160, 44),
    'blue': (31, 87, 200),
    'yellow': (240, 210, 40),
    'orange': (255, 127, 14),
    'purple': (140, 70, 190),
    'white': (245, 245, 245),
    'black': (15, 15, 15),
}
SHAPES = ('circle', 'square', 'triangle', 'diamond', 'cross')
SIZES = {'small': 0.55, 'large': 0.95}
_FINE = 4  # pixels are drawn so many times as fine, and averaged
_PARTS = 10  # one in so many captions is validation, and one test


def draw(rng: random.Random) -> tuple[str, UInt8[np.ndarray, 'h w 3']]:
    """A picture that is drawn from `rng`, after its caption."""
    from PIL import Image, ImageDraw

    side = SIZE * _FINE
    grey = rng.randint(90, 170)
    image = Image.new('RGB', (side, side), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    relation = rng.choice(('', 'beside', 'above'))
    half, jitter = side / 2, side / 16
    every: dict[str, list[tuple[float, float, float]]] = {
        '': [(half, half, side)],
        'beside': [(side / 4, half, half), (3 * side / 4, half, half)],
        'above': [(half, side / 4, half), (half, 3 * side / 4, half)],
    }
    told = []
    for x, y, room in every[relation]:
        free = jitter if room == side else jitter / 4
        told.append(_thing(pen, rng, x + rng.uniform(-free, free), y + rng.uniform(-free, free), room))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))
    return f' {relation} '.join(told), pixels


def _thing(pen: Any, rng: random.Random, x: float, y: float, room: float) -> str:
    """Draws a shape or digit around a place; returns what it is."""
    from PIL import ImageFont

    size, colour = rng.choice(sorted(SIZES)), rng.choice(sorted(COLOURS))
    radius, fill = SIZES[size] * room / 2 * 0.85, COLOURS[colour]
    what = rng.choice(('digit', *SHAPES))
    if what == 'digit':
        what = str(rng.randint(0, 9))
        pen.text((x, y), what, fill, ImageFont.load_default(2.2 * radius), anchor='mm')
    elif what == 'circle':
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
    elif what == 'square':
        side = radius * 0.85
        pen.rectangle((x - side, y - side, x + side, y + side), fill)
    elif what == 'triangle':
        pen.polygon([(x, y - radius), (x - radius, y + radius * 0.8), (x + radius, y + radius * 0.8)], fill)
    elif what == 'diamond':
        pen.polygon([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], fill)
    else:
        arm = radius / 3
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill)
    return f'a {size} {colour} {what}'


def split_of(caption: str) -> str:
    """The split of all pictures of a caption."""
    number = int(hashlib.sha256(caption.encode()).hexdigest(), 16) % _PARTS
    return {0: 'validation', 1: 'test'}.get(number, 'train')


def make(out: pathlib.Path, count: int, seed: int) -> dict[str, int]:
    """Writes so many pictures; returns how many each split has.

    Raises:
        ValueError: OUT is there, or there are to be none.
    """
    from PIL import Image

    if count < 1 or seed < 0:
        raise ValueError(f'--count {count}, --seed {seed}: whole numbers from 1 and from 0 on were expected.')
    if out.exists():
        raise ValueError(f'{out} is there. Give another OUT, or remove it.')
    part = out.with_name(f'{out.name}.part')
    paths.remove(part)
    (part / 'images').mkdir(parents=True)
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in ('train', 'validation', 'test')}
    for number in range(count):
        caption, pixels = draw(random.Random(f'{seed}/{number}'))
        name = f'images/{number:06d}.png'
        Image.fromarray(pixels).save(part / name)
        rows[split_of(caption)].append({'id': str(number), 'image': name, 'caption': caption, 'lang': 'en'})
    for split, lines in rows.items():
        json_lines.write(part / f'{split}.jsonl', lines)
    part.rename(out)
    return {split: len(lines) for split, lines in rows.items()}


def main(argv: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.pictures',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', metavar='OUT')
    parser.add_argument('--count', type=int, default=5000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        counts = make(pathlib.Path(args.out), args.count, args.seed)
    except (ValueError, OSError) as error:
        return cli.fail('pictures', error)
    print(f'{args.out}: ' + ', '.join(f'{split} {number}' for split, number in counts.items()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
