"""Images and their tokens: reading and writing them, batches of them for training, and a trained codebook at work."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from slm_jax import paths
from slm_jax.codebooks import trained
from slm_jax.codebooks.codebook import CodebookError
from slm_jax.codebooks.image_model import ImageVq as Model
from slm_jax.data import json_lines, manifests
from slm_jax.systems.image_vq import ImageVq

_ROWS = 64  # of a batch that is encoded or decoded
HostRows = Callable[[int], Iterable[int]]
Pixels = UInt8[np.ndarray, 'h w 3']


@dataclasses.dataclass(frozen=True)
class ImageCodebook:
    """What `slm_jax.train` left of an `ImageVq` system.

    Attributes:
        model: the network.
        params: its own.
        label: its name and the beginning of its fingerprint, which files of its tokens carry.
    """

    model: Model
    params: Any
    label: str

    @classmethod
    def load(cls, model_dir: str | os.PathLike) -> 'ImageCodebook':
        """Reads a model directory.

        Raises:
            ValueError: it is not there, damaged, or no image codebook.
        """
        return cls.of(*trained.load(model_dir, ImageVq))

    @classmethod
    def of(cls, system: ImageVq, params: Any, card: Any) -> 'ImageCodebook':
        """What `trained.load` gives."""
        from slm_jax import foundations

        own = params['image_codebook']
        fingerprint = foundations.fingerprint(own)['content']
        return cls(system.model, own, f'{card["name"]}@{fingerprint[:12]}')

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.model.config.num_codes

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens of an image: rows and columns."""
        return (self.model.config.grid,) * 2

    @property
    def pixels(self) -> int:
        """Of a side of its images."""
        return self.model.config.image_size

    def encode(self, images: UInt8[np.ndarray, 'n h w 3']) -> Int[np.ndarray, 'n g g']:
        """The tokens of images of `pixels`."""
        encode = _compiled(self.model, 'encode')
        return _in_batches(lambda some: encode(self.params, some.astype(jnp.float32) / 127.5 - 1.0), images)

    def decode(self, tokens: Int[np.ndarray, 'n g g']) -> UInt8[np.ndarray, 'n h w 3']:
        """The images of tokens."""
        decode = _compiled(self.model, 'decode')
        made = _in_batches(lambda some: decode(self.params, some), tokens)
        return np.clip(np.round((made + 1.0) * 127.5), 0, 255).astype(np.uint8)


@functools.cache
def _compiled(model: Model, method: str) -> Callable:
    return jax.jit(lambda params, given: model.apply({'params': params}, given, method=method))


def _in_batches(function: Callable, values: np.ndarray) -> np.ndarray:
    made = []
    for start in range(0, len(values), _ROWS):
        some = values[start : start + _ROWS]
        filled = np.concatenate([some, np.zeros((_ROWS - len(some), *some.shape[1:]), some.dtype)])
        made.append(np.asarray(function(filled))[: len(some)])
    return np.concatenate(made)


def read_image(path: str, side: int) -> Pixels:
    """An image file of these sides.

    Raises:
        CodebookError: it cannot be read, or is of another size; names both.
    """
    import PIL
    from PIL import Image

    try:
        with paths.path(path).open('rb') as file, Image.open(file) as image:
            pixels = np.asarray(image.convert('RGB'))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise CodebookError(f'{path}: cannot be read as an image ({error}). Give a PNG or JPEG.') from error
    height, width = pixels.shape[:2]
    if (height, width) != (side, side):
        raise CodebookError(
            f'{path}: is an image of {width} x {height} pixels, and the codebook takes {side} x {side}. Resize it, or '
            'train a codebook of its size (ImageVqConfig.image_size).'
        )
    return pixels


def write_png(path: pathlib.Path, pixels: Pixels) -> None:
    """Writes an image."""
    from PIL import Image

    Image.fromarray(pixels).save(path, format='PNG')


def lines(path: str | os.PathLike) -> Iterator[tuple[dict[str, Any], str]]:
    """(line, path of its image) of a JSONL manifest.

    Raises:
        ValueError: a line that names none.
    """
    folder = paths.path(path).parent
    for number, line in json_lines.lines(path):
        try:
            row = json_lines.parse(line)
        except json_lines.JsonLinesError as error:
            raise CodebookError(f'{path}:{number}: {error}') from None
        if not isinstance(row.get('image'), str) or not row['image']:
            raise CodebookError(f'{path}:{number}: the line has no "image". Give the path of an image.')
        yield row, manifests.resolve(row['image'], folder)


class Images:
    """What `slm_jax.train` needs of a loader, over a manifest of images.

    Args:
        manifest: JSONL, an `image` a line.
        image_size: pixels of a side.
        rows: of a batch.
        seed: of the order.

    Raises:
        ValueError: the manifest cannot be read.
    """

    skipped: Sequence[tuple[str, str]] = ()
    vocabulary = None

    def __init__(self, manifest: str | os.PathLike, image_size: int, rows: int = 64, seed: int = 0):
        if rows < 1:
            raise ValueError(f'Images.rows is {rows!r}; a whole number from 1 on was expected.')
        self._files = [file for _, file in lines(manifest)]
        self._size, self._rows, self._seed = image_size, rows, seed
        content = hashlib.sha256(paths.path(manifest).read_bytes()).hexdigest()
        self._about = {'manifest': str(manifest), 'content': content}
        read_image(self._files[0], image_size)  # says at once what all of them are likely to be

    def batches(
        self, start_step: int = 0, host_rows: HostRows | None = None
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) for ever; see `slm_jax.data.loader.SpeechTextLoader`."""
        step = start_step
        while True:
            places = range(step * self._rows, (step + 1) * self._rows)
            yield step, self._batch([self._drawn(place) for place in places], host_rows)
            step += 1

    def examples(self, host_rows: HostRows | None = None) -> Iterator[tuple[dict[str, np.ndarray], list[None]]]:
        """Each image once."""
        for first in range(0, len(self._files), self._rows):
            batch = self._batch(self._files[first : first + self._rows], host_rows)
            yield batch, [None] * len(batch['image_lengths'])

    def batch_shapes(self) -> list[dict[str, tuple[tuple[int, ...], Any]]]:
        """Per shape of a batch, of which there is one, {name: (shape, dtype)}; it has no speech and no text."""
        rows, size = self._rows, self._size
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            'images': ((rows, size, size, 3), np.dtype(np.uint8)),
            'image_lengths': ((rows,), np.dtype(np.int32)),
            'speech_samples': ((rows, 0), np.dtype(np.int16)),
            'speech_lengths': ((rows,), np.dtype(np.int32)),
            'decoder_target_tokens': ((rows, 0), np.dtype(np.int32)),
        }
        return [shapes]

    def state(self) -> Mapping[str, Any]:
        """What, with the step, fixes the data."""
        return {'seed': self._seed, 'rows': self._rows, **self._about}

    def _drawn(self, place: int) -> str:
        epoch, within = divmod(place, len(self._files))
        return self._files[int(np.random.default_rng((self._seed, epoch)).permutation(len(self._files))[within])]

    def _batch(self, files: Sequence[str], host_rows: HostRows | None) -> dict[str, np.ndarray]:
        taken = [files[row] if row < len(files) else None for row in (host_rows or range)(self._rows)]
        shapes = self.batch_shapes()[0]
        batch = {name: np.zeros((len(taken), *shape[1:]), dtype) for name, (shape, dtype) in shapes.items()}
        for row, file in enumerate(taken):
            if file is not None:
                batch['images'][row], batch['image_lengths'][row] = read_image(file, self._size), 1
        return batch
