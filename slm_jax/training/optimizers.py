"""Optimizers and learning-rate schedules for gin, from optax."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slm_jax.foundations import flatten, unflatten
from slm_jax.training.state import split

_DECAYS = ('constant', 'rsqrt', 'cosine', 'linear', 'polynomial')
_ENDING = ('cosine', 'linear', 'polynomial')


def schedule(
    peak: float,
    warmup_steps: int,
    decay: str = 'rsqrt',
    total_steps: int | None = None,
    final: float = 0.0,
    power: float = 2.0,
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then a decay.

    Args:
        peak: learning rate at `warmup_steps`.
        warmup_steps: 0 for none.
        decay: 'constant'; 'rsqrt' (peak * sqrt(warmup / step), as T5X); 'cosine', 'linear' or 'polynomial', down to
            `final` at `total_steps`.
        total_steps: steps in all; needed by the last three.
        final: learning rate at the end of the last three.
        power: of 'polynomial': final + (peak - final) * (what is left of the decay) ** power.

    Raises:
        ValueError: a value out of range.
    """
    if not peak > 0:
        raise ValueError(f'schedule.peak is {peak!r}; it must be above 0.')
    if not 0 <= final:
        raise ValueError(f'schedule.final is {final!r}; it must be at least 0.')
    if not power > 0:
        raise ValueError(f'schedule.power is {power!r}; it must be above 0.')
    if warmup_steps < 0:
        raise ValueError(f'schedule.warmup_steps is {warmup_steps!r}; it must be at least 0.')
    if decay not in _DECAYS:
        raise ValueError(f'schedule.decay is {decay!r}; it must be one of {_DECAYS}.')
    steps = (total_steps or 0) - warmup_steps  # of the decay
    if decay in _ENDING and steps <= 0:
        raise ValueError(
            f'schedule: decay={decay!r} needs total_steps above schedule.warmup_steps, which is {warmup_steps}; '
            f'it is {total_steps}.'
        )
    if decay == 'constant':
        after = optax.constant_schedule(peak)
    elif decay == 'rsqrt':
        start = max(warmup_steps, 1)

        def after(step):
            return peak * (start / (start + step)) ** 0.5
    elif decay == 'cosine':
        after = optax.cosine_decay_schedule(peak, steps, alpha=final / peak)
    else:
        after = optax.polynomial_schedule(peak, final, power if decay == 'polynomial' else 1.0, steps)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def adamw(
    learning_rate: float | optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    rate_factors: Mapping[str, float] | None = None,
    own_counts: bool = False,
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm (None: no clipping). Norms' scales and biases do not decay.

    `rate_factors` multiply the learning rate of parameters: {regular expression of the whole path: factor}.
    `own_counts`: each array counts its own updates, as PyTorch's do, so that Adam's averages of what trains from a
    later step on (`train.trainable`) begin then.
    """
    _check('adamw', learning_rate, clip_norm)
    for field, valid, remedy in (
        ('b1', 0 <= b1 < 1, 'in [0, 1)'),
        ('b2', 0 <= b2 < 1, 'in [0, 1)'),
        ('eps', eps > 0, 'above 0'),
        ('weight_decay', weight_decay >= 0, 'at least 0'),
        ('rate_factors', all(factor >= 0 for factor in (rate_factors or {}).values()), 'at least 0 each'),
    ):
        if not valid:
            raise ValueError(f'adamw.{field} is {locals()[field]!r}; it must be {remedy}.')

    def decays(params):
        # By name, not by rank: stacked layers give a scale a second axis.
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not path or not str(path[-1].key).endswith(('scale', 'bias')), params
        )

    adam = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
    if own_counts:
        adam = optax.chain(
            _adam_with_own_counts(b1, b2, eps),
            optax.add_decayed_weights(weight_decay, decays),
            optax.scale_by_learning_rate(learning_rate),
        )
    if rate_factors:
        adam = optax.chain(adam, _scale_by_path(rate_factors))
    return _clipped(adam, clip_norm)


class _OwnMoments(NamedTuple):
    """Trees like the parameters: of numbers of updates, and of averages of gradients and of their squares."""

    counts: Any
    mu: Any
    nu: Any


def _adam_with_own_counts(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, each array of which corrects its averages by its own count."""

    def init(params: Any) -> _OwnMoments:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _OwnMoments(jax.tree.map(lambda _: jnp.int32(0), params), zeros, zeros)

    def update(updates: Any, state: _OwnMoments, params: Any = None) -> tuple[Any, _OwnMoments]:
        del params
        counts = jax.tree.map(lambda count: count + 1, state.counts)
        mu = jax.tree.map(lambda old, new: b1 * old + (1 - b1) * new, state.mu, updates)
        nu = jax.tree.map(lambda old, new: b2 * old + (1 - b2) * new**2, state.nu, updates)

        def step(count, mu, nu):
            return mu / (1 - b1**count) / (jnp.sqrt(nu / (1 - b2**count)) + eps)

        return jax.tree.map(step, counts, mu, nu), _OwnMoments(counts, mu, nu)

    return optax.GradientTransformation(init, update)


def _scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times the factors of the patterns that match their paths; each must match some parameter."""

    def init(params: Any) -> optax.EmptyState:
        for pattern in factors:
            split(params, pattern, option='adamw.rate_factors')
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        leaves = flatten(updates)
        for pattern, factor in factors.items():
            leaves = {path: factor * leaf if re.fullmatch(pattern, path) else leaf for path, leaf in leaves.items()}
        return unflatten(leaves), state

    return optax.GradientTransformation(init, update)


def adafactor(
    learning_rate: float | optax.Schedule,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    multiply_by_parameter_scale: bool = True,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) with T5's settings: no momentum, updates clipped by block."""
    _check('adafactor', learning_rate, clip_norm)
    factored = optax.adafactor(
        learning_rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
    )
    return _clipped(factored, clip_norm)


def _check(name: str, learning_rate: float | optax.Schedule, clip_norm: float | None) -> None:
    if not callable(learning_rate) and not learning_rate > 0:
        raise ValueError(f'{name}.learning_rate is {learning_rate!r}; it must be above 0.')
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f'{name}.clip_norm is {clip_norm!r}; it must be above 0, or None.')


def _clipped(optimizer: optax.GradientTransformation, clip_norm: float | None) -> optax.GradientTransformation:
    return optimizer if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
