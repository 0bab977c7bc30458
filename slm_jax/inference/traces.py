"""What tracing gave, kept between runs: of a warm start, tracing again would be the larger part.

A note is named by all that its content depends on: the system with its configuration, the sources of this package, the
versions of JAX and Flax, and JAX's settings. Where more takes part (modules of others, several devices), nothing is
kept.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from slm_jax import foundations, paths


@functools.cache
def _sources() -> list[Any]:
    """What decides how a system of this package is traced, besides its configuration."""
    import flax
    import jax

    package = pathlib.Path(foundations.__file__).parents[1]
    files = [(str(path), path.stat()) for path in sorted(package.rglob('*.py'))]
    stats = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in files]
    return [stats, jax.__version__, flax.__version__, repr(sorted(jax.config.values.items()))]


def _kept(of: Any, make: Callable[[], bytes]) -> bytes:
    """What `make` gave in an earlier run for the same `of`, or gives now."""
    from gin import config as gin_config

    modules = {statement.module.split('.')[0] for statement in gin_config._IMPORTS}
    if modules - {'slm_jax', '__gin__'}:
        return make()
    name = hashlib.sha256(json.dumps([of, _sources()]).encode()).hexdigest()[:32]
    path = paths.cache() / 'traces' / name
    with contextlib.suppress(OSError):
        return path.read_bytes()
    content = make()
    with contextlib.suppress(OSError):  # No place to keep it: then it is traced again.
        paths.write(path, content)
    return content


def abstract_params(system: Any) -> dict[str, Any]:
    """Shapes of the system's parameters, boxed with their axes' names; nothing is allocated."""
    import flax.linen as nn
    import jax

    def init(rng):
        from slm_jax.training import setup

        return system.init(rng, setup.least_batch())

    def traced():
        leaves = []
        for path, leaf in foundations.flatten(jax.eval_shape(init, jax.random.key(0))).items():
            names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else None
            value = nn.unbox(leaf)
            leaves.append([path, value.shape, value.dtype.name, names])
        return json.dumps(leaves).encode()

    params = {}
    for path, shape, dtype, names in json.loads(_kept(['parameters', repr(system)], traced)):
        leaf = jax.ShapeDtypeStruct(tuple(shape), dtype)
        params[path] = leaf if names is None else nn.LogicallyPartitioned(leaf, tuple(names))
    return foundations.unflatten(params)


def program(function: Callable, of: Any, *arguments: Any, donated: tuple[int, ...] = ()) -> Any:
    """`function` for arguments of these shapes on one device, jitted from what tracing it gave.

    Args:
        function: of trees of arrays.
        of: text or numbers: what decides what `function` does, besides the shapes of its arguments.
        arguments: of these shapes.
        donated: places of those whose memory the results may take.
    """
    import jax
    from jax import export

    leaves, tree = jax.tree.flatten(arguments)
    shapes = [(leaf.shape, leaf.dtype.name) for leaf in leaves]

    def traced():
        flat = jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)))
        return export.export(flat)(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).serialize()

    exported = export.deserialize(bytearray(_kept([of, str(tree), shapes, jax.default_backend()], traced)))
    return jax.jit(lambda *arguments: exported.call(*jax.tree.leaves(arguments)), donate_argnums=donated)
