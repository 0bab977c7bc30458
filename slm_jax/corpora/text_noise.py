"""Noise for text: what a recogniser makes of a sentence, and T5's span corruption."""

import random

import numpy as np
from jaxtyping import Int32

from slm_jax.data import ctc_text

# Sounds that are taken for one another. Each group is a class of characters.
_ALIKE = (
    'aeiouy',
    'ptkbdg',
    'mnlrv',
    'аеиоуыяю',
    'птксш',
    'бдгзж',
    'мнлрв',
    'aáàâeéè',
    'eéèêiíìaä',
    'iíeéyî',
    'oóòôuaö',
    'uúùûoü',
    'bpv',
    'dt',
    'gkcq',
    'szcç',
    'mn',
    'rl',
    'fvw',
    'jgy',
    'hx',
    'кгх',
    'бп',
    'дт',
    'вф',
    'жшщ',
    'зсц',
    'аоя',
    'еиэёй',
    'уюо',
    'ыи',
    'мн',
    'рл',
    'чщт',
    '0689',
    '1479',
    '2356',
)
_CONFUSED = {c: [o for group in _ALIKE if c in group for o in group if o != c] for c in ''.join(_ALIKE)}


def as_recognised(text: str, error_rate: float, rng: random.Random) -> str:
    """The text as greedy CTC might write it: normalised, with a share of the characters wrong.

    Args:
        error_rate: expected wrong characters per character; words are spoilt unevenly, so that some stay whole. Of the
            wrong ones 45% are taken for one that sounds alike, 36% are dropped, and 19% get another one behind them,
            about as in usm_tiny's own errors.
    """
    text, written, rate = ctc_text.normalize(text), [], 0.0
    for place, character in enumerate(text):
        if place == 0 or character == ' ':
            rate = error_rate * rng.expovariate(1.0)
        what = rng.random() / rate if rate else 1.0
        if what >= 1.0:
            written.append(character)
        elif what < 0.45:
            written.append(rng.choice(_CONFUSED.get(character) or text))
        elif what > 0.81:
            written.append(character + rng.choice(text + ' ' * (len(text) // 6)))
    return ' '.join(''.join(written).split())


def corrupt_spans(
    tokens: Int32[np.ndarray, ' length'],
    vocab_size: int,
    rng: random.Random,
    noise_density: float = 0.15,
    mean_span: float = 8.0,
) -> tuple[Int32[np.ndarray, ' kept'], Int32[np.ndarray, ' noise']]:
    """T5's objective (arXiv 1910.10683, section 3.1.4): spans of the input become the target.

    A span is replaced by a sentinel, the ids from `vocab_size - 1` downwards; the target is each
    sentinel followed by the tokens it stands for. Spans do not touch; unlike T5's, they may stand
    at the very beginning, and the last need not stand at the end: most of our texts have one span.
    No EOS is added.

    Returns:
        (inputs, targets); a text of one token becomes a sentinel.
    """
    length = len(tokens)
    num_noise = min(max(round(length * noise_density), 1), max(length - 1, 1))
    num_spans = max(1, min(round(num_noise / mean_span), length - num_noise))
    noise = _parts(num_noise, num_spans, rng)
    # Two more than there are, one for the first part and one for the last: these may be empty.
    text = _parts(length - num_noise + 2, num_spans + 1, rng)
    text[0] -= 1
    inputs, targets, position = [], [], 0
    for number, (kept, removed) in enumerate(zip(text, noise, strict=False)):
        sentinel = vocab_size - 1 - number
        inputs += [*tokens[position : position + kept], sentinel]
        targets += [sentinel, *tokens[position + kept : position + kept + removed]]
        position += kept + removed
    inputs += [*tokens[position:]]
    return np.array(inputs, np.int32), np.array(targets, np.int32)


def _parts(total: int, count: int, rng: random.Random) -> list[int]:
    """`total` cut at random into `count` parts of at least one."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [right - left for left, right in zip(cuts, cuts[1:], strict=False)]
