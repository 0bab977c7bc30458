"""Packages of Debian, fetched by apt without root and opened without being installed."""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import tqdm


def download(packages: Sequence[str], directory: str | os.PathLike, what: str = '') -> None:
    """Downloads packages into a directory, with package lists of our own where the machine has none.

    Args:
        packages: their names.
        directory: there already.
        what: they are, for a progress bar; '': there is none.

    Raises:
        FileNotFoundError: the machine has no apt-get.
        CalledProcessError: apt cannot get one of them.
    """
    if not shutil.which('apt-get'):
        raise FileNotFoundError('this machine has no apt-get')
    command = ['apt-get', '-q', '-o', 'Debug::NoLocking=1', '-o', 'APT::Sandbox::User=']

    def run(*arguments):
        subprocess.run([*command, *arguments], cwd=directory, check=True, capture_output=True)

    state = (pathlib.Path(directory) / 'apt').resolve()
    try:
        run('download', '--print-uris', *packages)
    except subprocess.CalledProcessError:
        for folder in ('state/lists/partial', 'cache/archives/partial'):
            (state / folder).mkdir(parents=True, exist_ok=True)
        command += ['-o', f'Dir::State={state}/state', '-o', f'Dir::Cache={state}/cache']
        run('update')
    for package in tqdm.tqdm(packages, desc=f'Downloading {what}', unit=' packages', disable=not what):
        run('download', package)
    shutil.rmtree(state, ignore_errors=True)


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or b'').decode(errors='replace').strip().splitlines()
        return f'`{" ".join(map(str, error.cmd[:1]))}` failed: {said[-1] if said else error.returncode}'
    return str(getattr(error, 'reason', error)).splitlines()[0]
