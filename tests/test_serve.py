"""The program around the server: what it refuses before it starts, where it listens, and how it ends."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import httpx2 as httpx
import pytest

from slm_jax import serve

SERVING = pathlib.Path(__file__).with_name('serving')
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(SERVING)!r})
import served
from slm_jax import model_arguments, serve
class Slow(served.Seconds):
    def answers(self, batch):
        time.sleep(1.5)
        return super().answers(batch)
model_arguments.load = lambda name, args: Slow()
sys.exit(serve.main(sys.argv[1:]))
"""


@pytest.fixture
def started():
    """started(*arguments): (process, address)."""
    processes = []

    def start(*arguments, **environment):
        command = [sys.executable, '-c', PROGRAM, '--port', '0', *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        processes.append(process)
        line = process.stdout.readline()
        assert ' answers at http://' in line, line + process.stderr.read()
        return process, line.split()[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_it_answers_and_ends_when_told(started):
    sys.path.insert(0, str(SERVING))
    from served import wav

    process, address = started('--name', 'mine', '--max_audio_seconds', '2', SLM_JAX_TOKEN='secret')
    assert address.startswith('http://127.0.0.1:')
    with httpx.Client(base_url=address, timeout=60, headers={'authorization': 'Bearer secret'}) as client:
        assert client.get('/v1/models').json()['data'][0]['id'] == 'mine'

        def transcribe(seconds):
            return client.post('/v1/audio/transcriptions', files={'file': wav(seconds)}, data={'model': 'mine'})

        assert 'longer than the 2 s' in transcribe(3).json()['error']['message']
        threading.Timer(0.7, lambda: process.send_signal(signal.SIGTERM)).start()
        assert transcribe(0.5).json()['text'] == 'heard 5', 'what was begun is answered'
    assert process.wait(120) == 0
    assert process.stderr.read() == ''


def test_other_machines_are_warned_of(started):
    process, _ = started('--host', '0.0.0.0', SLM_JAX_TOKEN='')
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert 'can be reached from other machines, and no token is asked for: set SLM_JAX_TOKEN.' in process.stderr.read()


@pytest.mark.parametrize(
    'arguments, said',
    [
        (('--max_rows', '0'), '--max_rows 0: give a number above 0.'),
        (('--max_request_seconds', 'inf'), '--max_request_seconds inf: give a number above 0.'),
        (('--chunk_seconds', '0.5'), '--chunk_seconds 0.5: give 1 or more.'),
        (('--token_file', 'empty'), '--token_file empty: it is empty.'),
        (('--token_file', 'two'), 'two: a token is one word of ASCII.'),
        (('--token_file', 'absent'), 'absent'),
        (('--port', '70000'), '--host 127.0.0.1 --port 70000: cannot be listened on'),
        (('--host', 'no.such.host.invalid'), '--host no.such.host.invalid --port 8000: cannot be listened on'),
        (('--port', '0', '--model', 'nothing'), 'nothing'),
        (('--port', '0', '--model', 't5_tiny'), 'a language model alone hears nothing'),
    ],
)
def test_what_cannot_be_served(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    (tmp_path / 'empty').write_text('\n')
    (tmp_path / 'two').write_text('two words')
    assert serve.main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and 'Traceback' not in err


def test_a_port_that_is_taken(monkeypatch, capsys):
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = str(other.getsockname()[1])
        assert serve.main(['--port', port]) == 2
    assert f'--port {port}: cannot be listened on (Address already in use). Give another.' in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    assert serve.main([]) == 2
    assert "pip install 'slm_jax[serve]'" in capsys.readouterr().err
