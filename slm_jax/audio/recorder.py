"""Recording from a microphone, by a program that is there: arecord, SoX or FFmpeg."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import Int16

from slm_jax.audio.waveforms import SAMPLE_RATE, AudioError

_FFMPEG_INPUT = {'darwin': ('-f', 'avfoundation', '-i', ':default'), 'linux': ('-f', 'pulse', '-i', 'default')}


def command() -> list[str]:
    """What writes raw 16-bit mono samples at 16 kHz to its standard output until it is ended.

    Raises:
        AudioError: no such program is installed.
    """
    rate = str(SAMPLE_RATE)
    source = _FFMPEG_INPUT.get(sys.platform, ())
    known = {
        'arecord': ('-q', '-t', 'raw', '-f', 'S16_LE', '-c', '1', '-r', rate),
        'rec': ('-q', '-t', 'raw', '-b', '16', '-e', 'signed-integer', '-c', '1', '-r', rate, '-'),
        'ffmpeg': ('-nostdin', '-loglevel', 'error', *source, '-ac', '1', '-ar', rate, '-f', 's16le', '-'),
    }
    for name, arguments in known.items():
        if shutil.which(name) and (source or name != 'ffmpeg'):
            return [name, *arguments]
    raise AudioError(
        'Nothing that records is installed: install alsa-utils (arecord), sox or ffmpeg, or record with another '
        'program and load the file.'
    )


def record(wait: Callable[[], object]) -> Int16[np.ndarray, ' samples']:
    """Records at 16 kHz until `wait` returns, or the program ends.

    Raises:
        AudioError: nothing was recorded; says what the program said.
    """
    program = command()
    with subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said: list[bytes] = [b'', b'']
        streams = process.stdout, process.stderr
        readers = [
            threading.Thread(target=lambda i=i, stream=stream: said.__setitem__(i, stream.read()))
            for i, stream in enumerate(streams)
        ]
        for reader in readers:
            reader.start()
        try:
            wait()
        finally:
            process.terminate()
            for reader in readers:
                reader.join()
    if len(said[0]) < 2:
        why = said[1].decode(errors='replace').strip().splitlines()[-1:] or ['it wrote no samples']
        raise AudioError(f'{program[0]}: {why[0]}. Is there a microphone that you may use?')
    return np.frombuffer(said[0], '<i2', count=len(said[0]) // 2)
