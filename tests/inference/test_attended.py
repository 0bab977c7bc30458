"""Times from attention: the warping beside its definition, and attention whose path is known."""

import numpy as np
import pytest

from slm_jax.inference import attended


def plain(cost):
    """The cheapest path by its definition: the cheapest of all that lead to each place."""
    best = {}
    for i, j in np.ndindex(cost.shape):
        ways = [best[way] for way in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if way in best]
        total, path = min(ways, key=lambda way: way[0], default=(0.0, []))
        best[i, j] = total + cost[i, j], [*path, (i, j)]
    return best[cost.shape[0] - 1, cost.shape[1] - 1]


@pytest.mark.parametrize('shape', [(1, 1), (1, 6), (6, 1), (4, 9), (9, 4), (12, 12)])
def test_the_warping_is_that_of_a_plain_program(shape):
    for seed in range(5):
        cost = np.random.default_rng(seed).normal(size=shape)
        path = attended.dtw(cost)
        total, expected = plain(cost)
        assert path.tolist() == [list(place) for place in expected]
        assert cost[tuple(path.T)].sum() == pytest.approx(total)


def attention(path, positions, noise=0.0):
    """Of heads that look where the path says, and one at the first position, as all do a little."""
    weights = np.full((3, len(path), positions), noise)
    for token, places in enumerate(path):
        weights[:2, token, places] += 0.02
    weights[:, :, 0] += 0.9
    return weights + np.random.default_rng(0).uniform(0, 1e-4, weights.shape)


def test_times_follow_what_is_looked_at():
    spans = np.array([[0.0, 0.2, 0.4, 0.9, 1.1, 1.3], [0.2, 0.4, 0.6, 1.1, 1.3, 1.5]])
    starts, stops = attended.times(attention([[0], [1, 2], [3], [4, 5]], 6), spans)
    np.testing.assert_allclose(starts, [0.0, 0.2, 0.9, 1.1])
    np.testing.assert_allclose(stops, [0.2, 0.6, 1.1, 1.5], err_msg='a pause after the second is not its own')
    starts, stops = attended.times(attention([[0], [2], [2], [2], [5]], 6), spans)
    assert (starts[2:4] == 0.4).all() and (stops >= starts).all() and (np.diff(starts) >= 0).all()


def test_a_glance_elsewhere_is_smoothed_where_positions_are_short():
    path = [[*range(10 * token, 10 * token + 10)] for token in range(4)]
    weights = attention(path, 40)
    weights[:2, 3, 4:6] += 0.1  # the last token looks back for 40 ms
    begins = 0.02 * np.arange(40)
    starts, _ = attended.times(weights, np.stack([begins, begins + 0.02]))
    np.testing.assert_allclose(starts, [0.0, 0.2, 0.4, 0.6], atol=0.021)
