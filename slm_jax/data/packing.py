"""Several short texts in one row, so that hardly any place of a batch is padding.

None of them sees another, and positions count from the beginning of each (`DecoderOnly.outputs`), so a text's loss is
what it is in a row of its own. The features are those of T5X's packed decoder-only models:

    decoder_input_tokens   int32 [row_length]    the texts, one behind the other, each without its last token
    decoder_target_tokens  int32 [row_length]    what comes after each
    decoder_loss_weights   float32 [row_length]  1 where that is learnt
    decoder_segment_ids    int32 [row_length]    number of the text, from 1 on; 0 where there is none
    decoder_positions      int32 [row_length]    from 0 on in each text

What a row holds is a function of the data, the seed and the step: the examples of some hundred batches of the ordinary
plan (plan.py) are packed together, best fit first, and the rows are shuffled.
"""

import slm_jax.data.tensorflow_cpu  # isort: skip  before others load TensorFlow  # noqa: F401

import bisect
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

import gin
from slm_jax.data import loader, notices
from slm_jax.data import plan as plan_lib

_WINDOW = 64  # batches of rows that are packed together, about
_FEATURES = {
    'decoder_input_tokens': np.int32,
    'decoder_target_tokens': np.int32,
    'decoder_loss_weights': np.float32,
    'decoder_segment_ids': np.int32,
    'decoder_positions': np.int32,
}


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of the `lengths` that share a row of `room`: the longest first, each into the fullest row that takes it.

    Raises:
        ValueError: one does not fit into an empty row.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room in a row, and its number; ascending
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[number] > room:
            raise ValueError(
                f'an example has {lengths[number] + 1} tokens, and a row takes {room + 1}: raise ROW_LENGTH '
                "(PackedLoader.row_length), or leave it out by lower TASK_FEATURE_LENGTHS and on_bad_example = 'skip'."
            )
        place = bisect.bisect_left(left, (lengths[number], -1))
        if place == len(left):
            rows.append([])
            found = room, len(rows) - 1
        else:
            found = left.pop(place)
        rows[found[1]].append(number)
        bisect.insort(left, (found[0] - lengths[number], found[1]))
    return rows


def row_of(texts: Sequence[tuple[Int[np.ndarray, ' i'], Int[np.ndarray, ' t']]], length: int) -> dict[str, np.ndarray]:
    """The features of a row: (inputs, targets) of each of its texts; inputs that are learnt are negative."""
    row = {name: np.zeros(length, dtype) for name, dtype in _FEATURES.items()}
    start = 0
    for number, (inputs, targets) in enumerate(texts, 1):
        tokens = np.abs(np.concatenate([inputs, targets]))
        here = slice(start, start + len(tokens) - 1)
        row['decoder_input_tokens'][here] = tokens[:-1]
        row['decoder_target_tokens'][here] = tokens[1:]
        row['decoder_loss_weights'][here] = np.concatenate([inputs < 0, targets > 0])[1:]
        row['decoder_segment_ids'][here] = number
        row['decoder_positions'][here] = np.arange(len(tokens) - 1)
        start = here.stop
    return row


@gin.configurable
class PackedLoader:
    """Batches of packed rows, for training.

    Args:
        source: makes the `SpeechTextLoader` of the examples, none of which has speech.
        row_length: places in a row; a text takes one less than it has tokens.
        rows: in a batch, over all hosts.
        seed: of the order of the rows.

    Raises:
        ValueError: an argument that cannot be, an example longer than a row, or one with a recording.
    """

    def __init__(self, source: Any = gin.REQUIRED, row_length: int = 1024, rows: int = 8, seed: int = 0, **needs: Any):
        for name, macro, value in (('row_length', 'ROW_LENGTH', row_length), ('rows', 'ROWS', rows)):
            if type(value) is not int or value < 1:
                raise ValueError(f'PackedLoader.{name} ({macro}) is {value!r}; a whole number from 1 on was expected.')
        if needs:
            raise ValueError(
                f'PackedLoader: its rows are of tokens alone and have no {", ".join(needs)}. Set ENCODED to False, and '
                'choose an objective without a teacher.'
            )
        self._source = source()
        if any(bucket.samples for bucket in self._source.plan.buckets):
            raise ValueError(
                f'PackedLoader: {self._source.name} has recordings, and rows are of tokens alone: encode them as units '
                '(slm-jax codebook encode).'
            )
        self._length, self._rows, self._seed = row_length, rows, seed
        self.vocabulary, self.skipped = self._source.vocabulary, self._source.skipped
        first = [self._lengths(self._source.plan.batch(step).rows).sum() for step in range(4)]
        self._batches = max(1, round(_WINDOW * rows * row_length / float(np.mean(first))))
        self._first_step = [0]  # of each window whose number of batches is known
        self._window = functools.lru_cache(maxsize=2)(self._packed)
        window = self._window(0)
        used = sum(self._lengths(row).sum() for row in window)
        #: of the places of the first window's rows, those that are padding
        self.waste = 1 - used / (row_length * len(window))
        notices.say(
            f'{self._source.name} {self._source.split}: rows of {row_length} hold '
            f'{np.mean([len(row) for row in window]):.1f} texts; {self.waste:.1%} of their places are padding'
        )

    @property
    def seen(self) -> dict[str, np.ndarray]:
        """Hashes of the texts; see `slm_jax.data.seen`."""
        return self._source.seen

    def _lengths(self, rows: Int[np.ndarray, 'n 3']) -> Int[np.ndarray, ' n']:
        """Places that examples take, by (task, position, seed) of the plan."""
        tasks = self._source.planned
        return np.array([int(tasks[t].inputs[i]) + int(tasks[t].targets[i]) - 1 for t, i, _ in rows], np.int64)

    def _packed(self, window: int) -> list[Int[np.ndarray, 'n 3']]:
        """The rows of a window, as examples of the plan; whole batches, some rows of the last may be empty."""
        steps = range(window * self._batches, (window + 1) * self._batches)
        examples = np.concatenate([self._source.plan.batch(step).rows for step in steps])
        rows = [examples[row] for row in pack(self._lengths(examples).tolist(), self._length)]
        rows += [examples[:0]] * (-len(rows) % self._rows)
        order = np.random.default_rng([self._seed, 4, window]).permutation(len(rows))
        return [rows[i] for i in order]

    def _batch(self, step: int, host_rows: loader.HostRows | None) -> dict[str, np.ndarray]:
        while self._first_step[-1] <= step:
            window = self._window(len(self._first_step) - 1)
            self._first_step.append(self._first_step[-1] + len(window) // self._rows)
        number = bisect.bisect_right(self._first_step, step) - 1
        start = (step - self._first_step[number]) * self._rows
        planned = self._window(number)[start : start + self._rows]
        rows = [planned[row] if row < self._rows else () for row in (host_rows or range)(self._rows)]
        made = [row_of([self._text(*map(int, example)) for example in row], self._length) for row in rows]
        batch = {name: np.stack([row[name] for row in made]) for name in _FEATURES}
        return batch | {name: np.zeros((len(rows), *shape[1:]), dtype) for name, (shape, dtype) in self._empty.items()}

    def _text(self, task: int, position: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = (int(getattr(self._source.planned[task], name)[position]) for name in ('inputs', 'targets'))
        example = self._source.fitting(plan_lib.Bucket(1, 0, *lengths), task, position, seed)
        return example['inputs'], example['targets']

    def batches(
        self, start_step: int = 0, host_rows: loader.HostRows | None = None
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, batch) for ever, from `start_step`; as `SpeechTextLoader.batches`."""

        def make():
            step = start_step
            while True:
                yield step, self._batch(step, host_rows)
                step += 1

        return self._source.ahead(make())

    @property
    def _empty(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """What the batch contract has besides."""
        return {
            'speech_samples': ((self._rows, 0), np.dtype(np.int16)),
            'speech_lengths': ((self._rows,), np.dtype(np.int32)),
            'encoder_input_tokens': ((self._rows, 0), np.dtype(np.int32)),
        }

    def batch_shapes(self) -> list[dict[str, tuple[tuple[int, ...], Any]]]:
        """{name: (shape of the global batch, dtype)}, the same for all batches."""
        return [
            {name: ((self._rows, self._length), np.dtype(dtype)) for name, dtype in _FEATURES.items()} | self._empty
        ]

    def state(self) -> Mapping[str, Any]:
        """What, with the step, fixes the data."""
        return {**self._source.state(), 'packed': [self._length, self._rows, self._seed]}
