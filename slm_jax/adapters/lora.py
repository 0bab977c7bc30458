"""LoRA (arXiv 2106.09685): low-rank updates of any linear maps, in any part of a system, whose own kernels stay frozen.

The updates are a part of their own in a system's parameters: `lora/llm/decoder/layers/self_attention/query/lora_a`
belongs to the kernel `llm/decoder/layers/self_attention/query/kernel`. So they are trained, saved and counted as any
part is, and what they update is to the last bit what its foundation holds. Modules know nothing of them: while a part
is run, a linear map that has an update adds it to its output.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Float32

Params = dict[str, Any]

PART = 'lora'  # of a system's parameters
DOWN, UP = 'lora_a', 'lora_b'  # [inputs, rank] and [rank, outputs], with the layers where the kernel has them


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps are updated, and how.

    Attributes:
        rank: of each update.
        alpha: updates are multiplied by `alpha / rank`; 0: they are left out, as if there were none.
        modules: regular expressions; a linear map is updated if one of them matches its whole path, which is that of
            its kernel: 'llm/.*/(query|value)'. Layers that are scanned share a path.
    """

    rank: int = 16
    alpha: float = 32.0
    modules: Sequence[str] = ('llm/.*/(query|value)',)

    def __post_init__(self):
        patterns = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        object.__setattr__(self, 'modules', patterns)  # can be hashed
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f'LoraConfig.modules: {pattern!r} is no regular expression: {error}.') from error
        for field, valid, remedy in (
            ('rank', self.rank >= 1, '1 or more'),
            ('alpha', 0 <= self.alpha < math.inf, '0 or more'),
            ('modules', patterns, 'one pattern or more'),
        ):
            if not valid:
                raise ValueError(f'LoraConfig.{field} is {getattr(self, field)!r}; it must be {remedy}.')

    @property
    def scale(self) -> float:
        """What updates are multiplied by."""
        return self.alpha / self.rank


class Fresh:
    """Makes updates where the parts of a system are initialised: `with fresh.part('llm'): llm.init(…)`."""

    def __init__(self, config: LoraConfig | None):
        self._config = config
        self._seen: set[str] = set()

    def part(self, name: str) -> contextlib.AbstractContextManager:
        """Inside, the linear maps of this part get their updates: LoRA's `a` at random, as PEFT's, and `b` 0."""
        if self._config is None:
            return contextlib.nullcontext()
        config = self._config

        def make(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            y, module = call(*args, **kwargs), context.module
            if context.method_name == '__call__' and (widths := _widths(module, args, y)):
                path = '/'.join([name, *module.path])
                self._seen.add(path)
                if any(re.fullmatch(pattern, path) for pattern in config.modules):
                    if config.rank > min(widths):
                        raise ValueError(
                            f'LoraConfig.rank is {config.rank}; {path} maps {widths[0]} to {widths[1]}, so there it '
                            f'must be {min(widths)} or less: lower it, or leave this module out of LoraConfig.modules.'
                        )
                    uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
                    module.param(DOWN, uniform, (widths[0], config.rank))
                    module.param(UP, nn.initializers.zeros, (config.rank, widths[1]))
            return y

        return nn.intercept_methods(make)

    def apart(self, params: Params) -> Params:
        """All parameters of a system, the updates in a part of their own.

        Raises:
            ValueError: a pattern matches no linear map; names the nearest.
        """
        if self._config is None:
            return params
        for pattern in self._config.modules:
            if not any(re.fullmatch(pattern, path) for path in self._seen):
                near = difflib.get_close_matches(pattern, sorted(self._seen), n=3, cutoff=0.0)
                raise ValueError(
                    f'LoraConfig.modules: {pattern!r} matches no linear map. Patterns match whole paths, such as '
                    f'{", ".join(map(repr, near))}.'
                )
        return apart(params)


def _widths(module: nn.Module, args: tuple, y: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a module that maps the last axes of one array by a kernel; None of any other."""
    if len(args) != 1 or not hasattr(y, 'shape') or not module.has_variable('params', 'kernel'):
        return None
    x, size = args[0].shape, nn.unbox(module.get_variable('params', 'kernel')).size
    for kept in reversed(range(min(len(x), len(y.shape)))):
        widths = math.prod(x[kept:]), math.prod(y.shape[kept:])
        if x[:kept] == y.shape[:kept] and math.prod(widths) == size:
            return widths
    return None


@contextlib.contextmanager
def applied(config: LoraConfig | None, params: Params) -> Iterator[Params]:
    """Inside, linear maps add their updates to their outputs.

    Args:
        config: None: there are no updates.
        params: of a system, or what an outer `applied` made of them, which adds the updates already.

    Yields:
        The parameters with which its parts are then applied; a part without updates is applied with its own.
    """
    parts = {name: part for name, part in params.items() if name != PART}
    if PART not in params or config is None or config.alpha == 0:
        yield parts
        return
    for name, updates in params[PART].items():
        if name in parts:
            parts[name] = _unflatten(_flatten(parts[name]) | _flatten(updates))

    # W + a b would be a copy of W in every step, and twice where activations are computed again; a gradient would be
    # as large, and int8 weights would be opened for it. Beside the frozen product x a b is rank / width of its work,
    # and all that it keeps for the gradient is [positions, rank].
    def add(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y, module = call(*args, **kwargs), context.module
        if context.method_name == '__call__' and module.has_variable('params', DOWN):
            down, up = (module.get_variable('params', name).astype(y.dtype) for name in (DOWN, UP))
            x = args[0].astype(y.dtype).reshape(-1, len(down))
            y += config.scale * (x @ down @ up).reshape(y.shape)
        return y

    with nn.intercept_methods(add):
        yield parts


def in_methods(system: type) -> type:
    """A system, whose field `lora` is a config, each of whose public methods on parameters runs with its updates."""

    def wrapped(method: Callable) -> Callable:
        @functools.wraps(method)
        def run(self: Any, params: Params, *args: Any, **kwargs: Any) -> Any:
            with applied(self.lora, params) as params:
                return method(self, params, *args, **kwargs)

        return run

    for name, method in list(vars(system).items()):
        if not name.startswith('_') and inspect.isfunction(method) and 'params' in inspect.signature(method).parameters:
            setattr(system, name, wrapped(method))
    return system


def apart(params: Params) -> Params:
    """The same parameters, with all updates in a part of their own, as a system holds them."""
    leaves = _flatten(params)
    return _unflatten({(PART, *path) if path[-1] in (DOWN, UP) else path: leaf for path, leaf in leaves.items()})


def merged(
    kernel: Float[Array, '...'],
    down: Float[Array, '*layers i r'],
    up: Float[Array, '*layers r o'],
    scale: float,
    layers: int | None,
) -> Float32[np.ndarray, '...']:
    """The kernel with its update, in float32; `layers` is the axis that its layers have, if it is of several."""
    both = [np.asarray(array, np.float32) for array in (down, up)]
    if layers is not None:
        both = [np.moveaxis(array, layers, 0) for array in both]
    own = kernel.shape if layers is None else np.delete(kernel.shape, layers)
    update = scale * (both[0] @ both[1])
    update = update.reshape(*update.shape[:-2], *own)
    if layers is not None:
        update = np.moveaxis(update, 0, layers)
    return np.asarray(kernel, np.float32) + update


def _flatten(params: Params) -> dict[tuple[str, ...], Any]:
    return flax.traverse_util.flatten_dict(params)


def _unflatten(leaves: dict[tuple[str, ...], Any]) -> Params:
    return flax.traverse_util.unflatten_dict(leaves)
