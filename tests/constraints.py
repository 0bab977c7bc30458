"""Which products with weights reach the next one, or the result, before anybody has named their axes."""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.extend import core


class _Origin(NamedTuple):
    """What an array is made of; `naked` are the products with weights since the last constraint on its rows."""

    inputs: bool = False
    weights: bool = False
    naked: frozenset[str] = frozenset()

    def __or__(self, other: '_Origin') -> '_Origin':
        return _Origin(self.inputs | other.inputs, self.weights | other.weights, self.naked | other.naked)


def unnamed(function, params, *inputs) -> set[str]:
    """Products 'shape @ file:line' of activations with weights that no constraint follows."""
    jaxpr = jax.make_jaxpr(function)(params, *inputs)
    count = len(jax.tree.leaves(params))
    origins = [_Origin(weights=True)] * count + [_Origin(inputs=True)] * (len(jaxpr.in_avals) - count)
    found: set[str] = set()
    for result in _run(jaxpr.jaxpr, origins, found):
        found |= result.naked
    return found


def _run(jaxpr: core.Jaxpr, origins: Sequence[_Origin], found: set[str]) -> list[_Origin]:
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def of(atom):
        return _Origin() if isinstance(atom, core.Literal) else known.get(atom, _Origin())

    for equation in jaxpr.eqns:
        operands = [of(atom) for atom in equation.invars]
        known |= dict(zip(equation.outvars, _apply(equation, operands, found), strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _apply(equation, operands: list[_Origin], found: set[str]) -> list[_Origin]:
    name, params = equation.primitive.name, equation.params
    joint = _union([_Origin(), *operands])
    if name == 'scan':
        constants, carried = params['num_consts'], params['num_carry']
        for _ in range(2):  # what one iteration leaves is what the next begins with
            results = _run(params['jaxpr'].jaxpr, operands, found)
            for i in range(carried):
                operands[constants + i] |= results[i]
        return results
    if name == 'while':
        operands = operands[params['cond_nconsts'] :]
        constants = params['body_nconsts']
        for _ in range(2):
            results = _run(params['body_jaxpr'].jaxpr, operands, found)
            operands[constants:] = [_union(both) for both in zip(operands[constants:], results, strict=True)]
        return operands[constants:]
    if name == 'cond':
        branches = [_run(branch.jaxpr, operands[1:], found) for branch in params['branches']]
        return [_union(results) for results in zip(*branches, strict=True)]
    inner = list(core.jaxprs_in_params(params))
    if len(inner) == 1 and len(inner[0].invars) == len(operands):
        return _run(inner[0], operands, found)
    if name == 'sharding_constraint':
        rows = 'data' in str(params['sharding'].spec)
        return [joint._replace(naked=frozenset()) if rows else joint]
    if name in ('dot_general', 'conv_general_dilated') and sum(o.inputs for o in operands) == 1 and joint.weights:
        if any(operand.weights and not operand.inputs for operand in operands):
            found |= joint.naked
            product = f'{equation.outvars[0].aval.str_short()} @ {_line(equation.source_info.traceback)}'
            return [_Origin(True, True, frozenset({product}))]
    return [joint] * len(equation.outvars)


def _union(origins: Sequence[_Origin]) -> _Origin:
    return functools.reduce(operator.or_, origins)


def _line(traceback) -> str:
    """The innermost line of this package."""
    for frame in traceback.frames if traceback else ():
        if '/slm_jax/' in frame.file_name:
            return f'{frame.file_name.rpartition("/slm_jax/")[2]}:{frame.line_num}'
    return 'unknown'
