"""SIGTERM and Ctrl-C while a program loops: on several hosts all of them stop at the same place."""

import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

from slm_jax.training import hosts

_NEVER = 10**9  # the tick at which a loop that has ended would stop


class Stop:
    """SIGTERM and Ctrl-C while a loop runs: it is told to stop at its next tick, on several hosts all at the same one.

    Signals are read by a thread, so a second Ctrl-C ends the process at once, whatever it is at.

    Attributes:
        ticks: how often `reached` was asked.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self._asked = False
        self._at: int | None = None
        self._told: int | None = None
        self._changed = threading.Condition()
        self._hosts = hosts.watch()

    def __enter__(self) -> 'Stop':
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno())
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        self._thread = threading.Thread(target=self._listen, daemon=True, name='slm_jax signals')
        self._thread.start()
        if self._hosts:
            self._hosts.stopping(self)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._writer.close()
        self._thread.join()
        self._reader.close()
        with self._changed:
            self.ticks = _NEVER

    def _listen(self) -> None:
        interrupts = 0
        while number := self._reader.recv(1):
            interrupts += number[0] == signal.SIGINT
            if interrupts > 1:
                hosts.say('interrupted twice: nothing is saved any more')
                hosts.leave(128 + signal.SIGINT)
            self._asked = self._asked or number[0] in self._handlers

    def reached(self) -> bool:
        """Whether to stop now; asked at the same places of the program on every host."""
        with self._changed:
            if self._hosts is None:
                return self._asked
            self._changed.wait_for(lambda: self._told is None or self._at is not None)
            self.ticks += 1
            return self._at is not None and self.ticks >= self._at

    @property
    def agreeing(self) -> bool:
        """Whether the hosts are about to agree on a tick."""
        return self._told is not None and self._at is None

    def agree(self, client: Any, index: int, count: int, folder: str, told: Mapping[str, str]) -> None:
        """Called by the thread that hears of the others: once one is asked to stop, all do at the same tick.

        Each says at which tick it is and goes no further until all have said so; they stop at the one after the last.
        """
        name = folder.rpartition('/')[2]
        if self._at is not None or not (self._asked or any(key.startswith(f'{name}/') for key in told)):
            return
        with self._changed:
            if self._told is None:
                self._told = self.ticks
                client.key_value_set(f'{folder}/{index}', str(self.ticks))
            ticks = [int(value) for key, value in told.items() if key.startswith(f'{name}/')]
            if len(ticks) == count:
                self._at = max(ticks) + 1
                self._changed.notify_all()
