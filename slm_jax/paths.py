"""Paths that a user gives: on a disk, or in an object store (gs://, s3://, and what else etils knows).

An object store has no rename and no append, and a directory is there as long as a file is in it. So what has to be
there whole or not at all is written by one put, or has a file that says so and is written last.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

# Else epath imports TensorFlow for what is no local path, which answers late and knows neither s3:// nor stand-ins.
os.environ.setdefault('EPATH_USE_TF', '0')

from etils.epath import backend, gpath  # noqa: E402

gpath._is_tf_installed.cache_clear()  # whoever was imported before may have asked already

# scheme: the module that reads it, how to get it, how to be let in.
_STORES = {
    'gs': (
        'gcsfs',
        "pip install 'slm_jax[gcs]'",
        'log in by `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS',
    ),
    's3': ('s3fs', "pip install 'slm_jax[s3]'", 'set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY'),
    'az': ('adlfs', 'pip install adlfs', 'set AZURE_STORAGE_CONNECTION_STRING'),
    'hf': ('huggingface_hub', 'pip install huggingface_hub', 'log in by `hf auth login`, or set HF_TOKEN'),
}
_HOLD_PARAMETERS = ('gs', 's3')  # TensorStore and Orbax read and write there


class StorageError(ValueError):
    """A URL that cannot be used: `str()` names it and the remedy."""


class Url(gpath.PosixGPath):
    """A path in an object store, with the methods of `pathlib.Path` that epath leaves out or gets wrong there."""

    def absolute(self) -> 'Url':
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> 'Url':
        """Itself."""
        return self

    def expanduser(self) -> 'Url':
        """Itself."""
        return self

    def read_bytes(self) -> bytes:
        """The content, in one request."""
        with _told(self):
            return _filesystem(self).cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        """The content, which is UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> int:
        """Puts the whole, in place of what was there."""
        with _told(self):
            _filesystem(self).pipe_file(str(self), data)
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Puts the whole, in UTF-8."""
        return self.write_bytes(data.encode())

    def open(self, mode: str = 'r', *, encoding: str | None = None, errors: str | None = None, **options: Any) -> Any:
        """A stream; what is written is there, whole, when it is closed."""
        text = {} if 'b' in mode else {'encoding': encoding or 'utf-8', **options}
        with _told(self):
            return _filesystem(self).open(str(self), mode, **text)

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a directory is there as soon as a file is in it, and making one might make a bucket."""

    def stat(self) -> os.stat_result:
        """Size and time of the last change; see `states` for what tells two contents apart."""
        with _told(self):
            info = _filesystem(self).info(str(self))
        changed = info.get('mtime') or info.get('LastModified')
        return os.stat_result((0, 0, 0, 0, 0, 0, info['size'] or 0, 0, changed.timestamp() if changed else 0, 0))

    def rglob(self, pattern: str) -> Iterator['Url']:
        """All files below, in order; `pattern` is '*'."""
        return (self / name for name in sorted(files(self)))

    def rename(self, target: Any) -> 'Url':
        """Refused: it would copy and then delete, file by file."""
        raise NotImplementedError(f'{self}: an object store has no rename')

    replace = rename


@contextlib.contextmanager
def _told(url: pathlib.PurePath) -> Iterator[None]:
    """Makes of what a client raises what a disk would."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(url)) from None
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, _reason(error), str(url)) from error


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def is_url(name: str | os.PathLike) -> bool:
    """Whether this is in an object store."""
    return re.match(r'[a-z][a-z0-9+.-]*://', os.fspath(name)) is not None


def absolute(name: str | os.PathLike) -> str:
    """A path as it is from everywhere."""
    return os.fspath(name) if is_url(name) else os.path.abspath(name)


def path(name: str | os.PathLike) -> pathlib.Path:
    """What a user calls so: a `pathlib.Path` in which `~` is the home directory, or a `Url`.

    Raises:
        StorageError: nobody knows the URL's scheme, what reads it is not installed, or its bucket cannot be reached.
    """
    text = os.fspath(name)
    if not is_url(text):
        with contextlib.suppress(RuntimeError):  # no such user: then it is a file that is called so
            return pathlib.Path(text).expanduser()
        return pathlib.Path(text)
    scheme, _, rest = text.partition('://')
    if scheme not in _STORES:
        known = ', '.join(f'{known}://' for known in _STORES)
        raise StorageError(f'{text}: no scheme {scheme}:// is known; give a local path, or one of {known}.')
    _reach(scheme, rest.split('/')[0])
    url: Any = Url(text)
    return url


@functools.cache
def _reach(scheme: str, bucket: str) -> None:
    """Asks for a bucket once, so that what is wrong with it is said at once and in one line."""
    module, install, login = _STORES[scheme]
    where = f'{scheme}://{bucket}'
    if importlib.util.find_spec(module) is None:
        raise StorageError(f'{where}: reading {scheme}:// takes {module}, which is not installed: {install}')
    if not bucket:
        raise StorageError(f'{where}: the name of the bucket is missing.')
    import fsspec

    # Others write there too, so what was listed once is not believed.
    fsspec.config.conf.setdefault(scheme, {}).setdefault('use_listings_cache', False)
    logging.getLogger('gcsfs').setLevel(logging.ERROR)
    if scheme == 'hf':  # which has owners and kinds where others have buckets
        return
    try:
        _filesystem(where).info(where)
    except FileNotFoundError as error:
        raise StorageError(
            f'{where}: there is no such bucket, or it is hidden from you. Correct the name, or {login}.'
        ) from error
    except Exception as error:  # Each client has its own errors for a login that is missing, wrong or too old.
        raise StorageError(f'{where}: cannot be reached ({_reason(error)}). To be let in, {login}.') from error


def _filesystem(url: Any) -> Any:
    """The fsspec file system of a URL; epath and Orbax use the same."""
    return backend.fsspec_backend.fs(os.fspath(url))


def kvstore(directory: str | os.PathLike) -> str | dict[str, Any]:
    """What TensorStore knows a directory by.

    Raises:
        StorageError: TensorStore has no driver for it.
    """
    text = os.fspath(directory)
    if not is_url(text):
        return f'file://{text}/'
    if text.partition('://')[0] not in _HOLD_PARAMETERS:
        known = ' and '.join(f'{scheme}://' for scheme in _HOLD_PARAMETERS)
        raise StorageError(f'{text}: parameters are kept on a local disk, and in {known}. Copy the directory there.')
    if text.startswith('s3://') and 'AWS_ENDPOINT_URL' in os.environ:  # of MinIO and others TensorStore is not told
        bucket, _, rest = text[5:].partition('/')
        region = os.environ.get('AWS_DEFAULT_REGION', 'us-east-1')
        where = {'endpoint': os.environ['AWS_ENDPOINT_URL'], 'aws_region': region}
        return {'driver': 's3', 'bucket': bucket, 'path': f'{rest}/', **where}
    return f'{text}/'


def files(directory: pathlib.Path) -> dict[str, list[Any]]:
    """The files below a directory, by their paths in it, each with its `states`; {} where there is none."""
    if not is_url(directory):
        found = sorted(each for each in directory.rglob('*') if each.is_file())
        return {str(each.relative_to(directory)): _local_state(each) for each in found}
    start = len(_filesystem(directory)._strip_protocol(str(directory))) + 1
    listed = _filesystem(directory).find(str(directory), detail=True)
    return {name[start:]: _state(info) for name, info in sorted(listed.items()) if name[start:]}


def state(name: str) -> list[Any] | None:
    """What of a file changes when its content does, its size first; None where there is none."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: no possible path
        return _state(_filesystem(path(name)).info(name)) if is_url(name) else _local_state(pathlib.Path(name))
    return None


def states(names: Iterable[str]) -> dict[str, list[Any] | None]:
    """`state` of many files; of what is in an object store, each folder is listed once."""
    result: dict[str, list[Any] | None] = {}
    folders: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        if not is_url(name):
            result[name] = state(name)
            continue
        folder = name.rpartition('/')[0]
        if folder not in folders:
            folders[folder] = {}
            with contextlib.suppress(FileNotFoundError):
                listed = _filesystem(path(folder)).ls(folder, detail=True)
                folders[folder] = {info['name'].rpartition('/')[2]: _state(info) for info in listed}
        result[name] = folders[folder].get(name.rpartition('/')[2])
    return result


def _local_state(file: pathlib.Path) -> list[Any]:
    # The time of change too, which nobody can set: a copy may bring the time of writing along.
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _state(info: dict[str, Any]) -> list[Any]:
    identity = next((info[key] for key in ('generation', 'etag', 'ETag', 'sha256') if info.get(key)), None)
    return [info['size'], str(identity or info.get('mtime') or info.get('LastModified'))]


def write(file: pathlib.Path, content: bytes | str) -> None:
    """Writes a file that is there whole or not at all, in place of the one that stands there."""
    content = content.encode() if isinstance(content, str) else content
    if is_url(file):
        file.write_bytes(content)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f'.{file.name}.{os.getpid()}')
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def create(url: pathlib.Path, content: str) -> None:
    """Puts an object where none is, as one condition of the put where the store has that.

    Raises:
        FileExistsError: one is there.
    """
    if url.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(url))
    with _told(url):
        _filesystem(url).pipe_file(str(url), content.encode(), mode='create')


def remove(directory: pathlib.Path) -> None:
    """Removes a directory with all that is in it, if it is there."""
    if not is_url(directory):
        shutil.rmtree(directory, ignore_errors=True)
    elif directory.exists():
        _filesystem(directory).rm(str(directory), recursive=True)


def move(directory: pathlib.Path, to: pathlib.Path, mark: str) -> None:
    """Moves a directory to where nothing is. In an object store, without the file `mark` it counts as half written."""
    if not is_url(directory):
        directory.rename(to)
        return
    (directory / mark).unlink(missing_ok=True)
    for name in files(directory):
        _filesystem(directory).cp_file(str(directory / name), str(to / name))
    remove(directory)
    (to / mark).write_text('')


def put(folder: pathlib.Path, directory: pathlib.Path, last: str) -> None:
    """Moves a local folder to where nothing is yet. In an object store `last` says that all of it is there."""
    if not is_url(directory):
        folder.rename(directory)
        return
    for name in sorted(files(folder), key=lambda name: (name == last, name)):
        upload(folder / name, directory / name)
    shutil.rmtree(folder)


def upload(file: pathlib.Path, to: pathlib.Path) -> None:
    """Copies a local file to a URL, by one put that is seen when it is whole."""
    _filesystem(to).put_file(str(file), str(to))


def local(file: str | os.PathLike) -> pathlib.Path:
    """A file on the local disk with this file's content: itself, or a copy in the cache, made when first asked for.

    Raises:
        OSError: it is not there.
    """
    if not is_url(file):
        return pathlib.Path(file)
    found = state(os.fspath(file))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(file))
    digest = hashlib.sha256(repr((os.fspath(file), found)).encode()).hexdigest()[:32]
    copy = local_cache() / 'copies' / digest / re.sub(r'[^\w.-]', '_', os.fspath(file).rpartition('/')[2])
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        _download(file, copy)
    return copy


def local_directory(directory: str) -> str:
    """A directory on the local disk with these files: itself, or copies of all of them in the cache."""
    if not is_url(directory):
        return directory
    url = path(directory)
    if not (found := files(url)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    digest = hashlib.sha256(repr((directory, found)).encode()).hexdigest()[:32]
    copies = local_cache() / 'copies' / digest / url.name
    for name in found:
        copies.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        if not copies.joinpath(name).exists():
            _download(url / name, copies / name)
    return str(copies)


def _download(file: str | os.PathLike, to: pathlib.Path) -> None:
    partial = to.with_name(f'{to.name}.{os.getpid()}.part')
    try:
        _filesystem(file).get_file(os.fspath(file), str(partial))
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)


def cache() -> pathlib.Path:
    """Directory for what can be found again: $SLM_JAX_CACHE, or slm_jax in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get('SLM_JAX_CACHE', '')
    return path(own) if is_url(own) else local_cache()


def foundations() -> pathlib.Path:
    """Directory for the foundations that are imported by name."""
    return cache() / 'foundations'


def local_cache() -> pathlib.Path:
    """`cache`, but on this machine, whatever $SLM_JAX_CACHE is: for what is used through the file system."""
    own = os.environ.get('SLM_JAX_CACHE', '')
    if own and not is_url(own):
        return pathlib.Path(own).expanduser()
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'slm_jax'
