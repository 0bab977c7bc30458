"""OpenAI's answers: transcripts in five formats, chat completions, and both as they are written (SSE)."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from slm_jax.data import languages
from slm_jax.inference import chunks
from slm_jax.inference.words import Word, subtitles
from slm_jax.inference.writing import Part

MEDIA = {
    'text': 'text/plain; charset=utf-8',
    'srt': 'application/x-subrip; charset=utf-8',
    'vtt': 'text/vtt; charset=utf-8',
}
DONE = b'data: [DONE]\n\n'


def event(content: Any) -> bytes:
    """A server-sent event."""
    return f'data: {json.dumps(content, ensure_ascii=False)}\n\n'.encode()


def transcript(
    form: str,
    bounds: Sequence[tuple[float, float]],
    parts: Sequence[Part],
    lang: str,
    said: Sequence[Sequence[Word]] | None = None,
    segmented: bool = True,
    task: str = 'transcribe',
) -> str | dict[str, Any]:
    """A transcript: text for the formats of `MEDIA`, an object for the others.

    Args:
        form: one of `requests.FORMATS`.
        bounds: (start, end) of each piece of the recording, in seconds.
        parts: what was heard in each.
        lang: code of the text's language, as the client gave it; '' if it did not.
        said: the words of each piece, from its start; None where they are not asked for.
        segmented: whether 'verbose_json' has the pieces.
        task: or 'translate'.
    """
    pieces = [chunks.Chunk(start, end, part.text) for (start, end), part in zip(bounds, parts, strict=True)]
    text = chunks.join([piece.text for piece in pieces]) if len(pieces) > 1 else pieces[0].text
    if form == 'text':
        return text + '\n'
    if form in ('srt', 'vtt'):
        cues = pieces if said is None else subtitles(pieces, said)
        return chunks.srt(cues) if form == 'srt' else chunks.vtt(cues)
    seconds = bounds[-1][1]
    usage = {'type': 'duration', 'seconds': round(seconds, 3)}
    if form == 'json':
        return {'text': text, 'usage': usage}
    segments = [
        {
            'id': number,
            'seek': round(100 * piece.start),
            'start': round(piece.start, 3),
            'end': round(piece.end, 3),
            'text': piece.text,
            'tokens': list(part.tokens),
            # What a model of ours does not say.
            'temperature': None,
            'avg_logprob': None,
            'compression_ratio': None,
            'no_speech_prob': None,
        }
        for number, (piece, part) in enumerate(zip(pieces, parts, strict=True))
        if piece.text.strip()
    ]
    result = {
        'task': task,
        'language': (languages.name(lang) or 'unknown').lower(),
        'duration': round(seconds, 3),
        'text': text,
        'usage': usage,
    }
    if segmented:
        result['segments'] = segments
    if said is not None:
        result['words'] = [word.later(piece.start).line for piece, its in zip(pieces, said) for word in its]
    return result


class Completion:
    """A chat completion, whole or in chunks.

    Args:
        model: its name.
        prompt_tokens: how many tokens of text were read.
    """

    def __init__(self, model: str, prompt_tokens: int):
        self._prompt_tokens = prompt_tokens
        self._head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': model}

    def whole(self, part: Part) -> dict[str, Any]:
        """The answer."""
        message = {'role': 'assistant', 'content': part.text, 'refusal': None}
        choice = {'index': 0, 'message': message, 'logprobs': None, 'finish_reason': _finish(part)}
        return self._head | {'object': 'chat.completion', 'choices': [choice], 'usage': self._usage(part)}

    def first(self) -> bytes:
        """The event before all text."""
        return self._chunk([self._choice({'role': 'assistant', 'content': ''}, None)])

    def delta(self, text: str) -> bytes:
        """The event of some more text."""
        return self._chunk([self._choice({'content': text}, None)])

    def last(self, part: Part, usage: bool) -> bytes:
        """The events after all text, with the number of tokens if that is asked for."""
        events = self._chunk([self._choice({}, _finish(part))])
        return events + (self._chunk([], usage=self._usage(part)) if usage else b'') + DONE

    def _choice(self, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
        return {'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': finish}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event(self._head | {'object': 'chat.completion.chunk', 'choices': choices} | more)

    def _usage(self, part: Part) -> dict[str, int]:
        read, written = self._prompt_tokens, len(part.tokens)
        return {'prompt_tokens': read, 'completion_tokens': written, 'total_tokens': read + written}


def _finish(part: Part) -> str:
    return 'length' if part.cut else 'stop'
