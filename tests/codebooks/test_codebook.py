"""Units are the nearest centroids, their runs give back every frame, and a codebook knows its encoder."""

import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax import foundations
from slm_jax.codebooks import codebook

WHISPER = {'name': 'whisper_base', 'fingerprint': 'a' * 64, 'configuration': 'W(6)', 'format': 1, 'layer': 4}
USM = {'name': 'usm_tiny', 'fingerprint': 'b' * 64, 'configuration': 'U(6)', 'format': 1}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp('codebook') / 'whisper_4'
    centroids = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    card = {'name': 'whisper_4', 'kind': 'codebook', 'encoder': WHISPER, 'frames_per_second': 50.0}
    foundations.save(path, {'centroids': centroids}, card)
    return path


def test_units_are_the_nearest_centroids_and_runs_give_back_every_frame(directory):
    own = codebook.Codebook.load(directory)
    frames = np.random.default_rng(1).normal(size=(3, 20, 5)).astype(np.float32).repeat(2, axis=1)
    lengths = np.array([40, 13, 0], np.int32)
    units, durations, counts = map(np.asarray, own.encode(jnp.array(frames), jnp.array(lengths)))
    distances = np.linalg.norm(frames[:, :, None] - np.asarray(own.centroids), axis=-1)
    for row, length in enumerate(lengths):
        kept = slice(counts[row])
        np.testing.assert_array_equal(
            units[row, kept].repeat(durations[row, kept]), distances[row, :length].argmin(axis=-1)
        )
        assert (np.diff(units[row, kept]) != 0).all() and (durations[row, kept] > 0).all()
        assert not units[row, counts[row] :].any() and not durations[row, counts[row] :].any()
    assert own.size == 7 and counts[0] <= 20


def test_what_stands_in_the_padding_changes_no_unit(directory):
    own = codebook.Codebook.load(directory)
    frames, lengths = np.random.default_rng(1).normal(size=(2, 9, 5)).astype(np.float32), jnp.array([9, 4])
    other = frames.copy()
    other[1, 4:] = 1e3
    for a, b in zip(own.encode(jnp.array(frames), lengths), own.encode(jnp.array(other), lengths), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_codebook_of_another_encoder_is_refused_by_both_names(directory):
    own = codebook.Codebook.load(directory)
    own.check(WHISPER | {'name': 'the same elsewhere'})
    with pytest.raises(codebook.CodebookError, match=r'of whisper_base \(layer 4.*here is usm_tiny \(its output'):
        own.check(USM)
    with pytest.raises(codebook.CodebookError, match=r'layer 4, .*here is whisper_base \(layer 5, fing'):
        own.check(WHISPER | {'layer': 5})
    with pytest.raises(codebook.CodebookError, match='configured otherwise'):
        own.check(WHISPER | {'configuration': 'W(7)'})
    with pytest.raises(codebook.CodebookError, match='of frames of 5 numbers .* and these have 6'):
        own.encode(jnp.zeros((1, 2, 6)), jnp.array([2]))
    with pytest.raises(codebook.CodebookError, match="is no codebook: its kind is 'speech_encoder'"):
        codebook.Codebook.load('usm_tiny')
