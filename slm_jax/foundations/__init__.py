"""Frozen pretrained parts: directories of parameters, a card and a tokenizer.

A foundation is a directory holding `card.json` (name, kind, fingerprint, recipe, data, licences, scores), `params/`
(an Orbax checkpoint) and, where text is read or written, `tokenizer.model` (SentencePiece) or `tokenizer.json` (of the
library `tokenizers`); an imported one has its model file too, `model.gin`. Foundations that stand beside this file are
installed with the package and are known by their names, as are the public ones of `named` once they are imported; any
other is known by its path.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from slm_jax import paths
from slm_jax.foundations import added_tokens, named, s3, tokenizers, verification

CARD = 'card.json'
PARAMS = 'params'
TOKENIZER = 'tokenizer.model'
TOKENIZER_JSON = 'tokenizer.json'
MODEL_FILE = 'model.gin'
_BLOCK_BYTES = 2**26
_ALIGNMENT = 64  # bytes, of what XLA takes without a copy on a CPU

Params = dict[str, Any]


class FoundationError(ValueError):
    """A foundation that cannot be found, is damaged, or is not the one that was asked for."""


def known() -> list[str]:
    """Names of the foundations installed with the package."""
    return sorted(path.parent.name for path in pathlib.Path(__file__).parent.glob(f'*/{CARD}'))


def installed(directory: pathlib.Path) -> bool:
    """Whether a foundation or model belongs to the package: then nothing is written into it."""
    return directory.resolve().parent == pathlib.Path(__file__).resolve().parent


def find(name_or_dir: str | os.PathLike) -> pathlib.Path:
    """Directory of the foundation installed, or imported, under this name, or of the one at this path.

    Raises:
        FoundationError: neither exists.
    """
    name = os.fspath(name_or_dir)
    imported = [named.directory(name)] if name in named.FOUNDATIONS else []
    for path in (pathlib.Path(__file__).parent / name, *imported, paths.path(name)):
        if (path / CARD).is_file():
            return path.absolute()
    if imported:
        raise FoundationError(named.not_imported(name))
    nearest = named.nearest(name)
    remedy = f'Did you mean {nearest!r}?' if nearest else 'Give a name, or the path of a foundation or trained model.'
    raise FoundationError(
        f'No foundation {name!r}: installed are {known()}, `slm-jax import` gets {list(named.FOUNDATIONS)}, and a '
        f'directory would need a {CARD}. {remedy}'
    )


def card(name_or_dir: str | os.PathLike) -> dict[str, Any]:
    """The card of a foundation, as it was saved."""
    path = find(name_or_dir) / CARD
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise FoundationError(
            f'{path} is not JSON ({error}). Restore the file from where the foundation came.'
        ) from error
    if not isinstance(found, dict):
        raise FoundationError(f'{path} holds no JSON object. Restore the file from where the foundation came.')
    return found


def flatten(params: Params) -> dict[str, Any]:
    """Leaves by path, `{'encoder/layers_0/kernel': leaf}`, in the order of the paths."""
    return dict(sorted(flax.traverse_util.flatten_dict(params, sep='/').items()))


def unflatten(leaves: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(leaves, sep='/')


def structure(params: Params) -> str:
    """SHA-256 over path, shape and data type of every leaf; the leaves may be abstract."""
    lines = [f'{path} {tuple(leaf.shape)} {np.dtype(leaf.dtype).name}\n' for path, leaf in flatten(params).items()]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


def fingerprint(params: Params) -> dict[str, Any]:
    """`structure` (see above), `content` (SHA-256 over the bytes of the leaves in order) and `num_params`."""
    content = hashlib.sha256()
    for leaf in flatten(params).values():
        content.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return _fingerprint(params, content.hexdigest())


def _fingerprint(params: Params, content: str) -> dict[str, Any]:
    num_params = sum(math.prod(leaf.shape) for leaf in flatten(params).values())
    return {'structure': structure(params), 'content': content, 'num_params': num_params}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A leaf that is not in memory: `save` reads it piece by piece while it writes.

    Attributes:
        shape: not empty.
        dtype: what `read` gives, or a floating-point type where it is cast.
        read: `read(start, stop)` gives these rows of axis 0.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[int, int], np.ndarray]


def save(
    path: str | os.PathLike,
    params: Params,
    card: dict[str, Any],
    files: Iterable[str | os.PathLike] = (),
    dtype: Any = None,
    content: str | None = None,
) -> dict[str, Any]:
    """Writes a foundation directory at once: it is there whole or not at all. Replaces one that stands there.

    Takes the memory of a few blocks (64 MiB each), besides that of leaves which are in memory already.

    Args:
        path: the directory.
        params: nested dictionary of arrays, without boxes, or of `Blocks`.
        card: what is known of it; `fingerprint`, and `files` with their SHA-256, are added here.
        files: copied under their own names; `vocabulary` looks for `tokenizer.model` and `tokenizer.json`.
        dtype: floating-point leaves are stored in it (bfloat16 halves the size); None keeps each leaf's own.
        content: of the fingerprint that it must have, if that is known.

    Returns:
        The card as written.

    Raises:
        FoundationError: it has another content.
    """
    path = paths.path(path).absolute()
    if paths.is_url(path):  # where nothing can be renamed: without its card, written last, no foundation is there
        (path / CARD).unlink(missing_ok=True)
        paths.remove(path)
        return _fill(path, params, card, files, dtype, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        temporary.chmod(0o755)
        card = _fill(temporary, params, card, files, dtype, content)
        paths.remove(path)
        temporary.rename(path)
    finally:
        paths.remove(temporary)
    return card


def _fill(
    directory: pathlib.Path,
    params: Params,
    card: dict[str, Any],
    files: Iterable[str | os.PathLike],
    dtype: Any,
    content: str | None,
) -> dict[str, Any]:
    card = {**card, 'fingerprint': write_params(directory / PARAMS, params, dtype), 'files': {}}
    if content and card['fingerprint']['content'] != content:
        raise FoundationError(
            f'the content fingerprint of what was read is {card["fingerprint"]["content"]}, and {content} is expected: '
            'these are other weights'
        )
    for file in map(paths.path, files):
        (directory / file.name).write_bytes(file.read_bytes())
        if file.name != MODEL_FILE:  # which a person may edit
            card['files'][file.name] = _sha256(directory / file.name)
    paths.write(directory / CARD, json.dumps(card, indent=2, ensure_ascii=False) + '\n')
    return card


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_params(directory: pathlib.Path, params: Params, dtype: Any) -> dict[str, Any]:
    """Writes an Orbax directory and returns the fingerprint of what it holds; arguments as of `save`.

    Orbax wants all leaves at once, so it gets an empty one for each, and the leaves proper then take their places.
    """
    import orbax.checkpoint as ocp
    import tensorstore

    s3.teach_orbax(directory)
    leaves = flatten(params)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        places = unflatten({name: np.zeros(()) for name in leaves})
        checkpointer.save(directory, args=ocp.args.PyTreeSave(places))
    if not paths.is_url(directory):  # Orbax notes its temporary path there, and `save` renames what is above it.
        (directory / 'commit_success.txt').unlink(missing_ok=True)
    content, stored, written = hashlib.sha256(), {}, 0
    context, transaction = tensorstore.Context(), tensorstore.Transaction(atomic=True)
    for name, leaf in leaves.items():
        floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        to = np.dtype(dtype if dtype is not None and floating else leaf.dtype)
        stored[name] = jax.ShapeDtypeStruct(leaf.shape, to)
        length, *rest = leaf.shape or (1,)
        rows = min(length, max(1, _BLOCK_BYTES // (to.itemsize * math.prod(rest))))
        store = tensorstore.open(
            {
                'driver': 'zarr',
                'kvstore': {'driver': 'ocdbt', 'base': paths.kvstore(directory), 'path': name.replace('/', '.') + '/'},
                'metadata': {'compressor': {'id': 'zstd', 'level': 1}},
                'store_data_equal_to_fill_value': True,  # else Orbax takes zeros for missing data
            },
            create=True,
            delete_existing=True,
            dtype=to,
            shape=leaf.shape,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=(rows, *rest) if leaf.shape else ()),
            context=context,
            transaction=transaction,
        ).result()
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            where = slice(start, stop) if leaf.shape else ()
            block = leaf.read(start, stop) if isinstance(leaf, Blocks) else np.asarray(jax.device_get(leaf))[where]
            # Cast in the order in which it is stored: a mapped file is then read once, from front to back.
            block = np.array(block.astype(to, copy=False), order='C')
            content.update(block.tobytes())
            store[where].write(block).result()
            written += block.nbytes
            if written >= _BLOCK_BYTES:
                transaction.commit_sync()
                transaction, written = tensorstore.Transaction(atomic=True), 0
                store = store.with_transaction(transaction)
    transaction.commit_sync()
    return _fingerprint(unflatten(stored), content.hexdigest())


def abstract(name_or_dir: str | os.PathLike) -> Params:
    """Shape and stored data type of every leaf, `jax.ShapeDtypeStruct`, without reading the leaves.

    Raises:
        FoundationError: the parameters are not those that the card describes.
    """
    path = find(name_or_dir)
    stored = stored_tree(path / PARAMS)
    if structure(stored) != _said(path)['structure']:
        raise FoundationError(
            f'{path / PARAMS}: paths, shapes or types differ from the fingerprint in {path / CARD}. '
            'The directory was changed after it was made: copy it again from where it came.'
        )
    return stored


def _said(path: pathlib.Path) -> dict[str, Any]:
    """The fingerprint in a card."""
    said = card(path).get('fingerprint')
    if not isinstance(said, dict) or not {'structure', 'content', 'num_params'} <= said.keys():
        raise FoundationError(f'{path / CARD} has no fingerprint. Restore the file from where the foundation came.')
    return said


def verified(name_or_dir: str | os.PathLike) -> Params:
    """`abstract`, and that the parameters are those of the card to the last bit; reads what is new or has changed.

    Raises:
        FoundationError: they are not.
    """
    path = find(name_or_dir)
    stored = abstract(path)
    if wrong := verification.differs(path / PARAMS, flatten(stored), _said(path)['content']):
        raise FoundationError(
            f'{path / PARAMS} {wrong}. It was damaged or changed after it was made: copy it again from where it came.'
        )
    return stored


def load(name_or_dir: str | os.PathLike, dtype: Any = None, sharding: Any = None) -> Params:
    """Parameters of a foundation, as stored or cast, read straight into their places.

    Args:
        name_or_dir: see `find`.
        dtype: floating-point leaves are cast to it; None keeps the stored types.
        sharding: one `jax.sharding.Sharding` for all leaves, or a tree of them with the same structure; None puts
            the leaves on the first local device.

    Raises:
        FoundationError: not found, or not what its card says.
    """
    path = find(name_or_dir)
    stored = verified(path)
    if not isinstance(sharding, dict):
        sharding = jax.tree.map(lambda _: sharding, stored)

    def wanted(leaf, leaf_sharding):
        floating = jax.numpy.issubdtype(leaf.dtype, np.floating)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if dtype and floating else leaf.dtype, sharding=leaf_sharding)

    leaves, places = flatten(stored), flatten(sharding)
    return restore(path / PARAMS, unflatten({path: wanted(leaves[path], places[path]) for path in leaves}))


def checkpointer_of(handler: Any, directory: pathlib.Path) -> Any:
    """What reads a directory that is known to be whole: Orbax's own mark of that is lost where it was copied."""
    import orbax.checkpoint as ocp

    s3.teach_orbax(directory)
    return ocp.Checkpointer(handler, temporary_path_class=ocp.path.atomicity.AtomicRenameTemporaryPath)


def stored_tree(directory: pathlib.Path) -> Params:
    """Shapes and types in an Orbax directory of parameters.

    Raises:
        FoundationError: it is damaged, or not there.
    """
    import orbax.checkpoint as ocp

    try:
        with checkpointer_of(ocp.PyTreeCheckpointHandler(), directory) as checkpointer:
            tree = checkpointer.metadata(directory).item_metadata.tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:  # Orbax gives None, or stumbles
        raise FoundationError(
            f'{directory}: the list of its parameters is missing or damaged. Copy the directory again from where it '
            'came.'
        ) from error


def restore(directory: pathlib.Path, wanted: Params) -> Params:
    """Reads the leaves named by `wanted` (`jax.ShapeDtypeStruct`: type and sharding) from an Orbax directory.

    Leaves that are stored and not wanted are left out. Without a sharding: on the first local device.
    """
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves = flatten(wanted)
    if all((leaf.sharding or device).num_devices == 1 for leaf in leaves.values()) and not paths.is_url(directory):
        read = _read(directory, leaves)
        return unflatten({name: jax.device_put(read[name], leaf.sharding or device) for name, leaf in leaves.items()})
    arguments = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding or device, global_shape=leaf.shape, dtype=leaf.dtype),
        wanted,
    )
    with checkpointer_of(ocp.PyTreeCheckpointHandler(), directory) as checkpointer:
        return checkpointer.restore(
            directory, args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
        )


def _read(directory: pathlib.Path, leaves: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """Leaves of an Orbax directory, read and cast straight into memory that a CPU device takes over as it is.

    Orbax would read, cast and copy each: of a float32 language model three times the memory, and the time to get it.
    """
    import tensorstore

    context, result, reading = tensorstore.Context(), {}, []
    for name, leaf in leaves.items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        result[name] = memory[start : start + size].view(leaf.dtype).reshape(leaf.shape)
        stored = tensorstore.cast(verification.opened(directory, name, context), leaf.dtype)
        reading.append(tensorstore.array(result[name]).write(stored))
    for each in reading:
        each.result()
    return result


def vocabulary(name_or_dir: str | os.PathLike) -> Any:
    """The foundation's tokenizer: SentencePiece, tokenizer.json, or bytes where the card says so (see `tokenizers`).

    `extra_ids` of the card are SentencePiece's sentinels, counted from the end (0 if unsaid); `added_tokens` come on
    top. `swapped` are ids of tokenizer.json that have changed places; `languages` are the codes of languages, by which
    a text begins that mBART reads or writes, and their ids.
    """
    path = find(name_or_dir)
    said = card(path)
    if said.get('vocabulary') == 'bytes':
        return tokenizers.Bytes(said.get('extra_ids', 0))
    file = next((path / name for name in (TOKENIZER, TOKENIZER_JSON) if (path / name).is_file()), None)
    if file is None:
        raise FoundationError(
            f'{path} has no {TOKENIZER} and no {TOKENIZER_JSON}: this foundation neither reads nor writes text.'
        )
    expected = said.get('files', {}).get(file.name)
    if expected and (sha256 := _sha256(file)) != expected:
        raise FoundationError(
            f'{file} has the SHA-256 {sha256}, by its card it is {expected}. It was damaged or changed after it was '
            'made: copy it again from where it came.'
        )
    languages = said.get('languages', {})
    if file.name == TOKENIZER_JSON:
        return tokenizers.HuggingFace(file.read_bytes(), said.get('swapped', ()), languages)
    found = tokenizers.SentencePiece(file, said.get('extra_ids', 0), languages)
    return added_tokens.AddedTokens(found, said['added_tokens']) if said.get('added_tokens') else found
