"""A server in a thread, and a model that says how long each recording is."""

import contextlib
import io
import pathlib
import socket
import threading
import types
import wave

import numpy as np

from slm_jax import decoding
from slm_jax.data import prompts
from slm_jax.inference.model import Answer

RATE = 16_000


@contextlib.contextmanager
def running(service, *routers):
    """The address of a server of it, with more routers."""
    import uvicorn

    from slm_jax.serving import app

    application = app.create(service)
    for router in routers:
        application.include_router(router)
    with socket.create_server(('127.0.0.1', 0), backlog=256) as listener:
        server = uvicorn.Server(uvicorn.Config(application, log_level='critical', timeout_graceful_shutdown=20))
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
        thread.start()
        try:
            yield f'http://127.0.0.1:{listener.getsockname()[1]}'
        finally:
            server.should_exit = True
            thread.join()
    assert not service.engine.alive


def wav(seconds: float, rate: int = RATE) -> bytes:
    """A tone."""
    file = io.BytesIO()
    with wave.open(file, 'wb') as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        tone = 9000 * np.sin(2 * np.pi * 440 / rate * np.arange(round(seconds * rate)))
        writer.writeframes(tone.astype('<i2').tobytes())
    return file.getvalue()


class Letters:
    """A vocabulary: a letter is its code."""

    eos_id = 1

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return ''.join(map(chr, ids))


class Seconds:
    """Answers a recording by its length in tenths of a second, and a text by its number of tokens.

    Attributes:
        may: is waited for before each answer.
        begun: is set as soon as the model is given a batch.
        rows: of the batches so far, and how many of each were asked for.
    """

    directory = pathlib.Path('seconds')
    system = types.SimpleNamespace()
    hears, encoder_seconds, row_multiple, foundations = True, None, 1, {}
    decode = decoding.DecodeConfig()

    def __init__(self):
        self.vocabulary = self.text_vocabulary = Letters()
        self.prompt = prompts.Prompt()
        self.may = threading.Event()
        self.may.set()
        self.begun = threading.Event()
        self.rows = []

    def let_through(self, asked):
        return 5.0

    def answers(self, batch):
        self.begun.set()
        assert self.may.wait(20)
        lengths = batch['speech_lengths']
        asked = np.count_nonzero(batch['encoder_input_tokens'].any(axis=1))
        self.rows.append((len(lengths), asked))
        tokens = np.count_nonzero(batch['encoder_input_tokens'], axis=1)
        return [
            Answer(f'heard {round(10 * n / RATE)}' if n else f'read {t}') for n, t in zip(lengths, tokens, strict=True)
        ]


@contextlib.contextmanager
def seconds(**options):
    """(address, service, model) of a server of `Seconds`; `options` of `Service`."""
    from slm_jax.serving import service as service_lib

    model = Seconds()
    service = service_lib.Service(model, 'seconds', **options)
    with running(service) as address:
        try:
            yield address, service, model
        finally:
            model.may.set()
