"""A finished recording as text, JSON, SRT or WebVTT."""

import json
from typing import Any


def render(recording: Any, form: str, overlapping: bool, alone: bool) -> str:
    """One finished recording as text, JSON, SRT or WebVTT.

    Args:
        recording: an `infer.Recording`, without an error, except for 'json'.
        form: one of the formats.
        overlapping: whether its chunks overlap.
        alone: whether it is the only input; among several, 'text' names it.
    """
    from slm_jax.inference import chunks

    pieces = [
        chunks.Chunk(start, end, text or '')
        for (start, end), text in zip(recording.bounds, recording.texts, strict=True)
    ]
    if form in ('srt', 'vtt') and any(recording.words):
        from slm_jax.inference.words import subtitles

        pieces = subtitles(pieces, recording.words)
    if form == 'srt':
        return chunks.srt(pieces)
    if form == 'vtt':
        return chunks.vtt(pieces)
    text = chunks.join([piece.text for piece in pieces], overlapping)
    if form == 'text':
        return (text if alone else f'{recording.name}\t{text}') + '\n'
    line: dict[str, Any] = {'audio': recording.name, 'instruction': recording.instruction}
    if recording.segment[0]:
        line['offset'] = float(recording.segment[0])
    if recording.error:
        line['error'] = recording.error
    else:
        line |= {'text': text, 'duration': round(pieces[-1].end, 3)} | _truncated(any(recording.cuts))
        if len(pieces) > 1:
            line['chunks'] = [timed(piece, cut) for piece, cut in zip(pieces, recording.cuts, strict=True)]
        if recording.without_ctc:
            line['ctc'] = False
        if any(recording.words):
            line['words'] = [
                word.later(piece.start).line for piece, said in zip(pieces, recording.words) for word in said
            ]
    return json.dumps(line, ensure_ascii=False) + '\n'


def timed(piece: Any, cut: str) -> dict[str, Any]:
    """A piece as it stands among the `chunks` of a line of JSON; `cut` says which limit cut it, '' none."""
    return {'start': round(piece.start, 3), 'end': round(piece.end, 3), 'text': piece.text} | _truncated(bool(cut))


def _truncated(cut: bool) -> dict[str, bool]:
    return {'truncated': True} if cut else {}
