"""Which examples make up the batch of a step: integer arithmetic on lengths, and no state.

Draws are made in chunks. In a chunk every task gives its share of draws by rate, walking through
permutations of its own examples, one per epoch. The draws fall into length buckets, are shuffled,
and are cut into batches, whose order is shuffled too; what is left of a bucket is filled up with
examples of the same bucket and chunk, so none is lost. A batch is a function of (seed, step) and
the lengths, whatever the number of hosts; each host takes its own rows of it.

More examples than `LARGE` have another order, which needs no permutation of them all: windows.py.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from slm_jax.data import windows

SAMPLE_MULTIPLE = 640  # 40 ms: one frame of the speech encoders at 25 Hz
TOKEN_MULTIPLE = 8
_CHUNK_BATCHES = 25  # per bucket: filling up the last batch repeats under 1 / (2 · 25) of the draws
_CANDIDATES = 400  # bucket boundaries are sought among at most so many lengths
LARGE = 2**20  # examples; also as many as are looked at at once, which keeps them in a CPU's cache


@dataclasses.dataclass(frozen=True)
class TaskLengths:
    """The usable examples of one task, of any integer types: 100 million of them are worth narrow ones.

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
    lengths: Int[np.ndarray, ' n'],
    weights: Float[np.ndarray, ' n'],
    count: int,
    enough: float = 1.0,
    shape_cost: float = 0.0,
) -> list[int]:
    """The upper bounds that minimise the padding of `lengths`, by dynamic program.

    Args:
        lengths, weights: of the examples.
        count: the most bounds to use.
        enough: the share of unpadded length at which more bounds are not worth a shape each.
        shape_cost: the share of the padded length that each bound after the first has to save.

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
        if choices and cost[-1] - total[:, -1].min() < shape_cost * cost[-1]:
            break
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


class _Histogram:
    """The lengths that there are, and the weight of each."""

    def __init__(self):
        self.mass, self._seen = np.zeros(0), np.zeros(0, bool)

    def __bool__(self) -> bool:
        return bool(len(self.mass))

    def add(self, lengths: Int[np.ndarray, ' n'], weights: Float[np.ndarray, ' n']) -> None:
        """Counts some more."""
        if not len(lengths):
            return
        mass = np.bincount(lengths, weights, len(self.mass))
        mass[: len(self.mass)] += self.mass
        seen = np.zeros(len(mass), bool)
        seen[: len(self._seen)] = self._seen
        seen[lengths] = True
        self.mass, self._seen = mass, seen

    def lengths(self) -> tuple[Int[np.ndarray, ' m'], Float[np.ndarray, ' m']]:
        """The lengths, ascending, and their weights."""
        lengths = np.nonzero(self._seen)[0]
        return lengths, self.mass[lengths]


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
        shape_cost: what compiling one shape takes, as a share of the training: a shape that saves less is not made.
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
        shape_cost: float = 0.0,
    ):
        self._tasks, self._seed = list(tasks), seed
        self._limits = limits or {}
        sizes = np.array([len(task.index) for task in self._tasks])
        rates = np.array([task.rate for task in self._tasks], float)
        self._shares = rates / rates.sum()
        self._weights = self._shares / sizes
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._tokens_per_batch = tokens_per_batch or int(40 * seconds_per_batch)
        large = self._offsets[-1] > LARGE
        unit = SAMPLE_MULTIPLE if large else 1  # lengths are told apart by so many samples

        text, speech, spoken = _Histogram(), _Histogram(), 0.0
        for _, samples, inputs, targets, weights in self._parts():
            spoken += (samples * weights).sum()
            if not (mask := samples > 0).all():
                text.add((inputs + targets)[~mask], weights[~mask])
                samples, weights = samples[mask], weights[mask]
            speech.add(-(-samples // unit), weights)
        padded: list[int] = []  # samples, by bound
        tables = []  # from a length to the number of its bound
        for kind, most in ((text, num_buckets // 4 if speech else num_buckets), (speech, num_buckets)):
            found = boundaries(*kind.lengths(), max(most, 1), enough, shape_cost) if kind else []
            tables.append(len(padded) + np.searchsorted(found, np.arange(len(kind.mass))))
            padded += [_round_up(bound * unit, SAMPLE_MULTIPLE) if kind is speech else 0 for bound in found]
        sent = (speech.mass * np.array(padded)[tables[1]]).sum()
        self.speech_fill = float(spoken / sent) if sent else 1.0

        self._bucket = np.zeros(self._offsets[-1], np.min_scalar_type(len(padded)))
        longest = np.zeros((2, len(padded)), np.int32)
        for start, samples, inputs, targets, _ in self._parts():
            which = self._bucket[start : start + len(samples)]
            if speech:
                which[:] = tables[1][-(-samples // unit)]
            if text:
                mask = samples == 0
                which[mask] = tables[0][(inputs + targets)[mask]]
            np.maximum.at(longest[0], which, inputs)
            np.maximum.at(longest[1], which, targets)
        self.buckets: list[Bucket] = []
        for samples, inputs, targets in zip(padded, *longest.tolist()):
            clips = seconds_per_batch * sample_rate // max(samples, encoder_seconds * sample_rate, 1)
            bucket = self._shape(samples, inputs, targets, int(clips), row_multiple)
            if bucket in self.buckets:  # token lengths may round to the same shape
                number = len(self.buckets)
                self._bucket[self._bucket == number] = self.buckets.index(bucket)
                self._bucket[self._bucket > number] -= 1
            else:
                self.buckets.append(bucket)

        self._rows = np.array([bucket.rows for bucket in self.buckets])
        self._draws = _CHUNK_BATCHES * int(self._rows.sum())
        self._windows = None
        if large:
            self._windows = windows.Windows(seed, self._offsets, self._shares, self._bucket, self._rows, self._draws)
        self._first_step = [0]  # of each chunk whose number of batches is known
        self._permutation = functools.lru_cache(2 * len(sizes) + 2)(self._make_permutation)

    def _parts(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """`LARGE` examples after the other: where they begin, samples, inputs, targets, shares of the draws."""
        for start in range(0, int(self._offsets[-1]), LARGE):
            cuts = np.clip(self._offsets, start, start + LARGE)
            here = np.flatnonzero(np.diff(cuts))
            parts = [slice(*(cuts[task : task + 2] - self._offsets[task])) for task in here]
            lengths = (
                np.concatenate([getattr(self._tasks[t], name)[p] for t, p in zip(here, parts)], dtype=np.int32)
                for name in ('samples', 'inputs', 'targets')
            )
            samples, inputs, targets = lengths
            yield start, samples, inputs, targets, np.repeat(self._weights, np.diff(cuts))

    def _shape(self, samples: int, inputs: int, targets: int, clips: int, row_multiple: int) -> Bucket:
        """The bucket of examples up to these lengths, at most so many clips a batch."""
        inputs, targets = self._tokens(inputs, 'inputs'), self._tokens(targets, 'targets')
        rows = self._tokens_per_batch // max(inputs + targets, 1)
        if samples:
            rows = min(rows, clips)
        return Bucket(max(rows // row_multiple, 1) * row_multiple, samples, inputs, targets)

    def longest(self, lengths: Sequence[Int[np.ndarray, ' n']]) -> list[int]:
        """Of each bucket the greatest of some further length in tokens, rounded up; `lengths` are given by task."""
        greatest = np.zeros(len(self.buckets), np.int64)
        np.maximum.at(greatest, self._bucket, np.concatenate(lengths))
        return [_round_up(each, TOKEN_MULTIPLE) for each in greatest.tolist()]

    def _tokens(self, longest: int, name: str) -> int:
        rounded = _round_up(longest, TOKEN_MULTIPLE)
        return max(min(rounded, self._limits.get(name) or rounded), longest)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key])

    def _make_permutation(self, task: int, epoch: int) -> np.ndarray:
        return self._rng(0, task, epoch).permutation(len(self._tasks[task].index))

    def _range(self, task: int, chunk: int) -> tuple[int, int]:
        """Which draws of a task, counted from the first step on, belong to a chunk."""
        start, stop = (int(self._shares[task] * self._draws * c) for c in (chunk, chunk + 1))
        return start, stop

    def _count(self, chunk: int) -> int:
        """How many batches a chunk has. Of whole epochs it is known without drawing them."""
        drawn = np.zeros(len(self.buckets), np.int64)
        for task in range(len(self._tasks)):
            bucket = self._bucket[self._offsets[task] : self._offsets[task + 1]]
            (first, start), (last, stop) = (divmod(at, len(bucket)) for at in self._range(task, chunk))
            parts = [(last, start if first == last else 0, stop)]
            if last > first:
                parts.append((first, start, len(bucket)))
            if last > first + 1:
                drawn += (last - first - 1) * np.bincount(bucket, minlength=len(drawn))
            for epoch, begin, end in parts:
                if end > begin:
                    drawn += np.bincount(bucket[self._permutation(task, epoch)[begin:end]], minlength=len(drawn))
        return int((-(-drawn // self._rows)).sum())

    @functools.lru_cache(maxsize=4)
    def _chunk(self, chunk: int) -> list[Batch]:
        """The batches of a chunk, in order."""
        drawn_rows = []
        for task in range(len(self._tasks)):
            size = len(self._tasks[task].index)
            start, stop = self._range(task, chunk)
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

        The first call for a late step counts the batches of the chunks before it; of a large plan it does not.
        """
        if self._windows:
            return Batch(*self._windows.batch(step))
        while self._first_step[-1] <= step:
            self._first_step.append(self._first_step[-1] + self._count(len(self._first_step) - 1))
        chunk = int(np.searchsorted(self._first_step, step, 'right')) - 1
        return self._chunk(chunk)[step - self._first_step[chunk]]

    def evaluation(self) -> Iterator[Batch]:
        """Every example once, its first wording, bucket by bucket and in order within a bucket."""
        for number, bucket in enumerate(self.buckets):
            here = np.nonzero(self._bucket == number)[0]
            for start in range(0, len(here), bucket.rows):
                part = here[start : start + bucket.rows]
                task = np.searchsorted(self._offsets, part, 'right') - 1
                rows = np.full((bucket.rows, 3), -1)
                rows[: len(part)] = np.stack([task, part - self._offsets[task], np.zeros_like(part)], 1)
                yield Batch(number, rows)
