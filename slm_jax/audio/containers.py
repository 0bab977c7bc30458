"""What kind of file holds a recording, and whether the file is whole: told from its bytes, without decoding them."""

import codecs
import itertools
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

HEAD = 4096  # bytes that tell what a stream is: an eighth of a second of raw samples at 16 kHz

# kind: what stands where in such a file.
_SIGNATURES: tuple[tuple[str, dict[int, bytes]], ...] = (
    ('wav', {0: b'RIFF', 8: b'WAVE'}),
    ('rifx', {0: b'RIFX', 8: b'WAVE'}),
    ('rf64', {0: b'RF64', 8: b'WAVE'}),
    ('w64', {0: b'riff\x2e\x91\xcf\x11'}),
    ('aiff', {0: b'FORM', 8: b'AIF'}),
    ('caf', {0: b'caff'}),
    ('au', {0: b'.snd'}),
    ('nist', {0: b'NIST_1A'}),
    ('voc', {0: b'Creative Voice File'}),
    ('flac', {0: b'fLaC'}),
    ('ogg', {0: b'OggS'}),
    ('webm', {0: b'\x1a\x45\xdf\xa3'}),
    ('asf', {0: b'\x30\x26\xb2\x75\x8e\x66\xcf\x11'}),
    ('amr', {0: b'#!AMR'}),
    *(('mp4', {4: box}) for box in (b'ftyp', b'styp', b'moov', b'moof', b'mdat', b'wide', b'free', b'skip')),
)
_FOREIGN = {
    b'PK\x03\x04': 'a ZIP archive',
    b'\x1f\x8b\x08': 'a gzip archive',
    b'%PDF': 'a PDF',
    b'\x89PNG': 'an image',
    b'\xff\xd8\xff': 'an image',
}
_CONTROL = bytes({*range(32)} - {*b'\t\n\v\f\r\x1b'})
# By kind, what PyAV is told to read; it never guesses, since FFmpeg takes a text that names other files for a playlist.
_READ_BY_FFMPEG = {'mp4': 'mov', 'webm': 'matroska', 'asf': 'asf', 'amr': 'amr', 'aac': 'aac'}
# Missing bytes that are a writer's miscount (it counted the header in, or a padding byte) and no truncation.
_MISCOUNT = 128
# A header's count of MPEG frames may be off by so much in intact files (Common Voice).
FRAMES_SLACK = 2

_MPEG_RATES = (44100, 48000, 32000)
_MPEG_KBITS = {  # (MPEG-1?, layer): bit rates by their index
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_BEGINS = re.compile(rb'\xff|ID3')
# Bytes of an AMR frame by its mode, 0 for modes that do not exist: narrow band, wide band.
_AMR_SIZES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1), (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, *6 * [1])

_DENSEST = 384_000  # values in a second: 192 kHz, stereo


class AudioError(ValueError):
    """A recording that cannot be used: `str()` names the file, the fault and the remedy."""


class AudioWarning(UserWarning):
    """A recording that was read, though something about it is odd: names the file and what was done."""


class Checked(NamedTuple):
    """A file that is whole as far as its bytes tell.

    Attributes:
        content: its bytes, sizes put right.
        demuxer: name of FFmpeg's demuxer that has to read it; '': libsndfile does.
        samples: how many there must be, where it does not say so itself and that is known; else 0.
    """

    content: bytes
    demuxer: str = ''
    samples: int = 0


def sniff(content: bytes) -> str | None:
    """What kind of file begins so, by its signature; None: none that is known.

    Args:
        content: all of a file, or its first `HEAD` bytes. Raw samples may begin as a frame of MP3 or
            AAC does by chance, so that a second frame has to follow where the first one ends.
    """
    for kind, marks in _SIGNATURES:
        if all(content.startswith(mark, at) for at, mark in marks.items()):
            return kind
    at = 0
    while content.startswith(b'ID3', at):
        at = _after_id3(content, at)
    if at:
        return sniff(content[at:]) or 'mp3'
    frames = {'mp3': _mpeg_size, 'aac': _adts_size}
    return next((kind for kind, size_of in frames.items() if _begins_with_frames(content, 0, size_of)), None)


def foreign(content: bytes) -> str:
    """What begins so, where it is certainly no audio (text, an archive, an image); '' if nothing is known of it."""
    head = content[:HEAD]
    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            return what
    if head.startswith((b'\xff\xfe', b'\xfe\xff')):
        text = head[: len(head) // 2 * 2].decode('utf-16', 'replace')
        return 'text' if all(c.isprintable() or c.isspace() for c in text) and len(text) > 1 else ''
    if not head or head.translate(None, _CONTROL) != head:
        return ''
    try:
        codecs.getincrementaldecoder('utf-8')().decode(head)  # which takes a last character that is cut
    except UnicodeDecodeError:  # other encodings are known by their share of ASCII
        return 'text' if sum(byte < 127 for byte in head) > 0.85 * len(head) else ''
    return 'text'


def checked(name: str, kind: str | None, content: bytes) -> Checked:
    """Looks for what decoders pass over: cuts, wrong sizes, lengths that nobody states.

    Args:
        name: of the file, for messages.
        kind: see `sniff`.
        content: all of the file.

    Raises:
        AudioError: it is no audio, or truncated.
    """
    if kind is None and (what := foreign(content)):
        raise AudioError(f'{name}: not audio: it looks like {what}. Fetch the recording again, or remove it.')
    if kind in _LAYOUTS or kind == 'au':
        return Checked(_with_true_size(name, str(kind), content))
    if kind == 'mp3':
        return _checked_mpeg(name, content)
    evidence = {'ogg': _cut_ogg, 'mp4': _cut_mp4, 'webm': _cut_webm, 'asf': _cut_asf, 'amr': _cut_amr, 'aac': _cut_aac}
    if kind in evidence and (cut := evidence[kind](content)):
        raise truncated(name, cut)
    return Checked(content, _READ_BY_FFMPEG.get(str(kind), ''))


def truncated(name: str, evidence: str) -> AudioError:
    """The error for a file of which a part is missing."""
    return AudioError(f'{name}: the file is truncated ({evidence}). Fetch it again, or remove it.')


def check_seconds(name: str, samples: int, channels: int, rate: int, most: float) -> None:
    """Refuses what is longer than `most` seconds, or holds more than that much of the densest sound."""
    if samples / max(rate, 1) > most or samples * channels > most * _DENSEST:
        raise AudioError(f'{name}: is longer than the {most:g} s that are taken. Give a part of it.')


# WAV and its kin: chunks with an id and a size, one of which holds the samples.


class _Layout(NamedTuple):
    first: int  # where chunks begin
    id_bytes: int
    size_bytes: int
    order: str
    samples: bytes  # id of the chunk with the samples
    align: int
    counted: int = 0  # bytes of its own header that a size counts


_LAYOUTS = {
    'wav': _Layout(12, 4, 4, 'little', b'data', 2),
    'rifx': _Layout(12, 4, 4, 'big', b'data', 2),
    'rf64': _Layout(12, 4, 4, 'little', b'data', 2),
    'aiff': _Layout(12, 4, 4, 'big', b'SSND', 2),
    'caf': _Layout(8, 4, 8, 'big', b'data', 1),
    'w64': _Layout(40, 16, 8, 'little', b'data', 8, 24),
}


class _Samples(NamedTuple):
    """Where the samples are said to be: bytes [start, start + size), and the field that says so."""

    start: int
    size: int
    field: slice
    order: str
    align: int
    counted: int = 0


def _number(content: bytes, field: slice, order: str) -> int:
    return int.from_bytes(content[field], 'little' if order == 'little' else 'big')


def _find_samples(name: str, kind: str, content: bytes) -> tuple[bytes, _Samples]:
    """Walks to the samples; the content comes back with the padding that some writers leave out."""
    if kind == 'au':
        start, size = (_number(content, slice(at, at + 4), 'big') for at in (4, 8))
        return content, _Samples(start, size, slice(8, 12), 'big', 1)
    layout = _LAYOUTS[kind]
    position = layout.first
    while (start := position + layout.id_bytes + layout.size_bytes) <= len(content):
        field = slice(start - layout.size_bytes, start)
        size = max(0, _number(content, field, layout.order) - layout.counted)
        if content.startswith(layout.samples, position):
            if kind == 'rf64' and size == 2**32 - 1 and content.startswith(b'ds64', 12):
                field = slice(28, 36)
                size = _number(content, field, 'little')
            return content, _Samples(start, size, field, layout.order, layout.align, layout.counted)
        end = start + size
        if end > len(content):
            chunk = content[position : position + 4].decode('ascii', 'replace')
            raise truncated(name, f'{len(content) - start} of {size} bytes of its {chunk!r} chunk are there')
        position = end + -size % layout.align
        if not _chunk_begins(content, position, layout.order) and _chunk_begins(content, end, layout.order):
            content = content[:end] + bytes(position - end) + content[end:]
    raise truncated(name, f'it has no {layout.samples.decode()!r} chunk')


def _with_true_size(name: str, kind: str, content: bytes) -> bytes:
    """Live recorders write the size of their samples before they know it: the content with the right one.

    Raises:
        AudioError: many of the bytes that it states are missing.
    """
    content, found = _find_samples(name, kind, content)
    end, left, width = found.start + found.size, len(content) - found.start, found.field.stop - found.field.start
    if found.size >= (0x7F000000 if width == 4 else 2**56):  # written to a pipe: the largest size that there is
        if kind in ('wav', 'rifx', 'au'):  # which libsndfile takes as it is
            return content
    elif found.size - left > _MISCOUNT or left < 0:
        raise truncated(name, f'{max(left, 0)} of {found.size} bytes of its samples are there')
    else:
        places = (end + -found.size % found.align, end)
        behind = next((at for at in places if _chunk_begins(content, at, found.order)), None)
        if behind is not None and content.startswith((b'RIFF', b'data', b'FORM', b'SSND'), behind):
            _warn(
                f'{name}: a second recording of {len(content) - behind} bytes stands behind the first; it is not read.'
            )
        padded = 0 < found.size < left and not content[end:].strip(b'\0')
        if left == found.size or behind is not None or padded:
            return content
        _warn(f'{name}: its header states {found.size} bytes of samples, {left} are there: all are read.')
    true = (left + found.counted).to_bytes(width, 'little' if found.order == 'little' else 'big')
    return content[: found.field.start] + true + content[found.field.stop :]


def _warn(message: str) -> None:
    warnings.warn(message, AudioWarning, stacklevel=4)


def _chunk_begins(content: bytes, at: int, order: str) -> bool:
    kind, size = content[at : at + 4], _number(content, slice(at + 4, at + 8), order)
    if len(kind) < 4 or not all(32 <= byte < 127 for byte in kind):
        return False
    return kind.replace(b' ', b'').isalnum() or at + 8 + size <= len(content)


# Streams of frames, each of which tells its own size.


def _mpeg_size(content: bytes, at: int) -> int:
    """Bytes of the MPEG audio frame at a position; 0: none begins there."""
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return 0
    kbits = _MPEG_KBITS[version == 3, layer][bits - 1]
    hertz = _MPEG_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    if layer == 1:
        return (12000 * kbits // hertz + padding) * 4
    return (72000 if layer == 3 and version != 3 else 144000) * kbits // hertz + padding


def _samples_in(frame: bytes) -> int:
    layer, mpeg1 = 4 - (frame[1] >> 1 & 3), frame[1] >> 3 & 3 == 3
    return {1: 384, 2: 1152, 3: 1152 if mpeg1 else 576}[layer]


def _adts_size(content: bytes, at: int) -> int:
    """Bytes of the AAC frame at a position; 0: none begins there."""
    head = content[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0


def _begins_with_frames(content: bytes, at: int, size_of: Callable[[bytes, int], int]) -> bool:
    """Whether two frames of one stream follow each other, or one fills what there is."""
    size = size_of(content, at)
    then = at + size
    if not size or then == len(content):
        return bool(size)
    same = (
        content[at : at + 2] == content[then : then + 2]
        and not (content[at + 2] ^ content[then + 2 : then + 3][0]) & 12
    )
    return same and size_of(content, then) > 0


def _after_id3(content: bytes, at: int) -> int:
    """Where an ID3v2 tag that begins at a position ends."""
    size = 0
    for byte in content[at + 6 : at + 10]:
        size = size << 7 | byte & 127
    footer = 10 * (len(content) > at + 5 and content[at + 5] >> 4 & 1)
    return at + 10 + size + footer


def _frames(content: bytes, size_of: Callable[[bytes, int], int]) -> tuple[list[bytes], int]:
    """The frames of a stream, tags and rubbish between them left out, and how many bytes its last one lacks."""
    frames, at = [], 0
    while at < len(content):
        size = size_of(content, at)
        if size and at + size > len(content) and frames:
            return frames, at + size - len(content)
        # In a row a frame needs no witness; after something else the next one has to bear it out.
        in_row = bool(frames) and content[at - len(frames[-1]) : at] == frames[-1]
        if size and (in_row or _begins_with_frames(content, at, size_of)):
            frames.append(content[at : at + size])
            at += size
        elif content.startswith(b'ID3', at):
            at = _after_id3(content, at)
        else:
            begins = _BEGINS.search(content, at + 1)
            at = begins.start() if begins else len(content)
    return frames, 0


def _checked_mpeg(name: str, content: bytes) -> Checked:
    """An MP3 and its reader. libsndfile believes a header's count of frames, and without one an estimate."""
    frames, lacking = _frames(content, _mpeg_size)
    if not frames:
        return Checked(content)
    stated = _stated_frames(frames[0])
    there = len(frames) - (stated is not None)
    if stated is not None and there < stated - FRAMES_SLACK:
        raise truncated(name, f'{there} of {stated} frames are there')
    if stated is not None and there <= stated + FRAMES_SLACK:
        return Checked(content)
    # Nothing is stated, or of the first of several files that were put together.
    if lacking:
        raise truncated(name, f'{lacking} bytes of its last frame are missing')
    return Checked(b''.join(frames[stated is not None :]), samples=there * _samples_in(frames[0]))


def _stated_frames(frame: bytes) -> int | None:
    """How many frames a stream states in its first one (Xing's header, which encoders write); None: nothing."""
    mono, mpeg1 = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    at = 4 + {(True, False): 32, (False, True): 9}.get((mpeg1, mono), 17) + 2 * (not frame[1] & 1)
    if frame[at : at + 4] in (b'Xing', b'Info') and frame[at + 7] & 1:
        return int.from_bytes(frame[at + 8 : at + 12], 'big')
    return None


def links(content: bytes) -> list[bytes]:
    """The Ogg files that a chain of them (a recording of radio) is made of; decoders stop after the first."""
    starts, ended = [0], False
    for page in re.finditer(rb'OggS\x00([\x00-\x07])', content):
        if ended and page[1][0] & 2:  # a stream begins
            starts.append(page.start())
        ended = bool(page[1][0] & 4) or (ended and not page[1][0] & 2)
    return [content[start:end] for start, end in itertools.pairwise([*starts, len(content)])]


def _cut_ogg(content: bytes) -> str:
    # A page has 27 bytes, among them flags [5] (4: its stream ends) and n [26]; n segment sizes; segments.
    page = content[content.rfind(b'OggS') :]
    whole = len(page) >= 27 and page[5] & 4 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return '' if whole else 'its stream has no end'


def _cut_aac(content: bytes) -> str:
    lacking = _frames(content, _adts_size)[1]
    return f'{lacking} bytes of its last frame are missing' if lacking else ''


def _cut_amr(content: bytes) -> str:
    at = content.find(b'\n') + 1
    sizes = _AMR_SIZES[content.startswith(b'#!AMR-WB')]
    while at < len(content) and (size := sizes[content[at] >> 3 & 15]):
        at += size
    return f'{at - len(content)} bytes of its last frame are missing' if at > len(content) else ''


# Files that only FFmpeg reads.


def _cut_mp4(content: bytes) -> str:
    at, found = 0, set()
    while at + 8 <= len(content):
        box, size = content[at + 4 : at + 8], int.from_bytes(content[at : at + 4], 'big')
        if size == 1:
            size = int.from_bytes(content[at + 8 : at + 16], 'big')
        size = size or len(content) - at
        if size < 8 or not box.isalnum():
            break
        if at + size > len(content):
            return f'{len(content) - at} of {size} bytes of its {box.decode()!r} box are there'
        found.add(box)
        at += size
    return '' if b'moov' in found else "it has no 'moov' box, which a recorder writes last"


def _cut_webm(content: bytes) -> str:
    """Elements nest; those that hold sound are walked through, the others stepped over."""
    at = 0
    while at < len(content):
        id_bytes = 9 - content[at].bit_length()
        if id_bytes > 4:
            return ''
        element = content[at : at + id_bytes]
        first = content[at + id_bytes : at + id_bytes + 1] or b'\x01'
        size_bytes = 9 - first[0].bit_length()
        start = at + id_bytes + size_bytes
        size = _number(content, slice(at + id_bytes, start), 'big') & (1 << 7 * size_bytes) - 1
        unknown = size == (1 << 7 * size_bytes) - 1
        if start > len(content) or (not unknown and start + size > len(content)):
            return f'{max(0, len(content) - start)} of {size} bytes of its element {element.hex()} are there'
        into = unknown or element == b'\x18\x53\x80\x67'  # the segment, which is nearly all of it
        at = start if into else start + size
    return ''


def _cut_asf(content: bytes) -> str:
    at = content.find(b'\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65')  # its file properties
    stated = int.from_bytes(content[at + 40 : at + 48], 'little') if at >= 0 else 0
    return f'{len(content)} of {stated} bytes are there' if stated > len(content) else ''
