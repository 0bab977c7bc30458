"""Spoken numbers in five languages: digit strings and 0 to 99, for synthetic speech and text."""

import random

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
_UNITS = {
    'en': (
        *DIGITS,
        *'ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen'.split(),
    ),
    'es': 'cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce '
    'quince dieciséis diecisiete dieciocho diecinueve'.split(),
    'fr': 'zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze '
    'quinze seize dix-sept dix-huit dix-neuf'.split(),
    'it': 'zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici '
    'quattordici quindici sedici diciassette diciotto diciannove'.split(),
    'ru': 'ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать '
    'тринадцать четырнадцать пятнадцать шестнадцать семнадцать восемнадцать '
    'девятнадцать'.split(),
}
_TENS = {
    'en': 'twenty thirty forty fifty sixty seventy eighty ninety'.split(),
    'es': 'veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa'.split(),
    'fr': 'vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt'.split(),
    'it': 'venti trenta quaranta cinquanta sessanta settanta ottanta novanta'.split(),
    'ru': 'двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто'.split(),
}
_VEINTI = (
    'veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete '
    'veintiocho veintinueve'.split()
)
LANGUAGES = tuple(_UNITS)


def number(n: int, lang: str) -> str:
    """The words for n in 0 … 99.

    Raises:
        ValueError: n or the language is out of range.
    """
    if lang not in _UNITS or not 0 <= n < 100:
        raise ValueError(f'no words for {n} in {lang!r}; 0 to 99 in {", ".join(LANGUAGES)}')
    units, tens = _UNITS[lang], _TENS[lang]
    if n < 20:
        return units[n]
    ten, unit = tens[n // 10 - 2], n % 10
    if lang == 'fr':
        unit += 10 * (n // 10 in (7, 9))
        if n == 80:
            return 'quatre-vingts'
        if unit in (1, 11) and n < 80:
            return f'{ten} et {units[unit]}'
        return f'{ten}-{units[unit]}' if unit else ten
    if not unit:
        return ten
    if lang == 'es':
        return _VEINTI[unit] if n < 30 else f'{ten} y {units[unit]}'
    if lang == 'it':
        stem = ten[:-1] if unit in (1, 8) else ten
        return stem + ('tré' if unit == 3 else units[unit])
    return f'{ten}{"-" if lang == "en" else " "}{units[unit]}'


def sample(rng: random.Random) -> dict[str, str]:
    """{language: words} of one string of 1 to 7 digits, or of one to three numbers below 100."""
    if rng.random() < 0.6:
        digits = [rng.randrange(10) for _ in range(rng.randint(1, 7))]
        return {lang: ' '.join(units[n] for n in digits) for lang, units in _UNITS.items()}
    numbers = [rng.randrange(100) for _ in range(rng.randint(1, 3))]
    return {lang: ', '.join(number(n, lang) for n in numbers) for lang in LANGUAGES}
