"""A system and a loader small enough to train in a second, and a program for them: `python toy.py DIR STEPS`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

WIDTH = 8


@dataclasses.dataclass(frozen=True)
class ToySystem:
    """The mean of a clip goes through `adapter`, then a frozen matrix, and is to be the first target token."""

    nan_at: int = -1

    def init(self, rng, batch):
        """Two matrices."""
        first, second = jax.random.split(rng)

        def matrix(key, axes):
            return nn.LogicallyPartitioned(jax.random.normal(key, (WIDTH, WIDTH)), axes)

        return {
            'adapter': {'kernel': matrix(first, ('embed', 'mlp'))},
            'speech_encoder': {'kernel': matrix(second, ('mlp', 'embed'))},
        }

    def loss(self, params, batch, rng):
        """Squared error; with `rng`, of noisy inputs."""
        x = batch['speech_samples'][:, :WIDTH].astype(jnp.float32) / 100
        if rng is not None:
            x += 0.1 * jax.random.normal(rng, x.shape)
        y = jnp.tanh(x @ params['adapter']['kernel']) @ nn.unbox(params['speech_encoder'])['kernel']
        weights = batch['decoder_loss_weights'][:, 0]
        error = jnp.sum(jnp.square(y - batch['decoder_target_tokens'][:, :1]), axis=1)
        error = jnp.where(batch['decoder_target_tokens'][:, 0] == self.nan_at, jnp.nan, error)
        total = jnp.sum(error * weights)
        return total / jnp.sum(weights), {'loss': (total, jnp.sum(weights))}

    def predict(self, params, batch, decode):
        """One token a row."""
        return batch['decoder_target_tokens'][:, :1]


class ToyLoader:
    """Two shapes in turn; the batch of a step is a function of the step."""

    vocabulary = types.SimpleNamespace(decode=str)
    skipped = ()

    def __init__(self, rows=8, fault_on=-1, fault=''):
        self.rows, self.taken = rows, []
        self._fault = fault if fault_on == jax.process_index() else ''

    def _batch(self, step):
        rng = np.random.default_rng(step)
        targets = np.full((self.rows, 2 + step % 2), 1 + step % 5, np.int32)
        weights = np.ones(targets.shape, np.float32)
        weights[0] = step % 3 > 0  # rows of padding on one shard must not change the mean
        return {
            'speech_samples': rng.integers(-99, 99, (self.rows, 16 + 16 * (step % 2))).astype(np.int16),
            'speech_lengths': np.full(self.rows, 16, np.int32),
            'encoder_input_tokens': np.ones((self.rows, 1), np.int32),
            'decoder_input_tokens': targets,
            'decoder_target_tokens': targets,
            'decoder_loss_weights': weights,
        }

    def _rows(self, batch, host_rows):
        rows = np.asarray((host_rows or range)(self.rows))
        taken = rows[rows < self.rows]
        self.taken.append(taken)
        return {
            name: np.pad(a[taken], [(0, len(rows) - len(taken))] + [(0, 0)] * (a.ndim - 1)) for name, a in batch.items()
        }

    def batches(self, start_step, host_rows=None):
        """(step, batch) for ever."""
        while True:
            if self._fault == 'slow' and start_step == 4:
                time.sleep(5)
            if self._fault == 'fails' and start_step == 4:
                raise ValueError('clip7.wav: the file is cut')
            if self._fault == 'bug' and start_step == 4:
                raise ZeroDivisionError('a step of the task')
            yield start_step, self._rows(self._batch(start_step), host_rows)
            start_step += 1

    def examples(self, host_rows=None):
        """Two batches with what is known of their rows."""
        info = types.SimpleNamespace(instruction='?', reference='!')
        for step in range(2):
            batch = self._rows(self._batch(step), host_rows)
            yield batch, [info] * len(batch['speech_lengths'])

    def batch_shapes(self):
        """Shapes of the two."""
        return [{k: (v.shape, v.dtype) for k, v in self._batch(step).items()} for step in range(2)]

    def state(self):
        """What fixes the data."""
        return {'rows': self.rows, 'plan': 'another' if self._fault == 'differs' else 'one'}


def train(model_dir, steps, **options):
    """Trains the toy on a frozen encoder that the caller saved beside `model_dir`."""
    from slm_jax.train import train as program

    arguments = {
        'system': ToySystem(),
        'loader': ToyLoader(),
        'eval_loaders': {'dev': ToyLoader()},
        'optimizer': optax.adam(1e-2),
        'foundations': {'speech_encoder': str(pathlib.Path(model_dir).parent / 'frozen')},
        'trainable': ('adapter/.*',),
        'log_period': 3,
        'eval_period': 10,
        'checkpoint_period': 5,
        'tensorboard': False,
    }
    return program(model_dir=model_dir, train_steps=steps, **(arguments | options))


def save_frozen(directory, seed=0):
    """The frozen part, a foundation."""
    from slm_jax import foundations

    kernel = jax.random.normal(jax.random.key(seed), (WIDTH, WIDTH))
    foundations.save(directory, {'kernel': kernel}, {'name': 'frozen', 'kind': 'speech_encoder'})


def main(model_dir, steps, mesh=None, rows=8, fault_on=-1, fault='', seconds=None, nan_at=-1, **options):
    """One of several hosts, if the environment says so; returns the exit status."""
    from slm_jax.training import hosts, loop, partitioning

    for name, value in (seconds or {}).items():
        setattr(hosts, f'{name}_SECONDS', value)
    with hosts.together(complain, ValueError) if 'JAX_COORDINATOR_ADDRESS' in os.environ else contextlib.nullcontext():
        loaders = {'loader': ToyLoader(rows, fault_on, fault), 'eval_loaders': {'dev': ToyLoader(rows)}}
        partitioner = partitioning.Partitioner(**(mesh or {}))
        system = ToySystem(nan_at=nan_at)
        try:
            result = train(model_dir, steps, system=system, partitioner=partitioner, **loaders, **options)
        except loop.NonFiniteError as error:
            print(error, file=sys.stderr)
            return 1
    taken = [rows.tolist() for rows in loaders['eval_loaders']['dev'].taken]
    pathlib.Path(model_dir).parent.joinpath(f'taken-{jax.process_index()}').write_text(json.dumps(taken))
    return 143 if result['terminated'] else 0


def complain(error):
    """What `cli.fail` does."""
    print(error, file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], int(sys.argv[2]), **json.loads(os.environ.get('TOY', '{}'))))
