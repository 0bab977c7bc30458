"""Stores built by Apache Beam on any of its runners: a work item is a shard, made as one machine makes it.

Only the numbers of shards travel between machines. What a worker makes it writes into the store's directory, so a run
that was cut goes on with the shards that are missing, whoever goes on.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import seqio

from slm_jax import paths
from slm_jax.data import cache, frames, measure, shards
from slm_jax.data.preprocessors import BadExampleError


@dataclasses.dataclass(frozen=True)
class Beam:
    """Where work is done, and what a worker needs to know of the configuration.

    Attributes:
        arguments: Beam's own options, ('--runner=DirectRunner', …).
        register: registers the tasks that are no part of the package, where that has not been done.
    """

    arguments: Sequence[str]
    register: Callable[[], object]

    def check(self) -> None:
        """Refuses what cannot run, before anything is read.

        Raises:
            ValueError: Beam is not installed, there is no such runner, or an option that it needs is missing.
        """
        logging.getLogger('apache_beam').setLevel(logging.CRITICAL)  # what fails is said by us
        logging.disable(logging.WARNING)  # what of Google's is not installed
        try:
            from apache_beam import runners
            from apache_beam.options import pipeline_options
        except ImportError as error:
            raise ValueError(
                f"--runner takes Apache Beam, which is not installed ({error}): pip install 'slm_jax[beam]'"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
        options = pipeline_options.PipelineOptions(list(self.arguments))
        runner = options.view_as(pipeline_options.StandardOptions).runner
        try:
            runners.create_runner(runner)
        except Exception as error:
            raise ValueError(
                f'--runner={runner}: Beam has no such runner. DirectRunner is this machine; elsewhere there are '
                'DataflowRunner, FlinkRunner, SparkRunner and others (beam.apache.org/documentation/runners).'
            ) from error

    def stores(self, tasks: Iterable[seqio.Task], split: str, cache_dir: str | None, on_bad_example: str) -> None:
        """Builds the stores that are missing.

        Raises:
            BadExampleError: there are such, and they are not to be skipped; all are listed in a file.
            ValueError: the source cannot be read, or the runner failed.
        """
        for task in tasks:
            directory = cache.store_dir(task, split, cache_dir)
            if not (directory / 'store.json').exists():
                with cache.locked(directory):
                    if not (directory / 'store.json').exists():
                        self._build(task, split, directory, on_bad_example)

    def measure(self, task: seqio.Task, store: cache.Store) -> None:
        """Measures a task on a store, if that has not been done; see `measure.measure`."""
        if not measure.path_of(task, store).exists():
            every = range(len(store.sizes))
            missing = [number for number in every if not measure.part_of(task, store, number).exists()]
            self._run(functools.partial(_measure, self.register, task.name, str(store.directory)), missing)
            measure.join(task, store)

    def encode(self, store: cache.Store, encoder: frames.Encoder, on_bad_example: str) -> list[tuple[str, str]]:
        """Stores the frames of a store, if that has not been done; see `frames.encode`."""
        work = functools.partial(_encode, encoder, str(store.directory))
        return frames.encode(store, encoder, on_bad_example, functools.partial(self._run, work))

    def _build(self, task: seqio.Task, split: str, directory: pathlib.Path, on_bad_example: str) -> None:
        cache.say_what_is_stale(task, split, directory)
        files, size = shards.files_of(task), shards.SHARD_EXAMPLES
        contents = files.contents(split) if files else None
        count = int(contents.offsets[-1]) if contents else shards.count(task, split)
        missing = sorted({*range(-(-count // size))} - shards.done(directory))
        items = [(each, contents and contents.pieces(each * size, (each + 1) * size)) for each in missing]
        self._run(functools.partial(_build, self.register, task.name, split, str(directory)), items)
        bad = cache.skipped(directory)
        if bad and on_bad_example == 'raise':
            listed = directory / 'skipped.jsonl'
            cache.list_skipped(directory, [fault for _, *fault in bad])
            for number in {number for number, _, _ in bad}:
                (directory / f'{number:05d}.json').unlink()
            raise BadExampleError(
                shards.REMEDY.format(f'{len(bad)} bad examples, all listed in {listed}; the first: {bad[0][2]}')
            )
        cache.finish(task, split, directory)

    def _run(self, work: Callable[[Any], None], items: Sequence[Any]) -> None:
        import apache_beam
        from apache_beam.options import pipeline_options

        if not items:
            return
        pipeline = apache_beam.Pipeline(options=pipeline_options.PipelineOptions(list(self.arguments)))
        _ = pipeline | apache_beam.Create(items) | apache_beam.Reshuffle() | apache_beam.Map(work)
        try:
            state = pipeline.run().wait_until_finish()
        except Exception as error:
            raise ValueError(str(error).split(' [while running')[0]) from error
        if state != 'DONE':
            raise ValueError(f'Beam ended in state {state}; its log says why. What was made stays.')


def _build(register: Callable, name: str, split: str, directory: str, item: tuple[int, list | None]) -> None:
    number, pieces = item
    shards.build(_task(register, name), split, paths.path(directory), number, number + 1, pieces=pieces)


def _measure(register: Callable, name: str, directory: str, number: int) -> None:
    measure.measure_shard(_task(register, name), cache.Store(paths.path(directory)), number)


def _encode(encoder: frames.Encoder, directory: str, number: int) -> None:
    frames.encode_shard(cache.Store(paths.path(directory)), encoder, number)


def _task(register: Callable, name: str) -> seqio.Task:
    import slm_jax.tasks  # noqa: F401  which registers

    if name not in seqio.TaskRegistry.names():
        register()
    return seqio.TaskRegistry.get(name)
