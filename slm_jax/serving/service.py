"""A model behind a server: its limits, who may come in, and requests made into queries."""

import asyncio
import dataclasses
import functools
import io
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int16

from slm_jax.audio import waveforms
from slm_jax.data import instructions, languages, phrases
from slm_jax.inference import asking, chunks, queries, words
from slm_jax.inference.writing import Part
from slm_jax.serving.engine import Engine, Job
from slm_jax.serving.errors import ApiError
from slm_jax.serving.metrics import Metrics

_PROMPT_TOKENS = 2048
_LOOK = 0.2  # seconds between two looks whether a client is still there
_DECODERS = 2  # recordings that are decoded at once: each may take much memory


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
        requests: that are inside at once; one more is told to come again (429).
        bytes: of a body.
        audio_seconds: of a recording.
        seconds: that a request may take.
    """

    requests: int = 64
    bytes: int = 26_214_400
    audio_seconds: float = 600.0
    seconds: float = 300.0


class Service:
    """What the routes share.

    Args:
        model: see `slm_jax.inference.model`.
        name: under which it is asked for.
        max_rows: of a batch.
        limits: what is refused.
        token: that clients have to give; '' if none.
        chunk_seconds: longest piece of what is transcribed; None: what the model takes at once.
        with_ctc: see `asking.query`.

    Attributes:
        longest: seconds that the model takes at once.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        max_rows: int = 16,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        token: str = '',
        chunk_seconds: float | None = None,
        with_ctc: bool = False,
    ):
        asking.check_hears(model)
        self.model, self.name, self.limits, self.token = model, name, limits, token
        self.metrics = Metrics()
        self.engine = Engine(model, max_rows, self.metrics.batch)
        self.metrics.waiting.set_function(lambda: self.engine.waiting)
        self.longest = model.let_through(None)
        self._chunk_seconds = min(chunk_seconds or math.inf, self.longest)
        self._with_ctc = with_ctc
        self._decoders = asyncio.Semaphore(_DECODERS)

    def warm(self) -> None:
        """Compiles for transcripts of all lengths."""
        vocabulary = self.model.text_vocabulary
        lang = next(iter(getattr(vocabulary, 'languages', ())), '')  # a prompt with a code is another program
        put = queries.asked(vocabulary, self.model.prompt, queries.wording('', '', ''), lang=lang)
        self.engine.warm(len(put['tokens']), self._chunk_seconds, put.get('first', 0))

    def check_model(self, name: str) -> None:
        """Refuses a model that is not here."""
        if name != self.name:
            message = f'There is no model {name!r} here; there is {self.name!r}.'
            raise ApiError(404, message, 'model', 'model_not_found')

    def check_sampling(self, temperature: float | None, top_p: float | None = None) -> None:
        """Refuses another way of generating than the one that the server was started with."""
        decode = self.model.decode
        sampled = decode.method == 'sample'
        for name, given, own in (
            ('temperature', temperature, decode.temperature if sampled else 0),
            ('top_p', top_p, decode.top_p if sampled else 1),
        ):
            if given is not None and given != own:
                raise ApiError(
                    400,
                    f'{name}: this server generates with {name} {own:g} (method {decode.method!r}). Leave it out, or '
                    f'start `slm-jax serve` with --decode sample --{name} {given:g}.',
                    name,
                )

    async def samples(self, name: str, content: bytes, param: str | None) -> Int16[np.ndarray, ' n']:
        """A recording of at most so many seconds."""
        file = io.BytesIO(content)
        file.name = name
        async with self._decoders:
            try:
                samples = await asyncio.to_thread(waveforms.read_waveform, file, self.limits.audio_seconds)
            except waveforms.AudioError as error:
                raise ApiError(400, str(error), param) from None
        self.metrics.audio.inc(len(samples) / queries.SAMPLE_RATE)
        return samples

    def check_length(self, samples: Int16[np.ndarray, ' n'], param: str | None) -> None:
        """Refuses a recording that is longer than the model takes at once."""
        if len(samples) > self.longest * queries.SAMPLE_RATE:
            raise ApiError(
                400,
                f'The recording has {len(samples) / queries.SAMPLE_RATE:.1f} s; this model takes {self.longest:g} s '
                'at once. Ask about a part of it; /v1/audio/transcriptions takes it whole.',
                param,
            )

    def query(
        self, messages: Sequence[asking.Message], samples: Int16[np.ndarray, ' n'] | None, param: str = 'messages'
    ) -> queries.Query:
        """One query of a conversation, which is in the request's field `param`."""
        if samples is not None:
            self.check_length(samples, param)
        *before, last = messages
        if not last.text:  # a recording alone
            last = last._replace(text=queries.wording('', '', ''))
        try:
            query = asking.query(self.model, [*before, last], samples, self._with_ctc)
        except ValueError as error:
            raise ApiError(400, str(error), param) from None
        if len(query.tokens) > _PROMPT_TOKENS:
            raise ApiError(
                400, f'The text has {len(query.tokens)} tokens; {_PROMPT_TOKENS} are read at most.', param,
                'context_length_exceeded',
            )  # fmt: skip
        return query

    def pieces(
        self, samples: Int16[np.ndarray, ' n'], lang: str, listed: str, target_lang: str = ''
    ) -> tuple[list[tuple[float, float]], list[queries.Query]]:
        """(start, end) in seconds of what is transcribed or translated at once, and its query.

        Args:
            samples: of the recording.
            lang: code of its language; '' if that is not known.
            listed: phrases that may be said, `phrases.parted`.
            target_lang: to translate into; '' asks for a transcript.
        """
        if lang and not languages.name(lang):
            raise ApiError(400, f'language: {lang!r} is not known; give a code such as en.', 'language')
        try:
            if not target_lang and (lang or not self.model.prompt.instructed):  # it is told by a code
                languages.begun(self.model.text_vocabulary, lang)
        except ValueError as error:
            raise ApiError(400, f'language: {error}', 'language') from None
        template = instructions.TEMPLATES['ast_language' if lang else 'ast'][0] if target_lang else ''
        try:
            asking.check_lists(self.model, found := phrases.parted(listed))
            instruction = phrases.asked(queries.wording(template, lang, target_lang), found)
        except ValueError as error:
            raise ApiError(400, f'prompt: {error}', 'prompt') from None
        message = asking.Message('user', instruction, True)
        bounds = chunks.cut(samples, self._chunk_seconds)
        asked = [
            self.query([message], samples[start:end], 'language' if target_lang else 'prompt') for start, end in bounds
        ]
        return [(start / queries.SAMPLE_RATE, end / queries.SAMPLE_RATE) for start, end in bounds], asked

    @functools.cached_property
    def aligner(self) -> words.Aligner:
        """What finds the words of transcripts; ApiError if nothing can."""
        try:
            return words.aligner(self.model)
        except ValueError as error:
            raise ApiError(400, str(error), 'timestamp_granularities') from None

    def words(self, query: queries.Query, text: str) -> list[words.Word]:
        """The words of the transcript that a query has, for the engine's thread."""
        shape = queries.shape_of(query, self.model.encoder_seconds)
        return self.aligner.words(queries.batch_of([query], shape, self.model.row_multiple), [text])[0]


def _failed() -> ApiError:
    return ApiError(500, 'The model failed at this request; the log of the server says why.')


class Gone(Exception):
    """The client has left: nobody is there to answer to."""


class Visit:
    """A request on its way through the server; what it asked of the engine is cancelled when it leaves.

    Args:
        service: where.
    """

    def __init__(self, service: Service):
        self._service = service
        self.deadline = asyncio.get_running_loop().time() + service.limits.seconds
        self._jobs: list[Job] = []
        self._answered = 0

    def ask(self, query: queries.Query, streamed: bool = False, most: int | None = None) -> asyncio.Queue:
        """Puts a query to the engine; what it delivers comes out of the queue."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        def deliver(part: Part | Exception) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, part)
            except RuntimeError:  # the loop is closed: the server has gone
                job.cancel()

        job = Job(query, deliver, streamed, most)
        self._jobs.append(job)
        self._service.engine.submit(job)
        return queue

    async def parts(self, queue: asyncio.Queue, request: Any) -> AsyncIterator[Part]:
        """What comes of a query, up to the part that is over.

        Raises:
            ApiError: it failed, or takes too long.
            Gone: the client has left.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                part = await asyncio.wait_for(queue.get(), max(0.0, min(_LOOK, self.deadline - loop.time())))
            except TimeoutError:
                if loop.time() >= self.deadline:
                    raise self._late() from None
                if await request.is_disconnected():
                    raise Gone from None
                continue
            self._answered += isinstance(part, Exception) or part.over
            if isinstance(part, ValueError):
                raise ApiError(400, str(part))
            if isinstance(part, Exception):
                raise _failed()
            if part.over:
                self._service.metrics.tokens.inc(len(part.tokens))
            yield part
            if part.over:
                return

    async def call(self, function: Callable[[], Any]) -> Any:
        """What a function gives that the engine calls; ApiError if it fails or takes too long."""
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._service.engine.call(function)), max(0.0, left))
        except TimeoutError:
            raise self._late() from None
        except Exception:  # Whatever it is, the engine has logged it.
            raise _failed() from None

    def _late(self) -> ApiError:
        return ApiError(504, f'No answer in {self._service.limits.seconds:g} s; the server has too much to do.')

    async def last(self, queue: asyncio.Queue, request: Any) -> Part:
        """The part that is over."""
        async for part in self.parts(queue, request):
            if part.over:
                return part
        raise AssertionError('parts end with one that is over')

    def leave(self) -> bool:
        """Cancels what is not answered; whether there was such a thing."""
        for job in self._jobs:
            job.cancel()
        return self._answered < len(self._jobs)
