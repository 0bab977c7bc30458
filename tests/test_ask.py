"""A session in the terminal, with a model that writes its answers word by word."""

import io
import os
import pathlib
import pty
import select
import stat
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from slm_jax import ask, decoding, model_arguments
from slm_jax.audio import recorder, waveforms
from slm_jax.inference import queries, session
from slm_jax.inference.writing import Part

WORDS = ('It ', 'has ', 'ten ', 'words.')


class Writer:
    """Stands for `Writing`: notes what is asked, and writes a word at a time."""

    asked: list = []

    def __init__(self, model, batch):
        self.asked.append((int(batch['speech_lengths'][0]), batch['encoder_input_tokens'][0]))
        self._count, self.over = 0, False

    def more(self):
        self._count += 1
        self.over = self._count == len(WORDS)
        return [Part(''.join(WORDS[: self._count]), (), self.over, 'max_decode_length' if self.over else '')]


def faked(monkeypatch):
    """A model for `ask`."""
    made = types.SimpleNamespace(
        directory=pathlib.Path('fake'),
        hears=True,
        text_vocabulary=types.SimpleNamespace(encode=lambda text: [7] * len(text)),
        prompt=types.SimpleNamespace(chat=None, tokens=lambda vocabulary, text, speech: tuple(vocabulary.encode(text))),
        decode=decoding.DecodeConfig(max_decode_length=4),
        encoder_seconds=None,
        row_multiple=1,
        let_through=lambda asked: asked or 5.0,
    )
    monkeypatch.setattr(model_arguments, 'load', lambda name, args: made)
    monkeypatch.setattr(session, 'Writing', Writer)
    monkeypatch.setattr(Writer, 'asked', [])
    return made


@pytest.fixture(autouse=True)
def model(monkeypatch):
    return faked(monkeypatch)


@pytest.fixture
def run(monkeypatch, capsys):
    def lines(*lines, argv=()):
        monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(lines)))
        status = ask.main(list(argv))
        return status, *capsys.readouterr()

    return lines


def test_phrases_are_put_to_the_model_until_others_are(run, tmp_path, write_wav):
    write_wav(tmp_path / 'a.wav', 1.0)
    (tmp_path / 'names.txt').write_text('Ann\nBob\n')
    file = str(tmp_path / 'a.wav')
    status, out, err = run('Who?', '/phrases Siobhan, Lake Ohrid', 'Who?', '/phrases', 'Who?', '/history',
                           argv=[file, '--phrases', str(tmp_path / 'names.txt')])  # fmt: skip
    listed = ' Some of these may be said: '
    asked = [line for line in out.splitlines() if line.startswith('> ')]
    assert status == 0 and asked == [f'> Who?{listed}Ann, Bob.', f'> Who?{listed}Siobhan, Lake Ohrid.', '> Who?']
    assert [int(np.count_nonzero(tokens)) for _, tokens in Writer.asked] == [len(text) - 2 for text in asked]
    status, out, err = run('/phrases gone.txt', argv=[file])
    assert status == 1 and "slm-jax ask: phrases 'gone.txt': there is no such file" in err


def test_questions_from_a_pipe(run, tmp_path, write_wav):
    write_wav(tmp_path / 'a.wav', 1.0)
    write_wav(tmp_path / 'b.wav', 2.0)
    status, out, err = run('One?', '', f'/load {tmp_path}/b.wav', 'Two?', f'{tmp_path}/a.wav', 'Three?', '/history',
                           '/clear', '/history', '/quit', 'Four?', argv=[str(tmp_path / 'a.wav')])  # fmt: skip
    answer = ''.join(WORDS) + '\n'
    assert (status, out) == (0, 3 * answer + '> Three?\n' + answer)
    assert [length for length, _ in Writer.asked] == [16_000, 32_000, 16_000]
    assert err == 3 * (
        'slm-jax ask: the answer is cut, it reached max_decode_length 4; --max_decode_length 8 lets it go on.\n'
    )


def test_what_cannot_be_done_is_said_and_the_session_goes_on(run, tmp_path, write_wav):
    write_wav(tmp_path / 'a.wav', 1.0)
    write_wav(tmp_path / 'long.wav', 6.0)
    status, out, err = run(
        'What?', '/load absent.wav', f'/load {tmp_path}/long.wav', '/lod x', '/record', '/record now', '/load',
        'x' * 1100, f'/load {tmp_path}/a.wav', 'x' * 1100, 'What?',
    )  # fmt: skip
    assert (status, out) == (1, ''.join(WORDS) + '\n')
    *said, _ = err.splitlines()
    for line, part in zip(
        said,
        (
            'there is no recording yet: /load FILE, or /record.',
            'absent.wav: cannot be opened',
            '6 s is longer than the 5 s that this model takes at once',
            '/lod: no such command and no file; there are /load',
            '/record: say for how many seconds, as in /record 5.',
            '/record now: give a number of seconds above 0.',
            'cannot be opened',
            'there is no recording yet',
            'the instruction has 1100 tokens; 1024 are read at most.',
        ),
        strict=True,
    ):
        assert line.startswith('slm-jax ask: ') and part in line
    assert run('x', argv=['absent.wav'])[0] == 2


def test_what_was_said_before_is_read_as_far_as_there_is_room(model, run, tmp_path, write_wav, monkeypatch):
    write_wav(tmp_path / 'a.wav', 1.0)
    seen = []

    def query(model, messages, samples, with_ctc):
        seen.append([(message.role, message.text, message.speech) for message in messages])
        return queries.Query((7,) * sum(len(message.text) for message in messages), samples)

    monkeypatch.setattr(session.asking, 'reads_history', lambda model: '')
    monkeypatch.setattr(session.asking, 'query', query)
    long = 'y' * 900
    assert run('One?', long, 'Three?', f'/load {tmp_path}/a.wav', 'Four?', argv=[str(tmp_path / 'a.wav')])[0] == 0
    answer = ('assistant', ''.join(WORDS), False)
    first = [('user', 'One?', True), answer, ('user', long, False)]
    assert seen[:3] == [[('user', 'One?', True)], first, [*first, answer, ('user', 'Three?', False)]]
    assert seen[-1] == [('user', 'Four?', True)], 'another recording, another conversation'
    monkeypatch.setattr(session, '_TOKENS', 930)
    seen.clear()
    assert run('One?', long, 'Three?', argv=[str(tmp_path / 'a.wav')])[0] == 0
    assert seen[-1] == [('user', long, True), answer, ('user', 'Three?', False)], 'the oldest turn is left out'


@pytest.fixture
def microphone(tmp_path, monkeypatch):
    """microphone(shell): what the one program that records does."""

    def install(shell):
        program = tmp_path / 'bin' / 'arecord'
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\n{shell}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv('PATH', f'{program.parent}:/usr/bin:/bin')

    return install


def test_recording(run, microphone, tmp_path, monkeypatch):
    samples = np.arange(8000, dtype='<i2')
    samples.tofile(tmp_path / 'sound')
    microphone(f'cat {tmp_path}/sound; exec sleep 20')
    assert run('/record 0.5', 'What?')[:2] == (0, ''.join(WORDS) + '\n')
    assert Writer.asked[0][0] == 8000
    np.testing.assert_array_equal(recorder.record(lambda: time.sleep(0.5)), samples)
    microphone('echo "arecord: main:850: audio open error: No such file or directory" >&2; exit 1')
    status, _, err = run('/record 0.2')
    assert status == 1 and 'arecord: arecord: main:850: audio open error: No such file or directory. Is there a' in err
    monkeypatch.setenv('PATH', str(tmp_path))
    status, _, err = run('/record 0.2')
    assert status == 1 and 'Nothing that records is installed: install alsa-utils (arecord), sox or ffmpeg' in err


def test_a_person_types(tmp_path, write_wav):
    """In a terminal: a prompt, what is heard is said, Tab completes, Ctrl-C ends an answer and Ctrl-D the session."""
    write_wav(tmp_path / 'a_long_name.wav', 1.0)
    script = f"""
import fcntl, signal, sys, termios, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C in it is for this process
sys.path[:0] = {[str(pathlib.Path(__file__).parent)]!r}
import test_ask, pytest
patch = pytest.MonkeyPatch()
test_ask.faked(patch)
class Slow(test_ask.Writer):
    def more(self):
        if self._count: time.sleep(30 if len(self.asked) > 1 else 0)
        return super().more()
patch.setattr(test_ask.session, 'Writing', Slow)
sys.exit(test_ask.ask.main([]))
"""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, '-c', script], stdin=side, stdout=side, stderr=side, cwd=tmp_path, start_new_session=True,
        env=os.environ | {'TERM': 'dumb'},
    )  # fmt: skip
    os.close(side)
    shown = ''

    def until(text):
        nonlocal shown
        while text not in shown:
            assert select.select([main], [], [], 60)[0], shown
            shown += os.read(main, 4096).decode()
        found, shown = shown.partition(text)[0], shown.partition(text)[2]
        return found

    assert 'it reads one request at a time; what was asked before is shown and not read.' in until('> ')
    os.write(main, b'/load a_l\t\n')
    assert 'a_long_name.wav: 1.0 s' in until('\r\n> ')
    os.write(main, b'What?\n')
    assert ''.join(WORDS) in until('\r\n> ')
    os.write(main, b'And then?\n')
    until(WORDS[0])
    os.write(main, b'\x03')
    assert WORDS[1] not in until('\r\n> ')
    os.write(main, b'\x04')
    assert process.wait(60) == 0
    os.close(main)


def test_an_answer_that_is_left_is_remembered_as_far_as_it_went(tmp_path, write_wav):
    write_wav(tmp_path / 'a.wav', 1.0)
    made = session.Session(model_arguments.load('', None), 5.0)
    made.hear('a.wav', waveforms.read_waveform(tmp_path / 'a.wav'))
    pieces = made.answer('What?')
    assert next(pieces) == WORDS[0]
    pieces.close()
    assert made.turns == [('What?', WORDS[0])]
