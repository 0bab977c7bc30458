"""A Hugging Face directory, or the one that `hf:owner/name` is fetched into."""

import dataclasses
import pathlib
import re
from typing import Any

from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face.tensors import read_json

_SCHEME = 'hf:'
_FILES = ('*.json', '*.model', 'README.md')


@dataclasses.dataclass(frozen=True)
class Directory:
    """What is known of a checkpoint before its weights are looked at.

    Attributes:
        source: as it was asked for.
        path: the directory.
        revision: commit on the Hub; None where it cannot be told.
        licence: as the README's header says; None where it says nothing.
        config: `config.json`.
    """

    source: str
    path: pathlib.Path
    revision: str | None
    licence: str | None
    config: dict[str, Any]


def read(source: str) -> Directory:
    """Looks at a local directory, or fetches `hf:owner/name` (`hf:owner/name@revision`) from the Hub.

    Raises:
        CheckpointError: neither is there, or it has no `config.json`.
    """
    path = _fetch(source) if source.startswith(_SCHEME) else pathlib.Path(source).expanduser()
    if not path.is_dir():
        raise CheckpointError(f'{source} is no directory. From the Hub: {_SCHEME}owner/name.')
    if not (path / 'config.json').is_file():
        raise CheckpointError(
            f'{path} has no config.json, so it is no Hugging Face directory; and no file `checkpoint` or '
            'checkpoint_<step>/checkpoint, so it is none of T5X in its own format either (its Orbax one is not read).'
        )
    revision = path.absolute().name
    return Directory(
        source=source,
        path=path,
        revision=revision if re.fullmatch('[0-9a-f]{40}', revision) else None,  # a snapshot in the Hub's cache
        licence=_licence(path / 'README.md'),
        config=read_json(path / 'config.json'),
    )


def _fetch(source: str) -> pathlib.Path:
    """Downloads what is needed, through the cache of the Hub; safetensors, or PyTorch files where there are none."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f'{source} is fetched by huggingface_hub: pip install slm_jax[hf].') from error
    name, _, revision = source.removeprefix(_SCHEME).partition('@')

    def snapshot(*weights: str) -> pathlib.Path:
        return pathlib.Path(
            huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=[*_FILES, *weights])
        )

    try:
        path = snapshot('*.safetensors')
        return path if any(path.glob('*.safetensors')) else snapshot('*.bin')
    except (OSError, ValueError) as error:  # no network, no such repository, not allowed, a name that is none
        raise CheckpointError(
            f'{source} cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]}). Where there is a '
            f'network, `hf download {name} --local-dir DIR`; then `slm-jax import DIR OUT` needs none.'
        ) from error


def _licence(readme: pathlib.Path) -> str | None:
    if not readme.is_file():
        return None
    header = re.match(r'---\n(.*?)\n---', readme.read_text(encoding='utf-8', errors='replace'), re.DOTALL)
    found = re.search(r'^license:[ \t]*(\S.*?)\s*$', header[1], re.MULTILINE) if header else None
    return found[1] if found else None
