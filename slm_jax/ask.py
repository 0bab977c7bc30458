r"""Questions to recordings, one after another: `slm-jax ask [FILE]`.

    slm-jax ask call.wav
    > What does the caller want?
    > Say it in French.
    > /load other.wav
    > /record 5
    printf 'What is said?\nIn which language?\n' | slm-jax ask call.wav --model runs/slm

The model is loaded once, and compiled once for each class of lengths; answers appear as they are written. A line is an
instruction, the name of a recording, or one of

    /load FILE          another recording
    /record [SECONDS]   one from the microphone, until Enter is pressed (by arecord, SoX or FFmpeg)
    /phrases LIST       that may be said from now on, parted by commas, or a file; alone: none
    /history            what was asked and answered
    /clear              forgets that
    /help, /quit

A language model with a chat template reads what was asked and answered before; any other reads each instruction alone.
Ctrl-C ends an answer, Ctrl-D the session. Where lines come from a pipe, the exit status is 1 if one could not be done.
"""

import argparse
import contextlib
import functools
import glob
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slm_jax import cli, configuration, model_arguments

_COMMANDS = ('/load', '/record', '/phrases', '/history', '/clear', '/help', '/quit')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax ask'
    result.add_argument('file', nargs='?', metavar='FILE', help='the first recording')
    result.add_argument('--phrases', default='', metavar='LIST', help='as of /phrases')
    result.add_argument('--max_seconds', type=float, help='longest audio taken')
    model_arguments.add(result, '--model')
    return result


class Terminal:
    """The lines of a session.

    Args:
        session: see `slm_jax.inference.session`.
        decode: of the model.
        typed: whether a person types the lines.
        check_lists: refuses phrases that the model does not read.

    Attributes:
        failed: whether a line could not be done.
    """

    def __init__(self, session: Any, decode: Any, typed: bool, check_lists: Callable[[Sequence[str]], None]):
        self._session, self._decode, self._typed, self._check_lists = session, decode, typed, check_lists
        self._listed: Sequence[str] = ()
        self.failed = False

    def load(self, name: str) -> None:
        """Takes a recording from a file; a ValueError if it cannot."""
        from slm_jax.audio import waveforms

        self._hear(name, waveforms.read_waveform(name))

    def list(self, given: str) -> None:
        """Takes the phrases that are listed from now on; a ValueError if it cannot."""
        from slm_jax.data import phrases

        self._check_lists(listed := phrases.of_text(given))
        self._listed = listed

    def run(self, lines: Iterator[str]) -> None:
        """Does line after line."""
        for line in lines:
            try:
                if self._do(line.strip()):
                    return
            except (ValueError, OSError) as error:
                self.failed = True
                self._say(str(error))
            except KeyboardInterrupt:
                if not self._typed:
                    raise
                print(flush=True)

    def _do(self, line: str) -> bool:
        """Does a line; whether it was the last."""
        command, _, rest = line.partition(' ')
        if not line:
            pass
        elif command not in _COMMANDS and os.path.isfile(line):
            self.load(line)
        elif not line.startswith('/'):
            self._answer(line)
        elif command == '/load':
            self.load(rest.strip())
        elif command == '/record':
            self._record(rest.strip())
        elif command == '/phrases':
            self.list(rest.strip())
        elif command == '/history':
            for instruction, answer in self._session.turns:
                print(f'> {instruction}\n{answer}')
        elif command == '/clear':
            self._session.turns.clear()
        elif command == '/help':
            print(__doc__.partition('\n\n')[2], end='')
        elif command == '/quit':
            return True
        else:
            raise ValueError(f'{command}: no such command and no file; there are {", ".join(_COMMANDS)}.')
        return False

    def _answer(self, instruction: str) -> None:
        from slm_jax.data import phrases

        with contextlib.closing(self._session.answer(phrases.asked(instruction, self._listed))) as pieces:
            for piece in pieces:
                print(piece, end='', flush=True)
        print(flush=True)
        if self._session.cut:
            from slm_jax.inference import asking

            self._say(asking.cut_note(self._session.cut, self._decode))

    def _record(self, seconds: str) -> None:
        from slm_jax.audio import recorder

        if not seconds and not self._typed:
            raise ValueError('/record: say for how many seconds, as in /record 5.')
        try:
            length = float(seconds or 'inf')
        except ValueError:
            length = 0.0
        if not 0 < length:
            raise ValueError(f'/record {seconds}: give a number of seconds above 0.')
        wait = functools.partial(threading.Event().wait, length) if seconds else lambda: input('Enter ends it. ')
        self._hear('the recording', recorder.record(wait))

    def _hear(self, name: str, samples: Any) -> None:
        self._session.hear(name, samples)
        if self._typed:
            self._say(f'{name}: {len(samples) / 16_000:.1f} s')

    def _say(self, text: str) -> None:
        print(f'slm-jax ask: {text}', file=sys.stderr, flush=True)


def ask(args: argparse.Namespace) -> int:
    """Does what the command line says.

    Returns:
        Exit status: 0, or 1 if a line from a pipe could not be done.

    Raises:
        ValueError: wrong arguments, or a model or recording that cannot be read.
    """
    from slm_jax.inference import asking, session

    typed = sys.stdin.isatty()
    model = model_arguments.load(args.model, args)
    asked = session.Session(model, model.let_through(args.max_seconds), args.ctc_weight is not None)
    terminal = Terminal(asked, model.decode, typed, functools.partial(asking.check_lists, model))
    terminal.list(args.phrases)
    if args.file:
        terminal.load(args.file)
    if typed and asked.forgets:
        print(f'slm-jax ask: {asked.forgets}; what was asked before is shown and not read.', file=sys.stderr)
    terminal.run(_typed() if typed else sys.stdin)
    return int(terminal.failed and not typed)


def _typed() -> Iterator[str]:
    """Lines that a person types and edits."""
    import readline

    def complete(text, state):
        names = [name + '/' * os.path.isdir(name) for name in sorted(glob.glob(glob.escape(text) + '*'))]
        names += [command for command in _COMMANDS if command.startswith(text)]
        return names[state] if state < len(names) else None

    readline.set_completer_delims(' \t\n')
    readline.set_completer(complete)
    readline.parse_and_bind('tab: complete')
    while True:
        try:
            yield input('> ')
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return ask(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, TypeError) as error:
        return cli.fail('ask', error)


if __name__ == '__main__':
    sys.exit(main())
