"""Candidate phrases that an instruction carries: names that may be said, among others that are not.

A manifest's line has `phrases`, those that are said in its recording. `PhraseList` adds others, drawn from a pool, and
the wordings `asr_phrases` of instructions.py name them all ({phrases}).

    from slm_jax.data import phrases
    tasks.manifest.phrases = @phrases.PhraseList()
    phrases.PhraseList.pool = 'rare_words.txt'
"""

import dataclasses
import functools
import os
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slm_jax import paths
from slm_jax.data import ctc_text, json_lines

MOST = 1000
# How any instruction lists the phrases that may be said.
LISTED = '{instruction} Some of these may be said: {phrases}.'
CANDIDATES = 'candidates'  # of a manifest's line: what `slm-jax retrieve` found


@dataclasses.dataclass(frozen=True)
class PhraseList:
    """The list that an example is given: its own phrases among distractors.

    Attributes:
        pool: a text file, one phrase a line, of which the distractors are drawn; '' where there are none.
        distractors: how many; drawn between these, from, to.
        without: share of the examples that have no list at all, so that a model stays able to do without.
        absent: share of the others whose own phrases are not in the list.

    Raises:
        ValueError: a field cannot be so.
    """

    pool: str = ''
    distractors: tuple[int, int] = (0, 100)
    without: float = 0.2
    absent: float = 0.1

    def __post_init__(self):
        fewest, most = self.distractors
        if not 0 <= fewest <= most <= MOST:
            raise ValueError(
                f'PhraseList.distractors is {self.distractors!r}; (from, to) was expected, between 0 and {MOST}.'
            )
        for field in ('without', 'absent'):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f'PhraseList.{field} is {getattr(self, field)!r}; it is a share, 0 to 1.')

    def check(self) -> None:
        """Refuses a pool that is too small, or not there: a model that was trained with it needs none to answer.

        Raises:
            ValueError: as said.
        """
        most, there = self.distractors[1], len(read(self.pool)) if self.pool else 0
        if most > there:
            raise ValueError(
                f'PhraseList.pool {self.pool!r} has {there} phrases and distractors is up to {most}: give a larger '
                'pool, or fewer distractors.'
            )

    def __call__(self, own: Sequence[str], text: str, seed: int | str) -> list[str]:
        """The phrases that are listed for an example, in an order of their own.

        Args:
            own: those that are said.
            text: what is said; a phrase of the pool that is in it is no distractor.
            seed: decides all that is drawn.
        """
        rng = random.Random(f'phrases/{seed}')
        if rng.random() < self.without:
            return []
        listed = [] if rng.random() < self.absent else list(dict.fromkeys(own))
        count = rng.randint(*self.distractors)
        if count:
            pool = read(self.pool)
            said = f' {ctc_text.normalize(" ".join([text, *own]))} '
            drawn = rng.sample(pool, min(len(pool), 2 * count + 20))
            listed += [phrase for phrase in drawn if f' {ctc_text.normalize(phrase)} ' not in said][:count]
        rng.shuffle(listed)
        return listed


def of_option(given: str, pool: str) -> PhraseList | str | None:
    """What `--phrases own+N`, `own`, `N` or `candidates` and `--phrase_pool` ask for; None for ''.

    Raises:
        ValueError: it is none of these, or the pool is too small.
    """
    match = re.fullmatch(r'(own)?(?:(?:^|\+)(\d+))?', given)
    if not given and not pool:
        return None
    if given == CANDIDATES and not pool:
        return CANDIDATES
    if not given or not match:
        raise ValueError(
            f"--phrases {given!r}: 'own' lists what a line's `phrases` are, 'own+100' a hundred others as well, '100' "
            "others alone; 'candidates' those that `slm-jax retrieve` found."
        )
    count = int(match[2] or 0)
    if count and not pool:
        raise ValueError(f'--phrases {given}: give --phrase_pool, a file with a phrase a line.')
    if not count and not match[1]:
        raise ValueError(f'--phrases {given}: nothing is listed; leave it out.')
    listed = PhraseList(pool, (count, count), without=0.0, absent=0.0 if match[1] else 1.0)
    listed.check()
    return listed


def of_text(given: str) -> tuple[str, ...]:
    """The phrases that `--phrases` gives: those of a file, one a line, or those that are `parted`.

    Raises:
        ValueError: there are none, or too many, or the file is not there.
    """
    try:
        if given and paths.path(given).is_file():
            return _few(read(given))
    except OSError:  # longer than the name of a file can be
        pass
    if not re.search('[,\n]', given) and re.search(r'[/\\]|\.[a-z]{2,4}$', given):
        raise ValueError(f'phrases {given!r}: there is no such file. Phrases themselves are parted by commas.')
    return parted(given)


def parted(given: str) -> tuple[str, ...]:
    """Phrases between commas and line ends; () of ''. A ValueError if there are none, or too many."""
    return _few(tuple(dict.fromkeys(filter(None, map(str.strip, re.split('[,\n]', given)))))) if given else ()


def _few(found: tuple[str, ...]) -> tuple[str, ...]:
    if not 0 < len(found) <= MOST:
        raise ValueError(f'phrases: {len(found)} are given; 1 to {MOST} can be listed.')
    return found


def asked(instruction: str, listed: Sequence[str]) -> str:
    """An instruction that lists phrases: in the place of its {phrases} or, without one, behind it."""
    if not listed:
        return instruction
    if '{phrases}' not in instruction:
        instruction = LISTED.replace('{instruction}', instruction)
    return instruction.replace('{phrases}', written(listed))


def one_of(own: Sequence[str], text: str, seed: int | str) -> str:
    """A phrase that is said, as CTC spells it: one of its own or, without any, up to three words in a row.

    Words alone have five letters or more where there are such, or every recording would have them.
    """
    rng = random.Random(f'one/{seed}')
    if own:
        return ctc_text.normalize(rng.choice(own))
    words = ctc_text.normalize(text).split()
    spans = [words[start : start + count] for count in (1, 2, 3) for start in range(len(words) - count + 1)]
    told = [span for span in spans if len(span) > 1 or len(span[0]) > 4]
    return ' '.join(rng.choice(told or spans or [words]))


@functools.lru_cache(8)
def read(path: str | os.PathLike) -> tuple[str, ...]:
    """The phrases of a file, each once.

    Raises:
        ValueError: there are none.
    """
    found = (line.decode(errors='replace').strip() for _, line in json_lines.lines(path))
    return tuple(dict.fromkeys(found))


def of_row(row: Mapping[str, Any], field: str = 'phrases') -> list[str] | None:
    """The phrases of a manifest's line; None where it has none of its own.

    Raises:
        ValueError: they are no list of texts.
    """
    given = row.get(field)
    if given is not None and not (isinstance(given, list) and all(isinstance(p, str) and p.strip() for p in given)):
        raise ValueError(f'field "{field}" is {given!r}; a list of texts was expected.')
    return given


def written(listed: Sequence[str]) -> str:
    """A list as it stands in an instruction."""
    return ', '.join(listed)
