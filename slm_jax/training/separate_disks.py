"""Checkpoints of hosts that share no disk: the first host writes them all, and whoever has the newest sends it around.

What trains is small as a rule, so it passes through the memory of one host, leaf by leaf. A checkpoint is then whole in
one directory, like any other: it may be copied, and be gone on with by any number of hosts, with a shared disk or not.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from slm_jax.training import checkpoints, hosts
from slm_jax.training.checkpoints import Checkpoints
from slm_jax.training.state import TrainState


def open_checkpoints(
    model_dir: str | os.PathLike, max_to_keep: int, best_metric: str | None, say: Callable[[str], None]
) -> 'Checkpoints | SeparateDisks':
    """The checkpoints of a training, on a disk that all its hosts share or not. Arguments as of `Checkpoints`."""
    path = checkpoints.checked(model_dir)
    if hosts.shared(path):
        return Checkpoints(model_dir, max_to_keep, best_metric, say)
    say(f'note: {path} is not on a disk that all hosts share: host 0 writes the checkpoints and the logs, for all.')
    return SeparateDisks(Checkpoints(model_dir, max_to_keep, best_metric, say, alone=True))


class SeparateDisks:
    """`Checkpoints` of which each host has its own, with the methods that a training calls on every host."""

    def __init__(self, own: Checkpoints):
        self._own, self.model_dir = own, own.model_dir
        latest = [int(step) for step in hosts.exchange(str(-1 if own.latest() is None else own.latest()))]
        self._latest = max(latest)
        self._holder = latest.index(self._latest)  # whose disk has the newest; hosts may have changed places

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint that a host has."""
        return None if self._latest < 0 else self._latest

    def save(self, state: TrainState, rng: jax.Array, card: Mapping[str, Any]) -> None:
        """`Checkpoints.save` on the first host, of what all of them hold."""
        key = multihost_utils.process_allgather(jax.random.key_data(rng), tiled=True)
        whole = jax.tree.map(_gathered, state)
        if hosts.first():
            self._own.save(whole, jax.random.wrap_key_data(key), card)

    def write_card(self, card: Mapping[str, Any]) -> None:
        """`Checkpoints.write_card` on the first host."""
        if hosts.first():
            self._own.write_card(card)

    def read_card(self, step: int) -> dict[str, Any]:
        """`Checkpoints.read_card`, on every host."""
        card = json.dumps(self._own.read_card(step)) if self._holds else ''
        return json.loads(hosts.exchange(card)[self._holder])

    def restore(self, step: int, abstract: TrainState, rng: jax.Array) -> tuple[TrainState, jax.Array]:
        """`Checkpoints.restore` on the host that has it; the others get it from there."""
        key = jax.random.key_data(rng)
        if self._holds:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            local = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract)
            own_key = jax.device_put(np.asarray(key), here)
            state, read = self._own.restore(step, local, jax.random.wrap_key_data(own_key))
            found, key_data = jax.tree.map(np.asarray, state), np.asarray(jax.random.key_data(read))
        else:
            found = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
            key_data = np.zeros(key.shape, key.dtype)
        state = jax.tree.map(lambda leaf, value: self._sent(value, leaf.sharding), abstract, found)
        return state, jax.random.wrap_key_data(self._sent(key_data, abstract.step.sharding))

    def close(self) -> None:
        """Waits until all is on disk."""
        self._own.close()

    @property
    def _holds(self) -> bool:
        return jax.process_index() == self._holder

    def _sent(self, value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        """An array of the host that has it, on the devices of all, bit by bit: a sum would lose the sign of zeros."""
        bits = np.atleast_1d(value).view(np.uint8)
        sent = multihost_utils.broadcast_one_to_all(bits, is_source=self._holds)
        whole = np.ascontiguousarray(sent).view(value.dtype).reshape(value.shape)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: whole[index])


def _gathered(leaf: jax.Array) -> np.ndarray | None:
    """An array of all hosts in the memory of the first of them."""
    whole = multihost_utils.process_allgather(leaf, tiled=True)
    return whole if hosts.first() else None
