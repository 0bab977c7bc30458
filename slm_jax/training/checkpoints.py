"""Checkpoints of what is trained: Orbax, asynchronous and atomic, with a readable card.

A model directory holds `card.json` (what the model is, which foundations it needs, how well it does),
`checkpoints/<step>/` (`trainable`: the trained parameters; `optimizer`: the optimizer's state, the step and the
random key; `card`; `files.json`: size and CRC-32 of every file, since neither Orbax nor Zstandard sees each flipped
bit) and the logs of its training. It never holds a frozen parameter.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from slm_jax import foundations as foundations_lib
from slm_jax import paths
from slm_jax.data import seen
from slm_jax.foundations import flatten, s3
from slm_jax.training import lock
from slm_jax.training.state import TrainState

KIND = 'model'  # of the card, beside a foundation's 'speech_encoder' and 'llm'
TRAINABLE = 'trainable'
_DIRECTORY = 'checkpoints'
_OPTIMIZER = 'optimizer'
_CARD = 'card'
_FILES = 'files.json'
_COMMITTED = 'commit_success.txt'  # Orbax's, written last where nothing can be renamed; it changes
_OURS = re.compile(
    r'card\.json|\.card\.json\.\d+|checkpoints|losses(-\d+)*\.jsonl|events\.out\..*|bad_batch_\d+\.npz'
    r'|\.lock\.json|\.hosts-.*|profile|seen\.npz|skipped\.jsonl'
)


class CheckpointError(ValueError):
    """A checkpoint that is missing, or that belongs to something else."""


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ('slm_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'seqio')
    found = {'python': platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def newest(model_dir: str | os.PathLike) -> pathlib.Path:
    """Directory of the newest whole checkpoint. One that was being written when its process died does not count.

    Raises:
        CheckpointError: there is none.
    """
    found = _all(model_dir)
    if not found:
        raise CheckpointError(
            f'{model_dir} has no checkpoint in {_DIRECTORY}/: train it first, or give another directory.'
        )
    return found[0]


def _all(model_dir: str | os.PathLike) -> list[pathlib.Path]:
    """Directories of the checkpoints, the newest first."""
    directory = paths.path(model_dir).absolute() / _DIRECTORY
    found = sorted((path for path in directory.glob('*') if path.name.isdigit()), key=lambda path: -int(path.name))
    # Orbax renames a checkpoint to its number once all of it is on disk. Where it cannot, it says so in a file, which
    # a directory that was copied there does not have; ours is written when the items are whole.
    marks = (_FILES, _COMMITTED)
    return [path for path in found if not paths.is_url(path) or any((path / mark).exists() for mark in marks)]


def damage(checkpoint: pathlib.Path, items: Sequence[str] = ()) -> str | None:
    """What is wrong with the first file of a checkpoint that is not as it was written; None: nothing.

    A checkpoint of an older version, without `files.json`, counts as whole.

    Args:
        checkpoint: its directory.
        items: only files of these; none: of all.
    """
    if not (checkpoint / _FILES).exists():
        return None
    try:
        read = json.loads((checkpoint / _FILES).read_text(encoding='utf-8'))
        written = {name: (int(size), int(crc32)) for name, (size, crc32) in read.items()}
    except (ValueError, TypeError, AttributeError):
        return f'{checkpoint / _FILES} is damaged'
    there = paths.files(checkpoint)
    for name, (size, crc32) in written.items():
        file = checkpoint / name
        if items and name.split('/')[0] not in items:
            continue
        if name not in there:
            return f'{file} is missing'
        if there[name][0] != size:
            return f'{file} is damaged: it has {there[name][0]:,} bytes where {size:,} were written'
        if _crc32(file) != crc32:
            return f'{file} is damaged: its content is not what was written'
    return None


def check_files(checkpoint: pathlib.Path) -> None:
    """Refuses to read from a damaged checkpoint what answering needs.

    Raises:
        CheckpointError: names the file, and the newest checkpoint that is whole.
    """
    items = (TRAINABLE, _CARD)
    if problem := damage(checkpoint, items):
        whole = next((other for other in _all(checkpoint.parents[1]) if not damage(other, items)), None)
        if whole is None:
            raise CheckpointError(f'{problem}. No checkpoint of {checkpoint.parents[1]} is whole: restore the file.')
        raise CheckpointError(
            f'{problem}. Step {whole.name} is whole: give --step {whole.name}, or train on from there by the command '
            'that made it.'
        )


def _crc32(file: pathlib.Path) -> int:
    result = 0
    with file.open('rb') as stream:
        while block := stream.read(2**20):
            result = zlib.crc32(block, result)
    return result


def checked(model_dir: str | os.PathLike) -> pathlib.Path:
    """The whole path of a model directory.

    Raises:
        CheckpointError: it holds something else than a training, and is not to be written into.
    """
    model_dir = paths.path(model_dir).absolute()
    remedy = 'Give a directory that is empty or not there yet, or one that this training made.'
    if pathlib.Path(foundations_lib.__file__).parent in model_dir.resolve().parents:
        raise CheckpointError(f'train.model_dir is {model_dir}, which is installed with the package. {remedy}')
    if (model_dir / foundations_lib.CARD).is_file():
        card = foundations_lib.card(model_dir)
        if card.get('kind') != KIND:
            what = f'the foundation {card.get("name")!r} (kind {card.get("kind")!r})'
            raise CheckpointError(f'train.model_dir is {model_dir}, which holds {what}. {remedy}')
    elif model_dir.is_dir():
        for path in sorted(model_dir.iterdir()):
            if not _OURS.fullmatch(path.name):
                raise CheckpointError(f'train.model_dir is {model_dir}, which holds no training: {path.name}. {remedy}')
    elif model_dir.exists():
        raise CheckpointError(f'train.model_dir is {model_dir}, which is a file. {remedy}')
    return model_dir


def _set_damaged_aside(model_dir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Moves damaged checkpoints that are newer than the newest whole one out of the way.

    Raises:
        CheckpointError: there are some, and none is whole.
    """
    damaged = []
    for checkpoint in _all(model_dir):
        problem = damage(checkpoint)
        if problem is None:
            break
        damaged.append((checkpoint, problem))
    else:
        if damaged:
            raise CheckpointError(
                f'{damaged[0][1]}. No checkpoint of {model_dir} is whole: restore the file, or train anew in another '
                'model directory.'
            )
    if paths.is_url(model_dir):
        for whole in _all(model_dir)[len(damaged) :]:
            if not (whole / _COMMITTED).exists():  # copied, or cut off before its last file: Orbax would delete it
                (whole / _COMMITTED).write_text('')
    for path, problem in damaged:
        names = (path.with_name(f'{path.name}.damaged{suffix}') for suffix in ('', *map('.{}'.format, range(2, 10))))
        aside = next(name for name in names if not name.exists())
        paths.move(path, aside, mark=_COMMITTED)
        say(
            f'WARNING: {problem}. The checkpoint is set aside as {aside.name}; training goes on from step '
            f'{checkpoint.name}, which is whole.'
        )


def check_foundations(model_dir: str | os.PathLike, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses foundations other than those a model was trained on.

    Args:
        model_dir: for the message.
        saved, given: from subtree to {'name', 'fingerprint'}, as cards have it.

    Raises:
        CheckpointError: names both, with their fingerprints.
    """

    def text(entry):
        if entry is None:
            return 'nothing'
        prints = entry['fingerprint']
        return f'{entry["name"]!r} (structure {prints["structure"][:16]}, content {prints["content"][:16]})'

    for subtree in sorted(saved.keys() | given.keys()):
        old, new = saved.get(subtree), given.get(subtree)
        if old is None or new is None or old['fingerprint'] != new['fingerprint']:
            raise CheckpointError(
                f'{model_dir} was trained with {subtree} = {text(old)} and cannot be used with {text(new)}. '
                'Give the foundation it was trained on, or train anew in another model directory.'
            )


def _record_files(checkpoint: pathlib.Path) -> None:
    # Those of the items. What notes times and places of the commit changes yet, and is not read.
    names = [name for name in paths.files(checkpoint) if '/' in name and not name.endswith(_COMMITTED)]
    record = {name: ((checkpoint / name).stat().st_size, _crc32(checkpoint / name)) for name in names}
    paths.write(checkpoint / _FILES, json.dumps(record))


class Checkpoints:
    """The checkpoints of one model directory, for training."""

    def __init__(
        self,
        model_dir: str | os.PathLike,
        max_to_keep: int = 2,
        best_metric: str | None = None,
        say: Callable[[str], None] = print,
        alone: bool = False,
    ):
        """Opens the directory, and removes what a killed process left half-written.

        Args:
            model_dir: created if need be.
            max_to_keep: newest checkpoints kept.
            best_metric: an evaluation result such as 'dev/loss'; the checkpoint where it is lowest is kept too.
            say: is told of damaged checkpoints.
            alone: of several hosts this one reads and writes without the others.

        Raises:
            CheckpointError: the directory holds something else, or damaged checkpoints and no whole one. Damaged ones
                that are newer than a whole one are moved out of the way.
            LockError: another run trains there.
        """
        self.model_dir = checked(model_dir)
        self._alone, self._writes = alone, alone or jax.process_index() == 0
        s3.teach_orbax(self.model_dir)
        self._lock = lock.Lock(self.model_dir, say) if self._writes else None
        try:
            self._open(max_to_keep, best_metric, say)
        except BaseException:
            self._unlock()
            raise

    def _open(self, max_to_keep: int, best_metric: str | None, say: Callable[[str], None]) -> None:
        if self._writes:
            _set_damaged_aside(self.model_dir, say)
        if jax.process_count() > 1 and not self._alone:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices('slm_jax checkpoints')
        together = ocp.options.MultiprocessingOptions()
        if self._alone and jax.process_count() > 1:
            index = jax.process_index()
            together = ocp.options.MultiprocessingOptions(index, {index}, f'host-{index}')
            (self.model_dir / _DIRECTORY).mkdir(parents=True, exist_ok=True)
        self._saving = -1
        keep = [checkpoint_managers.LatestN(max_to_keep)]
        if best_metric:
            keep.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._best_metric = best_metric
        self._manager = ocp.CheckpointManager(
            self.model_dir / _DIRECTORY,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._record_files),
                multiprocessing_options=together,
                create=together.active_processes is None,
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, rng: jax.Array, card: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; training goes on meanwhile. Does nothing if this step is there already."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self._lock:
            self._lock.check()
        card = {**card, 'step': step}
        evaluation = card.get('evaluation', {})
        metrics = (
            {k: v for k, v in evaluation.items() if isinstance(v, float)} if self._best_metric in evaluation else None
        )
        key = jax.random.key_data(rng)
        optimizer = {'opt_state': state.opt_state, 'step': state.step, 'rng': np.asarray(key) if self._alone else key}
        self._manager.wait_until_finished()
        self._saving = step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    TRAINABLE: ocp.args.PyTreeSave(state.trainable),
                    _OPTIMIZER: ocp.args.PyTreeSave(optimizer),
                    _CARD: ocp.args.JsonSave(card),
                }
            ),
            metrics=metrics,
        )
        self.write_card(card)

    def _record_files(self) -> None:
        """Writes down what a checkpoint consists of: all of it is on disk, and Orbax is about to give it its number."""
        if self._writes:
            directory = self.model_dir / _DIRECTORY / str(self._saving)
            if not paths.is_url(directory):
                (directory,) = directory.parent.glob(f'{self._saving}.orbax-checkpoint-tmp*')
            _record_files(directory)

    def write_card(self, card: Mapping[str, Any]) -> None:
        """Puts the card where a person and `foundations.find` look for it; keeps what `evaluate` wrote into it."""
        if self._writes:
            path = self.model_dir / foundations_lib.CARD
            if path.exists():
                old = json.loads(path.read_text(encoding='utf-8'))
                card = {**card, **{key: old[key] for key in ('evaluations',) if key in old}}
            paths.write(path, json.dumps(card, indent=2, ensure_ascii=False) + '\n')

    def write_seen(self, texts: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        """Notes what texts this training meets, and those that what it begins at has met; see `data.seen`.

        Args:
            texts: hashes of the loader's.
            first: `initialised_from` of the card.
        """
        if not self._writes:
            return
        earlier = [seen.read(foundations_lib.find(entry['name'])) for entry in first.values()]
        seen.write(self.model_dir, seen.joined([texts, *filter(None, earlier)]))

    def read_card(self, step: int) -> dict[str, Any]:
        """The card of one checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(**{_CARD: ocp.args.JsonRestore()}))[_CARD]

    def restore(self, step: int, abstract: TrainState, rng: jax.Array) -> tuple[TrainState, jax.Array]:
        """State and random key of one checkpoint, read into the shardings of `abstract`.

        Raises:
            CheckpointError: it has other parameters than `abstract`.
        """
        directory = self.model_dir / _DIRECTORY / str(step)
        stored = {
            path: leaf.shape for path, leaf in flatten(foundations_lib.stored_tree(directory / TRAINABLE)).items()
        }
        wanted = {path: leaf.shape for path, leaf in flatten(abstract.trainable).items()}
        if different := sorted(path for path in stored.keys() | wanted.keys() if stored.get(path) != wanted.get(path)):
            path = different[0]
            raise CheckpointError(
                f'{directory}: {len(different)} trained parameters are not those of this configuration; first {path}: '
                f'{stored.get(path, "none")} there, {wanted.get(path, "none")} here. '
                'Give the model and `trainable` it was trained with, or another model directory.'
            )
        key = jax.random.key_data(rng)
        optimizer = {
            'opt_state': abstract.opt_state,
            'step': abstract.step,
            'rng': jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=abstract.step.sharding),
        }
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{TRAINABLE: _restore_args(abstract.trainable), _OPTIMIZER: _restore_args(optimizer)}
                ),
            )
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f'{directory}: the optimizer state is not that of this configuration ({str(error)[:300]}). '
                'Give the optimizer it was trained with, or another model directory.'
            ) from error
        optimizer = items[_OPTIMIZER]
        state = TrainState(
            step=optimizer['step'],
            bad_step=jax.device_put(jax.numpy.int32(-1), abstract.bad_step.sharding),
            trainable=items[TRAINABLE],
            opt_state=optimizer['opt_state'],
        )
        return state, jax.random.wrap_key_data(optimizer['rng'])

    def close(self) -> None:
        """Waits until all is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock:
            self._lock.close()


def _restore_args(abstract: Any):
    return ocp.args.PyTreeRestore(item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def load_for_inference(model_dir: str | os.PathLike, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained parameters and the card of one checkpoint, the newest unless `step` says otherwise.

    Returns:
        (nested dictionary with the system's paths, card). The card's `foundations` name what else the model needs.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    directory = newest(model_dir) if step is None else paths.path(model_dir).absolute() / _DIRECTORY / str(step)
    if directory not in _all(model_dir):
        raise CheckpointError(f'{directory} is not there: the newest checkpoint is {newest(model_dir)}.')
    check_files(directory)
    params = foundations_lib.restore(directory / TRAINABLE, foundations_lib.stored_tree(directory / TRAINABLE))
    with foundations_lib.checkpointer_of(ocp.JsonCheckpointHandler(), directory) as checkpointer:
        return params, checkpointer.restore(directory / _CARD)


def write_for_inference(model_dir: pathlib.Path, params: dict[str, Any], card: Mapping[str, Any], dtype: str) -> None:
    """Writes a model directory of one checkpoint that answers and cannot be trained on: it has no optimizer state.

    Args:
        model_dir: on a disk.
        params: the trained ones.
        card: with `step`.
        dtype: in which floating-point parameters are stored.
    """
    directory = model_dir / _DIRECTORY / str(card['step'])
    foundations_lib.write_params(directory / TRAINABLE, params, dtype)
    paths.write(directory / _CARD / 'metadata', json.dumps({k: v for k, v in card.items() if k != 'evaluations'}))
    _record_files(directory)
    paths.write(model_dir / foundations_lib.CARD, json.dumps(card, indent=2, ensure_ascii=False) + '\n')
