"""Answers over HTTP, as OpenAI's API does: `slm-jax serve`.

    slm-jax serve --model runs/slm --port 8000
    curl -F file=@call.wav -F model=slm http://127.0.0.1:8000/v1/audio/transcriptions
    SLM_JAX_TOKEN=… slm-jax serve --host 0.0.0.0 --max_rows 32 --warm

    client = openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='…')
    client.audio.transcriptions.create(model='slm', file=open('call.wav', 'rb'), response_format='srt')

/v1/audio/transcriptions takes a recording of any length, which it cuts at its pauses, and says when each word is said
(`timestamp_granularities[]=word`); /v1/audio/translations puts one into English (`language`, which OpenAI's does not
take, says what is spoken: a ComSL has to know). /v1/chat/completions takes an instruction and a recording
(`input_audio`), and answers as it writes where `stream` is asked for. Requests that come together are answered
together. There are /v1/models, /health and /metrics (Prometheus) besides, and with --page the page of `slm-jax demo`.

Needs pip install 'slm_jax[serve]'. It listens on this machine alone unless --host says otherwise; then clients should
have to give a token, which stands in the variable SLM_JAX_TOKEN or in --token_file, and is never an argument.
"""

import argparse
import functools
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from slm_jax import cli, configuration, model_arguments, paths

_TOKEN = 'SLM_JAX_TOKEN'
_ENDS = (signal.SIGTERM, signal.SIGINT)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax serve'
    result.add_argument('--page', action='store_true', help='with the page of `slm-jax demo`')
    add_arguments(result)
    return result


def add_arguments(result: argparse.ArgumentParser) -> None:
    """The arguments of a server."""
    result.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine alone)')
    result.add_argument('--port', type=int, default=8000, help='0: any that is free')
    result.add_argument('--name', default='', help="that clients call the model by (default: its directory's)")
    result.add_argument('--token_file', metavar='FILE', help=f'holds the token of clients (or the variable {_TOKEN})')
    result.add_argument('--max_rows', type=int, default=16, help='of a batch (default: 16)')
    result.add_argument('--warm', action='store_true', help='compile for all lengths of recordings before answering')
    result.add_argument(
        '--chunk_seconds', type=float, help='longest piece of a transcript (default: what the model takes at once)'
    )
    limits = result.add_argument_group('limits')
    limits.add_argument('--max_requests', type=int, default=64, help='at once; the others get 429 (default: 64)')
    limits.add_argument('--max_megabytes', type=float, default=25.0, help='of a request (default: 25)')
    limits.add_argument('--max_audio_seconds', type=float, default=600.0, help='of a recording (default: 600)')
    limits.add_argument('--max_request_seconds', type=float, default=300.0, help='for an answer (default: 300)')
    model_arguments.add(result, '--model')


def serve(args: argparse.Namespace, command: str = 'serve', ready: Callable[[str], None] = lambda _: None) -> None:
    """Does what the command line says, until a signal ends it.

    Args:
        args: of `add_arguments`, and `page`.
        command: name of the program.
        ready: is told the address once requests there are accepted.

    Raises:
        ValueError: wrong arguments, or a model that cannot be read.
        OSError: the address cannot be listened on.
    """
    for name in ('max_rows', 'max_requests', 'max_megabytes', 'max_audio_seconds', 'max_request_seconds'):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f'--{name} {getattr(args, name):g}: give a number above 0.')
    if args.chunk_seconds is not None and not args.chunk_seconds >= 1:
        raise ValueError(f'--chunk_seconds {args.chunk_seconds:g}: give 1 or more.')
    try:
        import uvicorn

        from slm_jax.serving import app, service
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install 'slm_jax[serve]'") from None
    token = _token(args.token_file)
    with _listening(args.host, args.port) as listener:
        model = model_arguments.load(args.model, args)
        limits = service.Limits(
            args.max_requests, round(args.max_megabytes * 2**20), args.max_audio_seconds, args.max_request_seconds
        )
        name = args.name or model.directory.name
        served = service.Service(
            model, name, args.max_rows, limits, token, args.chunk_seconds, args.ctc_weight is not None
        )
        if args.warm:
            print(f'slm-jax {command}: compiling …', flush=True)
            served.warm()
        application = app.create(served)
        if args.page:
            from slm_jax.serving import page

            application.include_router(page.router)
        config = uvicorn.Config(
            application,
            log_level='warning',
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(args.max_request_seconds) + 1,
        )
        server = uvicorn.Server(config)
        for ends in _ENDS:  # what is raised while libraries start may be swallowed; this is not
            signal.signal(ends, lambda *_: setattr(server, 'should_exit', True))
        host, port = listener.getsockname()[:2]
        address = f'http://{f"[{host}]" if ":" in host else host}:{port}'
        if not (token or _is_loopback(host)):
            print(
                f'slm-jax {command}: {host} can be reached from other machines, and no token is asked for: set '
                f'{_TOKEN}.',
                file=sys.stderr,
            )
        print(f'slm-jax {command}: {name} answers at {address}', flush=True)
        ready(address)
        server.run(sockets=[listener])


def _token(file: str | None) -> str:
    token = paths.path(file).read_text(encoding='utf-8').strip() if file else os.environ.get(_TOKEN, '').strip()
    if file and not token:
        raise ValueError(f'--token_file {file}: it is empty.')
    if not token.isascii() or any(character.isspace() for character in token):
        raise ValueError(f'{file or _TOKEN}: a token is one word of ASCII.')
    return token


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        why = str(getattr(error, 'strerror', None) or error).partition(' (while')[0]
        raise ValueError(f'--host {host} --port {port}: cannot be listened on ({why}). Give another.') from None


def _is_loopback(host: str) -> bool:
    return host == '::1' or host.startswith('127.')


def _stop(*_: Any) -> None:
    raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    return run('serve', functools.partial(serve, args))


def run(command: str, serving: Callable[[], None]) -> int:
    """Serves until a signal comes; returns the exit status."""
    for ends in _ENDS:
        signal.signal(ends, _stop)
    try:
        serving()
    except (ValueError, OSError, TypeError) as error:
        return cli.fail(command, error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
