"""Files of units of speech and of tokens of images, ours and others'.

    {"id": "a", "audio": "a.wav", "text": "…", "units": [5, 9], "durations": [3, 1], "codebook": "NAME@FINGERPRINT"}
    {"id": "b", "units": [[5, 9, 9], [0, 7, 1]]}                JSONL; a list for each of several codebooks
    {"id": "c", "image": "c.png", "caption": "…", "tokens": [[3, 3], [8, 1]]}             rows of an image
    {"id": "d", "instruction": "Hold on.", "prediction": "5 9"}                           what `slm-jax evaluate` writes
    a<TAB>5 9 9                                                 text, .txt or .tsv (Seamless)
    a.npy, folder/*.npy, all.npz                                arrays [frames] or [codebooks, frames] (EnCodec, Mimi)

Several codebooks of one frame become neighbours: unit u of codebook q (from 0 on) at frame t of Q codebooks of `size`
units stands at place t·Q + q, and is the number q·size + u. So all Q·size numbers are one vocabulary.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from slm_jax import paths
from slm_jax.data import json_lines, manifests

UNITS, TOKENS = 'units', 'tokens'  # of speech, of images
PREDICTION = 'prediction'
_TEXTS = ('.txt', '.tsv', '.km', '.unit')
_ANY = 2**31 - 1  # a size that every codebook is within


class UnitError(ValueError):
    """Units that cannot be used; `str()` names the file, the line and the remedy."""


class Units(NamedTuple):
    """What a file says of one recording or image.

    Attributes:
        id: '' if it has none.
        units: in one row, as said above.
        durations: how many frames each lasts; None where repetitions stand in `units`.
        row: all fields of a JSON line, or what stands in an array.
    """

    id: str
    units: Int[np.ndarray, ' n']
    durations: Int[np.ndarray, ' n'] | None
    row: Mapping[str, Any]


def read(
    path: str | os.PathLike, size: int, codebooks: int = 1, label: str | None = None, field: str = UNITS
) -> Iterator[Units]:
    """Reads any of these files.

    Args:
        path: of the file, or of a folder of .npy.
        size: of each codebook.
        codebooks: how many.
        label: of the codebook whose units are wanted (`Codebook.label`); None: any, and lines that name none are taken
            as they are.
        field: `UNITS` or `TOKENS`, of JSON lines. The rows of an image are joined, not interleaved.

    Raises:
        UnitError: a file of another kind, units out of range, or of another codebook; names where.
    """
    for where, name, codes, row in _rows(path, field):
        if label is not None and row.get('codebook', label) != label:
            raise UnitError(
                f'{where}: its {field} are of the codebook {row["codebook"]}, and those of {label} are wanted. Encode '
                'the recordings anew (slm-jax codebook encode), or give the other codebook.'
            )
        units = _flat(where, codes, size, codebooks, field)
        yield Units(name, units, _durations(where, row, len(units)), row)


def pair(source: str | os.PathLike, target: str | os.PathLike, out: pathlib.Path) -> dict[str, Any]:
    """Joins the units of sentences that are said in two languages, for training of speech to speech.

    Writes each line of `source` with the units of the line of `target` that has its id, as `target_units`; the language
    of that line as `target_lang`, and its text, where both are there, as the `translation`. The file is then there
    whole.

    Returns:
        `pairs`, how many; `alone`, ids of the lines of `source` that have no partner.

    Raises:
        UnitError: a line without an id or units, an id that `target` has twice, units of two codebooks, another
            `target_lang`, or no pair at all.
    """
    partners: dict[str, tuple[str, Any, Mapping[str, Any]]] = {}
    for where, name, codes, row in _rows(target, UNITS):
        if _named(where, name) in partners:
            raise UnitError(f'{where}: the id {name!r} stands at {partners[name][0]} too. Leave one of them out.')
        partners[name] = where, codes, row
    folder, to, alone, pairs = paths.path(source).parent, out.absolute().parent, [], []
    for where, name, codes, row in _rows(source, UNITS):
        if _named(where, name) not in partners:
            alone.append(name)
            continue
        of_target, target_codes, own = partners[name]
        for field, ours, theirs, remedy in (
            ('codebook', row.get('codebook'), own.get('codebook'), 'Encode both files with one codebook.'),
            ('target_lang', row.get('target_lang'), own.get('lang'), 'Give the units of that language.'),
        ):
            if ours and theirs and ours != theirs:
                raise UnitError(f'{where}: its "{field}" is {ours!r}, and {of_target} is of {theirs!r}. {remedy}')
        moved = {key: manifests.moved(row[key], folder, to) for key in manifests.AUDIO if row.get(key)}
        units, target_units = (
            _flat(place, each, _ANY, 1, UNITS).tolist() for place, each in ((where, codes), (of_target, target_codes))
        )
        joined = {'id': name, **row, **moved, 'units': units, 'target_units': target_units}
        known = row.get('translation') or {}
        if own.get('lang'):
            joined['target_lang'] = own['lang']
            if own.get('text') and isinstance(known, Mapping):
                joined['translation'] = {**known, own['lang']: own['text']}
        pairs.append(joined)
    if not pairs:
        raise UnitError(f'{out}: no line of {source} has an id that {target} has. Name a sentence alike in both.')
    paths.write(out, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in pairs))
    return {'pairs': len(pairs), 'alone': alone}


def beside(
    path: str | os.PathLike,
    manifest: str | os.PathLike,
    out: pathlib.Path,
    size: int,
    codebooks: int = 1,
    field: str = UNITS,
) -> dict[str, Any]:
    """Writes the lines of a manifest with the units, or tokens, that a file has under their ids.

    A line without an id goes by the name of its recording or image, without its ending. The file is then there whole.

    Args:
        path, size, codebooks, field: see `read`.
        manifest: JSONL; its other fields stay as they are.
        out: the file that is written.

    Returns:
        `lines`, how many; `alone`, names of the lines of the manifest that the file says nothing of.

    Raises:
        UnitError: see `read`; an id that the file has twice, or none of the manifest's.
    """
    found: dict[str, Units] = {}
    for each in read(path, size, codebooks, field=field):
        if _named(str(path), each.id) in found:
            raise UnitError(f'{path}: it has the id {each.id!r} twice. Leave one of them out.')
        found[each.id] = each
    folder, to, alone, lines = paths.path(manifest).parent, out.absolute().parent, [], []
    for row, example in manifests.rows(manifest):
        if example['error']:
            raise UnitError(example['error'])
        files = {key: row[key] for key in (*manifests.AUDIO, 'image') if isinstance(row.get(key), str) and row[key]}
        name = str(row.get('id') or next((pathlib.Path(file).stem for file in files.values()), example['id']))
        if name not in found:
            alone.append(name)
            continue
        own = {'id': name, **row, **{key: manifests.moved(file, folder, to) for key, file in files.items()}}
        own[field] = found[name].row.get(TOKENS, found[name].units.tolist())  # an image keeps its rows
        if (durations := found[name].durations) is not None:
            own['durations'] = durations.tolist()
        lines.append(json.dumps(own, ensure_ascii=False) + '\n')
    if not lines:
        raise UnitError(f'{out}: {path} has no id of {manifest}, as {alone[0]!r}. Name them alike in both.')
    paths.write(out, ''.join(lines))
    return {'lines': len(lines), 'alone': alone}


def numbers(text: Any) -> list[int] | None:
    """Those of a text of nothing else, '17 4 233'; None: it is none."""
    parts = text.split() if isinstance(text, str) else ['']
    return [int(part) for part in parts] if all(part.isascii() and part.isdigit() for part in parts) else None


def _named(where: str, name: str) -> str:
    if not name:
        raise UnitError(f'{where}: the line has no "id", which says whose partner it is. Give each sentence one.')
    return name


def flatten(codes: Int[np.ndarray, 'q t'], size: int) -> Int[np.ndarray, ' qt']:
    """Several codebooks as one row, as said above."""
    return (codes + size * np.arange(len(codes))[:, None]).T.reshape(-1).astype(np.int32)


def unflatten(units: Int[np.ndarray, ' qt'], size: int, codebooks: int) -> Int[np.ndarray, 'q t']:
    """The inverse.

    Raises:
        UnitError: it is no such row: the numbers do not take turns.
    """
    if len(units) % codebooks or np.any(units // size != np.arange(len(units)) % codebooks):
        raise UnitError(f'these {len(units)} units are not those of {codebooks} codebooks of {size} in turn.')
    return (units % size).reshape(-1, codebooks).T


def without_repetitions(units: Int[np.ndarray, ' n']) -> tuple[Int[np.ndarray, ' u'], Int[np.ndarray, ' u']]:
    """Units of which no two neighbours are alike, and how often each stood there."""
    first = np.flatnonzero(np.diff(units, prepend=-1))
    return units[first], np.diff(first, append=len(units)).astype(np.int32)


def _flat(where: str, codes: Any, size: int, codebooks: int, field: str) -> Int[np.ndarray, ' n']:
    try:
        array = np.asarray(codes)
    except ValueError:  # rows of different lengths
        array = np.asarray([None])
    if not array.size:
        array = array.astype(np.int32)
    if array.dtype.kind not in 'iu' or array.ndim not in (1, 2):
        raise UnitError(
            f'{where}: "{field}" is {str(codes)[:60]}; a list of whole numbers was expected, or one for each of '
            f'{"its rows" if field == TOKENS else "several codebooks"}, all of one length.'
        )
    outside = (array < 0) | (array >= size)
    if outside.any():
        raise UnitError(
            f'{where}: {field[:-1]} {array[outside][0]} is out of range: the codebook has {size}, 0 to {size - 1}. '
            'Give the codebook that wrote the file.'
        )
    if field == TOKENS:
        return array.reshape(-1).astype(np.int32)
    own = 1 if array.ndim == 1 else len(array)
    if own != codebooks:
        raise UnitError(
            f'{where}: has {own} codebook{"s" if own > 1 else ""} a frame, and {codebooks} were expected. Say how many '
            'there are.'
        )
    return flatten(array, size) if codebooks > 1 else array.reshape(-1).astype(np.int32)


def _durations(where: str, row: Mapping[str, Any], count: int) -> Int[np.ndarray, ' n'] | None:
    if row.get('durations') is None:
        return None
    durations = np.asarray(row['durations'])
    if durations.shape != (count,) or (count and (durations.dtype.kind not in 'iu' or durations.min() < 1)):
        raise UnitError(
            f'{where}: "durations" does not give each of its {count} units a whole number of frames from 1 on. Encode '
            'the recording anew, or leave the field out.'
        )
    return durations.astype(np.int32)


def _rows(path: str | os.PathLike, field: str) -> Iterator[tuple[str, str, Any, Mapping[str, Any]]]:
    """(where it stands, id, numbers, the line)."""
    file = paths.path(path)
    if file.is_dir() or file.suffix in ('.npy', '.npz'):
        yield from ((where, name, array, {field: array.tolist()}) for where, name, array in _arrays(file))
    elif file.suffix in _TEXTS:
        yield from ((where, name, numbers, {}) for where, name, numbers in _texts(file))
    elif file.suffix in ('.jsonl', '.json', '.manifest'):
        for number, line in json_lines.lines(file):
            where = f'{path}:{number}'
            try:
                row = json_lines.parse(line)
            except json_lines.JsonLinesError as error:
                raise UnitError(f'{where}: {error}') from None
            if field not in row and (said := numbers(row.get(PREDICTION))) is not None:
                asked = row.get('instruction')
                row = {**row, **({'text': asked} if asked and numbers(asked) is None else {}), field: said}
            if field not in row:
                raise UnitError(f'{where}: the line has no "{field}". Write them by `slm-jax codebook encode`.')
            yield where, str(row.get('id', '')), row[field], row
    else:
        raise UnitError(
            f'{path}: files of {field} end in .jsonl, {", ".join(_TEXTS)}, .npy or .npz, or are folders of .npy. '
            'Rename the file.'
        )


def _texts(file: pathlib.Path) -> Iterator[tuple[str, str, list[int]]]:
    for number, line in json_lines.lines(file):
        where = f'{file}:{number}'
        try:
            name, _, numbers = line.decode().rpartition('\t')
            yield where, name, [int(each) for each in numbers.split()]
        except ValueError:  # UnicodeDecodeError is one
            raise UnitError(f'{where}: "id<TAB>1 2 3" was expected, this is {line[:40]!r}.') from None


def _arrays(file: pathlib.Path) -> Iterator[tuple[str, str, np.ndarray]]:
    files = sorted(file.glob('*.npy')) if file.is_dir() else [file]
    if not files:
        raise UnitError(f'{file}: the folder has no .npy. Give one that has, or a file.')
    for each in files:
        try:
            with paths.local(each).open('rb') as opened:
                loaded = np.load(opened, allow_pickle=False)
                named: Iterable[tuple[str, np.ndarray]] = [(each.stem, loaded)]
                if each.suffix == '.npz':
                    named = [(name, loaded[name]) for name in loaded.files]
        except (ValueError, OSError, EOFError) as error:
            raise UnitError(f'{each}: cannot be read as arrays ({error}). Write it by numpy.save.') from error
        for name, array in named:
            yield (f'{each}:{name}' if each.suffix == '.npz' else str(each)), name, array


def check_image(units: Units, where: str, shape: Sequence[int]) -> None:
    """Whether the tokens are those of an image of the model's size.

    Raises:
        UnitError: they are of another.
    """
    rows = units.row.get(TOKENS)
    own = [len(rows), len(rows[0])] if rows and isinstance(rows[0], list) else None
    if (own or list(shape)) != list(shape) or len(units.units) != shape[0] * shape[1]:
        size = f'{own[0]} x {own[1]}' if own else str(len(units.units))
        name = units.id or 'an image'
        raise UnitError(
            f"{where}: {name} has {size} tokens, and the model's images have {shape[0]} x {shape[1]}. "
            'Give the model that wrote the file.'
        )
