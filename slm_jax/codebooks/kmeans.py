"""k-means over frames that are in shards, by scikit-learn's MiniBatchKMeans: a shard and a batch are in memory.

A shard is a .npy of bfloat16 [frames, width], written as uint16. An epoch goes through the shards in an order drawn
from the seed, through the frames of each in another; batches go on over the ends of shards.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from slm_jax.codebooks.codebook import CodebookError

Frames = Float32[np.ndarray, 'n d']


@dataclasses.dataclass(frozen=True)
class KMeans:
    """What is fitted.

    Attributes:
        k: units.
        layer: of the encoder, the first being 1; None: what it gives as a whole.
        epochs: how often all frames are read.
        batch_frames: of a mini-batch; the first one, out of which the first centroids are chosen (k-means++), is as
            large or has three frames a centroid.
        seed: of that, and of the order.
    """

    k: int = 500
    layer: int | None = None
    epochs: int = 5
    batch_frames: int = 10_000
    seed: int = 0

    def __post_init__(self):
        for name, least in (('k', 2), ('epochs', 1), ('batch_frames', 1), ('seed', 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(
                    f'KMeans.{name} is {getattr(self, name)!r}; a whole number from {least} on was expected.'
                )

    def fit(self, shards: Sequence[pathlib.Path]) -> tuple[Frames, dict[str, Any]]:
        """Centroids of the frames in these files, and what a card says of the fit.

        Returns:
            float32 [k, width]; `frames`, `variance_explained` (the share that is not left within the units), `used`
            (units that any frame has) and `entropy` (bits of a frame's unit).

        Raises:
            CodebookError: there are fewer frames than units, or scikit-learn is missing.
        """
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError as error:
            raise CodebookError(f"fitting takes scikit-learn ({error}): pip install 'slm_jax[codebooks]'") from error
        rng = np.random.default_rng(self.seed)
        first = max(self.batch_frames, 3 * self.k)
        model = MiniBatchKMeans(self.k, batch_size=self.batch_frames, random_state=self.seed, n_init=1)
        frames = 0
        for epoch in range(self.epochs):
            for batch in _batches(shards, rng, self.batch_frames, first if epoch == 0 else self.batch_frames):
                if epoch == 0 and not frames and len(batch) < self.k:
                    raise CodebookError(
                        f'{len(batch)} frames for {self.k} units: give more recordings, or a smaller K.'
                    )
                if epoch == 0:
                    frames += len(batch)
                model.partial_fit(batch)
        centroids = model.cluster_centers_.astype(np.float32)
        return centroids, {'frames': frames, **_figures(shards, model, centroids, self.batch_frames)}


def read(shard: pathlib.Path) -> Frames:
    """The frames of a file."""
    return np.load(shard).view(ml_dtypes.bfloat16).astype(np.float32)


def _batches(shards: Sequence[pathlib.Path], rng: np.random.Generator, size: int, first: int) -> Iterator[Frames]:
    """All frames once, in batches; the last has what is left."""
    waiting, count, wanted = [], 0, first
    for number in rng.permutation(len(shards)):
        frames = read(shards[number])
        if not len(frames):  # all of its recordings were left out
            continue
        frames = frames[rng.permutation(len(frames))]
        while count + len(frames) >= wanted:
            taken, frames = frames[: wanted - count], frames[wanted - count :]
            yield np.concatenate([*waiting, taken])
            waiting, count, wanted = [], 0, size
        waiting.append(frames)
        count += len(frames)
    if count:
        yield np.concatenate(waiting)


def _figures(shards: Sequence[pathlib.Path], model: Any, centroids: Frames, size: int) -> dict[str, float]:
    counts, within = np.zeros(len(centroids), np.int64), 0.0
    total, square = np.zeros(centroids.shape[1]), 0.0
    for batch in _batches(shards, np.random.default_rng(0), size, size):
        units = model.predict(batch)
        counts += np.bincount(units, minlength=len(centroids))
        within += float(np.sum(np.square(batch - centroids[units]), dtype=np.float64))
        total += batch.sum(axis=0, dtype=np.float64)
        square += float(np.sum(np.square(batch), dtype=np.float64))
    variance = square - float(np.sum(np.square(total))) / counts.sum()
    shares = counts[counts > 0] / counts.sum()
    return {
        'variance_explained': round(1 - within / max(variance, 1e-30), 4),
        'used': int(np.sum(counts > 0)),
        'entropy': round(float(-np.sum(shares * np.log2(shares))), 3),
    }
