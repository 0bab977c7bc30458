"""One vocabulary of texts, speech and images, and how they stand in a row of it (DMLM, arXiv 2406.06582).

Ids are in four ranges, one behind the other: the language model's own table (text), the units of a codebook of speech,
the tokens of an image, and control tokens: <|text|>, <|speech|>, <|image|>, and one for each language.

A row is made of stretches of one modality. Each is begun by its control token; the last, which is what a model writes,
has the language's behind that, where it is known and listed; token 1 ends the row:

    <|speech|> 17 4 233 … <|text|> <|en|> Please hold the line. </s>            a transcript
    <|speech|> 17 4 233 … <|text|> <|de|> Bitte bleiben Sie dran. </s>          a translation
    <|speech|> 17 4 233 … <|speech|> <|de|> 5 91 … </s>                         speech to speech
    <|text|> Please hold the line. <|speech|> <|en|> 17 4 233 … </s>            text to speech
    <|image|> 40 7 … <|text|> <|en|> a red circle </s>                          a caption
    <|text|> <|en|> Please hold the line. </s>                                  a language model's text

So what is asked is which modalities and languages stand side by side, and there is no instruction. What is read, up to
the last control token, are a task's `inputs`, the rest its `targets`; inputs that are learnt as well stand as their
negatives. A prediction belongs to the stretch in which it is made: the end of a row, or the control token of the next
stretch, to the one that it ends. The paper does not say its layout: this one is ours.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gin
from slm_jax.data import instructions, languages, prompts

MODALITIES = ('text', 'speech', 'image')
_END = 1
_ROW_MULTIPLE = 64
_FIELDS = {'text': 'a text', 'speech': 'a list of units', 'image': 'a list of tokens, or of rows of them'}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Modalities:
    """The ranges of a vocabulary.

    Attributes:
        llm: configuration of the language model whose table has grown, for its `vocab_size`; None: none has.
        speech: units of the codebook; 0: there is no speech.
        image: different tokens of images; 0: there are none.
        image_size: rows and columns of tokens that an image has.
        languages: codes that have a control token.
        codebook: the directory of the codebook whose units they are; '': not known, then units of any are taken.
        image_codebook: likewise of the images' tokens.
    """

    llm: Any = None
    speech: int = 0
    image: int = 0
    image_size: Sequence[int] = ()
    languages: Sequence[str] = ()
    codebook: str = ''
    image_codebook: str = ''

    def __post_init__(self):
        for field in ('speech', 'image'):
            if getattr(self, field) < 0:
                raise ValueError(f'Modalities.{field} is {getattr(self, field)}; it must be at least 0.')
        if self.image and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(
                f'Modalities.image_size is {self.image_size!r}; with Modalities.image = {self.image} it must be rows '
                'and columns of tokens, as in (16, 16).'
            )
        unknown = [code for code in self.languages if languages.name(code) is None]
        if unknown or len({*self.languages}) < len(self.languages):
            raise ValueError(
                f'Modalities.languages are {list(self.languages)}; each must be another ISO 639 code that '
                'slm_jax/data/languages.py has.'
            )

    @property
    def text(self) -> int:
        """Rows of the language model's own table."""
        return 0 if self.llm is None else self.llm.vocab_size

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """First id, and the one behind the last, of each range."""
        found, start = {}, 0
        sizes = (self.text, self.speech, self.image, len(MODALITIES) + len(self.languages))
        for name, size in zip((*MODALITIES, 'control'), sizes, strict=True):
            found[name] = start, start + size
            start += size
        return found

    @property
    def rows(self) -> int:
        """By how many rows the table has grown: those of the ranges, up to a number that devices divide."""
        return -(-(self.ranges['control'][1] - self.text) // _ROW_MULTIPLE) * _ROW_MULTIPLE

    def opener(self, modality: str) -> int:
        """The control token that begins a stretch."""
        return self.ranges['control'][0] + MODALITIES.index(modality)

    def language(self, code: str) -> list[int]:
        """The control token of a language, none where none has one or `code` is ''.

        Raises:
            ValueError: this one has none, and others have.
        """
        if not code or not self.languages:
            return []
        code = next((each for each in self.languages if languages.name(each) == languages.name(code)), code)
        if code not in self.languages:
            raise ValueError(
                f'the language {code!r} has no control token; Modalities.languages (LANGUAGES) are '
                f'{list(self.languages)}.'
            )
        return [self.ranges['control'][0] + len(MODALITIES) + list(self.languages).index(code)]

    def ids(self, modality: str, said: Any, vocabulary: Any, field: str) -> list[int]:
        """Ids of a text, of a recording's units or of an image's tokens.

        Args:
            modality: which of them.
            said: a text, or whole numbers.
            vocabulary: the language model's tokenizer.
            field: where it stands, for the error.

        Raises:
            ValueError: it is none, or outside the range; says which, and the remedy.
        """
        if modality == 'text':
            if not isinstance(said, str) or not said.strip():
                raise ValueError(f'field "{field}" is {said!r}; a text was expected.')
            return list(vocabulary.encode(said))
        start, stop = self.ranges[modality]
        count, macro = stop - start, 'SPEECH_UNITS' if modality == 'speech' else 'IMAGE_TOKENS'
        if not count:
            raise ValueError(
                f'field "{field}": the vocabulary has no tokens of {modality}: set Modalities.{modality} ({macro}), or '
                'leave the task out.'
            )
        rows = said if modality == 'image' and said and isinstance(said, list) and isinstance(said[0], list) else [said]
        if any(not isinstance(row, list) or not row or any(type(each) is not int for each in row) for row in rows):
            raise ValueError(f'field "{field}" is {said!r:.80}; {_FIELDS[modality]}, whole numbers, was expected.')
        units = [unit for row in rows for unit in row]
        if wrong := next((unit for unit in units if not 0 <= unit < count), None):
            raise ValueError(
                f'field "{field}": {wrong} is outside the range of {modality}, 0 to {count - 1} '
                f'(Modalities.{modality}, {macro}). Encode it again with the codebook of this model, or say its size.'
            )
        if modality == 'image':
            height, width = self.image_size
            own = [len(row) for row in rows] if said is rows else None
            if len(units) != height * width or own not in (None, [width] * height):
                size = f'{len(units)} tokens' if own is None else f'{len(rows)} × {len(rows[0])} tokens'
                raise ValueError(
                    f'field "{field}": the image has {size} and {height} × {width} were expected '
                    '(Modalities.image_size, IMAGE_SIZE). Encode images of one size.'
                )
        return [start + unit for unit in units]

    def prompt(
        self, stretches: Iterable[tuple[str, Sequence[int]]], modality: str, lang: str = '', learnt: bool = False
    ) -> list[int]:
        """What is read before a stretch is written, its control tokens included.

        Args:
            stretches: (modality, ids) of those before it.
            modality, lang: of the one that is written.
            learnt: whether the others are learnt too, each with the control token that ends it; these are negative.
        """
        read = [token for each, ids in stretches for token in (self.opener(each), *ids)] + [self.opener(modality)]
        if learnt:  # but what a row begins with, which nothing predicts
            read = [read[0], *(-token for token in read[1:])]
        return [*read, *self.language(lang)]


@gin.configurable
def rows() -> int:
    """By how many rows the table of `Modalities` has grown."""
    return Modalities().rows


def vocabulary(texts: Any) -> Any:
    """A tokenizer, which knows the units too where gin says that a vocabulary has any."""
    modalities = Modalities()
    return Vocabulary(texts, modalities) if modalities.text and not isinstance(texts, Vocabulary) else texts


class Vocabulary:
    """A tokenizer that reads what the ranges have: text as text, units and tokens as their numbers, '17 4 233'."""

    def __init__(self, texts: Any, modalities: Modalities):
        self._texts, self._modalities = texts, modalities
        self.serialized = texts.serialized + repr(modalities.ranges).encode()
        self.vocab_size = modalities.ranges['control'][1]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):  # as copying asks for, before there is anything
            raise AttributeError(name)
        return getattr(self._texts, name)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first end; control tokens are left out."""
        ranges, parts, text = self._modalities.ranges, [], []
        for token in map(int, ids):
            if token == _END:
                break
            if token < ranges['text'][1]:
                text.append(token)
                continue
            parts += [self._texts.decode(text)] * bool(text)
            text = []
            modality = next(name for name, (start, stop) in ranges.items() if start <= token < stop)
            if modality != 'control':
                parts.append(str(token - ranges[modality][0]))
        return ' '.join(part for part in (*parts, *[self._texts.decode(text)] * bool(text)) if part)


@dataclasses.dataclass(frozen=True)
class Prompt(prompts.Prompt):
    """What a person asks of a recording, as control tokens: a transcript, or a translation of it."""

    modalities: Modalities = Modalities()

    def tokens(
        self, vocabulary: Any, instruction: str, speech: int | str = prompts.SPEECH, lang: str = ''
    ) -> tuple[int, ...]:
        """Ids of the prompt; see `prompts.Prompt`. `lang` is not read.

        Raises:
            ValueError: something else is asked, or for a language that has no control token.
        """
        known, named = self.modalities.languages, instructions.spoken_and_wanted(instruction)
        into = named[1] if named else next(reversed(_languages(instruction)), '')
        if not (known and into) and not instructions.transcribes(instruction):
            raise ValueError(
                f'instruction {instruction!r}: this model reads none. It transcribes ("Transcribe the speech."), or '
                f'translates into {", ".join(map(str, map(languages.name, known))) or "no language"} ("Translate this '
                'speech to …").'
            )
        said = speech == prompts.SPEECH
        ids = [prompts.SPEECH] if said else vocabulary.encode(str(speech))
        source = 'speech' if said else 'text'
        return tuple(self.modalities.prompt([(source, ids)], 'text', into or (known[0] if known else '')))

    def spoken(self, vocabulary: Any, text: str, instruction: str = '') -> tuple[int, ...]:
        """Ids of the prompt that has a text said, in the language that the instruction names, or the first listed.

        Raises:
            ValueError: there is no text, or no control token for that language.
        """
        known = self.modalities.languages
        asked = _languages(instruction)
        lang = asked[-1] if asked else known[0] if known else ''
        read = [('text', self.modalities.ids('text', text, vocabulary, 'text'))]
        return tuple(self.modalities.prompt(read, 'speech', lang))


def _languages(text: str) -> list[str]:
    """Codes of the languages that a text names, in its order."""
    found = {match.start(): code for code, name in languages.NAMES.items()
             for match in re.finditer(rf'\b{re.escape(name)}\b', text)}  # fmt: skip
    return [found[place] for place in sorted(found)]


def check_weights(weights: Mapping[str, float], modalities: Modalities, option: str) -> None:
    """Refuses weights that leave out a modality which the vocabulary has, or that are none.

    Raises:
        ValueError: names the modality.
    """
    for name in MODALITIES:
        start, stop = modalities.ranges[name]
        if stop > start and not weights.get(name, 0) > 0:
            raise ValueError(
                f'{option} has no weight for {name}, of which the vocabulary has {stop - start} tokens: give it a '
                f'number above 0, as in {dict.fromkeys(MODALITIES, 1.0)}.'
            )
    if unknown := sorted({*weights} - {*MODALITIES}):
        raise ValueError(f'{option} has a weight for {unknown[0]!r}; modalities are {", ".join(MODALITIES)}.')
