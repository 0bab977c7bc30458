"""Where translations of texts to and from English are had: packages of Debian, and what is made of their files.

The corpora are LibreOffice's `help` (paragraphs of the same file and id), GIMP's manual (`gimp`: paragraphs of pages
that are built alike in both languages), `messages` of programs and games (gettext's catalogues) and `words` of
FreeDict's dictionaries (the first translation of words that are common, by wordfreq).
"""

import dataclasses
import gzip
import hashlib
import html
import json
import pathlib
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from slm_jax import paths
from slm_jax.corpora import messages, sentences
from slm_jax.data import debian

# Code of a language: what packages, folders and dictionaries call it.
VARIANTS = {
    **{lang: (lang,) for lang in ('de', 'es', 'fr', 'it', 'ja', 'nl', 'ru')},
    'pt': ('pt', 'pt-BR'),
    'zh': ('zh-CN',),
}
_DICTIONARIES = {'de': 'deu', 'es': 'spa', 'fr': 'fra', 'it': 'ita', 'nl': 'nld', 'pt': 'por', 'ru': 'rus'}
_CATALOGUES = """
    inkscape gimp-data digikam-data vlc-l10n freeciv-data evolution-common pidgin-data gnubg-data hexchat-common
    gnome-control-center-data ktorrent-data kmail konversation-data shotwell-common gnome-software-common aisleriot
    epiphany-browser-data gnome-disk-utility nautilus-data totem-common gnome-calendar gnome-clocks gnome-contacts
    gnome-maps gnome-weather gajim linphone-common chatty gnome-calls roundcube-core claws-mail-i18n balsa geary
    homebank-data grisbi-common gnucash-common gramps
    wesnoth-1.16-did wesnoth-1.16-httt wesnoth-1.16-nr wesnoth-1.16-sof wesnoth-1.16-sotbe wesnoth-1.16-thot
    wesnoth-1.16-trow wesnoth-1.16-utbs
""".split()
_LOCALES = '|'.join(name.replace('-', '_') for names in VARIANTS.values() for name in names)
_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*?\bid="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
_BLOCK = re.compile(r'<(p|h[1-6]|dt|th)\b[^>]*>(.*?)</\1>', re.DOTALL)
_NUMBER = re.compile(r'^((Figure|Table|Abbildung|Tabelle|Figura|Tabla|Tabella|Tabela|Figuur|Рисунок|Таблица) )?[\d.]+ ')


class Pair(NamedTuple):
    """A text and its translation, and the document whose lines stay on one side of a split."""

    document: str
    english: str
    other: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Packages and how they are read.

    Attributes:
        packages: of a language, those of English among them; none where it has none.
        files: pattern of the paths that are kept of a package.
        read: the pairs of a language, of the folder of each of its packages.
        licence: of the texts.
    """

    packages: Callable[[str], list[str]]
    files: str
    read: Callable[[dict[str, pathlib.Path], str], Iterator[Pair]]
    licence: str


def fetch(package: str, files: str, downloads: pathlib.Path) -> pathlib.Path:
    """The folder of a package's files that a pattern matches; what is there already is not fetched again.

    Raises:
        OSError: it cannot be had; says why.
    """
    folder = downloads / package
    if (folder / 'package.json').exists():
        return folder
    work = downloads / f'{package}.part'
    work.mkdir(parents=True, exist_ok=True)
    try:
        debian.download([package], work)
        (deb,) = work.glob(f'{package}_*.deb')
        shown = subprocess.run(['dpkg-deb', '-f', deb, 'Version'], check=True, capture_output=True, text=True)
        with subprocess.Popen(['dpkg-deb', '--fsys-tarfile', deb], stdout=subprocess.PIPE) as opened:
            with tarfile.open(fileobj=opened.stdout, mode='r|') as tar:
                tar.extraction_filter = getattr(tarfile, 'data_filter', None)  # before Python 3.11.4 there is none
                for member in tar:
                    if re.fullmatch(files, member.name.removeprefix('./')):
                        tar.extract(member, work)
    except (subprocess.SubprocessError, tarfile.TarError, FileNotFoundError) as error:
        raise OSError(
            f'{package}: {debian.reason(error)}. When it can be had, give the same command again: it goes on from '
            f'{downloads}.'
        ) from error
    about = {'version': shown.stdout.strip(), 'sha256': hashlib.sha256(deb.read_bytes()).hexdigest()}
    deb.unlink()
    paths.write(work / 'package.json', json.dumps(about) + '\n')
    work.rename(folder)
    return folder


def _plain(markup: str) -> str:
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', '', markup)).split())


def _help(folders: dict[str, pathlib.Path], lang: str) -> Iterator[Pair]:
    def paragraphs(folder: pathlib.Path) -> Iterator[tuple[tuple[str, str], str]]:
        for path in sorted(folder.glob('**/text/**/*.html')):
            name = path.as_posix().rpartition('/text/')[2]
            for _, id, text in _PARAGRAPH.findall(path.read_text(encoding='utf-8')):
                yield (name, id), _plain(text)

    english = dict(paragraphs(folders['libreoffice-help-en-us']))
    for variant in VARIANTS[lang]:
        for (name, id), text in paragraphs(folders[f'libreoffice-help-{variant.lower()}']):
            yield Pair(name, english.get((name, id), ''), text)


def _gimp(folders: dict[str, pathlib.Path], lang: str) -> Iterator[Pair]:
    def blocks(path: pathlib.Path) -> list[tuple[str, str]]:
        return [(tag, _plain(text)) for tag, text in _BLOCK.findall(path.read_text(encoding='utf-8'))]

    pages = {path.name: path for path in folders['gimp-help-en'].glob('**/help/en/*.html')}
    for variant in VARIANTS[lang]:
        for path in sorted(folders[f'gimp-help-{variant.lower()}'].glob('**/help/*/*.html')):
            texts, english = blocks(path), blocks(pages[path.name]) if path.name in pages else []
            if [tag for tag, _ in texts] == [tag for tag, _ in english]:
                for (_, text), (_, original) in zip(texts, english, strict=True):
                    yield Pair(path.name, _NUMBER.sub('', original), _NUMBER.sub('', text))


def _messages(folders: dict[str, pathlib.Path], lang: str) -> Iterator[Pair]:
    import polib

    for folder in folders.values():
        for variant in VARIANTS[lang]:
            for path in sorted(folder.glob(f'**/{variant.replace("-", "_")}/LC_MESSAGES/*.mo')):
                for entry in polib.mofile(str(path)):
                    english = messages.spoken(entry.msgid.rpartition('^')[2])
                    yield Pair(english, english, messages.spoken(entry.msgstr))


def _entries(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(word, first translation) of a dictionary in the format of dictd."""
    digits = {c: n for n, c in enumerate('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/')}

    def number(text: str) -> int:
        value = 0
        for c in text:
            value = 64 * value + digits[c]
        return value

    for path in sorted(folder.glob('usr/share/dictd/*.index')):
        content = gzip.decompress(path.with_suffix('.dict.dz').read_bytes())
        for line in path.read_text(encoding='utf-8').splitlines():
            word, start, length = line.split('\t')[:3]
            if word.startswith('00'):  # 00-database-info
                continue
            entry = content[number(start) : number(start) + number(length)].decode('utf-8', 'replace').split('\n')
            said = re.sub(r'\s*(/[^/]*/|<[^>]*>|\[[^\]]*\]|\([^)]*\))', '', entry[0]).strip()
            for meaning in entry[1:2]:
                meaning = re.sub(r'<[^>]*>|\[[^\]]*\]|\([^)]*\)|/[^/]*/|^\d+\.', '', meaning)
                first = re.split(r'[,;]', meaning)[0].strip()
                if said and first and not meaning.strip().startswith(('see:', 'Synonym')):
                    yield said, ' '.join(first.split())


def _words(folders: dict[str, pathlib.Path], lang: str) -> Iterator[Pair]:
    words = sentences.Words()
    for name, folder in folders.items():
        for word, meaning in _entries(folder):
            other, english = (word, meaning) if name.endswith('-eng') else (meaning, word)
            few = max(len(other.split()), len(english.split())) <= 3
            if few and words.familiar(lang, other) and words.familiar('en', english):
                yield Pair(word, english, other)


def _of_variants(name: str, english: str) -> Callable[[str], list[str]]:
    return lambda lang: [f'{name}-{english}', *(f'{name}-{variant.lower()}' for variant in VARIANTS[lang])]


def _dictionaries(lang: str) -> list[str]:
    named = _DICTIONARIES.get(lang)
    if named is None:
        return []
    return [f'dict-freedict-{named}-eng'] * (named != 'rus') + [f'dict-freedict-eng-{named}']


SOURCES = {
    'help': Source(_of_variants('libreoffice-help', 'en-us'), r'.*/help/.*/text/.*\.html', _help, 'MPL-2.0'),
    'gimp': Source(_of_variants('gimp-help', 'en'), r'.*/help/.*\.html', _gimp, 'GFDL-1.2+'),
    'messages': Source(
        lambda lang: _CATALOGUES, rf'.*/({_LOCALES})/LC_MESSAGES/.*\.mo', _messages, "each program's, see packages"
    ),
    'words': Source(_dictionaries, r'usr/share/dictd/.*', _words, 'GPL-2+'),
}
