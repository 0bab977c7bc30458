"""Pictures that a program draws."""

import random

import numpy as np
import pytest

from slm_jax.codebooks import images
from slm_jax.corpora import pictures
from slm_jax.data import json_lines


def test_pictures_depend_on_the_seed_and_show_what_the_caption_says(tmp_path):
    counts = pictures.make(tmp_path / 'a', 60, 1)
    pictures.make(tmp_path / 'b', 20, 1)
    assert sum(counts.values()) == 60 and counts['train'] > 40
    rows = {row['id']: row for split in counts for row in json_lines.read(tmp_path / 'a' / f'{split}.jsonl')}
    for number in range(20):
        name = f'images/{number:06d}.png'
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    for row in rows.values():
        pixels = images.read_image(str(tmp_path / 'a' / row['image']), pictures.SIZE).astype(int)
        for colour in (colour for colour in pictures.COLOURS if f' {colour} ' in row['caption']):
            distance = np.abs(pixels - pictures.COLOURS[colour]).sum(axis=-1)
            assert distance.min() < 90, row  # a thin digit mixes with the background
    captions = [{row['caption'] for row in json_lines.read(tmp_path / 'a' / f'{split}.jsonl')} for split in counts]
    assert not captions[0] & captions[1] and not captions[0] & captions[2] and not captions[1] & captions[2]


def test_all_kinds_are_drawn():
    captions = ' '.join(pictures.draw(random.Random(number))[0] for number in range(200))
    for word in (*pictures.SHAPES, *pictures.SIZES, *pictures.COLOURS, 'beside', 'above', *'0123456789'):
        assert word in captions, word


def test_what_cannot_be_made_is_said(tmp_path, capsys):
    assert pictures.main([str(tmp_path)]) == 2
    assert 'is there. Give another OUT' in capsys.readouterr().err
    with pytest.raises(ValueError, match='--count 0, --seed 0: whole numbers'):
        pictures.make(tmp_path / 'c', 0, 0)
