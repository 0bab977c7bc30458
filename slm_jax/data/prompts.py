"""Where speech and instruction stand in what a language model reads: text in gin (`Prompt`)."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import gin
from slm_jax.data import languages

SPEECH = -1  # in the place of a token: speech stands here
_END = 1
_PLACE = re.compile(r'\{(\w+)\}')


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Prompt:
    r"""The user's turn, and what a chat puts around it.

        from slm_jax.data import prompts
        prompts.Prompt.template = 'Audio: {speech}\n{instruction}'
        prompts.Prompt.chat = '<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n'

    Attributes:
        template: the turn: text with one place {speech} and one {instruction}. Speech comes first by default, which
            AlignFormer (2412.01145) found better to follow instructions; the SLM paper does not say. None:
            '{speech}{instruction}', and in a chat '{speech}\n{instruction}'. '{speech}' alone is for a model that
            reads no instructions, as mBART.
        chat: text with one place {user} for the turn; '{user}' is a decoder-only model without a chat. None: an
            encoder reads the turn, and the end token after it.
    """

    template: str | None = None
    chat: str | None = None

    def __post_init__(self):
        for field, places in (('template', ('speech', 'instruction')), ('chat', ('user',))):
            text = getattr(self, field)
            found = [] if text is None else _PLACE.findall(text)
            if text is None or sorted(found) == sorted(places) or (field, found) == ('template', ['speech']):
                continue
            wrong = [f'{{{name}}}, which nothing fills' for name in found if name not in places]
            wrong += [f'{found.count(name) or "no"} place{"s" * (name in found)} {{{name}}}' for name in places
                      if found.count(name) != 1]  # fmt: skip
            needed = ' and '.join(f'{{{name}}}' for name in places)
            raise ValueError(
                f'prompts.Prompt.{field} has {" and ".join(wrong)}: it must have {needed} once, and no other name in '
                f'braces. It is {text if len(text) < 200 else text[:200] + "…"!r}.'
            )

    @property
    def instructed(self) -> bool:
        """Whether the turn has a place for the instruction."""
        return self.template is None or '{instruction}' in self.template

    def tokens(self, vocabulary: Any, instruction: str, speech: int | str = SPEECH, lang: str = '') -> tuple[int, ...]:
        """Ids of the prompt; () without a vocabulary (CTC reads none).

        Text is encoded as one, up to the speech and from there on. Two texts that stand side by side are encoded each
        by itself, as T5 has learnt them.

        Args:
            vocabulary: a tokenizer.
            instruction: what is asked.
            speech: `SPEECH`: the mark stands in its place, or nothing where it comes first. A text: that does.
                '': there is none, nor the space between it and the instruction, which stands in its place where no
                instruction is read.
            lang: of what is read, where that is known; see `languages.begun`.

        Raises:
            ValueError: the language model knows languages by codes, and not this one.
        """
        if vocabulary is None:
            return ()
        turn = self.template
        if turn is None:
            turn = '{speech}{instruction}' if self.chat is None else '{speech}\n{instruction}'
        pieces = _PLACE.split((self.chat or '{user}').replace('{user}', turn))
        if len(pieces) == 3:  # there is no place for the instruction
            pieces, instruction, speech = [*pieces[:2], '', 'instruction', pieces[2]], '', speech or instruction
        before, first, between, _, after = pieces
        said = instruction, '' if speech == SPEECH else str(speech)
        left, right = said if first == 'instruction' else said[::-1]
        left, right = before + left, right + after
        parts: Sequence[int | str] = [left + between + right]
        if speech == SPEECH:
            parts = [left, SPEECH, between + right] if first == 'speech' else [left + between, SPEECH, right]
        elif not speech and not between.strip():
            parts = [left + right]
        elif not between:
            parts = [left, right]
        ids = [id for part in parts for id in ([part] if isinstance(part, int) else vocabulary.encode(part))]
        if lang:
            ids = [*languages.begun(vocabulary, lang), *ids]
        if ids[:1] == [SPEECH]:
            ids = ids[1:]
        return tuple(ids) if self.chat is not None else (*ids, _END)

    def interleaved(self, vocabulary: Any, parts: Sequence[str | int]) -> tuple[int, ...]:
        """Ids of a prompt whose user's turn is texts and marks (`SPEECH`), each for another recording.

        The template does not apply. Between two marks text is encoded as one.
        """
        if vocabulary is None:
            return ()
        before, after = (self.chat or '{user}').split('{user}')
        ids: list[int] = []
        text = before
        for part in (*parts, after):
            if isinstance(part, str):
                text += part
                continue
            ids += [*vocabulary.encode(text), part]
            text = ''
        ids += vocabulary.encode(text)
        return tuple(ids) if self.chat is not None else (*ids, _END)
