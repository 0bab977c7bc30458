"""English names of languages by ISO 639 code: of Common Voice, CoVoST 2, FLEURS and mBART-50; tokens of languages."""

import difflib
import functools
from collections.abc import Mapping
from typing import Any

NAMES = {
    'ab': 'Abkhaz',
    'af': 'Afrikaans',
    'am': 'Amharic',
    'ar': 'Arabic',
    'as': 'Assamese',
    'ast': 'Asturian',
    'az': 'Azerbaijani',
    'ba': 'Bashkir',
    'bas': 'Basaa',
    'be': 'Belarusian',
    'bg': 'Bulgarian',
    'bn': 'Bengali',
    'br': 'Breton',
    'bs': 'Bosnian',
    'ca': 'Catalan',
    'ceb': 'Cebuano',
    'ckb': 'Sorani Kurdish',
    'cmn': 'Mandarin Chinese',
    'cnh': 'Hakha Chin',
    'cs': 'Czech',
    'cv': 'Chuvash',
    'cy': 'Welsh',
    'da': 'Danish',
    'de': 'German',
    'dv': 'Dhivehi',
    'el': 'Greek',
    'en': 'English',
    'eo': 'Esperanto',
    'es': 'Spanish',
    'et': 'Estonian',
    'eu': 'Basque',
    'fa': 'Persian',
    'ff': 'Fula',
    'fi': 'Finnish',
    'fil': 'Filipino',
    'fr': 'French',
    'fy': 'Frisian',
    'ga': 'Irish',
    'gl': 'Galician',
    'gn': 'Guarani',
    'gu': 'Gujarati',
    'ha': 'Hausa',
    'he': 'Hebrew',
    'hi': 'Hindi',
    'hr': 'Croatian',
    'hsb': 'Upper Sorbian',
    'hu': 'Hungarian',
    'hy': 'Armenian',
    'ia': 'Interlingua',
    'id': 'Indonesian',
    'ig': 'Igbo',
    'is': 'Icelandic',
    'it': 'Italian',
    'ja': 'Japanese',
    'jv': 'Javanese',
    'ka': 'Georgian',
    'kab': 'Kabyle',
    'kam': 'Kamba',
    'kea': 'Kabuverdianu',
    'kk': 'Kazakh',
    'km': 'Khmer',
    'kmr': 'Kurmanji Kurdish',
    'kn': 'Kannada',
    'ko': 'Korean',
    'ku': 'Kurdish',
    'ky': 'Kyrgyz',
    'lb': 'Luxembourgish',
    'lg': 'Ganda',
    'ln': 'Lingala',
    'lo': 'Lao',
    'lt': 'Lithuanian',
    'luo': 'Luo',
    'lv': 'Latvian',
    'mhr': 'Meadow Mari',
    'mi': 'Maori',
    'mk': 'Macedonian',
    'ml': 'Malayalam',
    'mn': 'Mongolian',
    'mr': 'Marathi',
    'ms': 'Malay',
    'mt': 'Maltese',
    'my': 'Burmese',
    'nb': 'Norwegian',
    'ne': 'Nepali',
    'nl': 'Dutch',
    'nn': 'Norwegian Nynorsk',
    'no': 'Norwegian',
    'nso': 'Northern Sotho',
    'ny': 'Nyanja',
    'oc': 'Occitan',
    'om': 'Oromo',
    'or': 'Odia',
    'pa': 'Punjabi',
    'pl': 'Polish',
    'ps': 'Pashto',
    'pt': 'Portuguese',
    'rm': 'Romansh',
    'ro': 'Romanian',
    'ru': 'Russian',
    'rw': 'Kinyarwanda',
    'sah': 'Sakha',
    'sd': 'Sindhi',
    'si': 'Sinhala',
    'sk': 'Slovak',
    'sl': 'Slovenian',
    'sn': 'Shona',
    'so': 'Somali',
    'sq': 'Albanian',
    'sr': 'Serbian',
    'sv': 'Swedish',
    'sw': 'Swahili',
    'ta': 'Tamil',
    'te': 'Telugu',
    'tg': 'Tajik',
    'th': 'Thai',
    'tl': 'Tagalog',
    'tr': 'Turkish',
    'tt': 'Tatar',
    'ug': 'Uyghur',
    'uk': 'Ukrainian',
    'umb': 'Umbundu',
    'ur': 'Urdu',
    'uz': 'Uzbek',
    'vi': 'Vietnamese',
    'vot': 'Votic',
    'wo': 'Wolof',
    'xh': 'Xhosa',
    'yo': 'Yoruba',
    'yue': 'Cantonese',
    'zh': 'Chinese',
    'zu': 'Zulu',
}


def name(code: str) -> str | None:
    """'pt-BR' → 'Portuguese', '' and what is not known → None."""
    return NAMES.get(code.replace('_', '-').split('-')[0].lower())


_OF_THE_SAME = {'cmn': 'zh', 'fil': 'tl'}


def begun(vocabulary: Any, lang: str) -> tuple[int, ...]:
    """The token with which a text in `lang` begins, () where the language model has no such tokens.

    Args:
        vocabulary: its tokenizer, whose `languages` are codes such as de_DE and their ids.
        lang: such a code, or 'de', 'pt-BR'; '' is not known.

    Raises:
        ValueError: the language model has tokens of languages, and none of this one; names the nearest.
    """
    codes: Mapping[str, int] = getattr(vocabulary, 'languages', {})  # SeqIO's own have none
    if not codes:
        return ()
    if not lang:
        raise ValueError('the language of the text is not stated, and the language model begins a text with its code.')
    return (codes[code(tuple(codes), lang)],)


@functools.lru_cache(maxsize=1024)
def code(codes: tuple[str, ...], lang: str) -> str:
    """Which of some codes such as de_DE is of a language; see `begun`.

    Raises:
        ValueError: none is.
    """
    same = [each for each in codes if each == lang] or [each for each in codes if main(each) == main(lang)]
    if same:
        return same[0]
    known = {name(each) or each: each for each in codes} | {main(each): each for each in codes}
    near = difflib.get_close_matches((name(lang) or lang).capitalize(), known, 3)
    near = near or difflib.get_close_matches(main(lang), known, 3, 0.5)
    nearest = ', '.join(dict.fromkeys(known[each] for each in near))
    raise ValueError(
        f'the language model has no code for the language {lang!r} ({name(lang) or "unknown"}). Of its {len(codes)} '
        f'the nearest are {nearest or ", ".join(codes)}; `slm-jax import SOURCE OUT --language {main(lang)}_XX=mean` '
        'adds one.'
    )


def main(code: str) -> str:
    """'pt-BR' and 'pt_XX' → 'pt'."""
    main = code.replace('_', '-').split('-')[0].lower()
    return _OF_THE_SAME.get(main, main)
