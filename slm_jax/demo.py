"""A page to put questions to recordings with: `slm-jax demo`.

    slm-jax demo
    slm-jax demo --model runs/slm --port 8001 --open
    SLM_JAX_TOKEN=… slm-jax demo --host 0.0.0.0

Speak into the microphone, choose a file or take an example; write an instruction, and phrases that may be said. The
page shows the answer as it is written, the waveform, the spectrogram, and what a CTC head, the adapter's or the speech
encoder's, hears at what time. It is all there without a network.

This is `slm-jax serve` with a page at its address, and takes the same arguments. It listens on this machine alone
unless --host says otherwise; then it should ask for a token, which the page has a field for, and browsers give it no
microphone unless something in front of it speaks HTTPS. Needs pip install 'slm_jax[serve]'.
"""

import argparse
import functools
import sys
import threading
import webbrowser
from collections.abc import Sequence

from slm_jax import cli, configuration, serve


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax demo'
    result.add_argument('--open', action='store_true', help='in the browser of this machine')
    result.set_defaults(page=True)
    serve.add_arguments(result)
    return result


def open_browser(address: str) -> None:
    """Shows the page; says so where no browser is found."""
    if not webbrowser.open(address):
        print(f'slm-jax demo: there is no browser here; open {address} in one.', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))

    def ready(address: str) -> None:
        print(f'slm-jax demo: open {address} in a browser; Ctrl-C ends it.', flush=True)
        if args.open:
            threading.Thread(
                target=open_browser, args=(address,), daemon=True
            ).start()  # some browsers run in the terminal

    return serve.run('demo', functools.partial(serve.serve, args, 'demo', ready))


if __name__ == '__main__':
    sys.exit(main())
