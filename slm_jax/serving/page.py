"""The page of a server: it asks by the same routes as every client, and has two of its own.

All of it stands in page.html, beside what a service and the look of the reports put into it; nothing is fetched from
elsewhere, and the content security policy holds it to that.
"""

import base64
import functools
import hashlib
import html
import json
import pathlib
import re

import fastapi
from fastapi.responses import HTMLResponse, JSONResponse, Response

from slm_jax.data import phrases
from slm_jax.evaluation.page import STYLE
from slm_jax.inference import speech_tokens
from slm_jax.serving.app import body
from slm_jax.serving.errors import ApiError
from slm_jax.serving.service import Service

_EXAMPLES = pathlib.Path(__file__).with_name('examples')

router = fastapi.APIRouter()


@router.get('/')
async def page(request: fastapi.Request) -> Response:
    """The page."""
    text, policy = _page(request.app.state.service)
    headers = {
        'Content-Security-Policy': policy,
        'Permissions-Policy': 'microphone=(self)',
        'Referrer-Policy': 'no-referrer',
        'X-Content-Type-Options': 'nosniff',
        'Cache-Control': 'no-store',
    }
    return HTMLResponse(text, headers=headers)


@router.get('/page/examples/{name}')
async def example(name: str) -> Response:
    """The recording of an example."""
    if name not in {each['file'] for each in _examples()}:
        raise ApiError(404, f'There is no example {name!r}.', 'name')
    return Response((_EXAMPLES / name).read_bytes(), media_type='audio/mpeg')


@router.post('/page/tokens')
async def tokens(request: fastapi.Request) -> Response:
    """What the CTC head hears at what time in the recording that is the body."""
    service, visit = request.app.state.service, request.scope['visit']
    if not speech_tokens.are_known(service.model):
        raise ApiError(400, f'{service.name} has no CTC head, which tells what is heard at what time.')
    samples = await service.samples('recording', await body(request), None)
    service.check_length(samples, None)
    found = await visit.call(functools.partial(speech_tokens.heard, service.model, samples))
    return JSONResponse({'tokens': [token._asdict() for token in found]})


@functools.cache
def _examples() -> list[dict[str, str]]:
    return json.loads((_EXAMPLES / 'examples.json').read_text(encoding='utf-8'))


def _page(service: Service) -> tuple[str, str]:
    """The page and its policy, which lets run and apply what stands in it as it is, and nothing else."""
    known = {
        'model': service.name,
        'token': bool(service.token),
        'seconds': service.longest,
        'tokens': speech_tokens.are_known(service.model),
        'withPhrases': phrases.LISTED,
        'examples': _examples(),
    }
    text = pathlib.Path(__file__).with_name('page.html').read_text(encoding='utf-8')
    text = text.replace('/* look */', STYLE).replace('{config}', html.escape(json.dumps(known)))
    policy = {
        'default-src': "'none'",
        'script-src': _hashed(text, 'script'),
        'style-src': _hashed(text, 'style'),
        'connect-src': "'self'",
        'img-src': 'data:',
        'media-src': 'blob:',
        'base-uri': "'none'",
        'form-action': "'none'",
        'frame-ancestors': "'none'",
        'require-trusted-types-for': "'script'",
    }
    return text, '; '.join(f'{name} {value}' for name, value in policy.items())


def _hashed(text: str, tag: str) -> str:
    """The only element of this kind, as a policy names it."""
    [inner] = re.findall(f'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
