"""Voices: commands of any kind, espeak-ng and flite where they are installed, Kokoro's folder."""

import shutil

import numpy as np
import pytest

from slm_jax.corpora import voices


def test_any_command_is_a_voice(hum, tmp_path):
    engines = voices.Engines()
    for template in ('{out} {text} {speed}', '{out} "{text}" {speed}'):
        samples, rate = engines.read('command', f'{hum} {template}', "it's $(one); 'two' three", 'en', 0.5)
        assert rate == 16_000 and samples.dtype == np.float32
        assert len(samples) == pytest.approx(0.1 * 4 / 0.5 * rate, abs=9) and np.abs(samples).max() > 0.25
    short, _ = engines.read('command', f'{hum} {{out}} {{text_file}} 1.0', 'one two three', 'en', 0.5)
    assert len(short) == pytest.approx(0.1 * rate, abs=9)  # the name of the file is one word
    with pytest.raises(ValueError, match=r"python\S* did not write {out} for 'a dumb one': I am dumb"):
        engines.read('command', f'{hum} {{out}} {{text}} 1', 'a dumb one', 'en', 1.0)
    with pytest.raises(RuntimeError, match='no_such_program is not there: give the path of a program'):
        engines.read('command', 'no_such_program {out}', 'one', 'en', 1.0)


@pytest.mark.parametrize(
    'template, said',
    [
        ('say {text}', r"the command 'say {text}' has no {out}, the sound file that it is to write"),
        ('say {words} {out}', r'has {words}; there are {text}, {text_file}, {out}, {speed}, {lang}'),
        ('say "{out}', 'cannot be parted into words'),
    ],
)
def test_commands_that_cannot_be(template, said):
    with pytest.raises(ValueError, match=said):
        voices.of_command(template)


@pytest.mark.parametrize('engine, voice', [('espeak-ng', 'en-us+f2'), ('flite', 'rms')])
def test_debians_voices(engine, voice):
    if not shutil.which(engine):
        pytest.skip(f'{engine} is not installed')
    engines = voices.Engines()
    assert voice in engines.voices(engine, 'en')
    (slow, rate), (fast, _) = (engines.read(engine, voice, 'One, two - three.', 'en', s) for s in (0.8, 1.2))
    assert 0.5 < len(fast) / rate < 0.85 * len(slow) / rate < 4 and np.abs(slow).max() > 0.05
    with pytest.raises(ValueError, match=f'^{engine} .* did not read'):
        engines.read(engine, 'nobody', '', 'en', 1.0)


def test_a_folder_without_kokoros_voices_is_refused(tmp_path, monkeypatch):
    for part in range(4):
        (tmp_path / f'{part}').mkdir()
        (tmp_path / f'{part}/part.bin').write_bytes(b'model')
    monkeypatch.setattr(voices.importlib.resources, 'files', lambda name: tmp_path / str(int(name[-1]) - 1))
    with pytest.raises(ValueError, match='hold another model'):
        voices.kokoro_files(tmp_path, tmp_path)
    monkeypatch.setattr(voices, '_KOKORO_SHA256', voices.hashlib.sha256(b'model' * 4).hexdigest())
    with pytest.raises(ValueError, match=r'holds no voices \(\*.bin\): npm pack kokoro-js'):
        voices.kokoro_files(tmp_path, tmp_path)
