"""Limits, refusals and departures, with a model that says how long each recording is."""

import base64
import concurrent.futures
import contextlib
import functools
import http.client
import io
import json
import random
import socket
import threading
import time

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from served import seconds, wav

from slm_jax.data import prompts
from slm_jax.serving import engine, service

TRANSCRIPTIONS, TRANSLATIONS = '/v1/audio/transcriptions', '/v1/audio/translations'
CHAT = '/v1/chat/completions'


@pytest.fixture(scope='module')
def server():
    """A server that only well-formed requests get anything of."""
    with seconds(limits=service.Limits(bytes=400_000, audio_seconds=20.0)) as (address, served, _):
        with httpx.Client(base_url=address, timeout=60) as client:
            client.service = served
            yield client


def transcribe(client, content, name='a.wav', route=TRANSCRIPTIONS, **fields):
    data = {'model': 'seconds', **fields}
    return client.post(route, files={'file': (name, content)}, data=data)


def chat(content, **more):
    audio = {'type': 'input_audio', 'input_audio': {'data': base64.b64encode(content).decode(), 'format': 'wav'}}
    parts = [{'type': 'text', 'text': 'How long?'}, audio]
    return {'model': 'seconds', 'messages': [{'role': 'user', 'content': parts}], **more}


def refused(answer, status, said):
    """An answer in OpenAI's form, of this status and with this in its message."""
    error = answer.json()['error']
    assert answer.status_code == status and said in error['message'], answer.text
    assert set(error) == {'message', 'type', 'param', 'code'} and 'Traceback' not in answer.text
    return error


def inside(served):
    """How many requests are being answered."""
    return served.metrics.registry.get_sample_value('slm_jax_requests_inside')


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, 'waited for in vain'
        time.sleep(0.01)


def test_lengths_and_texts(server):
    assert transcribe(server, wav(1.3)).json()['text'] == 'heard 13'
    assert transcribe(server, wav(12.0), response_format='text').text.count('heard') == 3, 'pieces of 5 s'
    assert server.post(CHAT, json=chat(wav(0.7, 8000))).json()['choices'][0]['message']['content'] == 'heard 7'
    alone = chat(wav(0.4))
    del alone['messages'][0]['content'][0]
    assert server.post(CHAT, json=alone).json()['choices'][0]['message']['content'] == 'heard 4'
    text = {'model': 'seconds', 'messages': [{'role': 'user', 'content': 'abc'}]}
    assert server.post(CHAT, json=text).json()['choices'][0]['message']['content'] == 'read 4', 'with the end'
    lines = server.post(CHAT, json=chat(wav(0.7), stream=True)).text.split('\n\n')
    assert lines[-2:] == ['data: [DONE]', ''] and 'heard 7' in lines[1]


def test_phrases_that_may_be_said_are_in_the_prompt(server):
    assert transcribe(server, wav(1.3), prompt='Ann, Lake Ohrid').json()['text'] == 'heard 13'
    _, [query] = server.service.pieces(np.zeros(16_000, np.int16), 'fr', 'Ann, Lake Ohrid')
    said = ''.join(chr(token) for token in query.tokens if token > 1)
    assert said.endswith('Some of these may be said: Ann, Lake Ohrid.') and 'French' in said and query.transcribed
    assert refused(transcribe(server, wav(1), prompt=' , '), 400, 'prompt: phrases: 0 are given')['param'] == 'prompt'
    assert refused(transcribe(server, wav(1), prompt='x' * 3000), 400, '2048 are read at most')['param'] == 'prompt'


def test_translations_into_english(server):
    translated = functools.partial(transcribe, server, route=TRANSLATIONS)
    assert translated(wav(12.0)).json()['text'].count('heard') == 3, 'pieces of 5 s'
    whole = translated(wav(1.3), language='fr', response_format='verbose_json').json()
    assert (whole['task'], whole['language'], whole['text']) == ('translate', 'english', 'heard 13')
    assert translated(wav(1.3), response_format='srt').text.startswith('1\n00:00:00,000 --> 00:00:01,300\nheard 13')
    for lang, wanted in (('', 'Translate this speech to English.'), ('fr', 'Translate this French speech to English.')):
        _, [query] = server.service.pieces(np.zeros(16_000, np.int16), lang, '', 'en')
        said = ''.join(chr(token) for token in query.tokens if token > 1)
        assert said.endswith(wanted) and not query.transcribed
    assert refused(translated(wav(1), language='xx-none'), 400, 'is not known')['param'] == 'language'
    assert refused(translated(wav(1), prompt='Ann'), 400, 'prompt: is not known here')['param'] == 'prompt'
    assert refused(translated(wav(1), model='other'), 404, 'There is no model')['param'] == 'model'


def test_a_model_that_is_told_languages_by_codes(server, monkeypatch):
    model, batches = server.service.model, []
    monkeypatch.setattr(model.vocabulary, 'languages', {'fr_XX': 7}, raising=False)
    monkeypatch.setattr(model, 'prompt', prompts.Prompt('{speech}'))
    assert transcribe(server, wav(1.3), language='fr').json()['text'] == 'heard 13'
    for fields, said in (
        ({}, 'the language of the text is not stated'),
        ({'language': 'cy'}, "no code for the language 'cy'"),
    ):
        assert refused(transcribe(server, wav(1.3), **fields), 400, said)['param'] == 'language'
    for lang, said in (('', 'which language is spoken'), ('fr', "no code for the language 'en'")):
        answer = transcribe(server, wav(1.3), route=TRANSLATIONS, language=lang)
        assert refused(answer, 400, said)['param'] == 'language'
    monkeypatch.setattr(model, 'answers', lambda batch: batches.append(batch) or [])
    server.service.warm()
    assert batches and all('first_tokens' in batch for batch in batches), 'else what is asked is compiled anew'


def test_what_is_too_much(server):
    refused(transcribe(server, wav(13)), 413, 'more than 400000 bytes')
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(48_000 * 60, np.int16), 48_000, format='FLAC')
    assert len(silence.getvalue()) < 200_000
    error = refused(transcribe(server, silence.getvalue(), 'a.flac'), 400, 'longer than the 20 s that are taken')
    assert error['param'] == 'file'
    refused(server.post(CHAT, json=chat(wav(5.5))), 400, 'has 5.5 s; this model takes 5 s at once')
    long = {'model': 'seconds', 'messages': [{'role': 'user', 'content': 'x' * 3000}]}
    assert refused(server.post(CHAT, json=long), 400, '3001 tokens; 2048')['code'] == 'context_length_exceeded'

    def endless():
        for _ in range(40):
            yield b'x' * 65_536

    refused(server.post(CHAT, content=endless()), 413, 'more than 400000 bytes')


def test_other_places(server):
    assert server.get('/health').json() == {'status': 'ok', 'model': 'seconds'}
    refused(server.get('/v1/nothing'), 404, 'GET /v1/nothing')
    refused(server.get(CHAT), 405, 'GET /v1/chat/completions')
    refused(server.get('/v1/models/other'), 404, "no model 'other'")
    counted = server.get('/metrics').text
    assert 'slm_jax_requests_total{path="other",status="404"}' in counted and 'slm_jax_audio_seconds_total' in counted


BROKEN = [
    b'',
    b'{',
    b'[]',
    b'null',
    b'{"model": "seconds"}',
    b'\xff\xfe{}',
    b'[' * 100_000,
    b'{"model": "seconds", "messages": "hello"}',
    b'{"model": "seconds", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "seconds", "messages": [{"role": "user", "content": NaN}]}',
]
FIELDS = {
    'model': (None, 1, '', 'other', ['seconds'], {}),
    'messages': (None, 1, 'x', [], {}, [1], [None], [{}], [{'role': 'user'}], [{'role': 'user', 'content': []}]),
    'stream': ('yes', 1.5, [], {}, 'true', 2),
    'stream_options': (1, 'x', [], {'other': 1}, {'include_usage': 'x'}),
    'max_tokens': (0, -1, 1.5, '5', [], True),
    'max_completion_tokens': (0, -1, 1.5, '5', {}),
    'temperature': ('hot', -1, 3, 0.5, [], True),
    'top_p': (0, 2, 'x', 0.5, []),
    'n': (0, 2, '1', []),
    'seed': ('x', 1.5, []),
    'logprobs': (True, 'x', 1),
    'stop': ('x', ['x']),
    'tools': ([], [{}]),
    'response_format': ({'type': 'json_object'}, 'text', {}, 1),
    'modalities': (['audio'], 'text', [1]),
    'frequency_penalty': (1, 'x'),
    'metadata': ('x', {'a': 1}, []),
    'user': (1, []),
    'unknown': (1, None, 'x'),
}
CONTENTS = (
    None,
    1,
    '',
    [],
    [1],
    ['x'],
    [{}],
    [{'type': 'text'}],
    [{'type': 'text', 'text': 1}],
    [{'type': 'text', 'text': 'x', 'more': 1}],
    [{'type': 'image_url', 'image_url': {'url': 'http://localhost/x.png'}}],
    [{'type': 'input_audio'}],
    [{'type': 'input_audio', 'input_audio': {}}],
    [{'type': 'input_audio', 'input_audio': {'data': 'AAAA', 'format': 'exe'}}],
    [{'type': 'input_audio', 'input_audio': {'data': '???', 'format': 'wav'}}],
    [{'type': 'input_audio', 'input_audio': {'data': 'é', 'format': 'wav'}}],
    [{'type': 'input_audio', 'input_audio': {'data': 'A', 'format': 'wav'}}],
    [{'type': 'input_audio', 'input_audio': {'data': '', 'format': 'wav'}}],
    [{'type': 'input_audio', 'input_audio': {'data': 'data:audio/wav;base64', 'format': 'wav'}}],
    [{'type': 'input_audio', 'input_audio': {'data': 'AAAA', 'format': 'wav'}}],
    [{'type': 'input_audio', 'input_audio': {'data': ['AAAA'], 'format': 'wav'}}],
)


def malformed(seed):
    """Requests that mean nothing: (what, method, path, options of httpx), about 1,000."""
    rng = random.Random(seed)
    good = json.dumps(chat(wav(0.2))).encode()
    for body in BROKEN:
        yield body[:40], CHAT, {'content': body}
    for field, values in FIELDS.items():
        for value in values:
            body = chat(wav(0.1)) | {field: value}
            yield (field, str(value)[:40]), CHAT, {'content': json.dumps(body).encode()}
    for content in CONTENTS:
        for role in ('user', 'assistant', 'tool', 'system', 1):
            yield (
                (role, content),
                CHAT,
                {'json': {'model': 'seconds', 'messages': [{'role': role, 'content': content}]}},
            )
    for _ in range(300):
        end = rng.randrange(len(good))
        yield f'{end} bytes', CHAT, {'content': good[:end]}
    sound = wav(0.2)
    for _ in range(150):
        end = rng.randrange(40)
        yield f'{end} bytes of WAV', TRANSCRIPTIONS, form(sound[:end])
        noise = rng.randbytes(rng.randrange(1, 2000))
        yield 'noise', TRANSCRIPTIONS, form(noise)
    whole = form(sound)
    for _ in range(200):
        at = rng.randrange(len(whole['content']) - len(sound))
        yield f'{at} bytes of a form', TRANSCRIPTIONS, whole | {'content': whole['content'][:at]}
    for fields in (
        {'model': ''}, {'model': 'x'}, {'language': 'xx'}, {'response_format': 'xml'}, {'temperature': 'hot'},
        {'temperature': '0.5'}, {'timestamp_granularities[]': 'word'}, {'prompt': 'x' * 3000}, {'stream': 'maybe'},
        {'include[]': 'logprobs'}, {'unknown': 'x'}, {'chunking_strategy': 'vad'}, {'file': 'x'},
    ):  # fmt: skip
        yield fields, TRANSCRIPTIONS, form(sound, **fields)
    multipart = 'multipart/form-data'
    boundaries = ('', '; boundary=other', f'; boundary={"x" * 300}', '; boundary="')
    for kind in ('', 'text/plain', 'application/json', *(multipart + boundary for boundary in boundaries)):
        yield kind, TRANSCRIPTIONS, whole | {'headers': {'content-type': kind}}
    yield 'no file', TRANSCRIPTIONS, {'data': {'model': 'seconds'}}
    yield 'two files', TRANSCRIPTIONS, {'files': [('file', sound), ('file', sound)], 'data': {'model': 'seconds'}}
    yield 'no model', TRANSCRIPTIONS, {'files': {'file': sound}}
    yield 'many fields', TRANSCRIPTIONS, form(sound, **{f'a{number}': 'x' for number in range(100)})


def form(content, **fields):
    """A form with a file, as a body and its headers."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
             for name, value in ({'model': 'seconds'} | fields).items()]  # fmt: skip
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = b''.join(parts) + head + content + b'\r\n--b--\r\n'
    return {'content': body, 'headers': {'content-type': 'multipart/form-data; boundary=b'}}


def refuse_all(server, requests):
    for what, path, options in requests:
        answer = server.post(path, **options)
        assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text)
        error = refused(answer, answer.status_code, '')
        assert error['message'] and error['type'] == 'invalid_request_error', (what, error)
    assert transcribe(server, wav(0.5)).json()['text'] == 'heard 5', 'and it goes on'


def test_malformed_requests(server):
    refuse_all(server, [each for number, each in enumerate(malformed(0)) if number % 10 == 0])


@pytest.mark.slow
def test_a_thousand_malformed_requests(server):
    requests = list(malformed(1))
    assert len(requests) > 950
    refuse_all(server, requests)


def test_damaged_requests_are_answered_or_refused(server):
    rng = random.Random(0)
    for _ in range(60):
        body = bytearray(json.dumps(chat(wav(0.1))).encode() if rng.random() < 0.5 else form(wav(0.1))['content'])
        for _ in range(rng.randrange(1, 6)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        path, headers = (CHAT, {}) if body[:1] == b'{' else (TRANSCRIPTIONS, form(b'')['headers'])
        answer = server.post(path, content=bytes(body), headers=headers)
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (bytes(body), answer.text)


def test_bytes_that_are_no_http(server):
    with socket.create_connection((server.base_url.host, server.base_url.port), timeout=20) as connection:
        connection.sendall(b'\x16\x03\x01 hello\r\n\r\n')
        assert connection.recv(100).startswith(b'HTTP/1.1 400')


def test_a_token_is_asked_for():
    with seconds(token='secret') as (address, *_), httpx.Client(base_url=address, timeout=60) as client:
        for headers in ({}, {'authorization': 'Bearer no'}, {'authorization': 'secret'}, {'authorization': b'\xff'}):
            client.headers = headers
            answer = transcribe(client, wav(0.5))
            assert refused(answer, 401, 'token')['code'] == 'invalid_api_key'
            refused(client.get('/metrics'), 401, 'token')
        assert client.get('/health').status_code == 200
        client.headers = {'authorization': 'Bearer secret'}
        assert transcribe(client, wav(0.5)).json()['text'] == 'heard 5'


def test_the_queue_is_bounded_and_batches_grow():
    limits = service.Limits(requests=6)
    with seconds(limits=limits, max_rows=4) as (address, served, model), httpx.Client(base_url=address) as client:
        model.may.clear()
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            first = pool.submit(transcribe, client, wav(0.1))
            assert model.begun.wait(20)
            others = [pool.submit(transcribe, client, wav(length / 10)) for length in (2, 3, 4, 5, 30)]
            until(lambda: served.engine.waiting == 5)
            answer = transcribe(client, wav(0.7))
            assert refused(answer, 429, '6 requests')['code'] == 'rate_limit_exceeded'
            assert answer.headers['retry-after'] == '1'
            model.may.set()
            texts = [future.result().json()['text'] for future in (first, *others)]
        assert texts == ['heard 1', 'heard 2', 'heard 3', 'heard 4', 'heard 5', 'heard 30']
        assert model.rows == [(1, 1), (4, 4), (1, 1)]
        assert transcribe(client, wav(0.7)).json()['text'] == 'heard 7'


def test_short_ones_ride_in_the_empty_rows_of_a_long_one(monkeypatch):
    monkeypatch.setattr(engine, '_TOGETHER', 0.5)
    with seconds(max_rows=4) as (address, _, model), httpx.Client(base_url=address, timeout=60) as client:
        lengths = (3.0, 3.1, 3.2, 0.5)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda length: transcribe(client, wav(length)).json()['text'], lengths))
        assert found == ['heard 30', 'heard 31', 'heard 32', 'heard 5']
        assert model.rows in ([(4, 4)], [(1, 1), (4, 3)]), 'the short one may have been the oldest'


def test_a_request_has_its_time():
    with seconds(limits=service.Limits(seconds=1.0)) as (address, served, model):
        with httpx.Client(base_url=address, timeout=60) as client:
            model.may.clear()
            refused(transcribe(client, wav(0.5)), 504, 'No answer in 1 s')
            streamed = client.post(CHAT, json=chat(wav(0.5), stream=True)).text
            assert 'No answer in 1 s' in streamed and '[DONE]' not in streamed
            model.may.set()
            until(lambda: inside(served) == 0)
            served.limits = service.Limits()
            assert transcribe(client, wav(0.5)).json()['text'] == 'heard 5'
        assert model.rows == [(1, 1)] * 2, 'the second was cancelled before its turn'


def test_who_leaves_is_not_answered():
    with seconds() as (address, served, model):
        model.may.clear()
        with httpx.Client(base_url=address, timeout=60) as stays, concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(transcribe, stays, wav(0.5))
            assert model.begun.wait(20)
            for waiting, stream in enumerate((False, True), 1):
                leaves = http.client.HTTPConnection(address.removeprefix('http://'))
                leaves.request('POST', CHAT, json.dumps(chat(wav(1.0), stream=stream)))
                until(lambda: served.engine.waiting == waiting)
                leaves.close()
                until(lambda: inside(served) == 1)
            model.may.set()
            assert first.result().json()['text'] == 'heard 5'
            assert transcribe(stays, wav(0.6)).json()['text'] == 'heard 6'
        assert model.rows == [(1, 1)] * 2
        assert served.metrics.registry.get_sample_value('slm_jax_requests_cancelled_total') == 2


def test_a_model_that_fails_is_no_end(monkeypatch):
    def fails(batch):
        raise RuntimeError('out of memory at 0x1234')

    with seconds() as (address, _, model), httpx.Client(base_url=address, timeout=60) as client:
        monkeypatch.setattr(model, 'answers', fails)
        error = refused(transcribe(client, wav(0.5)), 500, 'The model failed')
        assert error['type'] == 'server_error' and '0x1234' not in str(error)
        assert '0x1234' not in client.post(CHAT, json=chat(wav(0.5), stream=True)).text
        monkeypatch.undo()
        assert transcribe(client, wav(0.5)).json()['text'] == 'heard 5'


def test_what_was_begun_is_answered_when_the_server_ends():
    found = []
    with contextlib.ExitStack() as stack:
        address, served, model = stack.enter_context(seconds())
        model.may.clear()
        asking = threading.Thread(
            target=lambda: found.append(transcribe(httpx.Client(base_url=address, timeout=60), wav(0.5)))
        )
        asking.start()
        assert model.begun.wait(20)
        threading.Timer(0.5, model.may.set).start()
    asking.join()
    assert found[0].json()['text'] == 'heard 5'
