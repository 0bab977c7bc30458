"""Checkpoints on a disk of the machine, besides those in MODEL_DIR: written more often, for they cost no network.

Only what trains is written, so one more copy of it is cheap. Whoever starts again where the disk is still there loses
less; where it is not, MODEL_DIR has what it has. Orbax's own emergency checkpoints take several slices that hold copies
of one another, or a service of the cluster; these take a disk.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax

from slm_jax import foundations, paths
from slm_jax.training import hosts, separate_disks
from slm_jax.training.state import TrainState


class LocalToo:
    """`Checkpoints` of a model directory, and newer ones on a local disk, as one.

    A local checkpoint counts if it is of the run in the model directory: both bear the same name, `run` of their cards.
    """

    def __init__(self, durable: Any, directory: str | os.PathLike, say: Callable[[str], None] = print):
        """Opens the local directory.

        Args:
            durable: the checkpoints in the model directory.
            directory: on a local disk; trainings of several model directories may share it.
            say: is told of damaged checkpoints.

        Raises:
            ValueError: `directory` is in an object store.
        """
        if paths.is_url(directory):
            raise ValueError(
                f'train.local_checkpoint_dir (set by LOCAL_CHECKPOINT_DIR) is {directory}; it is for a disk of this '
                'machine. Give a local path, or None.'
            )
        self._durable, self.model_dir = durable, durable.model_dir
        name = hashlib.sha256(os.fsencode(self.model_dir)).hexdigest()[:8]
        path = paths.path(directory).absolute() / f'{self.model_dir.name}-{name}'
        card = self.model_dir / foundations.CARD
        before = json.loads(card.read_text(encoding='utf-8')).get('run') if card.is_file() else None
        before, fresh = json.loads(hosts.exchange(json.dumps([before, uuid.uuid4().hex]))[0])
        self._run = before or fresh
        self._local = separate_disks.open_checkpoints(path, 1, None, say)
        latest = self._local.latest()
        if latest is not None and self._local.read_card(latest).get('run') != before:
            self._local.close()
            paths.remove(path)  # of another training that had this model directory
            self._local = separate_disks.open_checkpoints(path, 1, None, say)
        self._newest = self._local.latest()

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, wherever it is."""
        return max((step for step in (self._durable.latest(), self._newest) if step is not None), default=None)

    def save(self, state: TrainState, rng: jax.Array, card: Mapping[str, Any]) -> None:
        """`Checkpoints.save` in the model directory."""
        self._durable.save(state, rng, {**card, 'run': self._run})

    def save_local(self, state: TrainState, rng: jax.Array, card: Mapping[str, Any]) -> None:
        """`Checkpoints.save` on the local disk."""
        self._local.save(state, rng, {**card, 'run': self._run})

    def write_card(self, card: Mapping[str, Any]) -> None:
        """`Checkpoints.write_card` in the model directory."""
        self._durable.write_card({**card, 'run': self._run})

    def read_card(self, step: int) -> dict[str, Any]:
        """`Checkpoints.read_card` of where the step is."""
        return self._with(step).read_card(step)

    def restore(self, step: int, abstract: TrainState, rng: jax.Array) -> tuple[TrainState, jax.Array]:
        """`Checkpoints.restore` from where the step is."""
        return self._with(step).restore(step, abstract, rng)

    def close(self) -> None:
        """Waits until all is on the local disk; the other checkpoints are closed by who opened them."""
        self._local.close()

    def _with(self, step: int) -> Any:
        return self._durable if step == self._durable.latest() else self._local
