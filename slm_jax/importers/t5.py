"""What a foundation of a T5 needs whatever layout it was read from: its shapes, its model file and its vocabulary."""

import dataclasses
import math
import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax import foundations
from slm_jax.importers import CheckpointError, chat
from slm_jax.llms import t5

TOKENIZERS = ('spiece.model', 'sentencepiece.model', 'tokenizer.model')
BYTES = 'ByT5Tokenizer'
SENTINEL = re.compile(r'<extra_id_\d+>')
_FREQUENT = 8192  # rows; a vocabulary begins with its most frequent pieces
_SIZES = {'vocab_size', 'num_encoder_layers', 'num_decoder_layers'}
# T5X's names for what is read elsewhere too: dropout, and the sizes that an adapter of `runs/slm_imported.gin` shares.
_MACROS = {
    'emb_dim': 'EMBED_DIM', 'num_heads': 'NUM_HEADS', 'head_dim': 'HEAD_DIM', 'mlp_dim': 'MLP_DIM',
    'dropout_rate': 'DROPOUT_RATE',
}  # fmt: skip
_GIN = """\
# {source}: {parameters:,} parameters, as `slm-jax import` found them. The tasks' text is encoded with its vocabulary.
from __gin__ import dynamic_registration
from slm_jax.data import vocabularies
from slm_jax.llms import t5

LLM = {out!r}
LLM_MODULE = @t5.T5()
{macros}
# Root mean square of the embeddings of its most frequent pieces: where an adapter's output starts.
EMBED_SCALE = {scale:.4g}

t5.T5Config:
{config}
t5.T5.config = @t5.T5Config()
vocabularies.names.llm = %LLM
"""


def shapes(cfg: t5.T5Config) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of `cfg` by path, abstract."""

    def init():
        tokens = jnp.zeros((1, 1), jnp.int32)
        return t5.T5(cfg).init(jax.random.key(0), tokens, tokens, tokens)['params']

    return foundations.flatten(nn.unbox(jax.eval_shape(init)))


def model_file(cfg: t5.T5Config, params: dict[str, Any], source: str, out: pathlib.Path) -> str:
    """Text of the model file of a T5 that will stand at `out`."""
    fields = [
        f'  {field.name} = ' + (f'%{_MACROS[field.name]}' if field.name in _MACROS else repr(getattr(cfg, field.name)))
        for field in dataclasses.fields(cfg)
        if field.name in _MACROS.keys() | _SIZES or getattr(cfg, field.name) != field.default
    ]
    embedding = params['token_embedder']['embedding']
    frequent = np.asarray(embedding.read(0, min(embedding.shape[0], _FREQUENT)), np.float32)
    parameters = sum(math.prod(leaf.shape) for leaf in foundations.flatten(params).values())
    macros = [f'{macro} = {getattr(cfg, name)!r}' for name, macro in _MACROS.items()]
    return _GIN.format(
        source=source,
        parameters=parameters,
        out=str(out),
        macros='\n'.join(macros),
        scale=np.sqrt(np.mean(np.square(frequent))),
        config='\n'.join(fields),
    )


def vocabulary(
    directory: pathlib.Path,
    settings: dict[str, Any],
    vocab_size: int,
    added: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
) -> tuple[dict[str, Any], tuple[str, bytes] | None]:
    """What a card says of the vocabulary, and name and content of its file in a foundation (None for bytes).

    The model may have more rows than the vocabulary has ids (T5: 32,128 against 32,000 pieces and 100 sentinels).

    Args:
        directory: where the file is: SentencePiece's, or else tokenizer.json.
        settings: as in a `tokenizer_config.json`; a `tokenizer_class` of `BYTES` needs no file.
        vocab_size: rows of the embedding.
        added: tokens that the file does not have, from their text to `id` (None where nothing says it), `file`,
            `normalized` and `single_word`. A foundation has those that can be encoded exactly.

    Raises:
        CheckpointError: no tokenizer, one that does not belong to this model, or an added token that cannot be had.
    """
    if type(settings.get('extra_ids', 0)) is not int or settings.get('extra_ids', 0) < 0:
        raise CheckpointError(
            f'{directory}: extra_ids of the tokenizer is {settings["extra_ids"]!r}; it must be a number, not below 0.'
        )
    if settings.get('tokenizer_class') == BYTES:
        extra_ids, pieces, file = settings.get('extra_ids', 125), 3 + 256, None
        card = {'vocabulary': 'bytes', 'extra_ids': extra_ids}
        if new := sorted(added.keys() - {'<pad>', '</s>', '<unk>'}):
            raise CheckpointError(
                f'{added[new[0]]["file"]}: the token {new[0]!r} was added to bytes, which is not supported. Train '
                'without it, and delete it there.'
            )
    else:
        files = (directory / name for name in (*TOKENIZERS, foundations.TOKENIZER_JSON))
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise CheckpointError(
                f'{directory} has no tokenizer: none of {", ".join(TOKENIZERS)} and {foundations.TOKENIZER_JSON} is '
                "there. Copy the model's to it."
            )
        if file.name == foundations.TOKENIZER_JSON:
            return {}, _tokenizer_json(file, settings, vocab_size, added)
        model, extra_ids = _sentencepiece(file, settings)
        pieces = model.get_piece_size()
        card = {'extra_ids': extra_ids}
        if tokens := _added(model, pieces + extra_ids, vocab_size, added):
            card['added_tokens'] = tokens
    if pieces + extra_ids > vocab_size:
        raise CheckpointError(
            f'{file or directory}: {pieces} pieces and {extra_ids} sentinels are more than the vocab_size of the '
            f'model, {vocab_size}. This tokenizer is of another model.'
        )
    return card, (foundations.TOKENIZER, file.read_bytes()) if file else None


def _tokenizer_json(
    file: pathlib.Path, settings: Mapping[str, Any], vocab_size: int, added: Mapping[str, Mapping[str, Any]]
) -> tuple[str, bytes]:
    """A `tokenizer.json`, which knows its sentinels and added tokens by itself."""
    content = file.read_bytes()
    found = chat.open_tokenizer(file, content)
    for number, key, usual in ((0, 'pad_token', '<pad>'), (1, 'eos_token', '</s>')):
        expected = settings.get(key) or usual
        expected = expected.get('content') if isinstance(expected, dict) else expected
        if (token := found.tokenizer.id_to_token(number)) != expected:
            raise CheckpointError(f'{file}: the id {number} is of {token!r}; in a T5 it is of the {key}, {expected!r}.')
    if found.vocab_size > vocab_size:
        raise CheckpointError(
            f'{file}: it has {found.vocab_size} ids, the model {vocab_size} embeddings. This tokenizer is of another '
            'model.'
        )
    for token, said in added.items():
        if (own := found.tokenizer.token_to_id(token)) is None or said['id'] not in (None, own):
            raise CheckpointError(
                f'{said["file"]}: the added token {token!r} has the id {said["id"]}, and {own} in {file.name}. Keep '
                'the file that the model was trained with.'
            )
    return file.name, content


def _added(model: Any, size: int, vocab_size: int, added: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The added tokens as `foundations.vocabulary` wants them, the first with the id `size`."""
    tokens = []
    for content, said in sorted(added.items(), key=lambda entry: -1 if entry[1]['id'] is None else entry[1]['id']):
        own = model.piece_to_id(content)
        if own in (model.pad_id(), model.eos_id()) or content == model.id_to_piece(model.unk_id()):
            continue
        expected = size + len(tokens) if own == model.unk_id() else own
        wrong = None
        if said['id'] is None:
            wrong = 'has no id'
        elif said['id'] != expected:
            wrong = f'has the id {said["id"]}; after {size} pieces and sentinels it would be {expected}'
        elif said['id'] >= vocab_size:
            wrong = f'has the id {said["id"]}, and the model {vocab_size} embeddings'
        elif said['single_word'] or not content or (said['normalized'] and content != content.strip()):
            wrong = 'is found by rules of its own (single_word, or normalized with space around it)'
        if wrong:
            raise CheckpointError(
                f'{said["file"]}: the added token {content!r} {wrong}, so texts with it cannot be encoded as the model '
                'knows them. If it has never been trained with it, delete it there.'
            )
        tokens.append({'content': content, 'id': said['id'], 'normalized': said['normalized']})
    return tokens


def _sentencepiece(file: pathlib.Path, settings: dict[str, Any]) -> tuple[Any, int]:
    """A SentencePiece model, and the number of sentinels that come after its pieces."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f'{file} is no SentencePiece model: {error}.') from error
    pieces, special = model.get_piece_size(), (model.pad_id(), model.eos_id(), model.unk_id())
    if special != (0, 1, 2):
        raise CheckpointError(f'{file}: padding, end and unknown are {special}; in a T5 they are (0, 1, 2).')
    if any(model.piece_to_id(piece) != 2 for piece in ('<extra_id_0>', '▁<extra_id_0>')):
        return model, 0  # mT5's are pieces like others
    ids = {
        entry['content']: int(number)
        for number, entry in settings.get('added_tokens_decoder', {}).items()
        if SENTINEL.search(entry['content'])
    }
    named = [token for token in settings.get('additional_special_tokens') or () if SENTINEL.search(str(token))]
    extra_ids = settings.get('extra_ids', len(ids) or len(named) or 100)
    if ids and ids.get('<extra_id_0>') != pieces + extra_ids - 1:
        raise CheckpointError(
            f'{file}: <extra_id_0> has the id {ids.get("<extra_id_0>")} in tokenizer_config.json; with {pieces} pieces '
            f'and {extra_ids} sentinels, counted from the end, it would have {pieces + extra_ids - 1}.'
        )
    return model, extra_ids
