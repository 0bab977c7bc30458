"""One training at a time in a model directory: a file says who trains there, and since when nothing was heard of it."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from slm_jax import paths

FILE = '.lock.json'
_BEAT_SECONDS = 15.0
_GONE_SECONDS = 90.0  # without a beat: the holder was killed, or its machine taken away
_NOWHERE = uuid.uuid4().hex  # the machine, where nothing can be known of processes
_SETTLE_SECONDS = 2.0  # after which of two that wrote at once the later one stands


class LockError(ValueError):
    """Another run trains in the directory: `str()` names it and the remedy."""


class Lock:
    """The lock of one model directory, held from its making to `close`, and kept alive by a thread.

    A holder that died is followed at once where that can be seen: by its process on the same machine. Elsewhere it is
    taken for dead when it was silent for 90 seconds. Where it may be either, that is waited for, so that a run whose
    machine was taken away goes on by itself on another one.
    """

    def __init__(self, model_dir: pathlib.Path, say: Callable[[str], None] = print):
        """Takes the lock.

        Raises:
            LockError: another run holds it.
        """
        self._file, self._model_dir = model_dir / FILE, model_dir
        self._me = {
            'host': socket.gethostname(), 'pid': os.getpid(), 'machine': _machine(), 'process': _process(os.getpid()),
            'started': time.time(), 'token': uuid.uuid4().hex,
        }  # fmt: skip
        model_dir.mkdir(parents=True, exist_ok=True)
        if first := self._take():
            if first['machine'] == _machine():
                raise self._refusal(first)
            say(f'{model_dir} is locked by {_named(first)}. Waiting up to {_GONE_SECONDS:.0f} s to see if it lives.')
            since = time.monotonic()
            while holder := self._take(silent=time.monotonic() - since):
                if (holder['token'], holder['beat']) != (first['token'], first['beat']):
                    raise self._refusal(holder)
                time.sleep(min(1.0, _BEAT_SECONDS / 4))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name='lock', daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Whether it is still held.

        Raises:
            LockError: another run has taken it, for this one was silent for too long, or somebody deleted it.
        """
        with self._alone():
            holder = self._read()
        if not self._mine(holder):
            who = 'nobody' if holder is None else _named(holder)
            raise LockError(
                f'{self._model_dir} is no longer locked by this run but by {who}: it was not heard of for '
                f'{_GONE_SECONDS:.0f} s, or {self._file} was deleted. Nothing more is written there; start again.'
            )

    def close(self) -> None:
        """Lets others train there."""
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError), self._alone():
            if self._mine(self._read()):
                self._file.unlink()

    def _mine(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder['token'] == self._me['token']

    def _refusal(self, holder: dict[str, Any]) -> LockError:
        return LockError(
            f'{self._model_dir} is being trained in by {_named(holder)}. Two runs would ruin it: wait for that one, '
            f'end it, or give another model directory. (Is it gone for certain? Then delete {self._file}.)'
        )

    def _take(self, silent: float = 0.0) -> dict[str, Any] | None:
        """Who holds the lock; None: now this run. `silent`: for how long it is known to have been."""
        with self._alone():
            holder = self._read()
            if holder is not None and not _gone(holder, silent):
                return holder
            if not paths.is_url(self._file):
                self._file.write_text(self._content())
                return None
        if holder is None:
            try:
                paths.create(self._file, self._content())
            except FileExistsError:
                return self._read()
        else:
            self._file.write_text(self._content())
            time.sleep(_SETTLE_SECONDS)
        holder = self._read()
        return None if self._mine(holder) else holder

    def _content(self) -> str:
        return json.dumps(self._me | {'beat': time.time()})

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError), self._alone():  # what is lost by it, `check` tells
                if self._mine(self._read()):
                    self._file.write_text(self._content())

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._file.read_text(encoding='utf-8'))
        except (FileNotFoundError, ValueError):  # none, or not yet written
            return None
        return found if isinstance(found, dict) and {'token', 'beat', 'machine', 'pid'} <= found.keys() else None

    @contextlib.contextmanager
    def _alone(self):
        """On a disk: while the body runs, no other process is in one of these."""
        if paths.is_url(self._file):
            yield
            return
        while True:
            with self._file.open('a') as file:
                with contextlib.suppress(OSError):  # a file system without; then the file must do
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not os.path.exists(self._file) or not os.path.samestat(os.fstat(file.fileno()), self._file.stat()):
                    continue  # deleted meanwhile
                yield
                return


def _gone(holder: dict[str, Any], silent: float) -> bool:
    if holder['machine'] == _machine():
        return _process(holder['pid']) != holder.get('process')
    return max(silent, time.time() - holder['beat']) > _GONE_SECONDS


def _machine() -> str:
    """What tells machines, and containers that see no others' processes, apart."""
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return _NOWHERE


def _process(pid: int) -> str | None:
    """What tells a process from others that had its number; None: there is none."""
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return None if stat[0] == 'Z' else stat[19]  # when it was started, in ticks since the machine was
    except OSError:
        return None


def _named(holder: dict[str, Any]) -> str:
    started = datetime.datetime.fromtimestamp(holder.get('started', 0), datetime.UTC)
    heard = max(0.0, time.time() - holder['beat'])
    return (
        f'process {holder["pid"]} on {holder.get("host")}, started {started:%Y-%m-%d %H:%M:%S} UTC, '
        f'last heard of {heard:.0f} s ago'
    )
