"""Optimizers and learning-rate schedules for gin, from optax."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from slm_jax.training.state import merge, split

_DECAYS = ('constant', 'rsqrt', 'cosine', 'linear')


def schedule(
    peak: float,
    warmup_steps: int,
    decay: str = 'rsqrt',
    total_steps: int | None = None,
    final: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then a decay.

    Args:
        peak: learning rate at `warmup_steps`.
        warmup_steps: 0 for none.
        decay: 'constant'; 'rsqrt' (peak * sqrt(warmup / step), as T5X); 'cosine' or 'linear', down to `final` at
            `total_steps`.
        total_steps: steps in all; needed by 'cosine' and 'linear'.
        final: learning rate at the end of 'cosine' and 'linear'.

    Raises:
        ValueError: a value out of range.
    """
    if not peak > 0:
        raise ValueError(f'schedule.peak is {peak!r}; it must be above 0.')
    if not 0 <= final:
        raise ValueError(f'schedule.final is {final!r}; it must be at least 0.')
    if warmup_steps < 0:
        raise ValueError(f'schedule.warmup_steps is {warmup_steps!r}; it must be at least 0.')
    if decay not in _DECAYS:
        raise ValueError(f'schedule.decay is {decay!r}; it must be one of {_DECAYS}.')
    steps = (total_steps or 0) - warmup_steps  # of the decay
    if decay in ('cosine', 'linear') and steps <= 0:
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
        after = optax.linear_schedule(peak, final, steps)
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
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm (None: no clipping). Norms' scales and biases do not decay.

    `rate_factors` multiply the learning rate of parameters: {regular expression of the whole path: factor}.
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
    if rate_factors:
        adam = optax.chain(adam, optax.stateless(functools.partial(_scale_by_path, rate_factors)))
    return _clipped(adam, clip_norm)


def _scale_by_path(factors: Mapping[str, float], updates: Any, params: Any) -> Any:
    for pattern, factor in factors.items():
        scaled, rest = split(updates, pattern, option='adamw.rate_factors')
        updates = merge(jax.tree.map(lambda update, factor=factor: factor * update, scaled), rest)
    return updates


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
