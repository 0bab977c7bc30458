"""Reading recordings: formats, rates, channels come out alike; what is broken is named."""

import io
import os

import numpy as np
import pytest
import soundfile

from slm_jax.audio import waveforms

FORMATS = [('WAV', 'PCM_16'), ('FLAC', 'PCM_16'), ('MP3', None), ('OGG', 'VORBIS'), ('OGG', 'OPUS')]


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    """A 440 Hz tone, faded in and out, as float32 on a scale of 1."""
    t = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * t) * np.sin(np.pi * t / seconds)).astype(np.float32)


def encoded(samples, rate, kind=('WAV', 'PCM_16')) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind[0], subtype=kind[1])
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write_bytes(content: bytes, name='clip.wav'):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_bytes


def test_16_bit_16_khz_mono_is_returned_bit_for_bit(write):
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    read = waveforms.read_waveform(write(encoded(samples, 16000)))
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, samples)


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('rate', [8000, 16000, 48000])
def test_formats_and_rates(write, kind, rate):
    read = waveforms.read_waveform(write(encoded(tone(rate), rate, kind))).astype(np.float32) / 32768
    assert abs(len(read) - 16000) <= 300  # lossy codecs pad
    middle = read[4000:12000] * np.hanning(8000)
    assert np.argmax(np.abs(np.fft.rfft(middle))) * 2 == 440
    assert 0.3 < np.abs(read).max() < 0.6


def test_channels_are_averaged(write):
    left, right = tone(16000), -0.5 * tone(16000)
    read = waveforms.read_waveform(write(encoded(np.stack([left, right, left, right], 1), 16000)))
    np.testing.assert_allclose(read / 32768, (left + right) / 2, atol=2e-4)


def test_file_object_is_read_like_its_path(write):
    path = write(encoded(tone(22050), 22050))
    with open(path, 'rb') as file:
        np.testing.assert_array_equal(waveforms.read_waveform(file), waveforms.read_waveform(path))


def test_integers_and_floats_on_their_scales():
    samples = np.array([-32768, -1, 0, 1, 32767], np.int64)
    np.testing.assert_array_equal(waveforms.to_int16(samples, 16000), samples.astype(np.int16))
    np.testing.assert_array_equal(waveforms.to_int16(samples << 16, 16000), samples)  # 32-bit
    np.testing.assert_array_equal(waveforms.to_int16(np.array([2.0, -2.0], np.float32), 16000), [32767, -32768])


def _nan_wav() -> bytes:
    samples = tone(16000)
    samples[77] = np.nan
    return encoded(samples, 16000, ('WAV', 'FLOAT'))


BAD = {
    'empty': (lambda: b'', 'empty'),
    'not_audio': (lambda: b'this is a letter, not a recording\n' * 50, 'not audio'),
    'nan': (_nan_wav, 'NaN'),
    'zero_length': (lambda: encoded(np.zeros(0, np.int16), 16000), 'no samples'),
    'header_only': (lambda: encoded(tone(16000), 16000)[:20], 'truncated'),
    'truncated_wav': (lambda: encoded(tone(16000), 16000)[:-1000], 'truncated'),
    'truncated_flac': (lambda: encoded(tone(16000), 16000, ('FLAC', 'PCM_16'))[:-1000], 'flac'),
    'truncated_mp3': (
        lambda: (lambda b: b[: len(b) // 2])(encoded(tone(16000, 3), 16000, ('MP3', None))),
        'truncated',
    ),
    'truncated_ogg': (lambda: encoded(tone(16000), 16000, ('OGG', 'VORBIS'))[:-50], 'truncated'),
    'truncated_opus': (lambda: encoded(tone(16000), 16000, ('OGG', 'OPUS'))[:-50], 'truncated'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_files_are_refused_by_name(write, case):
    make, fault = BAD[case]
    path = write(make(), f'{case}.bin')
    with pytest.raises(waveforms.AudioError) as error:
        waveforms.read_waveform(path)
    assert str(path) in str(error.value) and fault in str(error.value)


def test_missing_directory_and_forbidden(tmp_path, write):
    for path in (tmp_path / 'nowhere.wav', tmp_path):
        with pytest.raises(waveforms.AudioError, match='cannot be opened'):
            waveforms.read_waveform(path)
    path = write(encoded(tone(16000), 16000), 'secret.wav')
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip('this user may read everything')
    with pytest.raises(waveforms.AudioError, match='[Pp]ermission'):
        waveforms.read_waveform(path)


def test_a_wav_from_a_pipe_has_no_length_and_is_whole(write):
    content = bytearray(encoded(tone(16000), 16000))
    position = content.index(b'data') + 4
    content[4:8] = content[position : position + 4] = b'\xff\xff\xff\xff'
    assert len(waveforms.read_waveform(write(bytes(content)))) == 16000
