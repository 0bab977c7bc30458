"""A Hugging Face directory, or the one that `hf:owner/name` is fetched into."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face.tensors import WEIGHTS, read_json, shards

_SCHEME = 'hf:'
_CONFIG, _README = 'config.json', 'README.md'


@dataclasses.dataclass(frozen=True)
class Directory:
    """What is known of a checkpoint before its weights are looked at.

    Attributes:
        source: as it was asked for.
        path: the directory.
        revision: commit on the Hub; None where it cannot be told.
        licence: as the README's header says; None where it says nothing.
        config: `config.json`.
        languages: codes of languages that the model is to get, and as which of its own each begins; see
            `importers.mbart.vocabulary`.
    """

    source: str
    path: pathlib.Path
    revision: str | None
    licence: str | None
    config: dict[str, Any]
    languages: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(source: str) -> Directory:
    """Looks at a local directory, or at `hf:owner/name` (`hf:owner/name@revision`), of which it fetches the config.

    Raises:
        CheckpointError: neither is there, or it has no `config.json`.
    """
    hub = source.startswith(_SCHEME)
    path = download(source, _revision(source), [_CONFIG, _README]) if hub else pathlib.Path(source).expanduser()
    if not path.is_dir():
        raise CheckpointError(f'{source} is no directory. From the Hub: {_SCHEME}owner/name.')
    if not (path / _CONFIG).is_file():
        raise CheckpointError(
            f'{path} has no config.json, so it is no Hugging Face directory; and no file `checkpoint` or '
            'checkpoint_<step>/checkpoint, so it is none of T5X in its own format either (its Orbax one is not read).'
        )
    revision = path.absolute().name
    return Directory(
        source=source,
        path=path,
        revision=revision if re.fullmatch('[0-9a-f]{40}', revision) else None,  # a snapshot in the Hub's cache
        licence=_licence(path / _README),
        config=read_json(path / _CONFIG),
    )


def fetch(
    directory: Directory,
    files: Sequence[str | Sequence[str]],
    weights: Sequence[str] = WEIGHTS,
    landmark: str | None = None,
) -> None:
    """Completes a directory that came from the Hub by what an importer reads, and nothing else.

    Args:
        directory: from `read`; a local one is complete.
        files: their names, as far as they are there; of several in a tuple, the first that is.
        weights: names of which the first that is there is fetched; of an index, the shards besides.
        landmark: of the shards, only those with a part of the model; see `tensors.prefix`.

    Raises:
        CheckpointError: the Hub cannot be reached, or an index of shards is damaged.
    """
    if not directory.source.startswith(_SCHEME):
        return
    revision = directory.revision or _revision(directory.source)  # what was begun at one commit is ended at it

    def complete(*names: str) -> None:
        download(directory.source, revision, names)

    complete(*(name for name in files if isinstance(name, str)))
    for names in (*(name for name in files if not isinstance(name, str)), weights):
        for name in names:
            complete(name)
            if (directory.path / name).is_file():
                if name.endswith('.index.json'):
                    complete(*shards(directory.path / name, landmark))
                break


def check_types(file: pathlib.Path, flags: Mapping[str, Any], kinds: Mapping[type, Iterable[str]]) -> None:
    """Refuses flags of another type than bool or str; absent and null mean the default.

    Raises:
        CheckpointError: names the flag.
    """
    for kind, keys in kinds.items():
        for key in keys:
            if flags.get(key) is not None and type(flags[key]) is not kind:
                wanted = 'true or false' if kind is bool else 'a text'
                raise CheckpointError(f'{file}: {key} is {flags[key]!r}; it must be {wanted}.')


def _revision(source: str) -> str | None:
    return source.partition('@')[2] or None


def download(source: str, revision: str | None, files: Sequence[str]) -> pathlib.Path:
    """Downloads those of the files that are there, through the cache of the Hub.

    Raises:
        CheckpointError: the Hub cannot be reached, or does not know the source.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f'{source} is fetched by huggingface_hub: pip install slm_jax[hf].') from error
    name = source.removeprefix(_SCHEME).partition('@')[0]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # Of the cut of a connection each client of HTTP has its own errors.
        reason = str(error).partition('\n')[0]
        raise CheckpointError(
            f'{source} cannot be fetched ({type(error).__name__}: {reason}). Where there is a '
            f'network, `hf download {name} --local-dir DIR`; then `slm-jax import DIR OUT` needs none.'
        ) from error


def _licence(readme: pathlib.Path) -> str | None:
    if not readme.is_file():
        return None
    header = re.match(r'---\n(.*?)\n---', readme.read_text(encoding='utf-8', errors='replace'), re.DOTALL)
    found = re.search(r'^license:[ \t]*(\S.*?)\s*$', header[1], re.MULTILINE) if header else None
    return found[1] if found else None
