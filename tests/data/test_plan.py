"""The plan: a function of (seed, step) that loses no example, pads little, and obeys the rates."""

import collections
import hashlib
import itertools

import numpy as np
import pytest

from slm_jax.data import plan as plan_lib


def lengths(n: int, seed: int = 0, rate: float = 1.0, speech: bool = True) -> plan_lib.TaskLengths:
    rng = np.random.default_rng(seed)
    samples = np.clip(rng.lognormal(10.6, 0.7, n), 3000, 16000 * 20).astype(np.int64)
    return plan_lib.TaskLengths(np.arange(n), samples * speech, rng.integers(3, 12, n), rng.integers(1, 60, n), rate)


def make(*tasks, **kwargs) -> plan_lib.Plan:
    return plan_lib.Plan(tasks, **{'seconds_per_batch': 60.0, **kwargs})


def key(batch: plan_lib.Batch):
    return batch.bucket, batch.rows.tolist()


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('count', [1, 2, 3])
def test_boundaries_are_the_best_there_are(seed, count):
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(1, 40, 30), rng.random(30)

    def cost(bounds):
        bounds = np.array(sorted(bounds))
        return (weights * bounds[np.searchsorted(bounds, values)]).sum()

    best = min(cost({*inner, values.max()}) for inner in itertools.combinations(np.unique(values), count - 1))
    found = plan_lib.boundaries(values, weights, count)
    assert len(found) <= count and found[-1] == values.max()
    np.testing.assert_allclose(cost(found), best, rtol=1e-12)


def test_no_more_boundaries_than_are_worth_it():
    values = np.arange(1, 2001)
    few = plan_lib.boundaries(values, np.ones(2000), 50, enough=0.9)
    more = plan_lib.boundaries(values, np.ones(2000), 50, enough=0.97)
    assert len(few) < len(more) < 50
    bounds = np.array(few)
    assert values.sum() / bounds[np.searchsorted(bounds, values)].sum() >= 0.9


def test_every_example_fits_its_bucket_and_batches_hold_what_the_knob_says():
    task = lengths(3000)
    plan = make(task, row_multiple=4, limits={'inputs': 12, 'targets': 64})
    for step in range(200):
        batch = plan.batch(step)
        bucket = plan.buckets[batch.bucket]
        index = batch.rows[:, 1]
        assert batch.rows.shape == (bucket.rows, 3)
        assert task.samples[index].max() <= bucket.samples
        assert task.inputs[index].max() <= bucket.inputs <= 12
        assert task.targets[index].max() <= bucket.targets
    for bucket in plan.buckets:
        assert bucket.samples % 640 == 0 and bucket.targets % 8 == 0 and bucket.rows % 4 == 0
        assert bucket.rows == 4 or bucket.rows * bucket.samples <= 60 * 16000
        assert (bucket.rows + 4) * bucket.samples > 60 * 16000 or (bucket.rows + 4) * (
            bucket.inputs + bucket.targets
        ) > 2400


def test_at_least_nine_tenths_of_what_is_sent_is_speech():
    plan = make(lengths(3000))
    sent = speech = 0
    for step in range(300):
        batch = plan.batch(step)
        sent += len(batch.rows) * plan.buckets[batch.bucket].samples
        speech += plan._tasks[0].samples[batch.rows[:, 1]].sum()
    assert speech / sent >= 0.9
    assert abs(speech / sent - plan.speech_fill) < 0.01


def test_a_batch_depends_on_seed_and_step_only():
    first, second = make(lengths(500)), make(lengths(500))
    late = key(first.batch(1234))
    assert [key(second.batch(s)) for s in (3, 0, 1234)] == [
        key(first.batch(3)),
        key(first.batch(0)),
        late,
    ]
    assert key(make(lengths(500), seed=1).batch(0)) != key(first.batch(0))


def test_epochs_are_whole_and_differ():
    n = 400
    plan = make(lengths(n), num_buckets=4)
    chunks = -(-20 * n // plan._draws)
    seen = collections.Counter()
    seeds = collections.defaultdict(set)
    for batch in itertools.chain.from_iterable(plan._chunk(c) for c in range(chunks)):
        for _, example, seed in batch.rows.tolist():
            seen[example] += 1
            seeds[example].add(seed)
    drawn = chunks * plan._draws
    assert set(seen) == set(range(n))
    assert min(seen.values()) >= drawn // n  # no example is lost
    assert sum(seen.values()) < 1.02 * drawn  # and few are repeated
    assert np.mean([len(s) for s in seeds.values()]) > 0.9 * drawn / n  # another wording each time


def test_rates_of_a_mixture():
    plan = make(lengths(100, rate=1.0), lengths(5000, seed=1, rate=3.0), num_buckets=4)
    drawn = collections.Counter()
    for step in range(400):
        drawn.update(plan.batch(step).rows[:, 0].tolist())
    assert abs(drawn[1] / (drawn[0] + drawn[1]) - 0.75) < 0.02


def test_tiny_data_still_makes_batches():
    plan = make(lengths(3))
    assert {i for step in range(9) for i in plan.batch(step).rows[:, 1].tolist()} == {0, 1, 2}


def test_text_only_examples_have_buckets_of_their_own():
    plan = make(lengths(300), lengths(300, seed=1, speech=False), tokens_per_batch=1000)
    for step in range(200):
        batch = plan.batch(step)
        bucket = plan.buckets[batch.bucket]
        assert set(batch.rows[:, 0].tolist()) == {0 if bucket.samples else 1}
        assert bucket.rows == 1 or bucket.rows * (bucket.inputs + bucket.targets) <= 1000
    alone = make(lengths(300, speech=False))
    assert alone.speech_fill == 1.0 and all(b.samples == 0 for b in alone.buckets)
    assert len(set(alone.buckets)) == len(alone.buckets)


def test_rows_count_as_what_the_encoder_computes():
    """Whisper's computes 30 s of each clip."""
    task = lengths(300)
    plan = make(task, encoder_seconds=30.0, tokens_per_batch=100_000)
    assert {bucket.rows for bucket in plan.buckets} == {2}
    assert make(task, encoder_seconds=0.0).buckets == make(task).buckets
    text = make(lengths(300, speech=False), encoder_seconds=30.0)
    assert text.buckets == make(lengths(300, speech=False)).buckets, 'text passes no encoder'


def test_evaluation_sees_every_example_once():
    plan = make(lengths(101), lengths(57, seed=3), row_multiple=2)
    seen = collections.Counter()
    for batch in plan.evaluation():
        assert len(batch.rows) == plan.buckets[batch.bucket].rows
        assert batch.rows[0, 0] >= 0
        seen.update((t, e) for t, e, _ in batch.rows.tolist() if t >= 0)
        assert {seed for t, _, seed in batch.rows.tolist() if t >= 0} == {0}
    assert seen == collections.Counter({(0, i): 1 for i in range(101)} | {(1, i): 1 for i in range(57)})


@pytest.mark.parametrize(
    'tasks, options, digest',
    [
        ([(500,)], {}, '28aabaa04875a74e'),
        (
            [(100, 0, 1.0), (3000, 1, 3.0), (200, 2, 0.5, False)],
            {'row_multiple': 2, 'encoder_seconds': 5.0, 'seed': 7},
            'cb3db2095bc90eba',
        ),
    ],
)
def test_the_order_of_a_small_set_is_that_of_earlier_versions(tasks, options, digest):
    """Runs that began with them go on with what would have come."""
    plan = make(*(lengths(*task) for task in tasks), **options)
    found = hashlib.sha256(repr([tuple(vars(bucket).values()) for bucket in plan.buckets]).encode())
    for step in (*range(200), 5000):
        batch = plan.batch(step)
        found.update(bytes([batch.bucket]) + batch.rows.astype('<i8').tobytes())
    assert found.hexdigest()[:16] == digest


def test_a_late_step_of_a_small_set_draws_no_chunk_before_it(monkeypatch):
    plan, drawn = make(lengths(500), lengths(40, seed=1, rate=2.0)), []
    draw = plan._chunk
    monkeypatch.setattr(plan, '_chunk', lambda chunk: drawn.append(chunk) or draw(chunk))
    late = plan.batch(3000)
    assert len(drawn) == 1
    chunks = [len(draw(chunk)) for chunk in range(drawn[0])]
    assert plan._first_step[: len(chunks) + 1] == np.cumsum([0, *chunks]).tolist()
    assert key(late) == key(draw(drawn[0])[3000 - sum(chunks)])


def test_a_shape_that_saves_less_than_it_costs_is_not_made():
    task = lengths(3000)
    free, cheap, dear = (make(task, enough=1.0, shape_cost=cost) for cost in (0.0, 0.01, 0.1))
    assert len(free.buckets) == 24 and 1 < len(dear.buckets) < len(cheap.buckets) < 24
    assert dear.speech_fill < cheap.speech_fill < free.speech_fill
    one_more = make(task, enough=1.0, num_buckets=len(dear.buckets) + 1)
    assert one_more.speech_fill - dear.speech_fill < 0.1 * one_more.speech_fill
    assert len(make(task, shape_cost=1.0).buckets) == 1
