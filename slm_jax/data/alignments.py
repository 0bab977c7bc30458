"""Alignments that other programs made: when words, parts of words or phones of a transcript are said.

A manifest's line has `alignment`, in seconds from where its recording, or its segment of one, begins:

    "alignment": "a.TextGrid"     of Praat, as the Montreal Forced Aligner writes them: its tier of words, and of phones
    "alignment": "corpus.ctm"     NAME CHANNEL START DURATION WORD …; NAME is the line's id or its recording's, without
                                  the ending. Phones as Kaldi has them, HH_B AH_I … OW_E, are put together to words
    "alignment": "a.jsonl"        ["hello", 0.31, 0.74] on each line: words, or any parts of the transcript (UnitY2)
    "alignment": [["hello", 0.31, 0.74], …]

What is said has to be the transcript, but for case, punctuation and silences. Tokens of a language model that end
within a word get the time that their letters would end at, were the phones of a word (or its letters, where there are
none) equally many letters long.
"""

import json
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from slm_jax import paths
from slm_jax.data import json_lines

_SLACK_SECONDS, _SLACK_SHARE = 0.1, 0.02  # by which an end may be behind the recording's; see `segments`
_SILENCES = {'sil', 'sp', 'spn', 'nsn', 'nsil', 'silence', 'pau'}
_PHONE = re.compile(r'\S+_([BIES])')
_VALUES = re.compile(r'"((?:[^"]|"")*)"|(?<![\w\[.])(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w\].])')


class AlignmentError(ValueError):
    """An alignment that cannot be read or does not fit: `str()` names file and line, what is wrong and the remedy."""


class _Item(NamedTuple):
    """What is said, and when.

    Attributes:
        text: '' of a word of which only phones are known.
        start, end: in seconds.
        where: 'FILE:LINE'.
        phones: at which each phone of it ends.
    """

    text: str
    start: float
    end: float
    where: str
    phones: tuple[float, ...] = ()


def spans(given: str, names: Sequence[str], text: str, seconds: float, origin: str) -> str:
    """When what is said of a transcript is said, as `token_ends` reads it: JSON.

    Args:
        given: a file, or a JSON list of [text, start, end].
        names: that a CTM may have for the recording.
        text: the transcript.
        seconds: of the recording.
        origin: 'FILE:LINE' of the manifest.

    Raises:
        AlignmentError: it cannot be read, or is not of this transcript or this recording.
    """
    if given.startswith('['):
        where, items = origin, list(_listed(json.loads(given), origin))
    else:
        where, items = given, list(_of_file(given, names))
    _check_times(items, seconds)
    said = _spoken(items, text, where)
    return json.dumps([[n, each.start, each.end, *each.phones[:-1]] for n, each in said])


def _check_times(items: Sequence[_Item], seconds: float) -> None:
    before = 0.0
    for item in items:
        if not before <= item.start <= item.end:
            raise AlignmentError(
                f'{item.where}: {item.text!r} from {item.start:g} s to {item.end:g} s; it was to begin at '
                f'{before:g} s or later, and not to end before it begins. Write what is said in its order, in seconds.'
            )
        if item.end > seconds + max(_SLACK_SECONDS, _SLACK_SHARE * seconds) and letters(item.text):
            raise AlignmentError(
                f'{item.where}: {item.text!r} ends at {item.end:g} s and the recording has {seconds:.2f} s. Give the '
                'alignment of this recording, in seconds from its beginning.'
            )
        before = item.start


def _spoken(items: Sequence[_Item], text: str, where: str) -> Iterator[tuple[int, _Item]]:
    """(how many letters of the transcript, item) of those that are heard."""
    words = [found for word in text.split() if (found := letters(word))]
    if items and all(not item.text for item in items):
        if len(items) != len(words):
            raise AlignmentError(
                f'{where}: its phones are of {len(items)} words and the transcript has {len(words)}: {text[:60]!r}. '
                'Give the alignment of this transcript.'
            )
        yield from ((len(word), item) for word, item in zip(words, items))
        return
    left = ''.join(words)
    for item in items:
        said = letters(item.text)
        if said and left.startswith(said):
            yield len(said), item
            left = left[len(said) :]
        elif said and item.text.lower() not in _SILENCES and not re.fullmatch(r'<.*>|\[.*\]', item.text):
            raise AlignmentError(
                f'{item.where}: {item.text!r} where the transcript goes on with {left[:20]!r} (letters alone): '
                f'{text[:60]!r}. Give the alignment of this transcript, or write it as it was aligned.'
            )
    if left:
        raise AlignmentError(
            f'{where}: it ends where the transcript goes on with {left[:20]!r} (letters alone): {text[:60]!r}. '
            'Give the alignment of the whole transcript.'
        )


def letters(text: str) -> str:
    """Letters, marks and digits of a text, small."""
    text = unicodedata.normalize('NFKC', text).lower()
    return ''.join(c for c in text if unicodedata.category(c)[0] in 'LMN')


def token_ends(example: Mapping[str, Any], vocabulary: Any) -> Float32[np.ndarray, ' t']:
    """Seconds at which each token of a transcript ends; minus that where it is an estimate, within what was aligned.

    A pause is part of the token before it. 0 of ends of texts and where there is no alignment, as for a target that is
    not the transcript.

    Args:
        example: `targets`, tokens of `vocabulary`, and `alignment`, see `spans`, if there is one.
    """
    ends, found = np.zeros(len(example['targets']), np.float32), json.loads(example.get('alignment', b'') or '[]')
    text = [int(token) for token in example['targets'] if token != vocabulary.eos_id]
    said = [len(letters(vocabulary.decode(text[: count + 1]))) for count in range(len(text))]
    if not found or not said or said[-1] != sum(count for count, *_ in found):
        return ends
    borders = np.cumsum([0, *(count for count, *_ in found)])
    starts, stops = [start for _, start, *_ in found], [end for _, _, end, *_ in found]
    before = 0
    for place, count in enumerate(np.maximum.accumulate(said)):
        number = int(np.searchsorted(borders, count))  # of items that have ended, if one ends here
        heard, goes_on = count > before, place + 1 < len(said) and said[place + 1] == count
        if borders[number] != count:
            size, start, end, *inner = found[number - 1]
            knots = np.linspace(0, size, len(inner) + 2)
            ends[place] = -np.interp(count - borders[number - 1], knots, [start, *inner, end])
        elif number == len(found) or (heard and goes_on):
            ends[place] = stops[number - 1]
        else:
            ends[place] = starts[number]
        ends[place] = ends[place] or 1e-3  # what comes before a word that begins at 0 has a known end
        before = count
    return ends


# ---------------------------------------------------------------------- files


def _of_file(name: str, names: Sequence[str]) -> Iterator[_Item]:
    kind = pathlib.PurePosixPath(name).suffix.lower()
    if kind == '.jsonl':
        try:
            for number, line in json_lines.lines(name):
                yield from _listed([_parsed(line)], f'{name}:{number}')
        except json_lines.JsonLinesError as error:
            raise AlignmentError(str(error)) from None
    elif kind == '.textgrid':
        yield from _text_grid(name, _text(name))
    elif kind == '.ctm':
        yield from _ctm(name, _text(name), names)
    else:
        raise AlignmentError(f'{name}: no alignment by its ending; .TextGrid, .ctm and .jsonl are read.')


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors='replace')


def _listed(rows: Any, where: str) -> Iterator[_Item]:
    for row in rows:
        match row:
            case [str(text), int() | float() as start, int() | float() as end] if not isinstance(start + end, bool):
                yield _Item(text, float(start), float(end), where)
            case _:
                raise AlignmentError(
                    f'{where}: {str(row)[:60]!r}; ["text", start, end] was expected, with times in seconds.'
                )


def _text(name: str) -> str:
    try:
        content = paths.path(name).read_bytes()
    except OSError as error:
        raise AlignmentError(
            f'{name}: cannot be read ({error.strerror or error}). Correct the "alignment" of the manifest.'
        ) from error
    try:
        return content.decode('utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise AlignmentError(f'{name}: neither UTF-8 nor UTF-16 ({error.reason}). Save it as UTF-8.') from None


def _ctm(name: str, text: str, names: Sequence[str]) -> Iterator[_Item]:
    found: list[_Item] = []
    others: set[str] = set()
    for number, line in enumerate(text.split('\n'), 1):
        fields = line.split()
        if not fields or line.startswith(';;'):
            continue
        try:
            recording, _, start, duration, said = fields[:5]
            item = _Item(said, float(start), round(float(start) + float(duration), 6), f'{name}:{number}')
        except ValueError:
            raise AlignmentError(
                f'{name}:{number}: {line[:60]!r}; NAME CHANNEL START DURATION WORD was expected, with times in seconds.'
            ) from None
        if recording in names:
            found.append(item)
        else:
            others.add(recording)
    if not found:
        there = ', '.join(sorted(others)[:3]) or 'none'
        raise AlignmentError(
            f'{name}: nothing is said of {" or ".join(map(repr, names))}, but of {there}. '
            'Give the line of the manifest the "id" that the CTM has.'
        )
    phones = [(_PHONE.fullmatch(item.text), item) for item in found if item.text.lower() not in _SILENCES]
    if not all(match for match, _ in phones):
        yield from found
        return
    word: list[_Item] = []
    for match, item in phones:
        word.append(item)
        if match and match[1] in 'ES':
            yield _Item('', word[0].start, item.end, word[0].where, tuple(each.end for each in word))
            word = []


def _text_grid(name: str, text: str) -> Iterator[_Item]:
    tiers = [(tier.lower(), items) for tier, items in _tiers(name, text)]

    def tier(kind: str) -> list[_Item] | None:
        found = [items for tier, items in tiers if re.search(rf'\b{kind}s?$', tier)]
        if len(found) > 1:
            raise AlignmentError(
                f'{name}: {len(found)} tiers of {kind}s, of several speakers. Cut the recording into what each says.'
            )
        return found[0] if found else None

    words, phones = tier('word'), tier('phone') or []
    if words is None and len(tiers) == 1:
        ((_, words),) = tiers
    if words is None:
        there = ', '.join(repr(tier) for tier, _ in tiers) or 'none'
        raise AlignmentError(f'{name}: no tier "words", but {there}. Call the tier of words so.')
    for word in words:
        inner = [phone.end for phone in phones if word.start < phone.end - 1e-4 and phone.end < word.end + 1e-4]
        yield word._replace(phones=tuple(inner))


def _tiers(name: str, text: str) -> Iterator[tuple[str, list[_Item]]]:
    """(name, intervals with text) of each tier of intervals, of both of Praat's formats."""
    line, position = 1, 0
    values: list[tuple[str | float, int]] = []
    for match in _VALUES.finditer(text):
        line += text.count('\n', position, match.start())
        position = match.start()
        values.append((float(match[2]) if match[2] else match[1].replace('""', '"'), line))
    coming = iter(values)
    last = values[-1][1] if values else 1

    def take(kind: type) -> Any:
        value, line = next(coming, (None, last))
        if not isinstance(value, kind):
            expected = 'a number' if kind is float else 'a text in quotation marks'
            raise AlignmentError(
                f'{name}:{line}: {expected} was expected{"" if value is None else f", not {value!r}"}. Save the '
                'TextGrid with Praat again, as a text file.'
            )
        return value, line

    if [value for value, _ in values[:2]] != ['ooTextFile', 'TextGrid']:
        raise AlignmentError(f'{name}:1: no TextGrid of Praat: it begins with {text[:30]!r}.')
    for kind in (str, str, float, float):
        take(kind)
    for _ in range(int(take(float)[0])):
        intervals, tier = take(str)[0] == 'IntervalTier', take(str)[0]
        for _ in range(2):
            take(float)
        items = []
        for _ in range(int(take(float)[0])):
            start, line = take(float)
            end = take(float)[0] if intervals else start
            items.append(_Item(take(str)[0].strip(), start, end, f'{name}:{line}'))
        if intervals:
            yield tier, [item for item in items if item.text]
