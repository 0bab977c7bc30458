"""`slm-jax serve` under load: N clients at once, each with one request after another.

    python tests/benchmarks/bench_serve.py tests/testdata/speech/*.ogg
    python tests/benchmarks/bench_serve.py *.wav --clients 1,4,16,64 --requests 256 --serve "--model runs/slm --warm"

The server is a process of its own; --warm has it compile for all lengths up to --chunk_seconds first. One client alone
asks for each clip before all else: these answers are what all others are compared with, and its pace is one at a time.
Times are from a request to its whole answer, and to its first text with --stream; RSS is the server's.
"""

import argparse
import asyncio
import base64
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import httpx2 as httpx
import numpy as np

from slm_jax.audio import waveforms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='FILE', help='recordings, as long as the model takes at once')
    parser.add_argument('--clients', default='1,4,16,64')
    parser.add_argument('--requests', type=int, default=128, help='for each number of clients')
    parser.add_argument('--instruction', default='Transcribe the speech.')
    parser.add_argument(
        '--stream', action='store_true', help='answers as they are written, and the time to their start'
    )
    parser.add_argument(
        '--serve', default='--model slm_tiny --chunk_seconds 2 --warm', help='arguments of slm-jax serve'
    )
    args = parser.parse_args()
    command = [sys.executable, '-m', 'slm_jax.serve', '--port', '0', '--max_requests', '1000', *shlex.split(args.serve)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {'PYTHONUNBUFFERED': '1'})
    try:
        address = next(line.split()[-1] for line in server.stdout or () if ' answers at ' in line)
        asyncio.run(measured(args, address, server.pid))
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    print(f'\nthe server ended with status {status}')


async def measured(args: argparse.Namespace, address: str, pid: int) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        name = (await client.get('/v1/models')).json()['data'][0]['id']
        bodies = [body(name, pathlib.Path(file), args) for file in args.files]
        seconds = [len(waveforms.read_waveform(file)) / 16_000 for file in args.files]
        wanted = [(await asked(client, each))[0] for each in bodies]
        print(f'{len(bodies)} clips of {min(seconds):.1f} to {max(seconds):.1f} s, {name}; RSS {rss(pid)} MB\n')
        print('| clients | p50, s | p95 | p99 | start, p50 | requests/s | of one | audio s/s | wrong | RSS, MB |')
        print('| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |')
        alone = None
        for clients in map(int, args.clients.split(',')):
            turns, found = itertools.count(), []

            async def works(turns=turns, found=found):
                while (turn := next(turns)) < args.requests:
                    which = turn % len(bodies)
                    found.append((which, *await asked(client, bodies[which])))

            started = time.perf_counter()
            await asyncio.gather(*(works() for _ in range(clients)))
            whole = time.perf_counter() - started
            pace = len(found) / whole
            alone = alone or pace
            p50, p95, p99 = np.percentile([last for *_, last in found], (50, 95, 99))
            start = np.median([first for *_, first, _ in found])
            heard = sum(seconds[which] for which, *_ in found) / whole
            wrong = sum(text != wanted[which] for which, text, *_ in found)
            print(
                f'| {clients} | {p50:.3f} | {p95:.3f} | {p99:.3f} | {start:.3f} | {pace:.2f} | {pace / alone:.2f} | '
                f'{heard:.1f} | {wrong} | {rss(pid)} |',
                flush=True,
            )


def body(name: str, file: pathlib.Path, args: argparse.Namespace) -> dict:
    data = base64.b64encode(file.read_bytes()).decode()
    audio = {'type': 'input_audio', 'input_audio': {'data': data, 'format': file.suffix[1:]}}
    parts = [{'type': 'text', 'text': args.instruction}, audio]
    return {'model': name, 'messages': [{'role': 'user', 'content': parts}], 'stream': args.stream}


async def asked(client: httpx.AsyncClient, content: dict) -> tuple[str, float, float]:
    """The answer, and the seconds to its start and to its end."""
    started = time.perf_counter()
    if not content['stream']:
        answer = await client.post('/v1/chat/completions', json=content)
        answer.raise_for_status()
        took = time.perf_counter() - started
        return answer.json()['choices'][0]['message']['content'], took, took
    text, first = '', None
    async with client.stream('POST', '/v1/chat/completions', json=content) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith('data: {'):
                choices = json.loads(line[6:])['choices']
                text += choices[0]['delta'].get('content') or ''
                first = first or (time.perf_counter() - started if text else None)
    took = time.perf_counter() - started
    return text, first or took, took


def rss(pid: int) -> int:
    """Megabytes of memory that a process holds."""
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) // 1024


if __name__ == '__main__':
    main()
