"""What texts a model met in training, noted after it: `python -m slm_jax.corpora.seen MODEL`.

Training leaves `seen.npz` in the directory of a model, by which `evaluate --suite` says what of a test it met. For a
model that was trained before it did, this makes the same file from the stores of the training's tasks, which are made
again where they are gone. Run it where the model was trained: the paths in its configuration may be relative.
"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Sequence

from slm_jax import cli, configuration, paths


def write(name: str, args: argparse.Namespace) -> pathlib.Path:
    """Notes the texts of a model; returns the directory that the file is in.

    Raises:
        ValueError: it is no trained model, or its tasks cannot be made.
    """
    import slm_jax.tasks  # noqa: F401  a foundation's configuration registers none
    from slm_jax import foundations
    from slm_jax.data import cache, measure, mixtures, seen
    from slm_jax.inference import model as model_lib

    directory = foundations.find(name)
    card = foundations.card(directory)
    if 'data' not in card:
        raise ValueError(f'{directory}: its card names no data, so it was not trained by slm-jax train.')
    model_lib.configure(card, args.gin_file, args.gin_bindings, training=True)
    trained_on = model_lib.query('%MIXTURE_OR_TASK_NAME')
    if trained_on is None:
        raise ValueError(
            f'{directory}: its configuration has no MIXTURE_OR_TASK_NAME. Give --gin.MIXTURE_OR_TASK_NAME, the tasks '
            f'{", ".join(card["data"]["tasks"])}.'
        )
    tasks, _ = mixtures.tasks_and_rates(trained_on)
    stores = cache.open_stores(tasks, card['data']['split'], args.cache_dir, 'skip')
    measured = [measure.measure(task, store) for task, store in zip(tasks, stores)]
    met = [{kind: each[f'seen_{kind}'] for kind in seen.KINDS} for each in measured]
    for first in (card.get('initialised_from') or {}).values():
        with contextlib.suppress(foundations.FoundationError):  # what it began at may be gone
            met += filter(None, [seen.read(foundations.find(first['name']))])
    out = paths.path(args.out) if args.out else directory
    seen.write(out, found := seen.joined(met))
    print(f'{out / seen.FILE}: ' + ', '.join(f'{len(found[kind])} {kind}' for kind in seen.KINDS))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    parser = configuration.parser(__doc__)
    parser.prog = 'python -m slm_jax.corpora.seen'
    parser.add_argument('model', metavar='MODEL', help='directory of a trained model, or the name of a packaged one')
    parser.add_argument('--cache_dir', help='where prepared tasks are')
    parser.add_argument('--out', metavar='DIR', help="default: the model's own directory")
    args = parser.parse_args(argv)
    try:
        write(args.model, args)
    except (ValueError, OSError) as error:
        return cli.fail('seen', error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
