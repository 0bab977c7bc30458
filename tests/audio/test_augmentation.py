"""Augmented recordings: what each kind does, that it is drawn by the seed alone, and what cannot be asked for."""

import numpy as np
import pytest
import soundfile

from slm_jax.audio import augmentation
from slm_jax.audio.augmentation import KINDS, WaveformAugmentation

_NONE = dict.fromkeys(KINDS, 0.0)


@pytest.fixture(scope='module')
def speech():
    """Two seconds of a buzz of 100 Hz whose spectrum falls, in bursts."""
    time = np.arange(32_000) / 16_000
    buzz = sum(np.sin(2 * np.pi * 100 * n * time) / n for n in range(1, 70))
    return (6000 * buzz * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.int16)


def _power(samples, low, high):
    spectrum, hertz = np.abs(np.fft.rfft(samples / 32768.0)) ** 2, np.fft.rfftfreq(samples.size, 1 / 16_000)
    return spectrum[(low <= hertz) & (hertz < high)].sum()


def test_a_clip_is_drawn_by_its_seed_alone_and_keeps_its_length(speech):
    augment = WaveformAugmentation()
    drawn = [augment(speech, (seed, 3)) for seed in range(12)]
    for seed, found in enumerate(drawn):
        assert found.dtype == np.int16 and found.shape == speech.shape
        np.testing.assert_array_equal(found, WaveformAugmentation()(speech, (seed, 3)))
    assert len({found.tobytes() for found in drawn}) > 9
    assert not augment(speech[:0], (0,)).size
    np.testing.assert_array_equal(WaveformAugmentation(**_NONE)(speech, (0,)), speech)
    for length in (1, 7, 500):
        assert WaveformAugmentation(**dict.fromkeys(KINDS, 1.0))(speech[:length], (length,)).size == length


def test_noise_has_the_ratio_that_is_drawn(speech, tmp_path):
    made = WaveformAugmentation(**{**_NONE, 'noise': 1.0}, snr=(10, 10))
    (tmp_path / 'inside').mkdir()
    hum = np.sin(np.arange(9_000) * 2 * np.pi * 5000 / 16_000) / 9
    soundfile.write(tmp_path / 'inside/hum.flac', hum, 16_000)
    given = WaveformAugmentation(**{**_NONE, 'noise': 1.0}, snr=(10, 10), noise_dir=str(tmp_path))
    for augment in (made, given):
        noise = augment(speech, (1,)).astype(float) - speech
        assert 10 * np.log10(np.mean(speech.astype(float) ** 2) / np.mean(noise**2)) == pytest.approx(10, abs=0.1)
    assert _power(noise, 4900, 5100) > 0.9 * _power(noise, 0, 8000)


def test_noise_that_is_silence_leaves_the_clip(speech, tmp_path):
    soundfile.write(tmp_path / 'silence.wav', np.zeros(800), 16_000)
    augment = WaveformAugmentation(**{**_NONE, 'noise': 1.0}, noise_dir=str(tmp_path))
    np.testing.assert_allclose(augment(speech, (1,)), speech, atol=1)


def test_a_room_sounds_on_and_a_telephone_has_a_band(speech):
    quiet = slice(2700, 5300)  # between two bursts
    room = WaveformAugmentation(**{**_NONE, 'room': 1.0}, reverberation=(0.6, 0.6))(speech, (2,))
    assert not speech[quiet].any() and np.abs(room[quiet][:1000]).mean() > 1.5 * np.abs(room[quiet][-1000:]).mean() > 0
    telephone = WaveformAugmentation(**{**_NONE, 'telephone': 1.0})(speech, (2,))
    assert _power(telephone, 4200, 8000) < 0.01 * _power(speech, 4200, 8000)
    assert _power(telephone, 500, 3000) == pytest.approx(_power(speech, 500, 3000), rel=0.2)


@pytest.mark.parametrize('codec', augmentation.CODECS)
def test_a_codec_changes_speech_and_leaves_it_where_it_is(speech, codec):
    found = WaveformAugmentation(**{**_NONE, 'codec': 1.0}, codecs=(codec,))(speech, (0,))
    assert (found != speech).mean() > 0.5
    narrow = augmentation.through_telephone(speech / 32768.0, 1, 3500, False)
    places = np.arange(-40, 41)
    likeness = [np.dot(np.roll(found / 32768.0, place), narrow) for place in places]
    assert abs(places[int(np.argmax(likeness))]) <= 2


@pytest.mark.parametrize(
    'fields, said',
    [
        ({'noise': 1.5}, 'WaveformAugmentation.noise is 1.5; it is a probability, 0 to 1'),
        ({'snr': (20, 10)}, r'WaveformAugmentation.snr is \(20, 10\); \(from, to\) was expected'),
        ({'reverberation': (0, 1)}, r'reverberation is \(0, 1\); \(from, to\) was expected, between 0.02 and 100'),
        ({'codecs': ('amr',)}, "there are gsm, g721, opus, mp3, no 'amr'"),
        ({'codecs': ()}, 'codec = 0 takes none'),
    ],
)
def test_what_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        WaveformAugmentation(**fields)


def test_a_folder_without_noise(tmp_path):
    (tmp_path / 'notes.txt').write_text('hush')
    with pytest.raises(ValueError, match=r'noise_dir .*: there is no recording in it \(\*.wav'):
        WaveformAugmentation(noise_dir=str(tmp_path)).check()
