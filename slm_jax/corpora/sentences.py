"""Different sentences in which every common word comes several times, out of Debian's packages.

    python -m slm_jax.corpora.sentences UNPACKED OUT --texts prompts/train.jsonl --held-out prompts/test.jsonl …

UNPACKED is where packages were unpacked (`apt-get download NAME`, `dpkg-deb -x NAME.deb UNPACKED`):
    wordnet-base                   the examples of WordNet (its own licence, which is free)
    fortunes fortunes-{es,it,ru}   sayings (collected for Debian, each its author's)
    wesnoth-1.16-* widelands-data  what people say in games, in all five languages (GPL-2+)
    debian-handbook                a book in all five languages (GPL-2+ or CC BY-SA 3.0)
    docs/debian_catalogues.txt     what programs say to their users (each its program's licence)
What is not there is left out. Lines of --texts (JSONL with text, lang) and numbers in words are taken as well. What
--held-out has (JSONL with text) is nowhere in OUT, a JSONL file of text, lang, source and split: one sentence in 40
is for validation and one for a test, by its hash. OUT is a pure function of the input and --seed.
"""

import argparse
import collections
import heapq
import html
import os
import pathlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from slm_jax import paths
from slm_jax.corpora import messages, numerals, splits, text_corpora
from slm_jax.data import ctc_text, json_lines

NUMBERS = {'en': 16_000, 'es': 4_000, 'fr': 4_000, 'it': 4_000, 'ru': 4_000}
_SHORTEST, _LONGEST = 3, 20  # words
_COMMON = 5_000  # the most frequent words of a language, by wordfreq
_TIMES = 5
_RAREST = 2.2  # base 10 logarithm of a word's occurrences in 10^9
# What no speaker says as it is written: digits, abbreviations, addresses, code, quotations in quotations.
_UNSPOKEN = re.compile(r'[\d%{}<>\\|@#=/~^*$\[\]_&+()"“”«»„…]|\.\w|\.\.|--|\w*[^\W\d_a-zа-яё]{2}\w*(?<=[A-ZА-ЯЁ]{2})')
_HANDBOOK = {'en': 'en-US', 'es': 'es-ES', 'fr': 'fr-FR', 'it': 'it-IT', 'ru': 'ru-RU'}


def split_sentences(text: str) -> list[str]:
    """Sentences of running text; a line that its author wrapped goes on in the next one."""
    return re.split(r'(?<=[.!?])\s+', ' '.join(text.split()))


def wordnet(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(language, sentence): the quoted examples of WordNet's glosses."""
    for path in sorted(folder.glob('usr/share/wordnet/data.*')):
        for example in re.findall(r'"([^"]+)"', path.read_text(encoding='utf-8')):
            yield 'en', example


def fortunes(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(language, sentence) of the cookies that are not in a folder of offensive ones, without their authors."""
    for path in sorted(folder.glob('usr/share/games/fortunes/**/*.u8')):
        kind = path.relative_to(folder / 'usr/share/games/fortunes').parts[:-1]
        lang = kind[0] if kind else 'en'
        if 'off' not in kind and lang in NUMBERS:
            for cookie in path.read_text(encoding='utf-8', errors='replace').split('\n%\n'):
                for sentence in split_sentences(re.sub(r'\n\s*(--|—).*', '', cookie, flags=re.DOTALL)):
                    yield lang, sentence


def handbook(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(language, sentence) of the paragraphs of Debian's handbook."""
    for lang, name in _HANDBOOK.items():
        for path in sorted(folder.glob(f'usr/share/doc/debian-handbook/html/{name}/*.html')):
            for paragraph in re.findall(r'<div class="para">(.*?)</div>', path.read_text(encoding='utf-8'), re.DOTALL):
                for sentence in split_sentences(html.unescape(re.sub(r'<[^>]+>', '', paragraph))):
                    yield lang, sentence


def catalogues(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(language, message) of the programs' catalogues; English is what they are translated from."""
    import polib

    for lang in ('es', 'fr', 'it', 'ru'):
        for path in sorted(folder.glob(f'usr/share/locale/{lang}/LC_MESSAGES/*.mo')):
            for entry in polib.mofile(str(path)):
                yield 'en', messages.spoken(entry.msgid)
                yield lang, messages.spoken(entry.msgstr)


def stories(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(language, sentence) of what the people in games tell each other, and of what is told about them."""
    import polib

    for lang in ('es', 'fr', 'it', 'ru'):
        for path in sorted(folder.glob(f'usr/share/games/**/{lang}/LC_MESSAGES/*.mo')):
            for entry in polib.mofile(str(path)):
                for spoken_in, text in (('en', entry.msgid.rpartition('^')[2]), (lang, entry.msgstr)):
                    for sentence in split_sentences(text):
                        yield spoken_in, sentence


SOURCES = {'wordnet': wordnet, 'fortunes': fortunes, 'stories': stories, 'handbook': handbook, 'catalogues': catalogues}
_NUMERALS = 400  # what is spelt in digits elsewhere, in words


class Words:
    """The words of the languages, by how often they are said (wordfreq).

    Raises:
        ImportError: wordfreq is not installed.
    """

    def __init__(self):
        try:
            import wordfreq
        except ImportError as error:
            raise ImportError("words are counted by wordfreq: pip install 'slm_jax[corpora]'") from error
        self._wordfreq = wordfreq

    def common(self, lang: str) -> set[str]:
        return set(self._wordfreq.top_n_list(lang, _COMMON))

    def of(self, lang: str, text: str) -> list[str]:
        return self._wordfreq.tokenize(text, lang)

    def familiar(self, lang: str, text: str) -> bool:
        """Whether all are words of this language: no names of programs, no other language."""
        return all(self._wordfreq.zipf_frequency(word, lang) >= _RAREST for word in self.of(lang, text))


def sayable(text: str) -> str:
    """The sentence as it can be read aloud, '' where it cannot."""
    text = ' '.join(text.replace('’', "'").split()).strip(" :;,-–—'")
    if not _SHORTEST <= len(text.split()) <= _LONGEST or _UNSPOKEN.search(text):
        return ''
    return text[0].upper() + text[1:] + ('' if text[-1] in '.!?' else '.')


def cover(candidates: Sequence[Sequence[str]], common: set[str], number: int) -> list[int]:
    """Indices of `number` sentences: first those that bring common words to five occurrences, then the first ones.

    Greedy by what a sentence adds for each of its words. What it adds only shrinks, so an outdated value is an
    upper bound, and is computed again when it comes to the top.
    """
    counts = collections.Counter()

    def gain(index: int) -> float:
        words = set(candidates[index])
        return sum(word in common and counts[word] < _TIMES for word in words) / (10 + len(candidates[index]))

    heap = [(-gain(index), index) for index in range(len(candidates))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < number:
        _, index = heapq.heappop(heap)
        now = gain(index)
        if now and heap and now < -heap[0][0]:
            heapq.heappush(heap, (-now, index))
        elif now:
            chosen.append(index)
            counts.update(set(candidates[index]))
    rest = set(range(len(candidates))) - set(chosen)
    return chosen + sorted(rest)[: number - len(chosen)]


def write(
    unpacked: str | os.PathLike,
    out: str | os.PathLike,
    texts: Iterable[str | os.PathLike] = (),
    held_out: Iterable[str | os.PathLike] = (),
    numbers: dict[str, int] = NUMBERS,
    seed: int = 0,
) -> dict[str, tuple[int, int]]:
    """Writes OUT; returns {language: (sentences, common words that come five times or more in training)}.

    Raises:
        ValueError: nothing can be taken from there, or a file of JSON lines is none.
        ImportError: wordfreq or polib is not installed.
    """
    words = Words()
    seen = {ctc_text.normalize(row['text']) for path in held_out for row in json_lines.read(path)}
    found: dict[str, list[dict]] = {lang: [] for lang in numbers}
    given = (
        (row['lang'], row['text'], paths.path(path).parent.name) for path in texts for row in json_lines.read(path)
    )
    folder = pathlib.Path(unpacked)
    packaged = [(lang, text, source) for source, read in SOURCES.items() for lang, text in read(folder)]
    if not packaged:
        raise ValueError(f'{unpacked} has no sentences. Unpack there what --help names: dpkg-deb -x NAME.deb DIR')
    draw = random.Random(seed)
    numbers_in_words = (
        (lang, text, 'numerals') for _ in range(_NUMERALS) for lang, text in numerals.sample(draw).items()
    )
    for lang, sentence, source in (*given, *packaged, *numbers_in_words):
        for text in map(sayable, [sentence] if len(sentence.split()) <= _LONGEST else text_corpora.phrases(sentence)):
            key = ctc_text.normalize(text)
            if text and key not in seen and lang in found and words.familiar(lang, text):
                seen.add(key)
                found[lang].append({'text': text, 'lang': lang, 'source': source, 'split': splits.split_of(key, 40)})
    rows, told = [], {}
    for lang, pool in found.items():
        random.Random(f'{seed}/{lang}').shuffle(pool)
        pool.sort(key=lambda row: row['source'] == 'catalogues')  # Nobody speaks as programs do: they come last.
        train = [row for row in pool if row['split'] == 'train']
        tokens = [words.of(lang, row['text']) for row in train]
        chosen = cover(tokens, words.common(lang), numbers[lang])
        others = [row for row in pool if row['split'] != 'train'][: numbers[lang] // 20]
        counts = collections.Counter(word for index in chosen for word in tokens[index])
        told[lang] = len(chosen) + len(others), sum(counts[word] >= _TIMES for word in words.common(lang))
        rows += [train[index] for index in chosen] + others
    random.Random(seed).shuffle(rows)
    json_lines.write(out, rows)
    return told


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.sentences',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('unpacked')
    parser.add_argument('out')
    parser.add_argument('--texts', nargs='+', default=[], metavar='FILE')
    parser.add_argument('--held-out', nargs='+', default=[], metavar='FILE')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        told = write(args.unpacked, args.out, args.texts, args.held_out, seed=args.seed)
    except (ImportError, OSError, ValueError, KeyError) as error:
        parser.exit(2, f'{type(error).__name__}: {error}\n')
    for lang, (number, common) in told.items():
        print(f'{lang}: {number} sentences; {common} of the {_COMMON} most common words come {_TIMES} times or more')


if __name__ == '__main__':
    main()
