"""Codebooks that are fitted over shards."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from slm_jax.codebooks import codebook, kmeans

pytest.importorskip('sklearn')


def write(folder, frames, shards):
    for number, part in enumerate(np.array_split(frames, shards)):
        np.save(folder / f'{number:05d}.npy', part.astype(ml_dtypes.bfloat16).view(np.uint16))
    return sorted(folder.glob('*.npy'))


def test_clusters_that_are_there_are_found_whatever_the_shards(tmp_path):
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(6, 4))
    frames = (centres[rng.integers(6, size=3000)] + 0.1 * rng.normal(size=(3000, 4))).astype(np.float32)
    np.save(tmp_path / '99999.npy', np.zeros((0, 1), np.uint16))  # of a shard that was left out
    found, figures = kmeans.KMeans(k=6, batch_frames=500).fit(write(tmp_path, frames, 7))
    nearest = np.linalg.norm(centres[:, None] - found, axis=-1).min(axis=1)
    assert nearest.max() < 0.1 and figures['frames'] == 3000 and figures['used'] == 6
    assert figures['variance_explained'] > 0.99 and 2.4 < figures['entropy'] <= np.log2(6)
    again, _ = kmeans.KMeans(k=6, batch_frames=500).fit(sorted(tmp_path.glob('*.npy')))
    np.testing.assert_array_equal(found, again)


def test_units_on_the_device_are_those_of_scikit_learn(tmp_path):
    from sklearn.cluster import MiniBatchKMeans

    frames = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32) + 30
    model = MiniBatchKMeans(16, random_state=0, n_init=1).fit(frames)
    units = codebook.nearest(model.cluster_centers_.astype(np.float32), frames)
    np.testing.assert_array_equal(units, model.predict(frames))


def test_the_memory_of_a_fit_does_not_grow_with_the_frames(tmp_path):
    """Of ten times as many shards; a shard is 1 MB in float32."""
    peaks = []
    for shards in (2, 20):
        folder = tmp_path / str(shards)
        folder.mkdir()
        files = write(folder, np.random.default_rng(0).normal(size=(4096 * shards, 64)).astype(np.float32), shards)
        tracemalloc.start()
        kmeans.KMeans(k=8, epochs=1, batch_frames=4096).fit(files)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 12e6, peaks


def test_what_cannot_be_fitted_is_said(tmp_path):
    files = write(tmp_path, np.zeros((5, 4), np.float32), 1)
    with pytest.raises(codebook.CodebookError, match='5 frames for 6 units: give more recordings, or a smaller K'):
        kmeans.KMeans(k=6).fit(files)
    with pytest.raises(ValueError, match='KMeans.k is 1; a whole number from 2 on was expected'):
        kmeans.KMeans(k=1)
