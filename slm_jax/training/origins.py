"""Where each parameter comes from: a foundation, another trained model, or fresh initialisation."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slm_jax import foundations as foundations_lib
from slm_jax.foundations import FoundationError, flatten, named, unflatten
from slm_jax.training import checkpoints, quantization

Params = dict[str, Any]

# What a system may leave out of a foundation. All else that a part has is used: a system with fewer layers would be
# another model, and not the one that its card names.
_HEADS = ('speech_encoder/ctc/',)


@dataclasses.dataclass(frozen=True)
class Origin:
    """One directory that gives the parameters below one path.

    Attributes:
        subtree: path of the part in the system's parameters, such as 'llm' or 'speech_encoder/encoder'.
        name: what was asked for: the name or directory of a foundation, or the directory of a trained model.
        directory: the Orbax directory of the parameters.
        paths: from a path in the system's parameters to the path in `directory`.
        stored: shape and type in `directory`, by the system's path.
        fingerprint: of what `directory` holds.
    """

    subtree: str
    name: str
    directory: pathlib.Path
    paths: Mapping[str, str]
    stored: Mapping[str, jax.ShapeDtypeStruct]
    fingerprint: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """The entry of a card: what to ask for, and what it must then be."""
        directory = foundations_lib.find(self.name)
        everywhere = self.name in foundations_lib.known() or directory == named.directory(self.name).absolute()
        name = self.name if everywhere else str(directory)
        return {'name': name, 'fingerprint': dict(self.fingerprint)}


def find(foundations: Mapping[str, str]) -> list[Origin]:
    """The origins named by `foundations`, from subtree to a foundation's name or directory or a model's directory.

    Of a model that trained some of a part, the rest of that comes from where it came from in its training.

    Raises:
        FoundationError: not found, damaged, or without parameters for this subtree.
    """
    origins = []
    for subtree, name in foundations.items():
        name = str(name)
        path, rest = foundations_lib.find(name), []
        card = foundations_lib.card(path)
        if card.get('kind') == checkpoints.KIND:
            checkpoint = checkpoints.newest(path)
            checkpoints.check_files(checkpoint)
            directory = checkpoint / checkpoints.TRAINABLE
            leaves = flatten(foundations_lib.stored_tree(directory))
            stored = {path: leaf for path, leaf in leaves.items() if path.startswith(f'{subtree}/')}
            paths = {path: path for path in stored}
            if not stored:
                parts = sorted({path.split('/')[0] for path in leaves})
                raise FoundationError(f'{path} trained {parts}, so it cannot be where {subtree!r} comes from.')
            fingerprint = foundations_lib.fingerprint(foundations_lib.restore(directory, unflatten(dict(stored))))
            if entry := (card.get('foundations') or {}).get(subtree):
                rest = _rest(path, subtree, entry, stored.keys())
        else:
            directory = path / foundations_lib.PARAMS
            leaves = flatten(foundations_lib.verified(path))
            paths = {f'{subtree}/{path}': path for path in leaves}
            stored = {path: leaves[source] for path, source in paths.items()}
            fingerprint = card['fingerprint']
        origins += [Origin(subtree, name, directory, paths, stored, fingerprint), *rest]
    return origins


def _rest(model: pathlib.Path, subtree: str, entry: Mapping[str, Any], trained: Collection[str]) -> list[Origin]:
    """Where that comes from of a part which stayed frozen in a training, whose card has `entry` for it.

    Raises:
        FoundationError: it is another one than it was.
    """
    origins = find({subtree: entry['name']})
    if origins[0].fingerprint['content'] != entry['fingerprint']['content']:
        raise FoundationError(
            f'{model} trained {subtree!r} on {entry["name"]!r} of the content {entry["fingerprint"]["content"][:12]}…; '
            f'now it is {origins[0].fingerprint["content"][:12]}…. Put back the one that it was trained on.'
        )
    left = []
    for origin in origins:
        paths = {path: source for path, source in origin.paths.items() if path not in trained}
        if not all(path.startswith(_HEADS) for path in paths):
            stored = {path: origin.stored[path] for path in paths}
            left.append(dataclasses.replace(origin, paths=paths, stored=stored))
    return left


def described(origins: Iterable[Origin]) -> dict[str, Any]:
    """The entry of a card for each subtree; of a trained model and the rest of the same part the model's."""
    entries: dict[str, Any] = {}
    for origin in origins:
        if origin.subtree not in entries:
            entries[origin.subtree] = origin.describe()
    return entries


def check(origins: Sequence[Origin], trainable: Params, frozen: Params) -> list[str]:
    """Whether the origins give every frozen parameter, with the right shapes.

    Args:
        origins: from `find`.
        trainable, frozen: the system's abstract parameters (see `state.split`).

    Returns:
        Paths that are freshly initialised: trainable, and given by no origin.

    Raises:
        FoundationError: a frozen parameter comes from nowhere, a shape differs, an origin gives nothing that the
            system has, or the system leaves out a part of what an origin has.
    """
    expected = flatten(trainable) | flatten(frozen)
    given = {}
    for origin in origins:
        if not origin.stored.keys() & expected.keys():
            parts = sorted({path.split('/')[0] for path in expected})
            known = f'gives none of its parameters: {parts}.'
            if origin.subtree.split('/')[0] not in parts:
                known = f'is given for a part that the system does not have. It has {parts}.'
            raise FoundationError(f'train.foundations[{origin.subtree!r}]: {origin.name!r} {known}')
        for path, leaf in origin.stored.items():
            if path in given:
                raise FoundationError(f'foundations: {origin.name!r} and {given[path]!r} both give {path}.')
            given[path] = origin.name
            if path in expected and expected[path].shape != leaf.shape:
                raise FoundationError(
                    f'{origin.subtree} = {origin.name!r}: {path} has shape {leaf.shape} there and '
                    f'{expected[path].shape} in the system. Use the model file that the foundation was made with.'
                )
        left = [path for path in origin.stored if path not in expected and not path.startswith(_HEADS)]
        if left:
            raise FoundationError(
                f'{origin.subtree} = {origin.name!r}: {len(left)} of its {len(origin.stored)} parameters have no place '
                f'in the system ({summary(left, 3)}): its configuration has fewer layers or parts. Use the model file '
                'that the foundation was made with.'
            )
    if missing := sorted(flatten(frozen).keys() - given.keys()):
        names = {origin.subtree: origin.name for origin in origins}
        raise FoundationError(
            f'{len(missing)} frozen parameters come from nowhere ({summary(missing)}): foundations = {names}. '
            'Name a foundation for them, or train them (`trainable`).'
        )
    return sorted(flatten(trainable).keys() - given.keys())


def load(origins: Sequence[Origin], wanted: Params) -> Params:
    """Reads the leaves of `wanted` that the origins have, each straight into its type and sharding.

    Quantised leaves are read one by one, so that no more than one of them is there in the type it is stored in.

    Args:
        wanted: abstract leaves by the system's paths; those that no origin has are left out.
    """
    leaves = flatten(wanted)
    loaded = {}
    for origin in origins:
        here = {path: leaves[path] for path in origin.paths if path in leaves}
        quantized = {path: leaf for path, leaf in here.items() if isinstance(leaf, quantization.Quantized)}
        if others := {path: leaf for path, leaf in here.items() if path not in quantized}:
            loaded |= _read(origin, others)
        for path, leaf in quantized.items():
            stored = origin.stored[path]
            whole = jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=leaf.values.sharding)
            shardings = jax.tree.map(lambda part: part.sharding, leaf)
            quantize = jax.jit(quantization.quantize, static_argnames='axes', out_shardings=shardings)
            loaded[path] = quantize(_read(origin, {path: whole})[path], axes=leaf.axes)
    return unflatten(loaded)


def _read(origin: Origin, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Leaves of one origin, by the system's paths."""
    tree = unflatten({origin.paths[path]: leaf for path, leaf in wanted.items()})
    read = flatten(foundations_lib.restore(origin.directory, tree))
    return {path: read[origin.paths[path]] for path in wanted}


def fresh(init: Callable[[jax.Array], Params], rng: jax.Array, wanted: Params) -> Params:
    """Initialises the leaves of `wanted` on their devices, and nothing else: XLA drops what is not asked for.

    Args:
        init: from a key to all parameters, boxed or not.
        rng: the key.
        wanted: `jax.ShapeDtypeStruct`s with shardings.
    """
    leaves = flatten(wanted)
    if not leaves:
        return {}

    def pick(key):
        params = flatten(nn.unbox(init(key)))
        return {path: params[path].astype(leaf.dtype) for path, leaf in leaves.items()}

    shardings = {path: leaf.sharding for path, leaf in leaves.items()}
    return unflatten(jax.jit(pick, out_shardings=shardings)(rng))


def place(abstract: Params, shardings: Params) -> Params:
    """Abstract leaves with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


def cast(abstract: Params, dtype: Any) -> Params:
    """The same abstract leaves, floating-point ones in `dtype`."""

    def one(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if floating else leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(one, abstract)


def hold(frozen: Params, boxed: Params, dtype: Any = None) -> Params:
    """Abstract frozen parameters in the type in which they are held.

    Args:
        frozen: abstract leaves with shardings.
        boxed: all parameters of the system, with the names of their axes.
        dtype: a floating-point type, or int8: kernels and embeddings are `quantization.Quantized` and the rest is
            bfloat16. None: float32 on CPU (where bfloat16 is slow), else bfloat16.

    Raises:
        ValueError: another type.
    """
    if dtype is None:
        dtype = jnp.float32 if jax.local_devices()[0].platform == 'cpu' else jnp.bfloat16
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is not None and jnp.issubdtype(known, jnp.floating) and known.itemsize <= 4:
        return cast(frozen, known)
    if known != jnp.int8:
        raise ValueError(
            f'train.frozen_dtype is {dtype!r}; frozen parameters are held in float32, bfloat16, float16 or int8.'
        )
    boxes = flatten(boxed)
    return unflatten(
        {
            path: quantization.abstract(path, leaf, getattr(boxes[path], 'names', ()))
            for path, leaf in flatten(cast(frozen, jnp.bfloat16)).items()
        }
    )


def summary(paths: Sequence[str], depth: int = 2) -> str:
    """A short text for many paths: `speech_encoder/ctc (2), adapter/layers_0 (14)`."""
    groups = {}
    for path in paths:
        group = '/'.join(path.split('/')[:depth])
        groups[group] = groups.get(group, 0) + 1
    return ', '.join(f'{group} ({count})' for group, count in groups.items())
