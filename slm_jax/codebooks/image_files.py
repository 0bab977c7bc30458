"""Manifests of images to files of their tokens, and these to images again."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from slm_jax.codebooks import images, unit_files
from slm_jax.codebooks.codebook import CodebookError
from slm_jax.codebooks.images import ImageCodebook
from slm_jax.data import json_lines, manifests

_SOME = 256  # images in memory


def encode(codebook: ImageCodebook, manifest: str, out: pathlib.Path, on_bad_example: str) -> dict[str, Any]:
    """Writes the lines of a manifest with their `tokens`, rows of the image, to a file, which is then there whole.

    Returns:
        `images`, how many; `used` tokens and `bits` (entropy) of a token; `error`, the root of the mean square of what
        pixels differ by when decoded, and `psnr` in dB; `errors` of what was left out.

    Raises:
        CodebookError: an image that cannot be used, unless these are skipped ('skip'), or none that can.
    """
    errors: list[str] = []
    counts, square, pixels, number = np.zeros(codebook.size, np.int64), 0.0, 0, 0
    folder = pathlib.Path(manifest).parent
    part = out.with_name(f'{out.name}.part')
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open('w', encoding='utf-8') as file:
        for rows, read in _some(codebook, manifest, errors, on_bad_example):
            tokens = codebook.encode(read)
            difference = codebook.decode(tokens).astype(np.float64) - read
            square, pixels = square + float(np.sum(np.square(difference))), pixels + difference.size
            counts += np.bincount(tokens.reshape(-1), minlength=codebook.size)
            number += len(rows)
            for row, own in zip(rows, tokens.tolist()):
                moved = manifests.moved(row['image'], folder, out.absolute().parent)
                json_lines.append(file, {**row, 'image': moved, 'tokens': own, 'codebook': codebook.label})
    if not number:
        part.unlink()
        raise CodebookError(f'{out}: no image could be used; the first: {errors[0]}')
    os.replace(part, out)
    shares = counts[counts > 0] / counts.sum()
    told = {'images': number, 'used': int(np.sum(counts > 0)), 'bits': float(-np.sum(shares * np.log2(shares)))}
    error = (square / pixels) ** 0.5
    return told | {'error': error, 'psnr': 20 * float(np.log10(255 / max(error, 1e-3))), 'errors': errors}


def _some(
    codebook: ImageCodebook, manifest: str, errors: list[str], on_bad_example: str
) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """(lines, images) of some that fit into memory at once."""
    rows: list[dict[str, Any]] = []
    read: list[Any] = []
    for row, path in images.lines(manifest):
        try:
            read.append(images.read_image(path, codebook.pixels))
        except CodebookError as error:
            if on_bad_example == 'raise':
                raise CodebookError(f'{error}\n(--on_bad_example skip leaves such images out.)') from None
            errors.append(str(error))
            continue
        rows.append(row)
        if len(rows) == _SOME:
            yield rows, np.stack(read)
            rows, read = [], []
    if rows:
        yield rows, np.stack(read)


def decode(codebook: ImageCodebook, file: str, out: pathlib.Path) -> str:
    """Writes a PNG for each image of a token file to a folder, and manifest.jsonl; returns how many.

    Raises:
        UnitError: tokens that cannot be used.
    """
    lines = []
    label = codebook.label
    for found in unit_files.read(file, codebook.size, label=label, field=unit_files.TOKENS):
        unit_files.check_image(found, file, codebook.shape)
        name = f'{len(lines):06d}.png'
        images.write_png(out / name, codebook.decode(found.units.reshape(1, *codebook.shape))[0])
        known = {key: value for key, value in found.row.items() if key not in ('image', unit_files.TOKENS)}
        lines.append(json.dumps({'id': found.id or name, **known, 'image': name}, ensure_ascii=False) + '\n')
    (out / 'manifest.jsonl').write_text(''.join(lines), encoding='utf-8')
    return f'{len(lines)} images'
