"""T5X's own checkpoints: a directory `checkpoint_<step>` of zarr arrays, with an index, `checkpoint`, in msgpack.

The index names each array of the optimizer's `target` (the parameters) and `state` (left out here), and may hold
small ones itself. Both of T5X's layouts are those of `slm_jax.llms.t5`, so no array is renamed or changed. Shapes tell
all sizes, the heads by the relative position biases; what they cannot tell stands in the `config.gin` that T5X writes
into its model directory, one above the checkpoint.
"""

import itertools
import math
import pathlib
import re
from typing import Any

import flax.serialization
import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from slm_jax import foundations
from slm_jax.importers import CheckpointError, Imported, finite
from slm_jax.importers import t5 as importers_t5
from slm_jax.importers.hugging_face.directory import Directory
from slm_jax.llms import t5

_INDEX = 'checkpoint'
_CONFIG = 'config.gin'
_STEP = re.compile(r'checkpoint_(\d+)')
_ACTIVATIONS = ('relu', 'gelu', 'silu', 'swish', 'linear')
# Fields of T5X's T5Config that no number of ours depends on.
_WITHOUT_EFFECT = {'dtype', 'remat_policy', 'scan_layers'}
_EXAMPLE = (
    "network.T5Config.mlp_activations = ('gelu', 'linear')  # T5 1.1, FLAN-T5, mT5, UMT5, ByT5; T5 1.0 has ('relu',)"
)


def is_checkpoint(source: str) -> bool:
    """Whether `source` is a T5X checkpoint, or a model directory with some, and no Hugging Face directory."""
    path = pathlib.Path(source).expanduser()
    return not (path / 'config.json').exists() and ((path / _INDEX).is_file() or bool(_steps(path)))


def read(source: str) -> Directory:
    """The checkpoint at `source`, the newest one of a model directory, with what `config.gin` says of its T5Config.

    Raises:
        CheckpointError: `config.gin` is damaged.
    """
    path = pathlib.Path(source).expanduser()
    if not (path / _INDEX).is_file():
        path = _steps(path)[-1]
    return Directory(source=source, path=path, revision=path.name, licence=None, config=_gin(path))


def convert(directory: Directory, out: pathlib.Path) -> Imported:
    """Makes a T5 of a T5X checkpoint.

    Args:
        directory: from `read`.
        out: where it will stand; the model file says so.

    Raises:
        CheckpointError: an array that is missing, damaged, of another shape or of no use, a field of `config.gin` that
            cannot be honoured, or no tokenizer; names it.
    """
    arrays = _arrays(directory.path)
    cfg = config(directory, arrays)
    card, tokenizer = importers_t5.vocabulary(
        _beside(directory.path, *importers_t5.TOKENIZERS).parent, directory.config['vocabulary'], cfg.vocab_size
    )
    expected = importers_t5.shapes(cfg)
    if unused := sorted(arrays.keys() - expected.keys()):
        raise CheckpointError(
            f'{directory.path}: {len(unused)} arrays have no place in the T5 of these shapes, the first is {unused[0]}.'
        )
    leaves = {}
    for path, leaf in expected.items():
        array = arrays.get(path)
        if array is None or array.shape != leaf.shape:
            found = 'is missing' if array is None else f'is {list(array.shape)}'
            raise CheckpointError(f'{directory.path}: array {path} {found}; by the others it is {list(leaf.shape)}.')
        leaves[path] = array
    params = foundations.unflatten(leaves)
    return Imported('llm', params, importers_t5.model_file(cfg, params, directory.source, out), card, tokenizer)


def config(directory: Directory, arrays: dict[str, foundations.Blocks]) -> t5.T5Config:
    """Sizes by the shapes, the rest as `config.gin` says.

    Raises:
        CheckpointError: an array that the sizes are taken from is missing, `config.gin` says otherwise or nothing
            of what shapes cannot tell, or has a field that is unknown.
    """

    def shape(path: str, rank: int) -> tuple[int, ...]:
        if path not in arrays or len(arrays[path].shape) != rank:
            raise CheckpointError(f'{directory.path}: array {path} of {rank} axes is missing, so this is no T5 of T5X.')
        return arrays[path].shape

    vocab_size, emb_dim = shape('token_embedder/embedding', 2)
    scanned = 'encoder/encoder/mlp/wo/kernel' in arrays
    if scanned:
        num_heads, _, head_dim, _ = shape('encoder/encoder/attention/out/kernel', 4)
        mlp_dim, encoder_layers, _ = shape('encoder/encoder/mlp/wo/kernel', 3)
        decoder_layers = shape('decoder/decoder/mlp/wo/kernel', 3)[1]
    else:
        num_heads = shape('encoder/relpos_bias/rel_embedding', 2)[0]
        head_dim = shape('encoder/layers_0/attention/out/kernel', 2)[0] // num_heads
        mlp_dim = shape('encoder/layers_0/mlp/wo/kernel', 2)[0]
        encoder_layers, decoder_layers = (
            len({path.split('/')[1] for path in arrays if path.startswith(f'{stack}/layers_')})
            for stack in ('encoder', 'decoder')
        )
    said = directory.config['T5Config']
    told: dict[str, Any] = {
        'vocab_size': vocab_size, 'emb_dim': emb_dim, 'num_heads': num_heads, 'head_dim': head_dim, 'mlp_dim': mlp_dim,
        'num_encoder_layers': encoder_layers, 'num_decoder_layers': decoder_layers, 'param_scan_axis': 1,
        'logits_via_embedding': 'decoder/logits_dense/kernel' not in arrays,
    }  # fmt: skip
    for name, value in told.items():
        if said.get(name, value) != value:
            raise CheckpointError(f'{directory.path}: by its arrays {name} is {value}, {_CONFIG} says {said[name]!r}.')
    free = {'mlp_activations', 'dropout_rate', 'float32_attention_logits'}
    if unknown := sorted(said.keys() - told.keys() - free - _WITHOUT_EFFECT):
        raise CheckpointError(
            f'{directory.path}: {_CONFIG} has T5Config.{unknown[0]} = {said[unknown[0]]!r}, which no T5 here has. '
            'Whether numbers depend on it nobody here knows; if they do not, delete it there.'
        )
    if 'mlp_activations' not in said:
        raise CheckpointError(
            f'{directory.path}: no array tells the activations, and there is no {_CONFIG} beside it or one above that '
            f'does. Write one with the line\n{_EXAMPLE}'
        )
    activations, dropout_rate = said['mlp_activations'], said.get('dropout_rate', 0.1)
    if not isinstance(activations, (list, tuple)) or any(name not in _ACTIVATIONS for name in activations):
        raise CheckpointError(
            f'{directory.path}: by {_CONFIG} mlp_activations is {activations!r}; there are {", ".join(_ACTIVATIONS)}.'
        )
    if not isinstance(dropout_rate, (int, float)) or not 0 <= dropout_rate < 1:
        raise CheckpointError(f'{directory.path}: by {_CONFIG} dropout_rate is {dropout_rate!r}; it must be in [0, 1).')
    return t5.T5Config(
        **{name: value for name, value in told.items() if name != 'param_scan_axis'},
        mlp_activations=tuple(activations),
        dropout_rate=float(dropout_rate),
        scan_layers=scanned,
        float32_attention_logits=bool(said.get('float32_attention_logits', False)),
    )


def _steps(path: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in a model directory, the newest last."""
    steps = {int(match[1]): found for found in path.glob('*') if (match := _STEP.fullmatch(found.name))}
    return [found for _, found in sorted(steps.items()) if (found / _INDEX).is_file()]


def _beside(path: pathlib.Path, *names: str) -> pathlib.Path:
    """The first of these files in a checkpoint or in its model directory; where it should be, if there is none."""
    folders = [path, path.parent] if _STEP.fullmatch(path.name) else [path]
    files = [folder / name for folder in folders for name in names]
    return next((file for file in files if file.is_file()), files[0])


def _gin(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What `config.gin` binds of `T5Config`, and of the `vocabulary`; parsed, never run."""
    from gin import config_parser

    class Names(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):
            return '@' + scoped_configurable_name

        def macro(self, macro_name):
            return '%' + macro_name

    file = _beside(path, _CONFIG)
    try:
        text = file.read_text(encoding='utf-8') if file.is_file() else ''
        statements = list(config_parser.ConfigParser(text, Names()))
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(f'{file} cannot be read as gin: {error}.') from error
    bound = [entry for entry in statements if isinstance(entry, config_parser.BindingStatement)]
    macros = {f'%{entry.selector}': entry.value for entry in bound if not entry.arg_name}

    def fields(name: str) -> dict[str, Any]:
        return {
            entry.arg_name: macros.get(entry.value, entry.value) if isinstance(entry.value, str) else entry.value
            for entry in bound
            if entry.selector.split('.')[-1] == name
        }

    if str(macros.get('%VOCABULARY')).split('.')[-1] == 'ByteVocabulary':
        vocabulary = {'tokenizer_class': importers_t5.BYTES, 'extra_ids': fields('ByteVocabulary').get('extra_ids', 0)}
    else:
        vocabulary = fields('SentencePieceVocabulary')
    return {'T5Config': fields('T5Config'), 'vocabulary': vocabulary}


def _arrays(path: pathlib.Path) -> dict[str, foundations.Blocks]:
    """The parameters by path, opened and not read."""
    file = path / _INDEX
    try:
        target = flax.serialization.msgpack_restore(file.read_bytes())['optimizer']['target']
        leaves = flax.traverse_util.flatten_dict(target, is_leaf=lambda _, node: 'kvstore' in node, sep='/')
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f'{file} is damaged, or no index of a T5X checkpoint: {error!r}. Fetch it again.'
        ) from error
    arrays = {}
    for name, leaf in leaves.items():
        arrays[name] = _stored(path, name, leaf) if isinstance(leaf, dict) else _inline(file, name, leaf)
        if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
            raise CheckpointError(f'{file}: array {name} is {arrays[name].dtype}, of no floating-point type.')
    return arrays


def _inline(file: pathlib.Path, name: str, leaf: Any) -> foundations.Blocks:
    """An array that the index itself holds."""
    if not isinstance(leaf, np.ndarray) or not leaf.size or not leaf.shape:
        raise CheckpointError(f'{file}: {name} is no array with axes and elements but a {type(leaf).__name__}.')
    return foundations.Blocks(leaf.shape, leaf.dtype, lambda start, stop: finite(leaf[start:stop], f'{file}: {name}'))


def _stored(path: pathlib.Path, name: str, spec: dict[str, Any]) -> foundations.Blocks:
    """An array in a directory of its own, read whole when its first rows are asked for, and let go with its last.

    T5X cuts arrays along their longest axis, so a few rows may lie in all chunks.
    """
    import tensorstore

    try:
        folder = str(spec['kvstore'].get('path') or spec['path']).rstrip('/')
        shape = tuple(spec['metadata']['shape'])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{path / _INDEX}: what it says of {name} means nothing ({error!r}).') from error
    place = path / folder
    if pathlib.Path(folder).name != folder or not (place / '.zarray').is_file():
        raise CheckpointError(f'{path / _INDEX} names {folder!r}, which holds {name} and is not there. Fetch it again.')
    try:
        store = tensorstore.open(
            # Else a chunk that is not there would be zeros.
            {'driver': 'zarr', 'kvstore': f'file://{place}/', 'fill_missing_data_reads': False}
        ).result()
    except (ValueError, OSError) as error:
        raise CheckpointError(f'{place} is damaged ({error}). Fetch it again.') from error
    chunk = tuple(int(part or 0) for part in store.chunk_layout.read_chunk.shape or ())
    if (
        store.shape != shape
        or not math.prod(shape)
        or not shape
        or any(part > whole for part, whole in zip(chunk, shape, strict=True))
    ):
        raise CheckpointError(f'{place}: {name} is {list(shape)} in the index, {list(store.shape)} in .zarray.')
    dtype, held = store.dtype.numpy_dtype, []

    def read(start: int, stop: int) -> np.ndarray:
        if start == 0:
            held[:] = [np.empty(shape, dtype)]
            for corner in itertools.product(*(range(0, size, step) for size, step in zip(shape, chunk, strict=True))):
                where = tuple(
                    slice(at, min(at + step, size)) for at, step, size in zip(corner, chunk, shape, strict=True)
                )
                try:
                    held[0][where] = store[where].read().result()
                except (ValueError, OSError) as error:
                    raise CheckpointError(
                        f'{place}: {name} is truncated, damaged or incomplete ({error}). Fetch it again.'
                    ) from error
        block = finite(held[0][start:stop], f'{place}: {name}')
        if stop == shape[0]:
            held.clear()
        return block

    return foundations.Blocks(shape, dtype, read)
