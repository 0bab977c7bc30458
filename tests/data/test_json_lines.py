"""JSON lines: a line ends at a line feed and nowhere else; what is no JSON lines is said in one line."""

import json
import re

import pytest

from slm_jax.data import json_lines

SEPARATORS = ''.join(map(chr, (0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029)))


def test_what_is_written_is_read(tmp_path):
    rows = [{'text': f'one{SEPARATORS}two', 'n': 1}, {}, {'text': 'né 你好 \U0001f600'}]
    json_lines.write(tmp_path / 'a.jsonl', rows)
    assert json_lines.read(tmp_path / 'a.jsonl') == rows
    assert (tmp_path / 'a.jsonl').read_bytes().count(b'\n') == 3


@pytest.mark.parametrize('end', ['\n', '\r\n', '\n\n  \n'])
def test_ends_of_lines_and_marks_of_byte_order(tmp_path, end):
    part = '\ufeff' + ''.join(json.dumps({'n': n}) + end for n in range(2))
    (tmp_path / 'a.jsonl').write_bytes((part + part).encode())
    assert [row['n'] for row in json_lines.read(tmp_path / 'a.jsonl')] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    'content, said',
    [
        (None, 'a.jsonl: cannot be read (No such file or directory)'),
        ('folder', 'a.jsonl: cannot be read (Is a directory)'),
        (b'', 'a.jsonl: the file is empty'),
        (b'\xef\xbb\xbf \r\n', 'a.jsonl: the file is empty'),
        ('{"a": 1}\n'.encode('utf-16'), 'a.jsonl: is in UTF-16'),
        ('{"a": 1}\n'.encode('utf-16-le'), 'a.jsonl: is in UTF-16'),
    ],
)
def test_files_that_are_none(tmp_path, content, said):
    path = tmp_path / 'a.jsonl'
    if content == 'folder':
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(json_lines.JsonLinesError) as caught:
        next(json_lines.lines(path))
    assert said in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'line, said',
    [
        ('{"text": "é"}'.encode('latin-1'), ':2: byte 0xe9 is not UTF-8'),
        (b'{"text": ', ':2: not JSON'),
        (b'["a"]', ':2: a JSON object was expected'),
        (b'{"text": "\\ud83d"}', ':2: half a character'),
        (b'[' * 100_000, ':2: not JSON'),
    ],
)
def test_lines_that_are_none(tmp_path, line, said):
    (tmp_path / 'a.jsonl').write_bytes(b'{}\n' + line + b'\n')
    with pytest.raises(json_lines.JsonLinesError, match=re.escape('a.jsonl' + said)):
        json_lines.read(tmp_path / 'a.jsonl')
