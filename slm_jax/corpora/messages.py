"""Sentences in several languages out of the message catalogues of programs.

What a program says to its users ("Enter the user name", "This call is not encrypted") is near to what
a telephone says to its callers, and people translated it. Catalogues are gettext's, in a folder
LANGUAGE/LC_MESSAGES/*.mo, as Debian's packages have in /usr/share/locale; a package that is not
installed can be unpacked into any folder: `apt-get download NAME`, `dpkg-deb -x NAME.deb FOLDER`.
"""

import collections
import os
import pathlib
import re
from collections.abc import Iterable

_MAX_CHARACTERS = 110
# Placeholders, markup, addresses, code, digits: nobody says them, or not as they are written.
_UNSPOKEN = re.compile(r'[%{}<>\\|@#=/~^*$\[\]\n\t_&\d]|\.\w|--|\b\w*[A-ZА-Я]{2}')


def spoken(message: str) -> str:
    """The message without a menu's accelerators and dots, '' where it cannot be said."""
    message = re.sub(r'\(&?_?\w\)', '', message.replace('\xa0', ' '))
    message = re.sub(r'[_&](?=\w)', '', message, count=1)
    message = re.sub(r'\s+([.,!?])', r'\1', message.replace('…', '').replace('...', ''))
    message = ' '.join(message.split()).strip(' :')
    if len(words := message.split()) > 1 and all(w[0].isupper() or len(w) < 4 for w in words):
        message = message.capitalize()  # The titles of English menus.
    letters = sum(c.isalpha() for c in message)
    if len(message) > _MAX_CHARACTERS or letters < 2 or letters < 0.75 * len(message):
        return ''
    return '' if _UNSPOKEN.search(message) else message


def translations(folder: str | os.PathLike, languages: Iterable[str]) -> list[dict[str, str]]:
    """{'en' and each of `languages`: the message in it}, of messages that all of them have.

    Raises:
        FileNotFoundError: a language has no catalogues there.
        ImportError: polib is not installed.
    """
    try:
        import polib
    except ImportError as error:
        raise ImportError("catalogues are read by polib: pip install 'slm_jax[corpora]'") from error

    found: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for lang in languages:
        catalogues = sorted(pathlib.Path(folder, lang, 'LC_MESSAGES').glob('*.mo'))
        if not catalogues:
            raise FileNotFoundError(
                f'{folder}/{lang}/LC_MESSAGES holds no .mo files; give the folder of the languages, '
                'such as /usr/share/locale'
            )
        for path in catalogues:
            for entry in polib.mofile(str(path)):
                english, text = spoken(entry.msgid), spoken(entry.msgstr)
                if english and text and (lang == 'ru') == bool(re.search('[а-яё]', text.lower())):
                    found[english].setdefault(lang, text)
    wanted = set(languages)
    return [{'en': english, **texts} for english, texts in sorted(found.items()) if set(texts) == wanted]
