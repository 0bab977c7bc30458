"""The order of very many examples: no permutation of them all, no repeats, and any step at once.

A task's examples stand in blocks of 1000, which are the shards of its store. Every epoch shuffles the blocks, and
then the examples of each window of some blocks, so what is read within some time comes from few shards of all
parts of the task, and from all tasks of a mixture. A bucket's examples in that order are one stream for each task;
in a chunk every stream gives its share, and the batches of a bucket are cut from what its streams gave, chunk after
chunk. How many batches come before a chunk is a sum over tasks and buckets.
"""

import bisect
import functools

import numpy as np
from jaxtyping import Float, Int, UInt

BLOCK = 1000
_WINDOW_BLOCKS = 64  # of a task that is alone; of many tasks each has fewer, one at least


class Windows:
    """Which rows make up the batch of a step.

    Args:
        seed: of the order and of the wordings.
        offsets: where each task's examples begin in `bucket`; the number of all at the end.
        shares: [tasks] of each task of the draws.
        bucket: of each example.
        rows: [buckets] examples a batch.
        draws: in a chunk.
    """

    def __init__(
        self,
        seed: int,
        offsets: Int[np.ndarray, ' tasks+1'],
        shares: Float[np.ndarray, ' tasks'],
        bucket: UInt[np.ndarray, ' n'],
        rows: Int[np.ndarray, ' buckets'],
        draws: int,
    ):
        self._seed, self._offsets, self._bucket, self._rows = seed, offsets, bucket, rows
        tasks, buckets, sizes = len(shares), len(rows), np.diff(offsets)
        self._blocks = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK))])
        self._counts = np.zeros((self._blocks[-1], buckets), np.uint16)  # of a block's examples in each bucket
        self._members = np.zeros((tasks, buckets), np.int64)
        for task in range(tasks):
            for first in range(self._blocks[task], self._blocks[task + 1], BLOCK):
                last = min(first + BLOCK, self._blocks[task + 1])
                start = offsets[task] + (first - self._blocks[task]) * BLOCK
                part = bucket[start : min(start + BLOCK * BLOCK, offsets[task + 1])]
                counts = np.bincount(np.arange(len(part)) // BLOCK * buckets + part, minlength=(last - first) * buckets)
                self._counts[first:last] = counts.reshape(-1, buckets)
            self._members[task] = self._counts[self._blocks[task] : self._blocks[task + 1]].sum(0, dtype=np.int64)
        self._drawn = (shares * draws / sizes)[:, None] * self._members  # in a chunk, by task and bucket
        self._window_blocks = max(_WINDOW_BLOCKS // tasks, 1)
        self._epoch = functools.lru_cache(2 * tasks + 2)(self._make_epoch)
        self._window = functools.lru_cache(2 * tasks + 2)(self._make_window)

    def batch(self, step: int) -> tuple[int, Int[np.ndarray, 'rows 3']]:
        """Bucket and rows of the batch of a step, counted from 0; a row as in `plan.Batch`."""
        chunk = self.chunk_of(step)
        bucket, number = self._order(chunk)[step - self.batches_before(chunk).sum()]
        return int(bucket), self._rows_of(bucket, number * self._rows[bucket], (number + 1) * self._rows[bucket])

    def chunk_of(self, step: int) -> int:
        """The chunk that a step falls into."""
        return _last(lambda chunk: self.batches_before(chunk).sum() <= step)

    def batches_before(self, chunk: int) -> Int[np.ndarray, ' buckets']:
        """How many batches of each bucket come before a chunk."""
        return self._draws_before(chunk) // self._rows

    @functools.lru_cache(maxsize=1024)
    def _draws_before(self, chunk: int) -> Int[np.ndarray, ' buckets']:
        return np.floor(self._drawn * chunk).astype(np.int64).sum(0)

    @functools.lru_cache(maxsize=4)
    def _order(self, chunk: int) -> Int[np.ndarray, 'batches 2']:
        """(bucket, number of the batch in the bucket) of the batches of a chunk."""
        spans = zip(self.batches_before(chunk), self.batches_before(chunk + 1))
        batches = [(bucket, number) for bucket, span in enumerate(spans) for number in range(*span)]
        return self._rng(3, chunk).permutation(batches)

    def _rows_of(self, bucket: int, start: int, stop: int) -> Int[np.ndarray, 'rows 3']:
        """Rows `start` to `stop` of all that is drawn for a bucket."""
        parts = []
        while start < stop:
            chunk = _last(lambda chunk, start=start: self._draws_before(chunk)[bucket] <= start)
            rows = self._chunk_rows(chunk, bucket)[start - self._draws_before(chunk)[bucket] :][: stop - start]
            parts.append(rows)
            start += len(rows)
        return np.concatenate(parts)

    @functools.lru_cache(maxsize=256)  # the end of a chunk is read again with the next one
    def _chunk_rows(self, chunk: int, bucket: int) -> Int[np.ndarray, 'rows 3']:
        drawn = self._drawn[:, bucket]
        starts, stops = (np.floor(drawn * c).astype(np.int64) for c in (chunk, chunk + 1))
        parts = []
        for task in np.flatnonzero(stops > starts):
            start, stop = int(starts[task]), int(stops[task])
            while start < stop:
                epoch, within = divmod(start, int(self._members[task, bucket]))
                _, ends = self._epoch(task, epoch)
                window = int(np.searchsorted(ends[:, bucket], within, 'right')) - 1
                rows, firsts = self._window(task, epoch, window)
                here = rows[firsts[bucket] : firsts[bucket + 1]][within - ends[window, bucket] :][: stop - start]
                parts.append(here)
                start += len(here)
        rows = np.concatenate(parts).astype(np.int64)
        return rows[self._rng(2, chunk, bucket).permutation(len(rows))]

    def _make_epoch(
        self, task: int, epoch: int
    ) -> tuple[Int[np.ndarray, ' blocks'], Int[np.ndarray, 'windows+1 buckets']]:
        """The order of a task's blocks, and of each bucket how many examples come before each window."""
        first, last = self._blocks[task], self._blocks[task + 1]
        blocks = self._rng(0, task, epoch).permutation(last - first)
        starts = np.arange(0, len(blocks), self._window_blocks)
        counts = np.add.reduceat(self._counts[first + blocks], starts, axis=0, dtype=np.int64)
        return blocks, np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, 0)])

    def _make_window(
        self, task: int, epoch: int, window: int
    ) -> tuple[Int[np.ndarray, 'rows 3'], Int[np.ndarray, ' buckets+1']]:
        """The rows of a window, shuffled, bucket after bucket, and where each bucket begins."""
        blocks = self._epoch(task, epoch)[0][window * self._window_blocks :][: self._window_blocks]
        size = self._offsets[task + 1] - self._offsets[task]
        positions = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        positions = positions[positions < size]
        rng = self._rng(1, task, epoch, window)
        positions = positions[rng.permutation(len(positions))]
        buckets = self._bucket[self._offsets[task] + positions]
        positions = positions[np.argsort(buckets, kind='stable')]
        seeds = rng.integers(2**31, size=len(positions))
        firsts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=len(self._rows)))])
        return np.stack([np.full_like(positions, task), positions, seeds], 1).astype(np.int32), firsts

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key])


def _last(holds) -> int:
    """The greatest number from 0 on for which `holds`, which is so for all below it and for 0."""
    bound = 1
    while holds(bound):
        bound *= 2
    return bisect.bisect_left(range(bound), True, key=lambda number: not holds(number)) - 1
