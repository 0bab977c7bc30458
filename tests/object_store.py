"""An object store on loopback, in memory: as much of the APIs of Google Cloud Storage and S3 as their clients use.

What makes it one: objects are put whole and have a generation (S3: an ETag), a put can be bound to it, there is no
append, and no rename.

    python object_store.py PORT     serves the bucket `bucket` until it is killed
"""

import base64
import contextlib
import email
import hashlib
import html
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator

BUCKET = 'bucket'


class Store(http.server.ThreadingHTTPServer):
    """`objects`: {name: (content, generation, time)}; `let_in`: whether anybody is."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0):
        super().__init__(('localhost', port), _Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.objects, self.uploads, self.lock, self.generation = {}, {}, threading.Lock(), 0
        self.let_in = True

    def environment(self) -> dict[str, str]:
        """What sends the client libraries here."""
        return {
            'STORAGE_EMULATOR_HOST': self.url,
            'TENSORSTORE_GCS_HTTP_URL': self.url,
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'anybody',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
            'NO_GCE_CHECK': 'true',
            'AWS_ENDPOINT_URL': self.url,
            'AWS_ACCESS_KEY_ID': 'anybody',
            'AWS_SECRET_ACCESS_KEY': 'anything',
            'AWS_DEFAULT_REGION': 'us-east-1',
        }

    def put(self, name: str, content: bytes, condition: str | None = None) -> dict | None:
        """The new object; None if `condition`, a generation (0: no object), does not hold."""
        with self.lock:
            if not self.holds(name, condition):
                return None
            self.generation += 1
            self.objects[name] = (
                content,
                10**15 + self.generation,
                time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime()),
            )
        return self.described(name)

    def holds(self, name: str, condition: str | None) -> bool:
        """Whether an object has this generation."""
        return condition is None or int(condition) == self.objects.get(name, (b'', 0, ''))[1]

    def described(self, name: str) -> dict:
        """The resource of an object."""
        content, generation, changed = self.objects[name]
        quoted = urllib.parse.quote(name, safe='')
        return {
            'kind': 'storage#object', 'name': name, 'bucket': BUCKET, 'size': str(len(content)),
            'generation': str(generation), 'metageneration': '1', 'updated': changed, 'timeCreated': changed,
            'etag': str(generation), 'md5Hash': base64.b64encode(hashlib.md5(content).digest()).decode(),
            'mediaLink': f'{self.url}/download/storage/v1/b/{BUCKET}/o/{quoted}?alt=media',
            'storageClass': 'STANDARD', 'contentType': 'application/octet-stream',
        }  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize, disable_nagle_algorithm = 2**16, True  # else each answer waits 40 ms for an acknowledgement
    server: Store

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def answer(self, status: int, content: bytes | dict = b'', **headers: str) -> None:
        if isinstance(content, dict):
            content, headers = json.dumps(content).encode(), {'Content-Type': 'application/json'} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        if 'Content_Length' not in headers:
            self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)
        self.wfile.flush()

    def handle_expect_100(self):
        return super().handle_expect_100() and self.wfile.flush() is None

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def route(self, method: str) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        content = self.body()
        if re.match(rf'/{BUCKET}(/|$)', url.path):
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            status, result, headers = self.s3(method, urllib.parse.unquote(url.path[len(BUCKET) + 2 :]), query, content)
            self.answer(status, result, **headers)
            return
        if url.path.startswith('/batch/'):
            self.batch(content)
            return
        status, result, headers = self.respond(method, url.path, query, content)
        self.answer(status, result, **headers)

    def respond(self, method: str, path: str, query: dict, content: bytes) -> tuple[int, bytes | dict, dict]:
        """(status, body, headers) of one request, alone or in a batch."""
        if not self.server.let_in:
            return 401, {'error': {'code': 401, 'message': 'Anonymous caller does not have access'}}, {}
        match = re.fullmatch(r'(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(/.*)?)?)?', path)
        if not match or match[2] != BUCKET:
            return 404, {'error': {'code': 404, 'message': f'{method} {path}: Not Found'}}, {}
        name = urllib.parse.unquote(match[3] or '')
        if match[1] == '/upload':
            return self.upload(method, query, content)
        if '/o' not in path:
            return 200, {'kind': 'storage#bucket', 'name': BUCKET, 'location': 'US', 'locationType': 'region'}, {}
        if not name:
            return 200, self.listed(query), {}
        if name not in self.server.objects:
            return 404, {'error': {'code': 404, 'message': f'No such object: {name}'}}, {}
        if match[4]:
            target = urllib.parse.unquote(match[4].rpartition('/o/')[2])
            made = self.server.put(target, self.server.objects[name][0])
            return 200, {'done': True, 'resource': made} if 'rewriteTo' in match[4] else made, {}
        if not self.server.holds(name, query.get('ifGenerationMatch')):
            return 412, {'error': {'code': 412, 'message': 'conditionNotMet'}}, {}
        if method == 'DELETE':
            with self.server.lock:
                self.server.objects.pop(name, None)
            return 204, b'', {}
        if query.get('alt') != 'media' and match[1] != '/download':
            return 200, self.server.described(name), {}
        return self.media(name, query)

    def media(self, name: str, query: dict) -> tuple[int, bytes | dict, dict]:
        content, generation, _ = self.server.objects[name]
        headers = {'x_goog_generation': str(generation), 'ETag': str(generation)}
        if query.get('ifGenerationNotMatch') == str(generation):
            return 304, b'', headers
        wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or '')
        if not wanted:
            return 200, content, headers
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            return 416, b'', headers
        return 206, content[start:end], headers | {'Content_Range': f'bytes {start}-{end - 1}/{len(content)}'}

    def listed(self, query: dict) -> dict:
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
        most, after = int(query.get('maxResults', 1000)), query.get('pageToken', '')
        items, prefixes = [], []
        start = max(query.get('startOffset', ''), after)
        for name in sorted(self.server.objects):
            folder = delimiter and delimiter in name[len(prefix) :]
            shown = name[: name.index(delimiter, len(prefix)) + 1] if folder else name
            if not name.startswith(prefix) or name < start or shown <= after or shown in prefixes:
                continue
            if query.get('endOffset') and name >= query['endOffset']:
                continue
            if len(items) + len(prefixes) == most:
                last = max([*(item['name'] for item in items), *prefixes])
                return {'items': items, 'prefixes': prefixes, 'nextPageToken': last}
            prefixes.append(shown) if folder else items.append(self.server.described(name))
        return {'kind': 'storage#objects', 'items': items, 'prefixes': prefixes}

    def upload(self, method: str, query: dict, content: bytes) -> tuple[int, bytes | dict, dict]:
        name, condition = query.get('name', ''), query.get('ifGenerationMatch')
        if query.get('uploadType') == 'multipart':
            described, content = _parts(self.headers['Content-Type'], content)
            name = name or json.loads(described)['name']
        elif query.get('upload_id'):
            name, condition, before = self.server.uploads[query['upload_id']]
            content = before + content
            if self.headers['Content-Range'].endswith('/*'):
                self.server.uploads[query['upload_id']] = name, condition, content
                return 308, b'', {'Range': f'bytes=0-{len(content) - 1}'}
        elif query.get('uploadType') == 'resumable':
            name = name or json.loads(content)['name']
            number = str(len(self.server.uploads))
            self.server.uploads[number] = name, condition, b''
            return 200, b'', {'Location': f'{self.server.url}/upload/storage/v1/b/{BUCKET}/o?upload_id={number}'}
        made = self.server.put(name, content, condition)
        return (200, made, {}) if made else (412, {'error': {'code': 412, 'message': 'conditionNotMet'}}, {})

    def batch(self, content: bytes) -> None:
        message = email.message_from_bytes(
            b'Content-Type: ' + self.headers['Content-Type'].encode() + b'\n\n' + content
        )
        answers = []
        for part in message.get_payload():
            method, target, _ = part.get_payload().strip().split('\n')[0].split(' ')
            url = urllib.parse.urlsplit(target)
            status, _, _ = self.respond(method, url.path, dict(urllib.parse.parse_qsl(url.query)), b'')
            identity = (part['Content-ID'] or '<0>').replace('<', '<response-')
            answers.append(
                f'--answers\r\nContent-Type: application/http\r\nContent-ID: {identity}\r\n\r\n'
                f'HTTP/1.1 {status} Answer\r\nContent-Length: 0\r\n\r\n\r\n'
            )
        self.answer(200, (''.join(answers) + '--answers--').encode(), Content_Type='multipart/mixed; boundary=answers')

    def s3(self, method: str, name: str, query: dict, content: bytes) -> tuple[int, bytes, dict]:
        """(status, body, headers) of a request to S3."""
        if not self.server.let_in:
            return 403, b'<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>', {}
        if not name and method == 'POST':
            for deleted in re.findall(r'<Key>(.*?)</Key>', content.decode()):
                self.server.objects.pop(html.unescape(deleted), None)
            return 200, b'<DeleteResult/>', {}
        if not name:
            return (200, b'', {}) if method == 'HEAD' else (200, self.s3_listed(query), {})
        if method == 'PUT':
            return self.s3_put(name, query, content)
        if method == 'POST':
            return self.s3_multipart(name, query)
        if method == 'DELETE':
            self.server.objects.pop(name, None)
            return 204, b'', {}
        if name not in self.server.objects:
            return 404, b'<Error><Code>NoSuchKey</Code><Message>No such key</Message></Error>', {}
        whole, generation, _ = self.server.objects[name]
        etag = f'"{generation}"'
        if self.headers.get('If-None-Match') == etag:
            return 304, b'', {'ETag': etag}
        if self.headers.get('If-Match') not in (None, etag):
            return 412, b'', {}
        status, content, headers = self.media(name, {})
        headers = headers | {'ETag': etag, 'Last_Modified': 'Thu, 26 Nov 2026 10:00:00 GMT'}
        return status, content, headers

    def s3_put(self, name: str, query: dict, content: bytes) -> tuple[int, bytes, dict]:
        if 'aws-chunked' in (self.headers.get('Content-Encoding') or ''):
            content = _unchunked(content)
        if source := self.headers.get('x-amz-copy-source'):
            source = urllib.parse.unquote(source).lstrip('/')[len(BUCKET) + 1 :]
            if source not in self.server.objects:
                return 404, b'<Error><Code>NoSuchKey</Code><Message>No such key</Message></Error>', {}
            made = self.server.put(name, self.server.objects[source][0])
            return 200, f'<CopyObjectResult><ETag>"{made["generation"]}"</ETag></CopyObjectResult>'.encode(), {}
        if 'uploadId' in query:
            self.server.uploads[query['uploadId']][int(query['partNumber'])] = content
            return 200, b'', {'ETag': f'"part{query["partNumber"]}"'}
        wanted = (self.headers.get('If-Match') or '').strip('"') or None
        made = self.server.put(name, content, '0' if self.headers.get('If-None-Match') else wanted)
        if not made:
            return 412, b'<Error><Code>PreconditionFailed</Code><Message>there</Message></Error>', {}
        return 200, b'', {'ETag': f'"{made["generation"]}"'}

    def s3_multipart(self, name: str, query: dict) -> tuple[int, bytes, dict]:
        if 'uploads' in query:
            number = str(len(self.server.uploads))
            self.server.uploads[number] = {}
            answer = f'<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>'
            return 200, answer.encode(), {}
        parts = self.server.uploads[query['uploadId']]
        made = self.server.put(name, b''.join(parts[number] for number in sorted(parts)))
        answer = f'<CompleteMultipartUploadResult><ETag>"{made["generation"]}"</ETag></CompleteMultipartUploadResult>'
        return 200, answer.encode(), {}

    def s3_listed(self, query: dict) -> bytes:
        found = self.listed({
            'prefix': query.get('prefix', ''), 'maxResults': query.get('max-keys', '1000'),
            'pageToken': query.get('continuation-token', ''), 'startOffset': query.get('start-after', ''),
            **({'delimiter': query['delimiter']} if query.get('delimiter') else {}),
        })  # fmt: skip
        escape = (lambda text: urllib.parse.quote(text, safe='/')) if query.get('encoding-type') else html.escape
        items = ''.join(
            f'<Contents><Key>{escape(item["name"])}</Key><LastModified>2026-11-26T10:00:00.000Z</LastModified>'
            f'<ETag>&quot;{item["generation"]}&quot;</ETag><Size>{item["size"]}</Size></Contents>'
            for item in found['items'] if item['name'] != query.get('start-after')
        )  # fmt: skip
        items += ''.join(
            f'<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>' for each in found['prefixes']
        )
        if 'nextPageToken' in found:
            items += f'<NextContinuationToken>{html.escape(found["nextPageToken"])}</NextContinuationToken>'
        cut = str('nextPageToken' in found).lower()
        count = len(found['items']) + len(found['prefixes'])
        encoding = '<EncodingType>url</EncodingType>' if query.get('encoding-type') else ''
        return (
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}</Name>{encoding}'
            f'<KeyCount>{count}</KeyCount><IsTruncated>{cut}</IsTruncated>{items}</ListBucketResult>'
        ).encode()

    def do_HEAD(self):
        self.route('HEAD')

    def do_GET(self):
        self.route('GET')

    def do_POST(self):
        self.route('POST')

    def do_PUT(self):
        self.route('PUT')

    def do_DELETE(self):
        self.route('DELETE')


def _parts(content_type: str, content: bytes) -> list[bytes]:
    boundary = re.search(r'boundary=[\'"]?([^\'";]+)', content_type)[1].encode()
    parts = re.split(rb'(?:^|\r?\n)--' + re.escape(boundary) + rb'(?:--)?\r?\n?', content)
    return [re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in parts if part.strip()]


def _unchunked(content: bytes) -> bytes:
    whole, at = b'', 0
    while True:
        end = content.index(b'\r\n', at)
        size = int(content[at:end].split(b';')[0], 16)
        if not size:
            return whole
        whole += content[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """A store that answers while the body runs."""
    with Store() as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        yield store
        store.shutdown()


if __name__ == '__main__':
    Store(int(sys.argv[1])).serve_forever()
