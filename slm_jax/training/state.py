"""What is trained and what is not: one parameter tree, split by path patterns."""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
from jaxtyping import Array, Int32

from slm_jax.foundations import flatten, unflatten

Params = dict[str, Any]
# What trains: patterns, or each with the step from which on.
Patterns = Sequence[str] | Mapping[str, int]
Phases = tuple[tuple[int, frozenset[str]], ...]  # (first step, paths of what trains from then on), in their order


@flax.struct.dataclass
class TrainState:
    """All that a step changes. Frozen parameters are an argument beside it.

    Attributes:
        step: steps taken.
        bad_step: the step whose loss or gradient was not finite, -1 if there was none. From then on a step changes
            nothing, so what was trained before stays whole however late the host looks.
        trainable: the parameters that are trained, a nested dictionary with the paths they have in the whole tree.
        opt_state: optax's.
    """

    step: Int32[Array, '']
    bad_step: Int32[Array, '']
    trainable: Params
    opt_state: Any


def split(params: Params, patterns: Patterns, option: str = 'train.trainable') -> tuple[Params, Params]:
    """Splits a parameter tree into (what the patterns match, the rest): what is trained, what is frozen.

    Args:
        params: nested dictionary of arrays, abstract arrays or anything else.
        patterns: regular expressions; one of them has to match a leaf's whole path.
        option: where the patterns were given, for the error.

    Raises:
        ValueError: a pattern is no regular expression, or matches no leaf; names the nearest paths.
    """
    if isinstance(patterns, str):
        patterns = (patterns,)
    leaves = flatten(params)
    matched = set()
    for pattern in patterns:
        try:
            matches = {path for path in leaves if re.fullmatch(pattern, path)}
        except re.error as error:
            raise ValueError(f'{option}: {pattern!r} is no regular expression: {error}.') from error
        if not matches:
            near = difflib.get_close_matches(pattern, leaves, n=3, cutoff=0.0)
            raise ValueError(
                f'{option}: the pattern {pattern!r} matches no parameter. Patterns match whole paths, such as '
                f"{', '.join(map(repr, near))}; '{pattern.split('/')[0]}/.*' would match all below one part."
            )
        matched |= matches
    those = {path: leaf for path, leaf in leaves.items() if path in matched}
    rest = {path: leaf for path, leaf in leaves.items() if path not in matched}
    return unflatten(those), unflatten(rest)


def phases(trainable: Params, patterns: Patterns) -> Phases:
    """When what trains of these parameters, all of which do at last.

    Args:
        trainable: the first of what `split` gives.
        patterns: that it was given. Of several that match a path, the earliest holds.

    Raises:
        ValueError: a step is none, or nothing trains from step 0 on.
    """
    if not isinstance(patterns, Mapping):
        return ((0, frozenset(flatten(trainable))),)
    for pattern, first in patterns.items():
        if type(first) is not int or first < 0:
            raise ValueError(
                f'train.trainable: {pattern!r} trains from step {first!r} on; a whole number from 0 on was expected.'
            )
    if 0 not in patterns.values():
        raise ValueError('train.trainable: nothing trains from step 0 on; give one of its patterns the step 0.')
    paths = flatten(trainable)
    found = []
    for step in sorted({*patterns.values()}):
        begun = [pattern for pattern, first in patterns.items() if first <= step]
        found.append((step, frozenset(path for path in paths if any(re.fullmatch(each, path) for each in begun))))
    return tuple(found)


def some(params: Params, paths: Collection[str]) -> tuple[Params, Params]:
    """(the leaves at these paths, the others)."""
    leaves = flatten(params)
    those = {path: leaf for path, leaf in leaves.items() if path in paths}
    return unflatten(those), unflatten({path: leaf for path, leaf in leaves.items() if path not in paths})


def optimizer_of(state: Any, paths: Collection[str]) -> Any:
    """An optimizer's state as it would be of these parameters alone: each dictionary in it is a tree like them."""
    return _each_tree(lambda tree: some(tree, paths)[0], state)


def optimizer_with(state: Any, changed: Any, paths: Collection[str]) -> Any:
    """The state of all parameters after that of those at `paths` has changed."""
    return _each_tree(lambda tree, old: merge(tree, some(old, paths)[1]), changed, state)


def _each_tree(change: Callable[..., Any], *states: Any) -> Any:
    def one(node: Any, *others: Any) -> Any:
        return change(node, *others) if isinstance(node, dict) else node

    return jax.tree.map(one, *states, is_leaf=lambda node: isinstance(node, dict))


def read(system: Any, params: Params) -> Params:
    """What a system reads of a parameter tree: leaves whose whole path one of its `reads` matches; None: all."""
    if (patterns := getattr(system, 'reads', None)) is None:
        return params
    leaves = flatten(params).items()
    return unflatten({path: leaf for path, leaf in leaves if any(re.fullmatch(each, path) for each in patterns)})


def merge(*parts: Params) -> Params:
    """One tree of parts that have no leaf in common: the inverse of `split`."""
    leaves = {}
    for part in parts:
        new = flatten(part)
        if common := leaves.keys() & new.keys():
            raise ValueError(f'merge: both parts have {sorted(common)[:3]}')
        leaves |= new
    return unflatten(leaves)


def unboxed(params: Params) -> Params:
    """A parameter tree without the boxes that name the axes of its leaves."""
    return nn.unbox(params)


def num_params(params: Params) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
