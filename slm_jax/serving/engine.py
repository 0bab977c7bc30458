"""Many clients' queries put to one model: batches of few compiled shapes, by one thread that has the devices to itself.

Whatever waits when the devices are free becomes a batch: the oldest query, and those that fit beside it. So batches
grow with the load, and nobody waits long for company. Rows do not know of each other; an answer goes to its own query.
"""

import concurrent.futures
import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from slm_jax.inference import queries
from slm_jax.inference.writing import Part, Writing

_STEPS = 8  # tokens between two looks at who has left; streamed answers come token by token
# Seconds in which those who ask at once, as after a batch, are all there; and the share of the last batch's time.
_TOGETHER, _MOST_TOGETHER, _SHARE = 0.005, 0.1, 0.1
_TRIM_SECONDS = 5.0  # between two times that freed memory is given back
_logger = logging.getLogger(__name__)


class Job:
    """A query on its way.

    Args:
        query: what is asked.
        deliver: called from the engine's thread with each `Part`, the last of which is over, or with what went wrong.
        streamed: whether parts are wanted as they come; else the last one alone is delivered.
        most: tokens at most; None: as many as the model writes.
    """

    def __init__(
        self,
        query: queries.Query,
        deliver: Callable[[Part | Exception], None],
        streamed: bool = False,
        most: int | None = None,
    ):
        self.query, self.deliver, self.streamed, self.most = query, deliver, streamed, most
        self.cancelled = False

    def cancel(self) -> None:
        """Says that the answer is no longer wanted; what is not computed yet will not be."""
        self.cancelled = True


class Engine:
    """The thread and its queue.

    Args:
        model: see `slm_jax.inference.model`.
        max_rows: of a batch.
        note: told of each batch: queries, rows computed, seconds.
    """

    def __init__(self, model: Any, max_rows: int, note: Callable[[int, int, float], None] = lambda *_: None):
        self._model, self._note = model, note
        unit = model.row_multiple
        self._ladder = [unit]
        while self._ladder[-1] < max_rows:
            self._ladder.append(min(self._ladder[-1] * 2, -(-max_rows // unit) * unit))
        self._waiting: list[Job] = []
        self._calls: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of queries that no batch has taken yet."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Puts a job into the queue."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> concurrent.futures.Future:
        """What a function will give that the thread calls between two batches, unless this is cancelled before."""
        future: concurrent.futures.Future = concurrent.futures.Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:  # Whatever it is, it is theirs who asked: the thread goes on for others.
                    _logger.exception('a call failed')
                    future.set_exception(error)

        with self._changed:
            self._calls.append(run)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread when all that waits is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def warm(self, tokens: int, max_seconds: float, first: int = 0) -> None:
        """Compiles for recordings up to `max_seconds`, before anybody asks.

        Args:
            tokens: of a prompt.
            max_seconds: of the longest recording.
            first: as a `Query` has it.
        """
        import numpy as np

        lengths = {2.0}
        while max(lengths) < max_seconds:
            lengths.add(min(2 * max(lengths), max_seconds))
        for seconds in sorted(lengths):
            silence = np.zeros(round(seconds * queries.SAMPLE_RATE), np.int16)
            query = queries.Query((3,) * tokens, silence, first=first)
            shape = queries.shape_of(query, self._model.encoder_seconds)
            for rows in self._ladder:
                Writing(self._model, queries.batch_of([query], shape, rows)).more()

    def _run(self) -> None:
        took, trimmed = 0.0, time.perf_counter()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._calls or self._closing)
                if not (self._waiting or self._calls):
                    return
                if self._waiting:
                    together = max(_TOGETHER, min(_SHARE * took, _MOST_TOGETHER))
                    self._changed.wait_for(lambda: len(self._waiting) >= self._ladder[-1], together)
                calls, self._calls = self._calls, []
            for call in calls:
                call()
            jobs, shape, rows = self._take()
            if jobs:
                started = time.perf_counter()
                self._answer(jobs, shape, rows)
                took = time.perf_counter() - started
                self._note(len(jobs), rows, took)
            if time.perf_counter() - trimmed > _TRIM_SECONDS:
                _trim()
                trimmed = time.perf_counter()

    def _take(self) -> tuple[list[Job], tuple[float, int], int]:
        """The next batch: of the shape of the oldest query, and smaller ones in rows that would be empty."""
        with self._changed:
            self._waiting = [job for job in self._waiting if not job.cancelled]
            if not self._waiting:
                return [], (0.0, 0), 0
            shapes = [queries.shape_of(job.query, self._model.encoder_seconds) for job in self._waiting]
            shape = shapes[0]
            taken = [number for number, each in enumerate(shapes) if each == shape][: self._ladder[-1]]
            rows = next(size for size in self._ladder if size >= len(taken))
            smaller = [
                number
                for number, (seconds, tokens) in enumerate(shapes)
                if (seconds, tokens) != shape and bool(seconds) == bool(shape[0])
                and seconds <= shape[0] and tokens <= shape[1]
            ]  # fmt: skip
            taken += smaller[: rows - len(taken)]
            jobs = [self._waiting[number] for number in taken]
            self._waiting = [job for number, job in enumerate(self._waiting) if number not in set(taken)]
            return jobs, shape, rows

    def _answer(self, jobs: Sequence[Job], shape: tuple[float, int], rows: int) -> None:
        left = dict(enumerate(jobs))
        try:
            writing = Writing(self._model, queries.batch_of([job.query for job in jobs], shape, rows))
            while left:
                steps = 1 if any(job.streamed for job in left.values()) else _STEPS
                parts = writing.more(steps)
                for row, job in list(left.items()):
                    part = self._within(parts[row], job.most)
                    if job.cancelled or part.over:
                        writing.leave(row)
                        del left[row]
                    if not job.cancelled and (part.over or job.streamed):
                        job.deliver(part)
        except Exception as error:  # Whatever it is, it is theirs who asked: the thread goes on for others.
            _logger.exception('a batch of %d queries failed', len(jobs))
            for job in left.values():
                job.deliver(error)

    def _within(self, part: Part, most: int | None) -> Part:
        """A part of at most so many tokens."""
        ids = part.tokens
        if most is None or len(ids) < most or (part.over and len(ids) == most):
            return part
        return Part(self._model.vocabulary.decode(ids[:most]), ids[:most], True, 'max_tokens')


def _trim() -> None:
    """Gives freed memory back to the system: what the C library keeps of it grows with every new size of batch."""
    with contextlib.suppress(AttributeError):  # another C library than glibc keeps less
        ctypes.CDLL(None).malloc_trim(0)
