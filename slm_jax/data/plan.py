"""Which examples make up the batch of a step: integer arithmetic on lengths, and no state.

Draws are made in chunks. In a chunk every task gives its share of draws by rate, walking through
permutations of its own examples, one per epoch. The draws fall into length buckets, are shuffled,
and are cut into batches, whose order is shuffled too; what is left of a bucket is filled up with
examples of the same bucket and chunk, so none is lost. A batch is a function of (seed, step) and
the lengths, whatever the number of hosts; each host takes its own rows of it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

SAMPLE_MULTIPLE = 640  # 40 ms: one frame of the speech encoders at 25 Hz
TOKEN_MULTIPLE = 8
_CHUNK_BATCHES = 25  # per bucket: filling up the last batch repeats under 1 / (2 · 25) of the draws
_CANDIDATES = 400  # bucket boundaries are sought among at most so many lengths


@dataclasses.dataclass(frozen=True)
class TaskLengths:
    """The usable examples of one task.

    Attributes:
        index: [n] where each is in the task's store.
        samples, inputs, targets: [n] lengths; of the tokens the longest of all wordings.
        rate: how often the task is drawn, relative to the other tasks.
    """

    index: Int[np.ndarray, ' n']
    samples: Int[np.ndarray, ' n']
    inputs: Int[np.ndarray, ' n']
    targets: Int[np.ndarray, ' n']
    rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static shape: examples a batch, and the lengths they are padded to."""

    rows: int
    samples: int
    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch: its bucket, and per row (task, position in the task, template seed).

    A row of -1 is padding, which only the last batch of a bucket of an evaluation has.
    """

    bucket: int
    rows: Int[np.ndarray, 'rows 3']


def _round_up(value: int, multiple: int) -> int:
    return -(-int(value) // multiple) * multiple


def boundaries(
    lengths: Int[np.ndarray, ' n'], weights: Float[np.ndarray, ' n'], count: int, enough: float = 1.0
) -> list[int]:
    """The upper bounds that minimise the padding of `lengths`, by dynamic program.

    Args:
        lengths, weights: of the examples.
        count: the most bounds to use.
        enough: the share of unpadded length at which more bounds are not worth a shape each.

    Returns:
        Ascending bounds; the last is the greatest length.
    """
    unique, inverse = np.unique(lengths, return_inverse=True)
    mass = np.bincount(inverse, weights)
    if len(unique) > _CANDIDATES:  # keep the quantiles, and always the longest
        cumulative = np.cumsum(mass) / mass.sum()
        group = np.minimum((cumulative * _CANDIDATES).astype(int), _CANDIDATES - 1)
        last = np.append(np.nonzero(np.diff(group))[0], len(unique) - 1)
        mass = np.diff(np.concatenate([[0.0], np.cumsum(mass)[last]]))
        unique = unique[last]
    n = len(unique)
    before = np.concatenate([[0.0], np.cumsum(mass)])
    # cost[j]: least padded length of the first j candidates; one bucket i … j-1 costs mass · bound
    bucket_cost = (before[None, 1:] - before[:-1, None]) * unique[None, :].astype(float)
    bucket_cost[np.tril_indices(n, -1)] = np.inf
    cost, choices = np.concatenate([[0.0], np.full(n, np.inf)]), []
    unpadded = (lengths * weights).sum()
    for _ in range(min(count, n)):
        total = cost[:-1, None] + bucket_cost  # [start of the last bucket, its last candidate]
        choices.append(total.argmin(0))
        cost = np.concatenate([[np.inf], total.min(0)])
        if unpadded >= enough * cost[-1]:
            break
    bounds, end = [], n
    for choice in reversed(choices):
        bounds.append(int(unique[end - 1]))
        end = int(choice[end - 1])
        if end == 0:
            break
    return bounds[::-1]


class Plan:
    """The order of the data.

    Args:
        tasks: the lengths of each task's examples.
        seconds_per_batch: seconds of (padded) audio in a batch of any bucket.
        num_buckets: how many shapes at most; fewer are made where `enough` of what is sent is not
            padding. Text-only examples beside speech get at most a quarter as many more.
        seed: of the order and of the wordings.
        row_multiple: every batch has a multiple of so many rows: the data-parallel size.
        tokens_per_batch: limits the rows of short examples; None = 40 per second of audio.
        limits: {'inputs': n, 'targets': n}: token lengths are not rounded up beyond these.
        encoder_seconds: what the speech encoder computes of a clip at least, however short it is: 30 for Whisper,
            which fills every clip up. So many seconds of a batch a row counts for then.
    """

    def __init__(
        self,
        tasks: Sequence[TaskLengths],
        seconds_per_batch: float,
        num_buckets: int = 24,
        seed: int = 0,
        row_multiple: int = 1,
        tokens_per_batch: int | None = None,
        limits: dict[str, int] | None = None,
        enough: float = 0.91,
        sample_rate: int = 16000,
        encoder_seconds: float = 0.0,
    ):
        self._tasks, self._seed = list(tasks), seed
        self._limits = limits or {}
        sizes = np.array([len(task.index) for task in self._tasks])
        rates = np.array([task.rate for task in self._tasks], float)
        self._shares = rates / rates.sum()
        task = np.repeat(np.arange(len(sizes)), sizes)
        samples, inputs, targets = (
            np.concatenate([getattr(t, name) for t in self._tasks]) for name in ('samples', 'inputs', 'targets')
        )
        weights = (self._shares / sizes)[task]
        self._bucket = np.zeros(len(task), int)
        self.buckets: list[Bucket] = []
        speech = samples > 0
        tokens = tokens_per_batch or int(40 * seconds_per_batch)
        encoder_samples = encoder_seconds * sample_rate
        for mask, lengths, count in (
            (~speech, inputs + targets, num_buckets if not speech.any() else num_buckets // 4),
            (speech, samples, num_buckets),
        ):
            if not mask.any():
                continue
            bounds = np.array(boundaries(lengths[mask], weights[mask], max(count, 1), enough))
            which = np.searchsorted(bounds, lengths)
            for number in range(len(bounds)):
                here = mask & (which == number)
                shape = {
                    'samples': _round_up(samples[here].max(), SAMPLE_MULTIPLE),
                    'inputs': self._tokens(inputs[here], 'inputs'),
                    'targets': self._tokens(targets[here], 'targets'),
                }
                rows = tokens // max(shape['inputs'] + shape['targets'], 1)
                if shape['samples']:
                    rows = min(rows, int(seconds_per_batch * sample_rate // max(shape['samples'], encoder_samples)))
                rows = max(rows // row_multiple, 1) * row_multiple
                bucket = Bucket(rows=rows, **shape)
                if bucket not in self.buckets:  # token lengths may round to the same shape
                    self.buckets.append(bucket)
                self._bucket[here] = self.buckets.index(bucket)
        padded = np.array([bucket.samples for bucket in self.buckets])[self._bucket]
        sent = (weights * padded).sum()
        self.speech_fill = float((weights * samples).sum() / sent) if sent else 1.0
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._draws = _CHUNK_BATCHES * sum(bucket.rows for bucket in self.buckets)
        self._first_step = [0]  # of each chunk whose number of batches is known

    def _tokens(self, lengths: np.ndarray, name: str) -> int:
        rounded = _round_up(lengths.max(), TOKEN_MULTIPLE)
        return max(min(rounded, self._limits.get(name) or rounded), int(lengths.max()))

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key])

    @functools.lru_cache(maxsize=64)
    def _permutation(self, task: int, epoch: int) -> np.ndarray:
        return self._rng(0, task, epoch).permutation(len(self._tasks[task].index))

    @functools.lru_cache(maxsize=4)
    def _chunk(self, chunk: int) -> list[Batch]:
        """The batches of a chunk, in order."""
        drawn_rows = []
        for task, share in enumerate(self._shares):
            size = len(self._tasks[task].index)
            start, stop = (int(share * self._draws * c) for c in (chunk, chunk + 1))
            positions = np.arange(start, stop)
            for epoch in range(start // size, -(-stop // size)):
                drawn = positions[positions // size == epoch]
                example = self._permutation(task, epoch)[drawn % size]
                seeds = self._rng(1, task, epoch).integers(2**31, size=size)[example]
                drawn_rows.append(np.stack([np.full_like(example, task), example, seeds], 1))
        rows = np.concatenate(drawn_rows)
        bucket_of = self._bucket[self._offsets[rows[:, 0]] + rows[:, 1]]
        batches = []
        for number, bucket in enumerate(self.buckets):
            here = rows[bucket_of == number]
            if len(here):
                here = here[self._rng(2, chunk, number).permutation(len(here))]
                here = here[np.arange(_round_up(len(here), bucket.rows)) % len(here)]
                batches += [Batch(number, part) for part in here.reshape(-1, bucket.rows, 3)]
        order = self._rng(3, chunk).permutation(len(batches))
        return [batches[i] for i in order]

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0.

        The first call for a late step counts through the chunks before it, milliseconds each.
        """
        while self._first_step[-1] <= step:
            self._first_step.append(self._first_step[-1] + len(self._chunk(len(self._first_step) - 1)))
        chunk = int(np.searchsorted(self._first_step, step, 'right')) - 1
        return self._chunk(chunk)[step - self._first_step[chunk]]

    def evaluation(self) -> Iterator[Batch]:
        """Every example once, its first wording, bucket by bucket and in order within a bucket."""
        task = np.repeat(np.arange(len(self._tasks)), np.diff(self._offsets))
        for number, bucket in enumerate(self.buckets):
            here = np.nonzero(self._bucket == number)[0]
            rows = np.stack([task[here], here - self._offsets[task[here]], np.zeros_like(here)], 1)
            padding = np.full((-len(rows) % bucket.rows, 3), -1)
            for part in np.concatenate([rows, padding]).reshape(-1, bucket.rows, 3):
                yield Batch(number, part)
