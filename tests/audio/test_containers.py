"""What kind of file begins so: told from its first bytes, raw samples told apart."""

import numpy as np
import pytest

from slm_jax.audio import containers


def _frame(start: bytes, size: int) -> bytes:
    return start.ljust(size, b'\x55')


LAYER3 = b'\xff\xfb\x90\x64'  # 128 kbit/s at 44.1 kHz: 417 bytes
KINDS = {
    'wav': b'RIFF\0\0\0\0WAVEfmt ',
    'rf64': b'RF64\xff\xff\xff\xffWAVEds64',
    'aiff': b'FORM\0\0\0\0AIFC',
    'caf': b'caff\0\1\0\0',
    'au': b'.snd\0\0\0\x18',
    'nist': b'NIST_1A\n   1024\n',
    'flac': b'fLaC\0\0\0\x22',
    'ogg': b'OggS\0\2',
    'mp4': b'\0\0\0\x1cftypM4A ',
    'webm': b'\x1a\x45\xdf\xa3\x9f',
    'asf': bytes.fromhex('3026b2758e66cf11a6d9'),
    'amr': b'#!AMR-WB\n',
    'mp3': b'ID3\4\0\0\0\0\x7f\x7f' + bytes(50),
}


@pytest.mark.parametrize('kind', KINDS)
def test_signatures(kind):
    assert containers.sniff(KINDS[kind]) == kind
    assert containers.foreign(KINDS[kind]) == '' or kind in ('nist', 'amr')


def test_a_tag_may_stand_before_other_files_than_mp3():
    assert containers.sniff(b'ID3\4\0\0\0\0\0\5' + bytes(5) + KINDS['flac']) == 'flac'


@pytest.mark.parametrize(
    ('start', 'size', 'kind'),
    [
        (b'\xff\xfb\x90\x64', 417, 'mp3'),
        (b'\xff\xfa\x90\x64', 417, 'mp3'),
        (b'\xff\xf3\x88\xc4', 288, 'mp3'),  # MPEG-2, 64 kbit/s at 16 kHz
        (b'\xff\xf2\x88\xc4', 288, 'mp3'),
        (b'\xff\xe3\x48\xc4', 288, 'mp3'),  # MPEG-2.5, 32 kbit/s at 8 kHz
        (b'\xff\xfd\x84\x04', 384, 'mp3'),  # layer II, 128 kbit/s at 48 kHz
        (b'\xff\xf1\x60\x40\x2e\x5f\xfc', 370, 'aac'),
    ],
)
def test_a_stream_of_frames_needs_a_second_one_in_its_place(start, size, kind):
    assert containers.sniff(2 * _frame(start, size)) == kind
    assert containers.sniff(_frame(start, size)) == kind, 'one that is all there is'
    assert containers.sniff(_frame(start, size) + bytes(400)) is None
    assert containers.sniff(_frame(start, size + 1) + start + bytes(400)) is None


def test_raw_samples_are_nothing_that_is_known():
    noise = np.random.default_rng(0).normal(0, 3000, 8000).astype('<i2')
    for first in (-1025, -3073, -1281, -3329):  # as frames of MP3 begin
        noise[0] = first
        raw = noise.tobytes()
        assert containers.sniff(raw[: containers.HEAD]) is None and containers.foreign(raw) == ''
    for raw in (noise.tobytes()[3:5], b'\xaa\xbb', bytes(8000), b'\xff' * 8000, b'\1\0\xff\xff' * 2000, b''):
        assert containers.sniff(raw) is None and containers.foreign(raw) == ''


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'{"error": "not found"}', 'text'),
        (b'<!DOCTYPE html>\n<html lang="en">' * 200, 'text'),
        ('\ufeffname,text\r\n'.encode(), 'text'),
        ('你好，世界。\n'.encode() * 500, 'text'),
        ('Vous avez déjà trois nouveaux messages.\n'.encode('latin-1'), 'text'),
        ('hello\n'.encode('utf-16'), 'text'),
        (b'PK\x03\x04' + bytes(range(200)), 'a ZIP archive'),
        (b'\x1f\x8b\x08' + bytes(range(200)), 'a gzip archive'),
        (b'%PDF-1.7\n\xe2\xe3\xcf\xd3', 'a PDF'),
    ],
)
def test_what_is_no_audio(content, what):
    assert containers.sniff(content) is None
    assert containers.foreign(content) == what
