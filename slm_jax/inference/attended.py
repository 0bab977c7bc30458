"""When tokens are said, by where a language model looks before it writes each: as Whisper's authors do it.

Each head's weights are compared over the tokens, smoothed in time and averaged, and dynamic time warping (DTW) finds
the path through them from the first token at the first position of the speech to the last at the last.

Shape names: h heads, t tokens, s positions of the speech.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Float

_MEDIAN = 0.14  # seconds that are smoothed at most: seven of Whisper's positions


def times(weights: Float[np.ndarray, 'h t s'], spans: Float[np.ndarray, '2 s']) -> Float[np.ndarray, '2 t']:
    """Seconds at which each token begins and ends.

    Args:
        weights: of the attention from where each token is about to be written.
        spans: seconds at which each position begins and ends.
    """
    begins, ends = spans
    # A language model looks at other things too, such as the first token of all: what is left of the weights counts.
    weights = weights / np.maximum(weights.sum(axis=2, keepdims=True), 1e-9)
    weights = weights - weights.mean(axis=1, keepdims=True)
    weights /= np.maximum(weights.std(axis=1, keepdims=True), 1e-6)
    apart = (begins[-1] - begins[0]) / max(len(begins) - 1, 1)
    width = int(_MEDIAN / max(float(apart), 1e-2))
    weights = scipy.ndimage.median_filter(weights, (1, 1, max(width - 1 + width % 2, 1)))  # an odd number
    tokens, positions = dtw(-weights.mean(axis=0)).T
    places = np.searchsorted(tokens, np.arange(weights.shape[1]))
    first, last = positions[places], positions[np.append(places[1:], len(tokens)) - 1]
    last -= (np.append(first[1:], -1) == last) & (last > first)  # a position of two tokens is the later one's
    starts = begins[first]
    return np.stack([starts, np.minimum(ends[last], np.append(starts[1:], np.inf))])


def dtw(cost: Float[np.ndarray, 't s']) -> np.ndarray:
    """The cheapest path [n, 2] from one corner to the other, along either axis or both at each step."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):  # whose places do not depend on each other
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        total[i + 1, j + 1] = cost[i, j] + np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
    i, j = rows - 1, columns - 1
    path = [(i, j)]
    while i or j:
        came = np.argmin((total[i, j], total[i, j + 1], total[i + 1, j]))
        i, j = i - (came < 2), j - (came != 1)
        path.append((i, j))
    return np.array(path[::-1])
