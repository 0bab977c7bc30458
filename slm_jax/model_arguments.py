"""Which model answers, and how: the arguments of all programs that answer."""

import argparse
from collections.abc import Sequence
from typing import Any

from slm_jax import import_


def add(result: argparse.ArgumentParser, model: str = 'model') -> None:
    """The arguments that say which model answers, and how."""
    group = result.add_argument_group('model')
    default: dict[str, Any] = {'nargs': '?'} if model == 'model' else {'default': 'slm_base'}
    which = '' if model == 'model' else ' (default: the packaged slm_base)'
    group.add_argument(model, metavar='MODEL', help=f'directory, or a foundation{which}', **default)
    group.add_argument('--step', type=int, help='of the checkpoint (default: the newest)')
    group.add_argument(
        '--foundation', action='append', default=[], metavar='PART=DIR',
        help='where a foundation is now, if not where the card says',
    )  # fmt: skip
    group.add_argument('--mesh', default='', help='as in data=2,model=4 (default: all are data)')
    group.add_argument('--decode', choices=('greedy', 'beam', 'sample'), dest='method')
    group.add_argument('--beam_size', type=int)
    group.add_argument('--alpha', type=float, help="length penalty of 'beam'")
    group.add_argument(
        '--ctc_weight',
        type=float,
        help='of the CTC head, 0 to 1, in all answers; without this, what the model was trained with, in transcripts '
        'alone (wordings: slm_jax/data/instructions.py)',
    )
    group.add_argument('--temperature', type=float)
    group.add_argument('--top_k', type=int)
    group.add_argument('--top_p', type=float)
    group.add_argument('--seed', type=int, help="of 'sample'")
    group.add_argument('--max_decode_length', type=int, help='tokens')


def load(name: str, args: argparse.Namespace) -> Any:
    """The model that the arguments of `add` ask for; public foundations are imported on first use."""
    from slm_jax.inference import model

    if not name:
        raise ValueError('MODEL is missing: give the directory of a trained model.')
    fields = 'method beam_size alpha ctc_weight temperature top_k top_p seed max_decode_length'.split()
    decode = {field: value for field in fields if (value := getattr(args, field)) is not None}
    import_.ensure_for(name, given := pairs('--foundation', args.foundation))
    return model.load(
        name,
        step=args.step,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
        foundations=given,
        mesh={k: int(v) for k, v in pairs('--mesh', args.mesh.split(',')).items()},
        decode=decode,
    )


def pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """{'a': 'b'} of ['a=b'].

    Raises:
        ValueError: a text without '='.
    """
    result = {}
    for text in filter(None, texts):
        name, equals, value = text.partition('=')
        if not equals:
            raise ValueError(f'{flag} {text!r}: write NAME=VALUE.')
        result[name] = value
    return result
