"""Long audio in pieces: where to cut, and how the pieces' texts become one text or subtitles."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int16

from slm_jax.evaluation import normalizers

SAMPLE_RATE = 16000
_FRAME = 160  # samples; the loudness is looked at every 10 ms
_SMOOTHING = 15  # frames; a closed consonant is shorter than this, a pause is longer


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of a recording and, once it is known, its text.

    Attributes:
        start, end: seconds from the beginning of the recording.
        text: what the model says of it.
    """

    start: float
    end: float
    text: str = ''


def cut_point(samples: Int16[np.ndarray, ' n'], earliest: int, latest: int) -> int:
    """The middle of the quietest 150 ms that are centred between two positions (in samples)."""
    frames = samples[: len(samples) // _FRAME * _FRAME].astype(np.float32).reshape(-1, _FRAME)
    # Mean magnitude rather than power: one click must not make a pause look loud.
    loudness = np.convolve(np.abs(frames).mean(axis=1), np.ones(_SMOOTHING) / _SMOOTHING, 'same')
    first = min(earliest // _FRAME, len(loudness) - 1)
    last = max(latest // _FRAME, first + 1)
    window = loudness[first:last]
    # Of equally quiet frames (digital silence) the middle one, so that neither side is clipped.
    quietest = np.flatnonzero(window <= window.min() * 1.0001)
    place = quietest[len(quietest) // 2]
    return int(np.clip((first + place) * _FRAME + _FRAME // 2, earliest, latest))


def cut(samples: Int16[np.ndarray, ' n'], seconds: float, overlap: float = 0.0) -> list[tuple[int, int]]:
    """Cuts a recording at its quietest places.

    Args:
        samples: at 16 kHz.
        seconds: no piece is longer; pieces but the last are at least half as long.
        overlap: seconds that a piece begins before the end of the one before it, so that a word at
            a cut is whole on one side (`join` takes out what is heard twice).

    Returns:
        (first sample, sample after the last) of each piece; together they cover the recording. A
        recording that is short enough is one piece.

    Raises:
        ValueError: seconds is not positive, or overlap not between 0 and half of it.
    """
    check(seconds, overlap)
    longest, back = int(seconds * SAMPLE_RATE), int(overlap * SAMPLE_RATE)
    pieces, start = [], 0
    while len(samples) - start > longest:
        end = start + cut_point(samples[start : start + longest], longest // 2, longest)
        pieces.append((start, end))
        start = end - back
    return [*pieces, (start, len(samples))]


def cut_stream(
    read: Callable[[int], bytes], seconds: float, overlap: float = 0.0
) -> Iterator[tuple[float, Int16[np.ndarray, ' n']]]:
    """Cuts a stream of raw samples as they come in: (start in seconds, samples) of each piece.

    Args:
        read: returns at most so many bytes of 16-bit little-endian mono samples at 16 kHz, b'' at
            the end, as the `read` of a pipe does. Ctrl-C ends the stream, not the program.
        seconds, overlap: as `cut`.
    """
    check(seconds, overlap)
    longest, back = int(seconds * SAMPLE_RATE), int(overlap * SAMPLE_RATE)
    held, start, more = b'', 0, True
    while more:
        try:
            block = read(SAMPLE_RATE // 5 * 2)
        except KeyboardInterrupt:
            block = b''
        more = bool(block)
        held += block
        while len(held) >= 2 * longest:
            samples = np.frombuffer(held, '<i2', count=longest)
            end = cut_point(samples, longest // 2, longest)
            yield start / SAMPLE_RATE, samples[:end]
            held = held[2 * (end - back) :]
            start += end - back
    if len(held) > 2 * (back if start else 0) + 1:
        yield start / SAMPLE_RATE, np.frombuffer(held, '<i2', count=len(held) // 2)


def check(seconds: float, overlap: float) -> None:
    """Refuses lengths of pieces that make no sense, with a ValueError."""
    if seconds <= 0 or not 0 <= overlap < seconds / 2:
        raise ValueError(
            f'chunk_seconds is {seconds:g} and overlap {overlap:g}; chunk_seconds must be above 0 '
            'and overlap at least 0 and less than half of it.'
        )


def join(texts: Sequence[str], overlapping: bool = False) -> str:
    """One text of the pieces' texts.

    Args:
        texts: in order.
        overlapping: the pieces overlap: words that end one text and begin the next, in the same
            order, are taken once. Case and punctuation do not count in the comparison.
    """
    words: list[str] = []
    for text in texts:
        new = text.split()
        if overlapping:
            before, after = ([normalizers.basic(w) for w in ws] for ws in (words[-30:], new[:30]))
            sizes = range(min(len(before), len(after)), 0, -1)
            new = new[next((n for n in sizes if before[-n:] == after[:n]), 0) :]
        words += new
    return ' '.join(words)


def srt(chunks: Sequence[Chunk], first: int = 1) -> str:
    """SubRip subtitles, one cue a chunk, numbered from `first`; none for chunks without text."""
    cues = [
        f'{number}\n{_time(chunk.start, ",")} --> {_time(chunk.end, ",")}\n{_lines(chunk.text)}\n'
        for number, chunk in enumerate(_said(chunks), start=first)
    ]
    return '\n'.join(cues)


def vtt(chunks: Sequence[Chunk]) -> str:
    """WebVTT subtitles, one cue a chunk; chunks without text have none."""
    escapes = str.maketrans({'&': '&amp;', '<': '&lt;', '>': '&gt;'})
    cues = [
        f'{_time(chunk.start, ".")} --> {_time(chunk.end, ".")}\n{_lines(chunk.text.translate(escapes))}\n'
        for chunk in _said(chunks)
    ]
    return '\n'.join(['WEBVTT\n', *cues])


def _said(chunks: Sequence[Chunk]) -> list[Chunk]:
    return [chunk for chunk in chunks if chunk.text.strip()]


def _lines(text: str) -> str:
    # An empty line would end the cue, so all white space becomes single spaces.
    return ' '.join(text.split())


def _time(seconds: float, point: str) -> str:
    """3661.5 -> '01:01:01,500'."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f'{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}'
