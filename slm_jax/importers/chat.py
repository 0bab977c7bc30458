"""The text of a chat model: its `tokenizer.json`, its chat template, and which tokens pad and end.

In the batch contract 0 pads and 1 ends a text, so the tokens that do so in a checkpoint change places with those that
have these ids there (`swapped`). The chat template is a program; it is run here once, around one turn of a user, and
what it writes is data from then on.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from slm_jax.foundations import tokenizers
from slm_jax.importers import CheckpointError

USER = '{user}'
# Stand in the templates for texts; letters alone, which no template changes.
_QUESTION, _ANSWER = 'QuestionOfTheUser', 'AnswerOfTheAssistant'
_GENERATION = re.compile(r'(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})')  # transformers' own tag, which writes nothing


@dataclasses.dataclass(frozen=True)
class Said:
    """What a checkpoint says of its text.

    Attributes:
        file: where the tokenizer is.
        content: the `tokenizer.json`.
        template: the chat template; None where there is none.
        template_file: where that is.
        tokens: texts of special tokens by their names, such as `eos_token`.
        ends: ids that end a text, the most important first.
        pads: ids that are said to pad, the most important first.
        begins: whether a text without a template begins with `bos_token`; None: as `tokenizer.json` has it.
    """

    file: pathlib.Path
    content: bytes
    template: str | None
    template_file: pathlib.Path
    tokens: Mapping[str, str]
    ends: tuple[int, ...]
    pads: tuple[int, ...]
    begins: bool | None


@dataclasses.dataclass(frozen=True)
class Text:
    """What a foundation gets.

    Attributes:
        card: `swapped` and `chat_template`.
        chat: what stands around a user's text, which is `USER`.
        rows: ids of the checkpoint that stand in other rows here, by these rows.
        other_ends: ids (ours) that end a text beside 1.
    """

    card: dict[str, Any]
    chat: str
    rows: dict[int, int]
    other_ends: tuple[int, ...]


def text(said: Said, rows: int) -> Text:
    """Finds out what pads and ends, and what stands around a user's text.

    Args:
        said: by the checkpoint.
        rows: of the embedding.

    Raises:
        CheckpointError: the tokenizer means nothing or is another model's, the template cannot be run, or nothing says
            what ends a text; names the file.
    """
    vocabulary = open_tokenizer(said.file, said.content)
    if vocabulary.vocab_size > rows:
        raise CheckpointError(
            f'{said.file}: it has {vocabulary.vocab_size} ids, the model {rows} embeddings. This tokenizer is of '
            'another model.'
        )
    tokenizer = vocabulary.tokenizer
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    chat = _around_a_user(said, tokenizer)
    end = _end(said, tokenizer, special, rows)
    others = sorted({*said.ends} - {end})
    written = set(tokenizer.encode(chat.replace(USER, ''), add_special_tokens=False).ids)
    pad = _pad(said, vocabulary, special, written | {end}, {*others}, rows)
    places = {0: 0, pad: pad, 1: 1, end: end}  # row: what stands in it
    swapped = []
    for ours, theirs in ((0, pad), (1, end)):
        place = next(row for row, number in places.items() if number == theirs)
        if place != ours:
            swapped.append([ours, place])
            places[ours], places[place] = places[place], places[ours]
    moved = tokenizers.rearranged(swapped)
    rows_of = {theirs: row for row, theirs in moved.items()}
    card = {'swapped': swapped, 'chat_template': said.template}
    return Text(card, chat, moved, tuple(rows_of.get(number, number) for number in others))


def open_tokenizer(file: pathlib.Path, content: bytes) -> tokenizers.HuggingFace:
    """A `tokenizer.json`.

    Raises:
        CheckpointError: it means nothing.
    """
    try:
        return tokenizers.HuggingFace(content)
    except ValueError as error:
        raise CheckpointError(f'{file} is no tokenizer that the library `tokenizers` can open: {error}.') from error


def _around_a_user(said: Said, tokenizer: Any) -> str:
    if said.template is not None:
        rendered = _render(said, [{'role': 'user', 'content': _QUESTION}], True)
        if rendered.count(_QUESTION) != 1 or USER in rendered:
            raise CheckpointError(
                f'{said.template_file}: the chat template has no place, or more than one, for what the user says: it '
                f'writes {rendered!r}. Mend it, or delete it to have a prompt that is the text alone.'
            )
        return rendered.replace(_QUESTION, USER)
    if said.begins is None:
        alone, whole = (tokenizer.encode('a', add_special_tokens=added).ids for added in (False, True))
        before = next((n for n in range(len(whole)) if whole[n : n + len(alone)] == alone), 0)
        return ''.join(map(tokenizer.id_to_token, whole[:before])) + USER
    if said.begins and 'bos_token' not in said.tokens:
        raise CheckpointError(f'{said.file}: texts begin with bos_token (add_bos_token), and there is none.')
    return said.tokens['bos_token'] + USER if said.begins else USER


def _end(said: Said, tokenizer: Any, special: set[int], rows: int) -> int:
    """What ends the assistant's turn in the template, or else what is said first to end a text."""
    if wrong := [number for number in said.ends if not 0 <= number < rows]:
        raise CheckpointError(
            f'{said.file.parent}: the end of a text (eos_token_id) is {wrong[0]}; the model has {rows} embeddings.'
        )
    if said.template is not None:
        turns = [{'role': 'user', 'content': _QUESTION}, {'role': 'assistant', 'content': _ANSWER}]
        try:
            after = _render(said, turns, False).partition(_ANSWER)[2]
        except CheckpointError:  # it knows no answers
            after = ''
        for number in tokenizer.encode(after, add_special_tokens=False).ids:
            if number in special or number in said.ends:
                return number
    if not said.ends:
        raise CheckpointError(
            f'{said.file.parent}: nothing says which token ends a text. Write eos_token_id into config.json, or '
            'eos_token into tokenizer_config.json.'
        )
    return said.ends[0]


def _pad(
    said: Said, vocabulary: tokenizers.HuggingFace, special: set[int], written: set[int], ends: set[int], rows: int
) -> int:
    """A token that no text has: what is said to pad, unless it is written, or else what is never seen."""
    tokenizer, model = vocabulary.tokenizer, json.loads(said.content)['model']
    unknown = tokenizer.token_to_id(said.tokens.get('unk_token', ''))
    writes_unknown = not model.get('byte_fallback') and (model.get('unk_token') or model.get('unk_id')) is not None
    if unknown is not None and writes_unknown:
        written, unknown = written | {unknown}, None  # characters without a token become it
    begin = tokenizer.token_to_id(said.tokens.get('bos_token', ''))
    for number in said.pads:
        if 0 <= number < rows and number not in written:
            return number
    if unknown is not None and unknown not in written:
        return unknown
    unused = (number for number in sorted(special) if number not in written | ends | {begin})
    number = next(unused, vocabulary.vocab_size)
    if number < rows:
        return number
    raise CheckpointError(
        f'{said.file}: no token can pad, for all {rows} occur in texts or end them. Add a special token to it, and a '
        'row of zeros to the embeddings.'
    )


def _render(said: Said, messages: list[dict[str, str]], generation_prompt: bool) -> str:
    return render(said.template or '', said.template_file, messages, generation_prompt, **said.tokens)


def render(
    template: str,
    file: str | pathlib.Path,
    messages: list[dict[str, str]],
    generation_prompt: bool,
    **tokens: str,
) -> str:
    """What a chat template writes, as transformers runs it.

    Args:
        template: the chat template.
        file: where it is, for messages.
        messages: `role` and `content` of each turn.
        generation_prompt: whether the assistant's turn begins at the end.
        tokens: texts of special tokens by their names.

    Raises:
        CheckpointError: it does not run.
    """
    import jinja2.sandbox

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = lambda value, **options: json.dumps(value, **{'ensure_ascii': False} | options)
    environment.globals['raise_exception'] = raise_exception
    source = _GENERATION.sub(lambda tag: tag[1] + ('endif' if tag[2] else 'if true') + tag[3], template)
    broken = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
    try:
        return environment.from_string(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generation_prompt, **tokens
        )
    except broken as error:
        raise CheckpointError(
            f'{file}: the chat template does not run for {" and ".join(m["role"] for m in messages)} '
            f'({type(error).__name__}: {error}). Mend it, or delete it to have a prompt that is the text alone.'
        ) from error
