"""The console script `slm-jax`: a thin door to the programs.

Nothing heavy is imported here, so that `slm-jax --help` answers at once; a sub-command imports its
own module and gives it the rest of the line: `slm-jax train …` is `python -m slm_jax.train …`.
"""

import argparse
import contextlib
import difflib
import glob
import importlib
import keyword
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

COMMANDS = {
    'prepare': 'fetch and pre-process the data of a task, so that training never waits for it',
    'pretrain': 'make a foundation (a speech encoder, a T5, an mBART), or a ComSL, stage by stage',
    'import': 'bring a public checkpoint in as a foundation, exact to the reference',
    'train': 'train an adapter between a frozen speech encoder and a frozen language model',
    'precompile': 'say whether a model fits a TPU slice or GPUs, by compiling for them; none need be there',
    'evaluate': 'score a model on a test set (WER, CER, BLEU, chrF, slot F1) and write a report',
    'synthesize': 'turn texts (Alpaca, SQuAD, dialogs, sentences) into speech, with a manifest',
    'answers': 'let a language model answer transcripts: what an adapter is then trained on',
    'translate': 'translate transcripts by a model or a command: pseudo-labels for speech translation',
    'retrieve': 'find phrases that may be said, of a million, for an instruction to list',
    'infer': 'transcribe, translate or question audio files with a trained model',
    'ask': 'put questions to recordings in the terminal, one after another',
    'serve': "answer over HTTP, as OpenAI's API does",
    'demo': 'put questions to recordings in the browser',
    'export': 'write what was trained as a small model directory, as safetensors, or as a T5 for transformers',
    'profile': 'show where the time of some steps of a training went',
    'codebook': 'fit codebooks of speech, and encode recordings to discrete units',
    'card': 'show what a model or foundation is made of, or the sizes of one not yet made',
}
# With these, libtpu asks no metadata server, takes no lock, and writes to neither the terminal nor /tmp.
NO_TPU = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_LOG_DIR': 'disabled',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def usage() -> str:
    """Returns the help text."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:<{width}}  {purpose}' for name, purpose in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: slm-jax COMMAND [options]',
            '',
            'Speech-language models on JAX: a frozen speech encoder and a frozen LLM,',
            'joined by a small adapter.',
            '',
            'commands:',
            *lines,
            '',
            '`slm-jax COMMAND --help` tells the options of one; `slm-jax --version` the version.',
        ]
    )


def quiet_libraries() -> None:
    """Keeps the talk of TensorFlow, XLA, gRPC and Orbax off the terminal; what the user set stays.

    Takes effect only before these libraries are imported, hence first thing in each program's
    `main`.
    """
    import absl.logging

    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
    os.environ.setdefault('GLOG_minloglevel', '2')
    # Where there is no TPU, libtpu need not look for one.
    if not any(map(glob.glob, ('/dev/accel*', '/dev/vfio/[0-9]*'))):
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)
    for name in ('jax._src.xla_bridge', 'tensorflow'):
        logging.getLogger(name).setLevel(logging.ERROR)
    absl.logging.set_verbosity(absl.logging.ERROR)
    warnings.formatwarning = _one_line


def _one_line(message, category, filename, lineno, line=None) -> str:
    """Our own warnings are for the user, whom their place in the code does not help."""
    if category.__module__.startswith('slm_jax.'):
        return f'slm-jax: {message}\n'
    return f'{filename}:{lineno}: {category.__name__}: {message}\n'


def fail(command: str, error: Exception, status: int = 2) -> int:
    """Says what went wrong, as our errors word it; SLM_JAX_TRACEBACK=1 raises it instead."""
    if os.environ.get('SLM_JAX_TRACEBACK'):
        raise error
    message = str(error)
    if 'gin' in sys.modules:
        from slm_jax import bindings

        message = bindings.explained(message)
    from slm_jax import terminal

    terminal.say(f'slm-jax {command}: {message}\n(SLM_JAX_TRACEBACK=1 shows where.)', sys.stderr)
    return status


def add_multihost(parser: argparse.ArgumentParser) -> None:
    """The argument that makes a program one of several hosts."""
    parser.add_argument(
        '--multihost',
        action='store_true',
        help='join the other hosts, on each of which the same command runs (found by themselves on TPU pods and Slurm; '
        'else set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)',
    )


def together(
    multihost: bool, fail: Callable[[Exception], int], *kinds: type[Exception]
) -> contextlib.AbstractContextManager:
    """What `add_multihost` asks for: `hosts.together`, or nothing."""
    if not multihost:
        return contextlib.nullcontext()
    from slm_jax.training import hosts

    return hosts.together(fail, *kinds)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command.

    Args:
        argv: what follows `slm-jax` on the command line; None: take it from there.

    Returns:
        The exit status: that of the sub-command; 2 for a wrong name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ('-h', '--help', 'help'):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == '--version':
        from importlib import metadata

        print(metadata.version('slm_jax'))
        return 0
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        hint = f'did you mean `slm-jax {nearest[0]}`?' if nearest else f'there are: {", ".join(COMMANDS)}.'
        print(f'slm-jax: no command {command!r}; {hint}', file=sys.stderr)
        return 2
    quiet_libraries()
    try:
        module = f'{command}_' if keyword.iskeyword(command) else command
        return importlib.import_module(f'slm_jax.{module}').main(rest) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # The reader of our output (head, less) has gone: nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def console() -> int:
    """`main` for the console script, in a process that has large pages for what XLA allocates.

    On CPU a training step takes half the time with them. The C library reads its tunables when a
    process starts, hence the second start; nothing happens where the user has set any.
    """
    if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
        os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, sys.orig_argv)
    return main()


if __name__ == '__main__':
    sys.exit(main())
