"""The page: that it is whole, can be used by everybody and runs nothing foreign, its routes, and `slm-jax demo`."""

import base64
import concurrent.futures
import contextlib
import hashlib
import html.parser
import json
import pathlib
import re
import signal
import types

import httpx2 as httpx
import jax.numpy as jnp
import pytest
from served import Seconds, running, wav

from slm_jax import demo, model_arguments, serve
from slm_jax.audio import waveforms
from slm_jax.data import instructions, phrases
from slm_jax.serving import page, service
from slm_jax.training import partitioning

EXAMPLES = pathlib.Path(page.__file__).with_name('examples')


class Heard(Seconds):
    """Also a CTC head, whose labels 'h' and 'i' are the likeliest in the second and third quarter of a recording."""

    vocabulary = types.SimpleNamespace(decode=lambda ids: ''.join(map(chr, ids)), encode=lambda text: [*map(ord, text)])

    def __init__(self):
        super().__init__()
        self.text_vocabulary = self.vocabulary
        self.system = types.SimpleNamespace(ctc_tokens=(-1, ord('h'), ord('i')), ctc_logits=self._logits)
        self.mesh = partitioning.Partitioner().mesh()
        self.params = {}

    def _logits(self, params, batch):
        lengths = batch['speech_lengths'] // 1600
        quarter = 4 * jnp.arange(batch['speech_samples'].shape[1] // 1600) // lengths[:, None]
        likely = jnp.stack([(quarter % 3 == 0) | (quarter > 2), quarter == 1, quarter == 2], axis=-1)
        return jnp.log(jnp.where(likely, 0.8, 0.1)), lengths

    def placed(self, batch):
        return batch

    def program(self, name, function, *arguments, out=None):
        return function


class Parsed(html.parser.HTMLParser):
    """The elements of a page: (tag, attributes), and what stands in its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inner = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag = self.elements[-1][0] if self.elements else ''
        if tag in ('script', 'style') and data.strip():
            self.inner.setdefault(tag, []).append(data)


@pytest.fixture
def at():
    """at(model, **options): a client of a server with the page; `options` of `Service`."""
    with contextlib.ExitStack() as stack:

        def start(model, **options):
            served = service.Service(model, 'mine', **options)
            address = stack.enter_context(running(served, page.router))
            client = stack.enter_context(httpx.Client(base_url=address, timeout=60))
            client.service = served
            return client

        yield start


def test_the_page_is_whole_and_runs_nothing_else(at):
    answer = at(Seconds()).get('/')
    policy = dict(part.split(' ', 1) for part in answer.headers['content-security-policy'].split('; '))
    parsed = Parsed(answer.text)
    assert policy['default-src'] == "'none'" and 'unsafe' not in str(policy)
    for tag in ('script', 'style'):
        [inner] = parsed.inner[tag]
        assert policy[f'{tag}-src'] == f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
    for tag, attributes in parsed.elements:
        assert not {'style', 'srcset'} & set(attributes) and not any(name.startswith('on') for name in attributes), tag
        for name in ('src', 'href', 'action', 'data'):
            assert attributes.get(name, 'data:').startswith('data:'), (tag, attributes)
    assert not re.search('https?://[a-z]', answer.text), 'nothing is fetched from elsewhere'
    known = json.loads(next(attributes for tag, attributes in parsed.elements if tag == 'body')['data-config'])
    assert (known['model'], known['token'], known['seconds'], known['tokens']) == ('mine', False, 5.0, False)


def test_every_control_has_a_name(at):
    parsed = Parsed(at(Seconds()).get('/').text)
    ids = [attributes['id'] for _, attributes in parsed.elements if 'id' in attributes]
    labelled = {attributes['for'] for tag, attributes in parsed.elements if tag == 'label'}
    assert len(ids) == len(set(ids)) and labelled <= set(ids)
    named = {'section': ('aria-labelledby',), 'form': ('aria-labelledby',), 'canvas': ('aria-label',)}
    named['audio'] = named['canvas']
    for tag, attributes in parsed.elements:
        if tag in ('input', 'textarea', 'output', 'select'):
            assert attributes['id'] in labelled, attributes
        for name in named.get(tag, ()):
            assert attributes[name], (tag, attributes)
        for reference in ('aria-labelledby', 'aria-describedby'):
            assert attributes.get(reference, ids[0]) in ids, attributes
        if 'scroll' in attributes.get('class', '').split():
            assert attributes['tabindex'] == '0' and attributes['aria-label'], 'can be scrolled by keys'
    assert set(re.findall(r"\bat\('([\w-]+)'\)", parsed.inner['script'][0])) <= set(ids)


def test_the_examples_are_there_and_free(at):
    client = at(Seconds())
    listed = json.loads((EXAMPLES / 'examples.json').read_text())
    assert {each['file'] for each in listed} == {path.name for path in EXAMPLES.glob('*.mp3')}
    for each in listed:
        assert each['source'].endswith('CC0-1.0') and each['name'] and each['instruction'] and each['text']
        answer = client.get(f'/page/examples/{each["file"]}')
        assert (
            answer.content == (EXAMPLES / each['file']).read_bytes() and answer.headers['content-type'] == 'audio/mpeg'
        )
        assert 2 < len(waveforms.read_waveform(EXAMPLES / each['file'])) / 16_000 < 8
    for name in ('examples.json', 'no.mp3', '..%2Fpage.html'):
        assert client.get(f'/page/examples/{name}').status_code == 404


def test_phrases_are_put_behind_the_instruction():
    text = phrases.LISTED.format(instruction=instructions.TEMPLATES['asr'][0], phrases='Ann, Bob')
    assert text == 'Transcribe the speech. Some of these may be said: Ann, Bob.'


def test_what_is_heard_when(at):
    client = at(Heard())
    assert '&quot;tokens&quot;: true' in client.get('/').text
    answer = client.post('/page/tokens', content=wav(1.6))
    assert answer.json()['tokens'] == [
        {'text': 'h', 'start': 0.4, 'end': 0.8, 'probability': 0.8},
        {'text': 'i', 'start': 0.8, 'end': 1.2, 'probability': 0.8},
    ]
    for content, said in (
        (b'', 'recording'),
        (b'no audio', 'recording'),
        (wav(5.2), 'has 5.2 s; this model takes 5 s at once'),
    ):
        answer = client.post('/page/tokens', content=content)
        assert answer.status_code == 400 and said in answer.json()['error']['message'], answer.text


def test_tokens_wait_for_the_batch_before_and_have_their_time(at):
    model = Heard()
    client = at(model, limits=service.Limits(seconds=1.0, bytes=100_000))
    model.may.clear()
    files = {'file': wav(0.3)}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, '/v1/audio/transcriptions', files=files, data={'model': 'mine'})
        assert model.begun.wait(20)
        answer = client.post('/page/tokens', content=wav(1.6))
        assert answer.status_code == 504 and 'No answer in 1 s' in answer.json()['error']['message']
        assert first.result().status_code == 504
    model.may.set()
    client.service.limits = service.Limits(bytes=100_000)
    assert len(client.post('/page/tokens', content=wav(1.6)).json()['tokens']) == 2
    assert client.post('/page/tokens', content=wav(5.0)).status_code == 413


def test_a_head_that_fails_or_is_not_there(at):
    model = Heard()
    client = at(model)
    model.system.ctc_logits = lambda params, batch: 1 / 0
    answer = client.post('/page/tokens', content=wav(1.6))
    assert answer.status_code == 500 and answer.json()['error']['message'].startswith('The model failed')
    model.system = Seconds.system
    answer = client.post('/page/tokens', content=wav(1.6))
    assert answer.status_code == 400 and 'mine has no CTC head' in answer.json()['error']['message']
    assert client.get('/health').json()['status'] == 'ok'


def test_with_a_token_the_page_alone_is_open(at):
    client = at(Heard(), token='secret')
    answer = client.get('/')
    assert answer.status_code == 200 and '&quot;token&quot;: true' in answer.text and 'secret' not in answer.text
    example = next(EXAMPLES.glob('*.mp3')).name
    assert client.get(f'/page/examples/{example}').status_code == 401
    assert client.post('/page/tokens', content=wav(1.6)).status_code == 401
    client.headers = {'authorization': 'Bearer secret'}
    assert client.get(f'/page/examples/{example}').status_code == 200


@pytest.mark.parametrize(
    'program, arguments, status',
    [(demo, (), 200), (serve, ('--page',), 200), (serve, (), 404)],
)
def test_the_programs(program, arguments, status, monkeypatch, capsys):
    def ask(self, sockets):
        from starlette.testclient import TestClient

        with TestClient(self.config.app) as client:
            found.append(client.get('/').status_code)

    found = []
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.setattr(model_arguments, 'load', lambda name, args: Seconds())
    monkeypatch.setattr('uvicorn.Server.run', ask)
    assert program.main(['--port', '0', *arguments]) == 0
    assert found == [status]
    out = capsys.readouterr().out
    name = program.__name__.rpartition('.')[2]
    assert f'slm-jax {name}: seconds answers at http://127.0.0.1:' in out
    assert ('in a browser; Ctrl-C ends it.' in out) == (program is demo)


def test_the_browser_is_opened_where_that_is_asked_for(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr('webbrowser.open', opened.append)  # which says None: there is none
    demo.open_browser('http://127.0.0.1:1')
    assert opened == ['http://127.0.0.1:1']
    assert 'there is no browser here; open http://127.0.0.1:1 in one.' in capsys.readouterr().err
