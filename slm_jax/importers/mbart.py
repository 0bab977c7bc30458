"""What a foundation of an mBART-50 needs whatever it was read from: its shapes, its model file and its vocabulary.

The reference has 0 for the token that begins, 1 for padding and 2 for the end. Here 0 is padding and 1 the end, so rows
of the embedding change places (`SWAPPED`), and so do the pieces of the SentencePiece file, to which the codes of the
languages and the mask are added: as control pieces, which no text has and no text shows.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from slm_jax import foundations, llms
from slm_jax.foundations import tokenizers
from slm_jax.importers import CheckpointError, chat
from slm_jax.llms import mbart

TOKENIZERS = ('sentencepiece.bpe.model',)
SWAPPED = ((0, 1), (1, 2))
CODES = tuple(
    """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX
    ro_RO ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN
    pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
    """.split()
)
MASK, MEAN = '<mask>', 'mean'
_FIRST = ('<s>', '<pad>', '</s>', '<unk>')  # in the order of the reference
_PIECES = ('<unk>', '<s>', '</s>')  # with which its SentencePiece file begins
_CODE = re.compile('[a-z]{2,3}_[A-Z]{2}')
_FREQUENT = 8192  # rows; a vocabulary begins with its most frequent pieces
_SIZES = {
    'vocab_size', 'emb_dim', 'num_heads', 'num_encoder_layers', 'num_decoder_layers', 'mlp_dim', 'max_positions',
}  # fmt: skip
# Macros that an adapter of `runs/slm_imported.gin` shares.
_MACROS = {'emb_dim': 'EMBED_DIM', 'num_heads': 'NUM_HEADS', 'mlp_dim': 'MLP_DIM', 'dropout_rate': 'DROPOUT_RATE'}
_GIN = """\
# {source}: {parameters:,} parameters, as `slm-jax import` found them. The tasks' text is encoded with its vocabulary,
# and begins with the code of its language.
from __gin__ import dynamic_registration
from slm_jax.data import prompts
from slm_jax.data import vocabularies
from slm_jax.llms import mbart

LLM = {out!r}
LLM_MODULE = @mbart.MBart()
{macros}
HEAD_DIM = {head_dim}
# Root mean square of the embeddings of its most frequent pieces, as they stand in a prompt: where an adapter's output
# starts.
EMBED_SCALE = {scale:.4g}

mbart.MBartConfig:
{config}
mbart.MBart.config = @mbart.MBartConfig()
vocabularies.names.llm = %LLM
# It was never told in words what to do: its encoder reads what is to be translated, and nothing else.
prompts.Prompt.template = '{{speech}}'
"""


@dataclasses.dataclass(frozen=True)
class Text:
    """What a foundation gets.

    Attributes:
        card: `swapped`, `languages` (the ids of their codes), and `added_languages` (whose row each began as).
        file: name and content of the tokenizer's.
        rows: how many embeddings the model has from now on.
        grown: rows of the checkpoint whose mean each new row is, by its number.
    """

    card: dict[str, Any]
    file: tuple[str, bytes]
    rows: int
    grown: dict[int, tuple[int, ...]]


def shapes(cfg: mbart.MBartConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of `cfg` by path, abstract."""
    init = functools.partial(llms.initial_params, mbart.MBart(cfg))
    return foundations.flatten(nn.unbox(jax.eval_shape(init, jax.random.key(0))))


def model_file(cfg: mbart.MBartConfig, params: dict[str, Any], source: str, out: pathlib.Path) -> str:
    """Text of the model file of an mBART that will stand at `out`."""
    fields = [
        f'  {field.name} = ' + (f'%{_MACROS[field.name]}' if field.name in _MACROS else repr(getattr(cfg, field.name)))
        for field in dataclasses.fields(cfg)
        if field.name in _MACROS.keys() | _SIZES or getattr(cfg, field.name) != field.default
    ]
    embedding = params['token_embedder']['embedding']
    frequent = np.asarray(embedding.read(0, min(embedding.shape[0], _FREQUENT)), np.float32)
    return _GIN.format(
        source=source,
        parameters=sum(math.prod(leaf.shape) for leaf in foundations.flatten(params).values()),
        out=str(out),
        macros='\n'.join(f'{macro} = {getattr(cfg, name)!r}' for name, macro in _MACROS.items()),
        head_dim=cfg.head_dim,
        scale=np.sqrt(np.mean(np.square(frequent)) * (cfg.emb_dim if cfg.scale_embedding else 1)),
        config='\n'.join(fields),
    )


def vocabulary(directory: pathlib.Path, stated: Mapping[str, int | None], rows: int, added: Mapping[str, str]) -> Text:
    """Reads a tokenizer: SentencePiece's file, or else tokenizer.json.

    Args:
        directory: where the file is.
        stated: tokens that other files name, with the ids that these give them, if any.
        rows: embeddings of the model.
        added: codes of languages that the model gets, and the code whose row each begins as, or `MEAN` of all.

    Raises:
        CheckpointError: no tokenizer, one that does not belong to this model, or a language that cannot be added.
    """
    file = next((path for name in TOKENIZERS if (path := directory / name).is_file()), None)
    if file is not None:
        name, first = foundations.TOKENIZER, (*_FIRST, *_pieces(file))
        tokens = {code: len(first) + place for place, code in enumerate((*CODES, MASK))}
        extra = {token: number for token, number in stated.items() if token not in tokens and token not in _FIRST}
        for token in sorted(extra, key=lambda token: extra[token] or 0):
            tokens[token] = len(first) + len(tokens)
            if not _CODE.fullmatch(token) or extra[token] is None:
                raise CheckpointError(
                    f'{directory}: the added token {token!r} is no code of a language with an id, and a SentencePiece '
                    f'file cannot have it. Delete {file.name} to use {foundations.TOKENIZER_JSON}, or the token.'
                )
        size = len(first) + len(tokens)
    elif (file := directory / foundations.TOKENIZER_JSON).is_file():
        name, (tokens, size) = foundations.TOKENIZER_JSON, _of_json(file)
    else:
        raise CheckpointError(
            f'{directory} has no tokenizer: neither {", ".join(TOKENIZERS)} nor {foundations.TOKENIZER_JSON} is there. '
            "Copy the model's to it."
        )
    for token, number in stated.items():
        if token in tokens and number not in (None, tokens[token]):
            raise CheckpointError(
                f'{directory}: the token {token!r} has the id {number} in tokenizer_config.json or added_tokens.json, '
                f'and {tokens[token]} by {file.name}. Keep the file that the model was trained with.'
            )
    if size > rows:
        raise CheckpointError(
            f'{file}: it has {size} ids with the codes of the languages, the model {rows} embeddings. This tokenizer '
            'is of another model.'
        )
    languages = {token: number for token, number in tokens.items() if _CODE.fullmatch(token)}
    grown = {}
    for place, (code, begun_as) in enumerate(added.items()):
        _check_added(code, begun_as, languages)
        grown[size + place] = tuple(languages.values()) if begun_as == MEAN else (languages[begun_as],)
    tokens |= {code: size + place for place, code in enumerate(added)}
    content = file.read_bytes()
    content = swapped(content, tokens) if name == foundations.TOKENIZER else _extended(content, tokens, added)
    card: dict[str, Any] = {'swapped': [list(pair) for pair in SWAPPED]}
    card['languages'] = {token: tokens[token] for token in (*languages, *added)}
    if added:
        card['added_languages'] = dict(added)
    return Text(card, (name, content), max(rows, size + len(added)), grown)


def _check_added(code: str, begun_as: str, languages: Mapping[str, int]) -> None:
    if code in languages:
        raise CheckpointError(f'--language {code}={begun_as}: the model has {code} already.')
    if not _CODE.fullmatch(code):
        raise CheckpointError(f'--language {code}={begun_as}: {code!r} is no code such as ca_ES.')
    if begun_as != MEAN and begun_as not in languages:
        raise CheckpointError(
            f'--language {code}={begun_as}: the model has no {begun_as!r}; its row can begin as the {MEAN} of all, or '
            f'as one of {", ".join(languages)}.'
        )


def _proto(content: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    return schema.ModelProto.FromString(content)


def _pieces(file: pathlib.Path) -> list[str]:
    """The pieces of a SentencePiece file after those that mBART has in other places."""
    from google.protobuf.message import DecodeError

    try:
        pieces = [piece.piece for piece in _proto(file.read_bytes()).pieces]
    except DecodeError as error:
        raise CheckpointError(f'{file} is no SentencePiece model: {error}.') from error
    if tuple(pieces[: len(_PIECES)]) != _PIECES:
        raise CheckpointError(f'{file}: it begins with {pieces[:3]}; that of an mBART begins with {[*_PIECES]}.')
    return pieces[len(_PIECES) :]


def with_tokens(content: bytes, tokens: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    """A SentencePiece file of the reference with ids that are ours and `tokens` after its pieces, and their ids."""
    ids = {token: len(_proto(content).pieces) + 1 + place for place, token in enumerate(tokens)}
    return swapped(content, ids), ids


def swapped(content: bytes, tokens: Mapping[str, int]) -> bytes:
    """A SentencePiece file of the reference with ids that are ours and `tokens` after its pieces."""
    model = _proto(content)
    unknown, begin, end, *pieces = model.pieces
    model_piece = type(unknown)
    first = [model_piece(piece='<pad>', score=0.0, type=model_piece.CONTROL), end, begin, unknown]
    last = [model_piece(piece=token, score=0.0, type=model_piece.CONTROL) for token in tokens]
    ordered = [model_piece.FromString(piece.SerializeToString()) for piece in (*first, *pieces, *last)]
    del model.pieces[:]
    model.pieces.extend(ordered)
    spec = model.trainer_spec
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = range(4)
    return model.SerializeToString()


def reference_file(content: bytes, tokens: int) -> bytes:
    """The inverse of `swapped`: the SentencePiece file of the reference, without its last `tokens` pieces."""
    model = _proto(content)
    _, end, begin, unknown, *pieces = model.pieces
    kept = [unknown, begin, end, *pieces[: len(pieces) - tokens]]
    ordered = [type(unknown).FromString(piece.SerializeToString()) for piece in kept]
    del model.pieces[:]
    model.pieces.extend(ordered)
    for field in ('unk_id', 'bos_id', 'eos_id', 'pad_id'):  # 0, 1, 2 and -1, the defaults
        model.trainer_spec.ClearField(field)
    return model.SerializeToString()


def _of_json(file: pathlib.Path) -> tuple[dict[str, int], int]:
    """The special tokens of a `tokenizer.json`, and how many ids it has."""
    content = file.read_bytes()
    found = chat.open_tokenizer(file, content)
    for number, token in enumerate(_FIRST):
        if (own := found.tokenizer.id_to_token(number)) != token:
            raise CheckpointError(f'{file}: the id {number} is of {own!r}; in an mBART it is of {token!r}.')
    tokens = {token['content']: token['id'] for token in json.loads(content).get('added_tokens') or ()}
    if not any(map(_CODE.fullmatch, tokens)):
        raise CheckpointError(f'{file}: none of its added tokens is the code of a language, such as en_XX.')
    return tokens, found.vocab_size


def _extended(content: bytes, tokens: Mapping[str, int], added: Mapping[str, str]) -> bytes:
    """A `tokenizer.json` with more special tokens."""
    if not added:
        return content
    said = json.loads(content)
    said['added_tokens'] += [
        {
            'id': tokens[code], 'content': code, 'single_word': False, 'lstrip': False, 'rstrip': False,
            'normalized': False, 'special': True,
        }
        for code in added
    ]  # fmt: skip
    return json.dumps(said, ensure_ascii=False, indent=2).encode()


def moved() -> dict[int, int]:
    """Rows of the reference that stand in other rows here, by these rows."""
    return tokenizers.rearranged(SWAPPED)
