"""Floating-point operations of the matrix products of a traced function.

Counted on the jaxpr, before XLA and for the whole batch: XLA's own count takes the body of a loop once.
"""

import math
from typing import Any

from jax.extend import core


def count(jaxpr: core.Jaxpr, open_trips: int = 1) -> int:
    """Two for each multiplication and addition of a product or convolution; all else is small beside them.

    A loop of fixed length counts as often as it runs, recomputation by `nn.remat` as it is traced, and of the branches
    of a conditional the dearest.

    Args:
        jaxpr: of the function, as `jax.jit(function).trace(...).jaxpr.jaxpr`.
        open_trips: how often a `while_loop` is taken to run: of decoding, `max_decode_length`.
    """
    return sum(_of(equation, open_trips) for equation in jaxpr.eqns)


def _of(equation: Any, open_trips: int) -> int:
    params, name = equation.params, equation.primitive.name
    if name == 'dot_general':
        (contracting, _), _ = params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracting)
    if name == 'conv_general_dilated':
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // outputs
    if name == 'cond':
        return max(count(branch.jaxpr, open_trips) for branch in params['branches'])
    times = {'scan': params.get('length', 1), 'while': open_trips}.get(name, 1)
    return times * sum(count(inner, open_trips) for inner in core.jaxprs_in_params(params))
