"""Segments of recordings, as NeMo's manifests name them: what is asked for and nothing else is read."""

import numpy as np
import pytest

from slm_jax.audio import waveforms
from slm_jax.data import segments


@pytest.fixture
def long(tmp_path, write_wav):
    path = tmp_path / 'long.wav'
    return str(path), write_wav(path, 10.0)


@pytest.mark.parametrize(
    'offset, duration, start, end',
    [
        ('', '', 0, 10),
        ('', '10.05', 0, 10),  # what another tool measured
        ('0.0', '2.0', 0, 2),
        ('3.5', '2.0', 3.5, 5.5),
        ('3.5', '', 3.5, 10),
        ('0.0', '', 0, 10),
        ('0.0', '9.95', 0, 10),
        ('8.0', '2.05', 8, 10),
    ],
)
def test_what_is_read(long, offset, duration, start, end):
    path, samples = long
    np.testing.assert_array_equal(
        segments.read(path, offset, duration), samples[round(start * 16000) : round(end * 16000)]
    )


@pytest.mark.parametrize(
    'offset, duration, said',
    [
        ('', '2.0', '"duration" says 2 s, the recording has 10.00 s.*"offset"'),
        ('', '12.0', '"duration" says 12 s, the recording has 10.00 s'),
        ('0.0', '12.0', 'a segment of 12 s from 0 s on .* the recording, which has 10.00 s'),
        ('9.0', '2.0', 'a segment of 2 s from 9 s on .* which has 10.00 s'),
        ('10.0', '', '"offset" is 10 s, the recording has 10.00 s'),
    ],
)
def test_what_does_not_fit_is_refused(long, offset, duration, said):
    with pytest.raises(segments.SegmentError, match=f'long.wav: .*{said}'):
        segments.read(long[0], offset, duration)


def test_segments_of_one_file_decode_it_once(long, monkeypatch):
    path, samples = long
    decoded, read = [], waveforms.read_waveform
    monkeypatch.setattr(waveforms, 'read_waveform', lambda name: (decoded.append(name), read(name))[1])
    for second in range(9):
        part = segments.read(path, str(second), '1.0')
        np.testing.assert_array_equal(part, samples[second * 16000 : (second + 1) * 16000])
    assert decoded == [path]


def test_a_file_replaced_is_read_again(long, write_wav, tmp_path):
    path, _ = long
    assert len(segments.read(path, '4.0')) == 6 * 16000
    write_wav(tmp_path / 'long.wav', 5.0)
    assert len(segments.read(path, '4.0')) == 16000
    with pytest.raises(waveforms.AudioError, match='gone.wav: cannot be opened'):
        segments.read(str(tmp_path / 'gone.wav'), '4.0')
