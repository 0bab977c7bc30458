"""Named text normalisers: what is done to a reference and a prediction before words are compared.

A word error rate means little without its normaliser, so a score always carries the name of the one
used.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Callable

AUTO = 'auto'  # of each example the customary one: see `metrics.normalizer_of`
_APOSTROPHES = str.maketrans(dict.fromkeys('\u2019\u2018\u02bc\u00b4\u0060\uff07', "'"))


def none(text: str) -> str:
    """Returns the text as it is."""
    return text


@functools.cache
def _kind(character: str) -> str:
    return unicodedata.category(character)[0]


def basic(text: str) -> str:
    """NFKC, lower case, no punctuation or symbols but the apostrophe inside a word, single spaces.

    Written for any script: combining marks (vowel signs, tone marks) are part of a word, and
        numbers and
    diacritics stay as they are. A hyphen parts two words.

    Args:
        text: any text.

    Returns:
        The normalised text; '' where the text holds punctuation only.
    """
    # Apostrophes first: NFKC parts an acute accent into a space and a mark. Lower-casing can leave
    # a composed letter apart (Turkish capital I with a dot), hence NFKC on both sides of it.
    text = unicodedata.normalize('NFKC', text.translate(_APOSTROPHES)).lower()
    text = unicodedata.normalize('NFKC', text)
    kept = []
    for position, character in enumerate(text):
        kind = _kind(character)
        if character == "'":
            around = text[position - 1 : position], text[position + 1 : position + 2]
            kept.append("'" if all(c and _kind(c) in 'LMN' for c in around) else ' ')
        elif unicodedata.category(character) == 'Cf':
            continue  # Zero-width joiners and direction marks have no sound and no width.
        else:
            kept.append(character if kind in 'LMN' else ' ')
    return ' '.join(''.join(kept).split())


@functools.cache
def _whisper_english() -> Callable[[str], str]:
    from whisper_normalizer import english

    return english.EnglishTextNormalizer()


def whisper_english(text: str) -> str:
    """OpenAI's for English transcripts: no fillers and brackets, American spelling, contractions and numbers alike.

    Returns:
        The normalised text; '' where the text holds nothing else ('Hmm.').
    """
    return ' '.join(_whisper_english()(text).split())


_SQUAD_PUNCTUATION = str.maketrans('', '', string.punctuation)


def squad(text: str) -> str:
    """SQuAD's for short answers (`normalize_answer` of evaluate-v1.1.py): no ASCII punctuation, no English articles.

    Returns:
        The normalised text; '' where the text holds nothing else.
    """
    text = text.lower().translate(_SQUAD_PUNCTUATION)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


NORMALIZERS: dict[str, Callable[[str], str]] = {
    'none': none,
    'basic': basic,
    'whisper_english': whisper_english,
    'squad': squad,
}


def get(name: str) -> Callable[[str], str]:
    """Returns the normaliser of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in NORMALIZERS:
        raise ValueError(
            f'normalizer: {name!r} is unknown; choose one of {sorted(NORMALIZERS)}, or, as --normalizer, {AUTO}.'
        )
    return NORMALIZERS[name]
