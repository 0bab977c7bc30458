"""Fetches and pre-processes data, so that training never waits for it.

    slm-jax prepare voice_prompts
    slm-jax prepare librispeech_asr_clean --split train --cache_dir /data/cache
    slm-jax prepare --gin_file runs/my_run.gin
    slm-jax prepare voice_prompts --encode models/slm_tiny.gin
    slm-jax prepare --gin_file runs/my_run.gin --cache_dir gs://… --runner=DataflowRunner --project=…

Names are tasks and mixtures; without one, the gin file's MIXTURE_OR_TASK_NAME is prepared. What is
there already is left alone, and a run that was cut goes on where it stopped. Training does the same
by itself where something is missing. With a gin file, which names the tokenizers, the texts are measured as well.

With --encode, what the frozen speech encoder of a model or run file makes of the recordings is stored beside them, for
trainings with ENCODED = True. The file comes after other gin files.

With --runner, Apache Beam does the work, 1000 examples an item, on the machines of that runner; they read the data and
write the stores, so both are where all of them are. What is not known here goes to Beam, written --OPTION=VALUE. The
stores are the same.
"""

import dataclasses
import sys

from slm_jax import cli, configuration, import_


def prepare(
    mixture_or_task_name, splits=(), cache_dir=None, on_bad_example='raise', beam=None, measured=False, encoder=None
) -> dict:
    """Builds the missing stores of a task or mixture; see `slm_jax.data.cache.open_store`.

    Args:
        mixture_or_task_name: a name, or {name: rate} as the loader takes it.
        splits: which; () = every split that each task has.
        beam: a `slm_jax.data.beam.Beam` that does the work.
        measured: whether the texts are measured too.
        encoder: a `slm_jax.training.frozen_encoder.FrozenEncoder` whose frames are stored too.

    Returns:
        {split: (examples, hours, skipped)}, a store that tasks share counted once.
    """
    from slm_jax.data import cache, frames, measure, mixtures

    tasks, _ = mixtures.tasks_and_rates(mixture_or_task_name)
    for task in tasks:
        cache.fetch_source(task)
    report: dict[str, tuple[int, float, list[tuple[str, str]]]] = {}
    for split in splits or dict.fromkeys(split for task in tasks for split in task.splits):
        having = [task for task in tasks if splits or split in task.splits]
        if beam:
            beam.stores(having, split, cache_dir, on_bad_example)
        stores = cache.open_stores(having, split, cache_dir, on_bad_example)
        for task, store in zip(having, stores) if measured else ():
            (beam or measure).measure(task, store)
        for store in {id(store): store for store in stores}.values():
            count, hours, skipped = report.get(split, (0, 0.0, []))
            unfit = (beam or frames).encode(store, encoder, on_bad_example) if encoder else []
            hours += store.samples.sum() / 16000 / 3600
            report[split] = count + len(store), hours, skipped + store.skipped + unfit
    return report


def main(argv: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = configuration.parser(__doc__)
    parser.prog = 'slm-jax prepare'
    parser.add_argument('names', nargs='*', metavar='NAME', help='a task or mixture')
    parser.add_argument('--split', action='append', default=[], help='may be repeated; default: all')
    parser.add_argument(
        '--data_dir',
        help='where TFDS keeps data sets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)',
    )
    parser.add_argument(
        '--cache_dir',
        help='where what training reads is kept (default: $SLM_JAX_CACHE or ~/.cache/slm_jax)',
    )
    parser.add_argument(
        '--on_bad_example',
        choices=('raise', 'skip'),
        default='raise',
        help='stop at a bad example, or leave it out and list it',
    )
    parser.add_argument(
        '--encode',
        metavar='MODEL.gin',
        help="store what this model's frozen speech encoder (FOUNDATIONS) makes of them",
    )
    parser.add_argument('--runner', help='of Apache Beam: DirectRunner, DataflowRunner, …; other options go to it')
    args, rest = parser.parse_known_args(argv)
    if rest and not args.runner:
        parser.error(f'unrecognized arguments: {" ".join(rest)}')
    try:
        return _run(args, [f'--runner={args.runner}', *rest] if args.runner else [])
    except (ValueError, RuntimeError, OSError, AssertionError) as error:
        return cli.fail('prepare', error)


@dataclasses.dataclass(frozen=True)
class Registration:
    """Registers, on another machine, the tasks that a configuration names.

    Attributes:
        text: of gin.
        data_dir: see `main`.
    """

    text: str
    data_dir: str | None

    def __call__(self) -> list:
        """What MIXTURE_OR_TASK_NAME is, all that it refers to called."""
        import seqio

        import gin
        from slm_jax.data import loader  # noqa: F401

        if self.data_dir:
            seqio.set_tfds_data_dir_override(self.data_dir)
        gin.parse_config(self.text)
        return configured()


def configured() -> list:
    """The name or {name: rate} that gin gives, alone in a list; [] if it gives none."""
    import gin

    try:
        gin.query_parameter('MIXTURE_OR_TASK_NAME/macro.value')
    except ValueError:
        return []
    with gin.config_scope('MIXTURE_OR_TASK_NAME'):  # also calls what it refers to, @tasks.manifest()
        return [gin.get_configurable(gin.config.macro)()]


def _encoder(args):
    """Parses the configuration with the model's; returns its frozen encoder."""
    from slm_jax.inference import model
    from slm_jax.training import frozen_encoder

    read = ['%MODEL', 'slm_jax.train.train.system', 'slm_jax.train.train.foundations']
    read += [] if args.names else ['%MIXTURE_OR_TASK_NAME']
    files = ['runs/train.gin', *args.gin_file, args.encode]
    configuration.parse_gin(files, args.gin_bindings, only=dict.fromkeys(read))
    system, parts = model.configured_system(), model.query('slm_jax.train.train.foundations') or {}
    import_.ensure(*(str(name) for part, name in parts.items() if part.startswith('speech_encoder')))
    return frozen_encoder.of(system, parts)


def _run(args, beam_arguments: list[str]) -> int:
    import slm_jax.tasks  # isort: skip  first: it loads TensorFlow quietly  # noqa: F401

    import seqio
    import tensorflow_datasets as tfds

    from slm_jax.data import beam as beam_lib
    from slm_jax.data import (
        loader,  # noqa: F401  before gin locks what is configurable
        vocabularies,
    )

    beam = encoder = None

    if args.encode:
        encoder = _encoder(args)
    else:
        configuration.parse_gin(args.gin_file, args.gin_bindings)
    if args.gin_file:  # texts are measured
        import_.ensure(*vocabularies.names().values())
    tfds.disable_progress_bar()
    if args.data_dir:
        seqio.set_tfds_data_dir_override(args.data_dir)
    if beam_arguments:
        beam = beam_lib.Beam(beam_arguments, Registration(configuration.operative_config(), args.data_dir))
        beam.check()
    names = args.names or configured()
    if not names:
        raise ValueError(
            'nothing to prepare: name a task or mixture, or give a --gin_file that sets MIXTURE_OR_TASK_NAME'
        )
    for name in names:
        made = prepare(name, args.split, args.cache_dir, args.on_bad_example, beam, bool(args.gin_file), encoder)
        for split, (examples, hours, skipped) in made.items():
            print(
                f'{name} {split}: {examples} recordings or texts, {hours:.2f} h'
                + (f', encoded by {encoder.name}' if encoder else '')
                + (f', {len(skipped)} bad examples skipped:' if skipped else '')
            )
            for _, error in skipped:
                print(f'    {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
