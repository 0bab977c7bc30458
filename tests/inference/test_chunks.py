"""Cutting long audio, and putting its texts together."""

import io

import numpy as np
import pytest

from slm_jax.inference import chunks

RATE = chunks.SAMPLE_RATE


def tones(*seconds: float) -> np.ndarray:
    """Tone, pause, tone, pause …: lengths in seconds."""
    parts = []
    for number, length in enumerate(seconds):
        time = np.arange(round(length * RATE)) / RATE
        loud = 9000 if number % 2 == 0 else 3
        parts.append(loud * np.sin(2 * np.pi * 440 * time))
    return np.concatenate(parts).astype(np.int16)


def test_short_audio_is_one_piece():
    assert chunks.cut(tones(3.0), 20) == [(0, 3 * RATE)]
    assert chunks.cut(tones(20.0), 20) == [(0, 20 * RATE)]


def test_cuts_fall_into_pauses_and_cover_everything():
    samples = tones(6.0, 0.5, 5.0, 0.4, 7.0, 0.6, 4.0)
    pieces = chunks.cut(samples, 10)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(samples)
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(end - start <= 10 * RATE for start, end in pieces)
    pauses = [(6.0, 6.5), (11.5, 11.9), (18.9, 19.5)]
    for _, end in pieces[:-1]:
        assert any(a < end / RATE < b for a, b in pauses), end / RATE


def test_without_a_pause_it_still_ends():
    pieces = chunks.cut(tones(61.0), 10)
    assert pieces[-1][1] == 61 * RATE
    assert all(5 * RATE <= end - start <= 10 * RATE for start, end in pieces[:-1])


def test_overlap():
    pieces = chunks.cut(tones(35.0), 10, overlap=1.0)
    assert all(a[1] - b[0] == RATE for a, b in zip(pieces, pieces[1:], strict=False))
    assert pieces[-1][1] == 35 * RATE


@pytest.mark.parametrize(('seconds', 'overlap'), [(0, 0), (-1, 0), (10, 5), (10, -1)])
def test_nonsense_is_refused(seconds, overlap):
    with pytest.raises(ValueError, match='chunk_seconds is .* overlap at least 0'):
        chunks.cut(tones(1.0), seconds, overlap)


@pytest.mark.parametrize('overlap', [0.0, 0.5])
def test_a_stream_is_cut_like_a_file(overlap):
    samples = tones(6.0, 0.5, 5.0, 0.4, 7.0, 0.6, 4.0)
    pieces = list(chunks.cut_stream(io.BytesIO(samples.tobytes()).read, 10, overlap))
    expected = chunks.cut(samples, 10, overlap)
    assert [round(start * RATE) for start, _ in pieces] == [start for start, _ in expected]
    for (_, piece), (start, end) in zip(pieces, expected, strict=True):
        np.testing.assert_array_equal(piece, samples[start:end])


def test_an_odd_byte_at_the_end_and_an_empty_stream():
    [(start, piece)] = chunks.cut_stream(io.BytesIO(tones(1.0).tobytes() + b'x').read, 10)
    assert (start, len(piece)) == (0.0, RATE)
    assert list(chunks.cut_stream(io.BytesIO(b'').read, 10)) == []


def test_ctrl_c_ends_a_stream_and_keeps_what_was_heard():
    blocks = iter([tones(1.0).tobytes()])

    def read(_):
        try:
            return next(blocks)
        except StopIteration:
            raise KeyboardInterrupt from None

    [(_, piece)] = chunks.cut_stream(read, 10)
    assert len(piece) == RATE


def test_join():
    assert chunks.join(['one two', '', ' three ']) == 'one two three'
    assert chunks.join(['we went to the house', 'The house, which']) == ('we went to the house The house, which')
    assert chunks.join(['we went to the house', 'The house, which'], overlapping=True) == ('we went to the house which')
    assert chunks.join(['a', 'b', 'b c'], overlapping=True) == 'a b c'
    assert chunks.join([]) == ''


SAID = [
    chunks.Chunk(0.0, 1.25, 'Hello  there.\n'),
    chunks.Chunk(1.25, 2.0, ' '),
    chunks.Chunk(3599.9996, 3661.5, 'a < b & c'),
]


def test_srt():
    assert chunks.srt(SAID) == (
        '1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n01:00:00,000 --> 01:01:01,500\na < b & c\n'
    )
    assert chunks.srt([]) == ''


def test_vtt():
    assert chunks.vtt(SAID) == (
        'WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello there.\n\n01:00:00.000 --> 01:01:01.500\na &lt; b &amp; c\n'
    )
    assert chunks.vtt([]) == 'WEBVTT\n'
