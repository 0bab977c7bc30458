"""Images are read, and those of another size refused by name; batches are a function of the step."""

import json

import numpy as np
import pytest

from slm_jax.codebooks import images
from slm_jax.codebooks.codebook import CodebookError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    rows = []
    for number in range(5):
        images.write_png(path / f'{number}.png', rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        rows.append({'id': str(number), 'image': f'{number}.png', 'caption': 'c'})
    (path / 'm.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def test_what_is_written_is_read(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(images.read_image(str(folder / '0.png'), 8), pixels)


def test_what_is_no_image_of_the_size_is_refused(folder, tmp_path):
    with pytest.raises(CodebookError, match=r'0.png: is an image of 8 x 8 pixels, and the codebook takes 32 x 32. Res'):
        images.read_image(str(folder / '0.png'), 32)
    (tmp_path / 'text.png').write_text('no image')
    for name in ('text.png', 'missing.png'):
        with pytest.raises(CodebookError, match=f'{name}: cannot be read as an image'):
            images.read_image(str(tmp_path / name), 8)
    (tmp_path / 'm.jsonl').write_text('{"image": "a.png"}\n{"caption": "none"}\n')
    with pytest.raises(CodebookError, match='m.jsonl:2: the line has no "image"'):
        list(images.lines(tmp_path / 'm.jsonl'))
    with pytest.raises(CodebookError, match='and the codebook takes 16 x 16'):
        images.Images(folder / 'm.jsonl', image_size=16)


def test_batches_are_a_function_of_the_step_and_hosts_take_rows_of_them(folder):
    loader = images.Images(folder / 'm.jsonl', image_size=8, rows=3)
    first = [batch for (_, batch), _ in zip(loader.batches(), range(4))]
    step, third = next(loader.batches(2))
    assert step == 2 and third['image_lengths'].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(first[2]['images'], third['images'])
    _, host = next(loader.batches(2, lambda rows: range(2, rows + 1)))
    np.testing.assert_array_equal(host['images'][0], third['images'][2])
    assert host['image_lengths'].tolist() == [1, 0]
    lengths = [batch['image_lengths'].tolist() for batch, _ in loader.examples()]
    assert lengths == [[1, 1, 1], [1, 1, 0]]
    shapes = {name: (array.shape, array.dtype) for name, array in third.items()}
    assert shapes == loader.batch_shapes()[0]
