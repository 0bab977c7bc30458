"""The server: OpenAI's routes on a `Service`. A page is a router more, on the app that `create` returns."""

import asyncio
import contextlib
import functools
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import fastapi
import starlette.exceptions
import starlette.requests
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import Headers, UploadFile

from slm_jax.inference.queries import Query
from slm_jax.inference.words import Word
from slm_jax.inference.writing import Part
from slm_jax.serving import errors, formats, metrics, requests
from slm_jax.serving.errors import ApiError
from slm_jax.serving.service import Gone, Service, Visit

_READ_SECONDS = 60.0  # in which a body has to be here
_ANSWERING = ('/v1/audio/transcriptions', '/v1/audio/translations', '/v1/chat/completions', '/page/tokens')
_OPEN = ('/health', '/')  # without a token; the page asks for it
_FIELDS = 32  # of a form
_SSE = 'text/event-stream'

router = fastapi.APIRouter()


def create(service: Service) -> fastapi.FastAPI:
    """The app; `app.state.service` is the service, which is closed when the app shuts down."""

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)

    app = fastapi.FastAPI(title='slm_jax', lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_middleware(_Door, service=service)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(starlette.exceptions.HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)
    return app


class _Door:
    """Who may come in, and what is counted when they leave."""

    def __init__(self, app: Any, service: Service):
        self._app, self._service, self._inside = app, service, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        service, status, inside, started = self._service, 0, False, time.perf_counter()
        visit = scope['visit'] = Visit(service)

        async def sending(message: Any) -> None:
            nonlocal status
            status = message.get('status', status)
            await send(message)

        try:
            self._check(scope)
            inside = scope['path'] in _ANSWERING
            self._count(inside)
            await self._app(scope, receive, sending)
        except ApiError as error:
            await _drain(receive, service.limits.bytes)
            await _refused(None, error)(scope, receive, sending)
        except (Gone, starlette.requests.ClientDisconnect):
            pass
        finally:
            service.metrics.cancelled.inc(visit.leave())
            self._count(-inside)
            path = scope['path'] if scope['path'] in _KNOWN else 'other'
            service.metrics.requests.labels(path, status).inc()
            service.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _count(self, more: int) -> None:
        self._inside += more
        self._service.metrics.inside.set(self._inside)

    def _check(self, scope: Any) -> None:
        """Refuses who has no token, and those for whom there is no room."""
        token, given = self._service.token, Headers(scope=scope).get('authorization', '')
        if token and scope['path'] not in _OPEN:
            if not hmac.compare_digest(given.encode(), f'Bearer {token}'.encode()):
                raise ApiError(
                    401, 'The token is missing or wrong: send it as "Authorization: Bearer TOKEN".', None,
                    'invalid_api_key', {'WWW-Authenticate': 'Bearer'},
                )  # fmt: skip
        if scope['path'] in _ANSWERING and self._inside >= self._service.limits.requests:
            raise ApiError(
                429, f'{self._service.limits.requests} requests are being answered; come again.', None,
                'rate_limit_exceeded', {'Retry-After': '1'},
            )  # fmt: skip


async def _drain(receive: Any, most: int) -> None:
    """Reads what a client is still sending, as it would not see an answer before."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while size <= most:
                message = await receive()
                size += len(message.get('body', b''))
                if not message.get('more_body'):
                    return


def _refused(_: Any, error: Any) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _not_found(request: fastapi.Request, error: Any) -> Response:
    message = f'{error.detail}: {request.method} {request.url.path}'
    return JSONResponse(errors.body(error.status_code, message), error.status_code, error.headers)


def _failed(_: Any, error: Exception) -> Response:
    return JSONResponse(errors.body(500, 'The server failed; its log says why.'), 500)


async def body(request: fastapi.Request) -> bytes:
    """The body, of at most so many bytes."""
    most, size, blocks = request.app.state.service.limits.bytes, 0, []
    try:
        async with asyncio.timeout(_READ_SECONDS):
            async for block in request.stream():
                size += len(block)
                if size > 2 * most:
                    break
                if size <= most:
                    blocks.append(block)
    except TimeoutError:
        raise ApiError(408, f'The request was not here after {_READ_SECONDS:g} s.') from None
    if size > most:
        raise ApiError(413, f'The request has more than {most} bytes. Send a shorter recording, or a compressed one.')
    return b''.join(blocks)


async def _form(request: fastapi.Request, content: bytes) -> tuple[dict[str, Any], str, bytes]:
    """The fields of a form, and the name and content of its file."""
    kind = request.headers.get('content-type', '')
    if not kind.startswith('multipart/form-data'):
        raise ApiError(400, 'The body is no form: send multipart/form-data with the fields file and model.')

    async def replay() -> dict[str, Any]:
        return {'type': 'http.request', 'body': content, 'more_body': False}

    scope = {name: value for name, value in request.scope.items() if name != 'app'}  # else it raises another error
    try:
        form = await starlette.requests.Request(scope, replay).form(max_files=1, max_fields=_FIELDS)
    except Exception as error:  # The parser fails at malformed bodies in ways that it does not list.
        raise ApiError(400, f'The body is no form that can be read ({error}).') from None
    file, fields = form.get('file'), {}
    try:
        if not isinstance(file, UploadFile):
            raise ApiError(400, 'file: there is none; send the recording in this field.', 'file')
        for name in form:
            key, values = name.removesuffix('[]'), form.getlist(name)
            many = key == 'timestamp_granularities'
            if len(values) > 1 and not many:
                raise ApiError(400, f'{name}: given {len(values)} times; give it once.', name)
            if name != 'file':
                fields[key] = values if many else values[0]
        return fields, file.filename or 'file', await file.read()
    finally:
        await form.close()


async def _recording(
    request: fastapi.Request, read: Callable[[Mapping[str, Any]], requests.Asked]
) -> tuple[requests.Asked, str, bytes]:
    """(fields, the file's name, the file) of a form that asks for what this server gives."""
    fields, name, content = await _form(request, await body(request))
    asked, service = read(fields), request.app.state.service
    service.check_model(asked.model)
    service.check_sampling(asked.temperature)
    return asked, name, content


@router.post('/v1/audio/transcriptions')
async def transcriptions(request: fastapi.Request) -> Response:
    """A transcript of a recording of any length, piece by piece."""
    service, visit = request.app.state.service, request.scope['visit']
    asked, name, content = await _recording(request, requests.transcription)
    aligner = service.aligner if asked.word_times else None
    samples = await service.samples(name, content, 'file')
    bounds, wanted = await asyncio.to_thread(service.pieces, samples, asked.language, asked.prompt)
    queues = [visit.ask(query, asked.stream) for query in wanted]
    if asked.stream:
        return StreamingResponse(_transcript_events(request, queues, bounds), media_type=_SSE)
    parts = [await visit.last(queue, request) for queue in queues]
    said = None if aligner is None else [await _words(request, *each) for each in zip(wanted, parts, strict=True)]
    segmented = 'segment' in asked.timestamp_granularities
    result = formats.transcript(asked.response_format, bounds, parts, asked.language, said, segmented)
    return _written(result, asked.response_format)


@router.post('/v1/audio/translations')
async def translations(request: fastapi.Request) -> Response:
    """What is said in a recording of any length, in English, piece by piece."""
    service, visit = request.app.state.service, request.scope['visit']
    asked, name, content = await _recording(request, requests.translation)
    samples = await service.samples(name, content, 'file')
    bounds, wanted = await asyncio.to_thread(service.pieces, samples, asked.language, '', 'en')
    queues = [visit.ask(query) for query in wanted]
    parts = [await visit.last(queue, request) for queue in queues]
    result = formats.transcript(asked.response_format, bounds, parts, 'en', task='translate')
    return _written(result, asked.response_format)


def _written(result: str | dict[str, Any], form: str) -> Response:
    return (
        PlainTextResponse(result, media_type=formats.MEDIA[form]) if isinstance(result, str) else JSONResponse(result)
    )


async def _words(request: fastapi.Request, query: Query, part: Part) -> list[Word]:
    """The words of a piece, by the engine: others are answered before those of the next."""
    if not part.text.strip():
        return []
    if await request.is_disconnected():
        raise Gone
    return await request.scope['visit'].call(functools.partial(request.app.state.service.words, query, part.text))


async def _transcript_events(request: fastapi.Request, queues: Any, bounds: Any) -> AsyncIterator[bytes]:
    visit, parts = request.scope['visit'], []
    try:
        for queue in queues:
            sent = ''
            async for part in visit.parts(queue, request):
                more = part.text[len(sent) :]
                if more:
                    space = ' ' if not sent and any(each.text for each in parts) else ''
                    yield formats.event({'type': 'transcript.text.delta', 'delta': space + more})
                sent = part.text
            parts.append(part)
        result = formats.transcript('json', bounds, parts, '')
        assert isinstance(result, dict)
        yield formats.event({'type': 'transcript.text.done', **result}) + formats.DONE
    except ApiError as error:
        yield formats.event(error.body)
    except Gone:
        return


@router.post('/v1/chat/completions')
async def completions(request: fastapi.Request) -> Response:
    """The answer to the last message of a conversation, about its recording."""
    service, visit = request.app.state.service, request.scope['visit']
    asked = requests.chat(await body(request))
    service.check_model(asked.model)
    service.check_sampling(asked.temperature, asked.top_p)
    messages, recording = await asyncio.to_thread(asked.conversation)
    samples = None if recording is None else await service.samples('input_audio', recording, 'messages')
    query = await asyncio.to_thread(service.query, messages, samples)
    queue = visit.ask(query, bool(asked.stream), asked.most)
    completion = formats.Completion(service.name, len(query.tokens))
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(_completion_events(request, queue, completion, usage), media_type=_SSE)
    return JSONResponse(completion.whole(await visit.last(queue, request)))


async def _completion_events(
    request: fastapi.Request, queue: Any, completion: formats.Completion, usage: bool
) -> AsyncIterator[bytes]:
    sent = ''
    try:
        yield completion.first()
        async for part in request.scope['visit'].parts(queue, request):
            if part.text[len(sent) :]:
                yield completion.delta(part.text[len(sent) :])
            sent = part.text
        yield completion.last(part, usage)
    except ApiError as error:
        yield formats.event(error.body)
    except Gone:
        return


@router.get('/v1/models')
async def models(request: fastapi.Request) -> dict[str, Any]:
    """The one model."""
    return {'object': 'list', 'data': [_model(request.app.state.service)]}


@router.get('/v1/models/{name:path}')
async def model(request: fastapi.Request, name: str) -> dict[str, Any]:
    """The model of this name."""
    request.app.state.service.check_model(name)
    return _model(request.app.state.service)


def _model(service: Service) -> dict[str, Any]:
    return {'id': service.name, 'object': 'model', 'created': 0, 'owned_by': 'slm_jax'}


@router.get('/health')
async def health(request: fastapi.Request) -> Response:
    """Whether queries are answered."""
    service = request.app.state.service
    alive = service.engine.alive
    return JSONResponse({'status': 'ok' if alive else 'failed', 'model': service.name}, 200 if alive else 503)


@router.get('/metrics')
async def counted(request: fastapi.Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.service.metrics.text(), media_type=metrics.CONTENT_TYPE)


_KNOWN = {*_ANSWERING, *_OPEN, '/v1/models', '/metrics'}
