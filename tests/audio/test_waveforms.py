"""Reading recordings: formats, rates, channels come out alike; what is broken is named."""

import io
import os
import random
import struct
import subprocess
import sys
import warnings

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


def _with_field(content: bytes, at: int, value: int, width: int = 4) -> bytes:
    return content[:at] + value.to_bytes(width, 'little') + content[at + width :]


def _nan_wav() -> bytes:
    samples = tone(16000)
    samples[77] = np.nan
    return encoded(samples, 16000, ('WAV', 'FLOAT'))


BAD = {
    'empty': (lambda: b'', 'empty'),
    'text': (lambda: b'this is a letter, not a recording\n' * 50, 'not audio: it looks like text'),
    'not_audio': (lambda: bytes(range(256)) * 20, 'not audio'),
    'absurd_rate': (lambda: _with_field(encoded(tone(16000), 16000), 24, 1), 'states 1 samples a second'),
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


# Channels.


def _voices():
    """Case: (what must be heard, channels, those that are left out)."""
    voice, other, hiss = np.random.default_rng(0).normal(0, 0.1, (3, 8000)).astype(np.float32)
    phases = [np.sin(2 * np.pi * (440 * np.arange(8000) / 16000 + k / 3)).astype(np.float32) / 2 for k in range(3)]
    none = np.zeros_like(voice)
    return {
        'inverse': (voice, [voice, -voice], '2'),
        'inverse with noise': (voice, [voice, hiss / 20 - voice], '2'),
        'inverse and weaker': (voice, [voice, -0.7 * voice], '2'),
        'inverse and off zero': (voice, [voice + 0.2, 0.2 - voice], '2'),
        'one of three': (voice, [voice, -voice, voice], '2'),
        'one of four': (voice, [voice, voice, -voice, voice], '3'),
        'two of four': (voice, [voice, -voice, voice, -voice], '2, 4'),
        'front pair of six': (voice / 5, [voice, -voice, none, none, none, none], '2'),
        'front pair beside another voice': (voice / 5, [voice, -voice, other, none, none, none], '2'),
        'three phases': (phases[0], phases, '2, 3'),
    }


@pytest.mark.parametrize('case', _voices())
def test_channels_that_cancel_are_left_out(write, case):
    voice, channels, left_out = _voices()[case]
    path = write(encoded(np.stack(channels, 1), 16000, ('WAV', 'FLOAT')))
    with pytest.warns(waveforms.AudioWarning, match=rf'cancel each other .* without channel {left_out}\.') as warned:
        read = waveforms.read_waveform(path) / 32768
    assert str(path) in str(warned[0].message)
    assert np.dot(read, voice) / np.dot(voice, voice) == pytest.approx(1, abs=0.06)


def test_other_channels_are_averaged_without_a_word(write):
    voice, other = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)
    none = np.zeros_like(voice)
    for channels in ([voice, voice], [voice, other], [voice, none], [none, none], [none, none, voice, none]):
        with warnings.catch_warnings(action='error'):
            read = waveforms.read_waveform(write(encoded(np.stack(channels, 1), 16000, ('WAV', 'FLOAT'))))
        np.testing.assert_allclose(read / 32768, np.mean(channels, 0), atol=2e-5)


# MP3s whose length nobody states.

TAGS = {
    'none': (b'', b''),
    'id3v2': (b'ID3\4\0\0\0\0\1\0' + b'\0' * 128, b''),
    'id3v1': (b'', b'TAG' + b'a' * 125),
    'ape': (b'', b'APETAGEX' + struct.pack('<IIII8x', 2000, 32, 0, 1 << 31)),
    'zeros': (b'', b'\0' * 700),
}
SPEEDS = [{'b': 64000}, {'q': 5}]  # constant, variable


@pytest.fixture(scope='module')
def mp3(recorded):
    def encode(rate=16000, channels=1, **options):
        """Three seconds that begin so softly that an estimate from the first frames is far off."""
        samples = np.random.default_rng(0).normal(0, 0.2, (3 * rate, channels)).clip(-1, 1)
        samples[: 2 * rate] *= 1e-4
        return recorded(samples, rate, 'mp3', 'libmp3lame', id3v2_version=0, **options)

    return encode


@pytest.mark.parametrize('speed', SPEEDS)
@pytest.mark.parametrize(('rate', 'channels'), [(16000, 1), (44100, 2), (48000, 1), (8000, 2)])
def test_an_mp3_without_a_header_is_whole(write, mp3, rate, channels, speed):
    content = mp3(rate, channels, write_xing=0, **speed)
    for before, behind in TAGS.values():
        read = waveforms.read_waveform(write(before + content + behind))
        assert 48000 <= len(read) < 48000 + 3 * 1152 * 16000 / rate, 'encoders fill up frames'
        assert np.abs(read[-12000:-4000].astype(float)).mean() > 2000, 'the loud end is there'


@pytest.mark.parametrize('speed', SPEEDS)
def test_a_cut_mp3_is_known_by_its_last_frame_or_its_header(write, mp3, speed):
    for options in ({'write_xing': 0}, {}):
        content = mp3(**speed, **options)
        for kept in (0.35, 0.45, 0.75, 0.9):
            with pytest.raises(waveforms.AudioError, match='truncated .*frame'):
                waveforms.read_waveform(write(content[: int(len(content) * kept)]))


def test_mp3s_that_were_put_together_are_read_to_their_end(write, mp3):
    first, second = mp3(b=64000), mp3(b=64000)
    with_tag = TAGS['id3v2'][0] + second
    for content in (first + second, first + with_tag):
        assert len(waveforms.read_waveform(write(content))) >= 96000
        with pytest.raises(waveforms.AudioError, match='truncated'):
            waveforms.read_waveform(write(content[:-100]))


# What live recorders write.

CLIP = np.random.default_rng(0).integers(-9000, 9000, 8000).astype(np.int16)


def _chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    return name + struct.pack('<I', len(data) if size is None else size) + data


def _wav(*chunks: bytes, size: int | None = None, data: int | None = None) -> bytes:
    """A WAV with stated sizes; what stands in `chunks` comes behind the samples."""
    parts = _chunk(b'fmt ', struct.pack('<HHIIHH', 1, 1, 16000, 32000, 2, 16)), _chunk(b'data', CLIP.tobytes(), data)
    return _chunk(b'RIFF', b'WAVE' + b''.join(parts + chunks), size)


NOTE = _chunk(b'LIST', b'INFOISFT\4\0\0\0me\0\0')
ODD = {
    'no sizes': (_wav(size=0, data=0), 'states 0 bytes of samples, 16000 are there'),
    'two bytes too many': (_wav(data=16002), 'states 16002'),
    'one byte too many': (_wav(data=16001), 'states 16001'),
    'header counted in': (_wav(data=16044), 'states 16044'),
    'two bytes too few': (_wav(data=15998), 'states 15998'),
    'stopped updating': (_wav(size=4036, data=4000), 'states 4000 bytes of samples, 16000 are there'),
    'a recording behind': (_wav(_wav()), 'a second recording of 16044 bytes'),
}
FINE = {
    'no size of the file': _wav(size=0),
    'wrong size of the file': _wav(size=99),
    'from a pipe': _wav(size=2**32 - 1, data=2**32 - 1),
    'from sox': _wav(size=0x7FFFF024, data=0x7FFFF000),
    'chunks behind': _wav(NOTE, _chunk(b'id3 ', b'x' * 98)),
    'chunk behind cut': _wav(NOTE)[:-6],
    'zeros behind': _wav(b'\0' * 512),
    'unpadded before': (lambda w: w[:36] + _chunk(b'note', b'odd') + w[36:])(_wav()),
}


@pytest.mark.parametrize('case', ODD)
def test_a_wav_with_a_wrong_size_is_read_with_a_warning(write, case):
    content, message = ODD[case]
    path = write(content)
    with pytest.warns(waveforms.AudioWarning, match=message) as warned:
        np.testing.assert_array_equal(waveforms.read_waveform(path), CLIP)
    assert len(warned) == 1 and str(path) in str(warned[0].message)


@pytest.mark.parametrize('case', FINE)
def test_a_wav_with_oddities_that_lose_nothing_is_read(write, case):
    with warnings.catch_warnings(action='error'):
        np.testing.assert_array_equal(waveforms.read_waveform(write(FINE[case])), CLIP)


def test_a_wav_without_samples_is_still_empty(write):
    empty = _wav()[:40] + b'\0\0\0\0'
    for content in (empty, empty + NOTE):
        with pytest.raises(waveforms.AudioError, match='no samples'):
            waveforms.read_waveform(write(content))


@pytest.mark.parametrize('kind', ['RF64', 'W64', 'AIFF', 'CAF', 'AU'])
def test_kin_of_wav(write, kind):
    content = encoded(CLIP, 16000, (kind, 'PCM_16'))
    np.testing.assert_array_equal(waveforms.read_waveform(write(content)), CLIP)
    with pytest.raises(waveforms.AudioError, match='truncated'):
        waveforms.read_waveform(write(content[:-1000]))
    with pytest.warns(waveforms.AudioWarning, match='all are read'):
        np.testing.assert_array_equal(waveforms.read_waveform(write(content[:-2])), CLIP[:-1])


@pytest.mark.parametrize(
    ('kind', 'codec'),
    [
        ('w64', 'pcm_s16le'),
        ('caf', 'pcm_s16be'),
        ('au', 'pcm_s16be'),
        ('aiff', 'pcm_s16be'),
        ('wav', 'pcm_s16le'),
        ('flac', 'flac'),
    ],
)
@pytest.mark.filterwarnings('ignore::slm_jax.audio.containers.AudioWarning')
def test_what_was_written_to_a_pipe_states_no_length_and_is_whole(write, recorded, kind, codec):
    content = recorded(CLIP / 32767, 16000, kind, codec, piped=True)
    np.testing.assert_allclose(waveforms.read_waveform(write(content)), CLIP, atol=1)


def test_a_cut_flac_that_states_no_length_is_refused(write, recorded):
    content = recorded(CLIP / 32767, 16000, 'flac', 'flac', piped=True)
    with pytest.raises(waveforms.AudioError, match='clip.wav: the file is damaged or truncated'):
        waveforms.read_waveform(write(content[:-1000]))


def test_chained_ogg_streams_are_read_to_their_end(write):
    content = encoded(tone(16000), 16000, ('OGG', 'OPUS'))
    assert len(waveforms.read_waveform(write(content + content))) >= 32000


def test_what_is_longer_than_wanted_is_refused(write, recorded):
    twice = encoded(tone(16000), 16000, ('OGG', 'OPUS')) * 2
    for content in (encoded(tone(8000, 2), 8000), twice, recorded(tone(48000, 2), 48000, 'webm', 'libopus')):
        assert len(waveforms.read_waveform(write(content), 2.1)) == pytest.approx(32000, abs=400)
        with pytest.raises(waveforms.AudioError, match=r'clip\.wav: is longer than the 1\.5 s that are taken'):
            waveforms.read_waveform(write(content), 1.5)


# What libsndfile does not read.

PHONES = {  # container, codec, rate
    'm4a': ('ipod', 'aac', 44100),
    'mp4': ('mp4', 'aac', 16000),
    'alac': ('ipod', 'alac', 16000),
    'mov': ('mov', 'pcm_s16le', 16000),
    'caf': ('caf', 'alac', 16000),
    'webm': ('webm', 'libopus', 48000),
    'aac': ('adts', 'aac', 16000),
    '3gp': ('3gp', 'libopencore_amrnb', 8000),
    'amr': ('amr', 'libopencore_amrnb', 8000),
    'u8': ('matroska', 'pcm_u8', 16000),
    'f32': ('matroska', 'pcm_f32le', 16000),
    's24': ('matroska', 'pcm_s24le', 16000),
}


@pytest.mark.parametrize('kind', PHONES)
def test_what_phones_and_browsers_record(write, recorded, kind):
    container, codec, rate = PHONES[kind]
    content = recorded(tone(rate), rate, container, codec)
    read = waveforms.read_waveform(write(content)) / 32768
    # A bare stream of frames states neither what the encoder put before the sound nor where it ends.
    excess = len(read) - 16000
    assert 0 <= excess <= {'aac': 2048, 'amr': 320}.get(kind, 0)
    if kind not in ('aac', 'amr', '3gp'):
        np.testing.assert_allclose(read[2000:14000], tone(16000)[2000:14000], atol=0.05)
    with pytest.raises(waveforms.AudioError, match='truncated'):
        waveforms.read_waveform(write(content[: len(content) * 2 // 3]))


def test_a_browser_streams_webm_without_a_length(write, recorded):
    content = recorded(tone(48000, 7), 48000, 'webm', 'libopus', piped=True, live=1)
    assert len(waveforms.read_waveform(write(content))) == pytest.approx(7 * 16000, abs=400)
    with pytest.raises(waveforms.AudioError, match='truncated'):
        waveforms.read_waveform(write(content[:-100]))


def test_an_m4a_that_was_not_finished(write, recorded):
    content = recorded(tone(16000), 16000, 'ipod', 'aac')
    with pytest.raises(waveforms.AudioError, match="it has no 'moov' box"):
        waveforms.read_waveform(write(content[: content.index(b'moov') - 4]))


def test_channels_of_an_m4a_are_averaged_like_those_of_a_wav(write, recorded):
    both = np.stack([tone(16000), 0.5 * tone(16000)], 1)
    read = waveforms.read_waveform(write(recorded(both, 16000, 'ipod', 'alac'))) / 32768
    np.testing.assert_allclose(read, both.mean(1), atol=1e-4)
    opposed = np.stack([tone(16000), -tone(16000)], 1)
    with pytest.warns(waveforms.AudioWarning, match='cancel'):
        read = waveforms.read_waveform(write(recorded(opposed, 16000, 'ipod', 'alac'))) / 32768
    np.testing.assert_allclose(read, tone(16000), atol=1e-4)


def _film(*tones: int) -> bytes:
    """A film with a sound track for each pitch."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='matroska') as file:
        picture = file.add_stream('mpeg4', rate=10, width=32, height=32, pix_fmt='yuv420p')
        tracks = [file.add_stream('pcm_s16le', rate=16000, layout='mono') for _ in tones]
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * number, np.uint8), format='rgb24')
            file.mux(picture.encode(frame))
        file.mux(picture.encode(None))
        for track, pitch in zip(tracks, tones, strict=True):
            values = (9000 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(values[None], format='s16', layout='mono')
            frame.sample_rate, frame.pts = 16000, 0
            file.mux(track.encode(frame))
            file.mux(track.encode(None))
    return buffer.getvalue()


def test_a_film_gives_its_first_sound_track(write):
    read = waveforms.read_waveform(write(_film(440, 1000)))
    assert len(read) == 8000 and np.argmax(np.abs(np.fft.rfft(read))) * 2 == 440
    with pytest.raises(waveforms.AudioError, match='clip.wav: has no sound track'):
        waveforms.read_waveform(write(_film()))


def test_a_playlist_is_text_and_opens_nothing(write, tmp_path):
    target = write(encoded(tone(16000), 16000), 'other.wav')
    for content in (f'#EXTM3U\n#EXTINF:1,\n{target}\n', f"ffconcat version 1.0\nfile '{target}'\n"):
        with pytest.raises(waveforms.AudioError, match='looks like text'):
            waveforms.read_waveform(write(content.encode(), 'list.m3u8'))


def test_the_usual_formats_do_without_pyav(write):
    path = write(encoded(tone(16000), 16000))
    read = f'from slm_jax.audio import waveforms; waveforms.read_waveform({str(path)!r})'
    code = f'import sys; {read}; print("av" in sys.modules)'
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout == 'False\n'


# Damage.


def _damaged(content: bytes, luck: random.Random) -> bytes:
    """Cut, bits flipped, a field of the header overwritten, bytes lost or put in."""
    result, place = bytearray(content), luck.randrange(len(content))
    match luck.randrange(5):
        case 0:
            return content[:place]
        case 1:
            for _ in range(luck.randint(1, 9)):
                result[luck.randrange(len(result) if luck.random() < 0.5 else 120)] ^= 1 << luck.randrange(8)
        case 2:
            start, width = luck.randrange(120), luck.choice([2, 4, 8])
            result[start : start + width] = luck.choice([b'\xff', b'\x7f', b'\0']) * width
        case 3:
            del result[place : place + luck.randint(1, 99)]
        case 4:
            result[place:place] = luck.randbytes(luck.randint(1, 99))
    return bytes(result)


@pytest.mark.parametrize('kind', [*(k[0].lower() + (k[1] or '').lower() for k in FORMATS), *PHONES, 'w64', 'aiff'])
@pytest.mark.filterwarnings('ignore::slm_jax.audio.containers.AudioWarning')
def test_damage_gives_samples_or_an_audio_error(recorded, kind):
    """Nothing else comes out, whatever is broken: a reader must never end a run that skips bad examples."""
    kinds = {k[0].lower() + (k[1] or '').lower(): k for k in [*FORMATS, ('W64', None), ('AIFF', None)]}
    if kind in kinds:
        content = encoded(tone(16000, 0.3), 16000, kinds[kind])
    else:
        container, codec, rate = PHONES[kind]
        content = recorded(tone(rate, 0.3), rate, container, codec)
    luck = random.Random(0)
    refused = 0
    for _ in range(40):
        file = io.BytesIO(_damaged(content, luck))
        file.name = 'damaged'
        try:
            read = waveforms.read_waveform(file)
            assert read.dtype == np.int16 and read.ndim == 1 and len(read)
        except waveforms.AudioError as error:
            assert str(error).startswith('damaged: ')
            refused += 1
    assert refused > 3, 'the damage is no damage'


def test_what_a_library_raises_is_a_bad_file(write, monkeypatch):
    """Whatever it is: a stated length that no memory holds, a tag that is no text."""
    path = write(encoded(tone(16000), 16000))
    for error in (MemoryError('too much'), OverflowError('too far'), UnicodeDecodeError('utf-8', b'', 0, 1, 'odd')):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(soundfile.SoundFile, 'read', fail)
        with pytest.raises(waveforms.AudioError, match='clip.wav: the file is damaged or truncated'):
            waveforms.read_waveform(path)
    with pytest.raises(waveforms.AudioError, match='cannot be opened'):
        waveforms.read_waveform('nul\0byte.wav')
