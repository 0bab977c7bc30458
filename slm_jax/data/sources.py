"""Sources of many files, whose examples are in the order of the files: manifests and tars in shards, Hugging Face's.

A source says how many examples each file holds, and reads any range of one, so that a shard of a store can be made
without what comes before it.
"""

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Int

from slm_jax import paths
from slm_jax.data import json_lines, manifests

# A file of a source, and which of its examples; None: to its end.
Piece = tuple[str, int, int | None]
_AT_ONCE = 64  # lines of a manifest that TensorFlow is given
_READERS = 32  # threads that count examples: files may be far away
AUDIO = ('flac', 'wav', 'mp3', 'opus', 'ogg', 'm4a', 'webm', 'aac', 'amr', 'wma', 'mp4')


def expand(name: str | Sequence[str]) -> list[str]:
    """The files that a name stands for, in order.

    Args:
        name: a path; one with `*`, `?` or `[…]`, whose matches are sorted by name; `NAME@64`, the files
            NAME-00000-of-00064 to NAME-00063-of-00064 (before an ending: `a@64.tar` is a-00000-of-00064.tar …);
            `{000..127}` in it, a range of numbers; or several of these, in their order.

    Raises:
        ValueError: nothing matches.
    """
    if not isinstance(name, str):
        return [file for each in name for file in expand(each)]
    if found := re.search(r'\{(\d+)\.\.(\d+)\}', name):
        first, last = found.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        return [file for number in numbers for file in expand(name[: found.start()] + number + name[found.end() :])]
    if found := re.search(r'@(\d+)(?=(\.[\w.]+)?$)', name):
        count = int(found[1])
        return [f'{name[: found.start()]}-{i:05d}-of-{count:05d}{name[found.end() :]}' for i in range(count)]
    if not re.search(r'[*?[]', name):
        return [name]
    if paths.is_url(name):
        root = re.split(r'[^/]*[*?[]', name)[0]
        files = sorted(str(path) for path in paths.path(root).glob(name[len(root) :]))
    else:
        files = sorted(glob.glob(str(paths.path(name)), recursive=True))
    if not files:
        raise ValueError(f'{name}: no file is called so. Correct the pattern, or make the files.')
    return files


@dataclasses.dataclass(frozen=True)
class Contents:
    """Where the examples of a split are: `offsets[i]` come before those of file i; all of them at the end."""

    files: list[str]
    offsets: Int[np.ndarray, ' files+1']

    def pieces(self, start: int, stop: int | None) -> list[Piece]:
        """Where the examples `start` to `stop` are."""
        stop = int(self.offsets[-1]) if stop is None else stop
        result: list[Piece] = []
        first = max(int(np.searchsorted(self.offsets, start, 'right')) - 1, 0)
        for number in range(first, len(self.files)):
            begin, end = (int(at) for at in self.offsets[number : number + 2])
            if begin >= stop:
                break
            if max(begin, start) < min(end, stop):
                result.append((self.files[number], max(begin, start) - begin, min(end, stop) - begin))
        return result


class Shards(manifests.Source):
    """A `dataset_fn` for `seqio.FunctionDataSource`, over some files for each split.

    A subclass has `paths`, the files of each split as `expand` takes them; `read(file, start, stop)`, examples as
    dictionaries of `FIELDS`, and `content`, the bytes of a recording, where `has_content`; and `size(file)`, how many
    examples there are.
    """

    has_content = False
    paths: Mapping[str, str | Sequence[str]]
    read: Callable[..., Iterator[dict[str, Any]]]
    size: Callable[[str], int]

    def files(self, split: str) -> list[str]:
        """The files of a split, in order."""
        return expand(self.paths[split])

    def path(self, split: str) -> pathlib.Path:
        return paths.path(self.files(split)[0])

    def __call__(self, split: str, shuffle_files: bool, seed: int | None = None):
        dataset = self.dataset([(file, 0, None) for file in self.files(split)])
        return dataset.shuffle(10_000, seed=seed) if shuffle_files else dataset

    def examples(self, split: str) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(self.read(file) for file in self.files(split))

    def contents(self, split: str) -> 'Contents':
        """How many examples each file holds."""
        files = self.files(split)
        with futures.ThreadPoolExecutor(_READERS) as pool:
            return Contents(files, np.cumsum([0, *pool.map(self.size, files)]))

    def dataset(self, pieces: Sequence[Piece]):
        """The examples of these places."""
        from slm_jax.data.tensorflow_cpu import tf

        fields = (*manifests.FIELDS, 'content') if self.has_content else manifests.FIELDS

        def rows():
            """Some at a time, where they are small: handing one over takes ten times as long as reading it."""
            examples = itertools.chain.from_iterable(self.read(*piece) for piece in pieces)
            while some := list(itertools.islice(examples, 1 if self.has_content else _AT_ONCE)):
                yield {field: [example[field] for example in some] for field in fields}

        signature = {field: tf.TensorSpec((None,), tf.string) for field in fields}
        return tf.data.Dataset.from_generator(rows, output_signature=signature).unbatch()

    def fingerprint(self, split: str) -> str:
        named = [str(paths.absolute(paths.path(file))) for file in self.files(split)]
        return hashlib.sha256(repr((named, self)).encode()).hexdigest()

    def state(self, split: str) -> str:
        """Changes when a file does."""
        return hashlib.sha256(repr(paths.states(self.files(split))).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class ManifestSource(Shards):
    """{split: manifests}, optionally some languages of them.

    Attributes:
        paths: the manifests of each split, see `expand`.
        langs: take lines of these languages only; empty takes all.
    """

    paths: Mapping[str, str | Sequence[str]]
    langs: tuple[str, ...] = ()

    def read(self, file: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, str]]:
        if not self.langs:
            return (example for _, example in manifests.rows(file, start, stop))
        taken = (row for row in manifests.read(file) if row['lang'] in self.langs or row['error'])
        return itertools.islice(taken, start, stop)

    def size(self, file: str) -> int:
        return sum(1 for _ in (self.read(file) if self.langs else json_lines.lines(file)))

    def state(self, split: str) -> str:
        """Changes when a manifest does, and, where there is one alone, a recording that it names."""
        return super().state(split) if len(self.files(split)) > 1 else manifests.Source.state(self, split)


@dataclasses.dataclass(frozen=True)
class TarSource(Shards):
    """{split: tars} in the layout of WebDataset: KEY.flac (or wav, mp3, …) beside KEY.json or KEY.txt.

    A JSON holds what a manifest's line would, a text the transcript. Members of one key stand together.

    Attributes:
        paths: the tars of each split, see `expand`.
        lang: of the speech, where no JSON says it.
    """

    paths: Mapping[str, str | Sequence[str]]
    lang: str = ''

    has_content = True

    def read(self, file: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        with _tar(file) as tar:
            for key, members in itertools.islice(_keys(tar), start, stop):
                contents = {}
                for ending, member in members.items():
                    opened = tar.extractfile(member)
                    if opened and ending.lower() in (*AUDIO, 'json', 'txt'):
                        contents[ending.lower()] = opened.read()
                yield _example(f'{file}:{key}', contents, self.lang)

    def size(self, file: str) -> int:
        with _tar(file) as tar:
            return sum(1 for _ in _keys(tar))


def _example(origin: str, contents: Mapping[str, bytes], lang: str) -> dict[str, Any]:
    """What the members of one key, by their endings, are as an example."""
    example = dict.fromkeys(manifests.FIELDS, '') | {'id': origin, 'origin': origin, 'lang': lang, 'content': b''}
    audio = next((ending for ending in AUDIO if ending in contents), None)
    try:
        if audio is None:
            there = ', '.join(sorted(contents)) or 'nothing that is read'
            raise ValueError(f'holds no recording ({there}). Add one ({", ".join(AUDIO[:5])}, …), or remove the key.')
        if not {'json', 'txt'} & contents.keys():
            raise ValueError('has no text. Add a .json or .txt of the same name, or remove the key.')
        if 'txt' in contents:
            example['text'] = contents['txt'].decode().strip()
        if 'json' in contents:
            row = json_lines.parse(contents['json'])
            row = {name: value for name, value in row.items() if name not in (*manifests.AUDIO, 'offset', 'duration')}
            example |= {name: text for name, text in manifests.fields(row, pathlib.Path()).items() if text}
        example['content'] = contents[audio]
    except ValueError as error:
        example['error'] = f'{origin}: {error}'
    return example


@contextlib.contextmanager
def _tar(file: str) -> Iterator[tarfile.TarFile]:
    """A tar that is read to its end, wherever it is.

    Raises:
        ValueError: it is none, or torn.
    """
    tar, path = None, paths.path(file)
    try:
        with path.open('rb') as stream, tarfile.open(fileobj=stream, mode='r:') as tar:
            yield tar
    except tarfile.TarError as error:
        if tar is None or tar.offset == 0:
            raise ValueError(f'{file}: is no tar ({error}). Write it by `tar cf`, without compressing it.') from error
        raise ValueError(f'{file}: is torn after byte {tar.offset} ({error}). Fetch it again.') from error
    except OSError as error:
        raise ValueError(
            f'{file}: cannot be read ({error.strerror or error}). Give a tar that you may read.'
        ) from error


def _keys(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, {ending: member}); a key ends at the first dot of the file's name.

    Raises:
        tarfile.ReadError: the end is missing, without which nobody knows whether all is there.
    """
    members = (member for member in tar if member.isfile())
    named = (
        (folder, *name.partition('.')[::2], member) for member in members for folder, name in [_split(member.name)]
    )
    for (folder, key), group in itertools.groupby(named, lambda each: each[:2]):
        yield f'{folder}{key}', {ending: member for _, _, ending, member in group}
    tar.fileobj.seek(tar.offset)
    if any(tar.fileobj.read(tarfile.BLOCKSIZE) or b'?'):
        raise tarfile.ReadError('no end of the archive')


def _split(name: str) -> tuple[str, str]:
    folder, slash, file = name.removeprefix('./').rpartition('/')
    return folder + slash, file


@dataclasses.dataclass(frozen=True)
class HuggingFaceSource(Shards):
    """A data set of Hugging Face's `datasets`: a directory of `save_to_disk` or of Parquet files, or a name on the hub.

    Attributes:
        path_or_name: of the data set.
        splits: {split of the task: split of the data set}.
        columns: {field of a manifest's line: column}; `audio` holds recordings, not their features.
        lang: of the speech, where no column says it.
        name: of a configuration, on the hub.
    """

    path_or_name: str
    splits: Mapping[str, str]
    columns: Mapping[str, str]
    lang: str = ''
    name: str | None = None

    has_content = True

    def path(self, split: str) -> pathlib.Path:
        return pathlib.Path(self.path_or_name, split)

    def files(self, split: str) -> list[str]:
        return [self.splits[split]]

    def read(self, file: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        rows = self._rows(file)
        for number in range(start, len(rows) if stop is None else stop):
            row, origin = rows[number], f'{self.path_or_name}:{file}:{number}'
            recording = row[self.columns['audio']] or {}
            example = dict.fromkeys(manifests.FIELDS, '') | {'id': origin, 'origin': origin, 'content': b''}
            try:
                texts = {field: row[column] for field, column in self.columns.items() if field != 'audio'}
                fields = manifests.fields({'lang': self.lang} | texts, pathlib.Path())
                example |= {name: text for name, text in fields.items() if text}
                content = recording.get('bytes')
                if content is None and not recording.get('path'):
                    raise ValueError(f'column "{self.columns["audio"]}" holds no recording. Remove the row.')
                example['content'] = paths.path(recording['path']).read_bytes() if content is None else content
            except (ValueError, OSError) as error:
                example['error'] = f'{origin}: {error}'
            yield example

    def size(self, file: str) -> int:
        return len(self._rows(file))

    def state(self, split: str) -> str:
        """Changes when the data set does."""
        return hashlib.sha256(self._rows(self.splits[split])._fingerprint.encode()).hexdigest()

    def _rows(self, split: str) -> Any:
        """The data set's rows, with recordings as bytes.

        Raises:
            ValueError: the library is missing, or the data set, its split or a column.
        """
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f'{self.path_or_name}: data sets of Hugging Face take its library: pip install "slm_jax[datasets]"'
            ) from error
        place = pathlib.Path(self.path_or_name).expanduser()
        try:
            if (place / 'dataset_dict.json').exists() or (place / 'state.json').exists():
                rows = datasets.load_from_disk(str(place))
                rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
            else:
                rows = datasets.load_dataset(
                    str(place) if place.is_dir() else self.path_or_name, self.name, split=split
                )
        except Exception as error:  # the library has many, and others' pass through it
            reason = ' '.join(str(error).split())[:300]
            raise ValueError(
                f'{self.path_or_name}: no split {split!r} of a data set can be had ({reason}). Give a directory of '
                '`save_to_disk` or of Parquet files, or a name on the hub, and {split of the task: split there}.'
            ) from error
        missing = sorted({*self.columns.values()} - {*rows.column_names})
        if missing:
            raise ValueError(
                f'{self.path_or_name}: no column {", ".join(missing)}; there are {", ".join(rows.column_names)}. '
                'Say in `columns` which is which: {"audio": …, "text": …}.'
            )
        return rows.cast_column(self.columns['audio'], datasets.Audio(decode=False))
