"""The order of very many examples: whole epochs, mixed shards, rates, and any step at once."""

import collections
import itertools

import numpy as np
import pytest

from slm_jax.data import plan as plan_lib
from slm_jax.data import windows


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(plan_lib, 'LARGE', 64)
    monkeypatch.setattr(windows, 'BLOCK', 10)
    monkeypatch.setattr(windows, '_WINDOW_BLOCKS', 8)


def lengths(n: int, seed: int = 0, rate: float = 1.0, speech: bool = True) -> plan_lib.TaskLengths:
    rng = np.random.default_rng(seed)
    samples = np.clip(rng.lognormal(10.6, 0.7, n), 3000, 16000 * 20).astype(np.int32) * speech
    narrow = [rng.integers(low, high, n).astype(np.uint16) for low, high in ((3, 12), (1, 60))]
    return plan_lib.TaskLengths(np.arange(n, dtype=np.uint32), samples, *narrow, rate)


def make(*tasks, **kwargs) -> plan_lib.Plan:
    return plan_lib.Plan(tasks, **{'seconds_per_batch': 40.0, 'num_buckets': 4, **kwargs})


def take(plan: plan_lib.Plan, count: int) -> list[plan_lib.Batch]:
    return [plan.batch(step) for step in range(count)]


def test_the_buckets_are_those_of_any_order(monkeypatch):
    tasks = lengths(3000), lengths(200, seed=1, rate=0.5, speech=False)
    found = make(*tasks, num_buckets=8)
    monkeypatch.setattr(plan_lib, 'LARGE', 10_000)
    expected = make(*tasks, num_buckets=8)
    assert len(found.buckets) == len(expected.buckets)
    assert found.speech_fill == pytest.approx(expected.speech_fill, abs=0.01)
    for batch in take(found, 200):
        bucket = found.buckets[batch.bucket]
        assert batch.rows.shape == (bucket.rows, 3)
        for task, position, _ in batch.rows.tolist():
            assert tasks[task].samples[position] <= bucket.samples and bool(bucket.samples) == (task == 0)
            assert tasks[task].inputs[position] <= bucket.inputs
            assert tasks[task].targets[position] <= bucket.targets


def test_epochs_are_whole_and_differ():
    n = 2345
    plan = make(lengths(n))
    seen, seeds, orders = collections.Counter(), collections.defaultdict(set), collections.defaultdict(list)
    while sum(seen.values()) < 5 * n:
        batch = plan.batch(sum(map(len, orders.values())))
        orders[batch.bucket].append(batch.rows)
        seen.update(batch.rows[:, 1].tolist())
        for _, position, seed in batch.rows.tolist():
            seeds[position].add(seed)
    assert set(seen) == set(range(n))
    assert min(seen.values()) >= 4 and max(seen.values()) <= 6, 'none is lost, and none is drawn before the others'
    assert np.mean([len(s) for s in seeds.values()]) > 4.9, 'another wording each time'
    for bucket, batches in orders.items():
        stream = np.concatenate(batches)[:, 1]
        size = int((plan._bucket == bucket).sum())
        epochs = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
        assert not any((one == other).all() for one, other in itertools.pairwise(epochs))


def test_any_step_is_found_at_once_and_is_what_would_have_come(monkeypatch):
    tasks = lengths(1500), lengths(700, seed=1, rate=3.0)
    whole = take(make(*tasks), 3000)
    late = make(*tasks)
    drawn, draw = [], late._windows._chunk_rows
    monkeypatch.setattr(late._windows, '_chunk_rows', lambda *where: drawn.append(where) or draw(*where))
    for step in (2999, 1234, 0):
        batch = late.batch(step)
        assert batch.bucket == whole[step].bucket
        np.testing.assert_array_equal(batch.rows, whole[step].rows)
    assert len(drawn) <= 6, 'of one bucket, of a chunk and perhaps of the one before'
    assert make(*tasks, seed=1).batch(7).rows.tolist() != whole[7].rows.tolist()
    before = np.array([late._windows.batches_before(c).sum() for c in range(50)])
    for step in (0, 1, before[7] - 1, before[7], before[49] - 1):
        assert before[late._windows.chunk_of(step)] <= step < before[late._windows.chunk_of(step) + 1]
    assert late._windows.chunk_of(10**9) > 10**6 / 50


def test_a_bucket_of_few_examples_waits_until_a_batch_is_full():
    task = lengths(3000)
    task.samples[:3] = 16000 * 200
    plan = make(task, row_multiple=16)
    rare = next(number for number, bucket in enumerate(plan.buckets) if bucket.samples == 16000 * 200)
    batches = [batch for batch in take(plan, 3000) if batch.bucket == rare]
    rows = np.concatenate([batch.rows for batch in batches])[:, 1]
    drawn = np.bincount(rows)
    assert plan._windows._drawn[0, rare] < plan.buckets[rare].rows == 16 and len(batches) > 1
    assert len(drawn) == 3 and np.ptp(drawn) <= 1


def test_shards_are_mixed_and_few_are_open():
    """Examples of one window come from as many blocks as it has, of all parts of the task."""
    n = 4000
    plan = make(lengths(n), num_buckets=1)
    blocks = np.concatenate([batch.rows for batch in take(plan, 400)])[: 10 * 80, 1] // 10
    windows_of = [set(part.tolist()) for part in blocks.reshape(-1, 80)]
    assert all(len(window) <= 3 * 8 for window in windows_of), 'of this one and of those beside it'
    assert np.mean([np.ptp(sorted(window)) for window in windows_of]) > n / 10 / 2
    many = make(*(lengths(50, seed=task) for task in range(100)), num_buckets=1)
    batch = np.concatenate([batch.rows for batch in take(many, 10)])
    assert len(set(batch[:, 0].tolist())) > 0.5 * min(100, len(batch))


def test_rates_of_a_mixture():
    plan = make(lengths(100, rate=1.0), lengths(5000, seed=1, rate=3.0))
    drawn = np.bincount(np.concatenate([batch.rows for batch in take(plan, 1000)])[:, 0])
    assert abs(drawn[1] / drawn.sum() - 0.75) < 0.01


def test_evaluation_sees_every_example_once():
    plan = make(lengths(101), lengths(57, seed=3), row_multiple=2)
    seen = collections.Counter(
        (task, position) for batch in plan.evaluation() for task, position, _ in batch.rows.tolist() if task >= 0
    )
    assert seen == collections.Counter({(0, i): 1 for i in range(101)} | {(1, i): 1 for i in range(57)})
