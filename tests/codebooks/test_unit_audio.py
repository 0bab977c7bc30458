"""Crops of a unit manifest and the samples that they are of."""

import json

import numpy as np
import pytest
import soundfile

from slm_jax.codebooks.unit_audio import UnitAudio


def write(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
    """Sample n of a clip is n // 640, the number of its frame; its units are that number as well."""
    folder = tmp_path_factory.mktemp('units')
    rows = []
    for name, frames in (('long', 20), ('short', 3)):
        samples = (np.arange(frames * 640 - 100) // 640).astype(np.int16)
        soundfile.write(folder / f'{name}.wav', samples, 16_000, subtype='PCM_16')
        units, durations = [*range(0, frames, 2)], [2] * (frames // 2) + [1] * (frames % 2)
        rows.append({'id': name, 'audio': f'{name}.wav', 'units': units, 'durations': durations, 'codebook': 'usm@1'})
    return write(folder / 'u.jsonl', *rows)


def test_samples_are_those_of_the_units(manifest):
    loader = UnitAudio(manifest, num_units=20, frames_per_second=25, crop_seconds=0.2, rows=2)
    seen = set()
    for _, (step, batch) in zip(range(6), loader.batches()):
        shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
        assert shapes == loader.batch_shapes()[0] and shapes['decoder_target_tokens'][0] == (2, 5)
        for tokens, samples, length in zip(
            batch['decoder_target_tokens'], batch['speech_samples'], batch['speech_lengths']
        ):
            frames = tokens[tokens > 0] - 1
            of_frames = samples[: len(frames) * 640].reshape(-1, 640)[:, 0]
            np.testing.assert_array_equal(of_frames // 2 * 2, frames)
            assert len(frames) * 640 - 100 <= length <= len(frames) * 640 and not samples[length:].any()
            seen.add((len(frames), int(frames[0])))
        np.testing.assert_array_equal(next(loader.batches(step))[1]['speech_samples'], batch['speech_samples'])
    assert len(seen) > 3 and {count for count, _ in seen} == {3, 5}
    assert loader.state()['codebook'] == 'usm@1'
    assert [batch['speech_lengths'].tolist() for batch, _ in loader.examples()] == [[3200, 1820]]


def test_another_rate_is_refused(manifest):
    with pytest.raises(ValueError, match=r'last 20 frames, and its 0.79 s are 40 frames at 50 a second \(UnitAudio.fr'):
        UnitAudio(manifest, num_units=20, frames_per_second=50)


def test_lines_that_a_vocoder_cannot_learn_from_are_named(tmp_path):
    good = {'id': 'a', 'audio': 'a.wav', 'units': [1], 'durations': [1], 'codebook': 'usm@1'}
    for row, said in (
        ({**good, 'durations': None}, 'b has no durations'),
        ({**good, 'codebook': 'whisper@2'}, 'b has units of the codebook whisper@2, not of usm@1'),
        ({**good, 'audio': ''}, 'b has no "audio", which a vocoder learns from'),
        ({**good, 'units': [7]}, 'unit 7 is out of range'),
    ):
        file = write(tmp_path / 'u.jsonl', good, {**row, 'id': 'b'})
        with pytest.raises(ValueError, match=said):
            UnitAudio(file, num_units=5, frames_per_second=25)
