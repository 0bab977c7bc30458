"""Puts a question to recordings: `slm-jax infer FILE... --model DIR --instruction "…"`.

    slm-jax infer call.wav --model runs/slm --instruction "Translate this speech to English."
    slm-jax infer *.flac --model runs/slm --format json
    slm-jax infer talk.mp3 --model runs/slm --chunk_seconds 20 --format srt > talk.srt
    slm-jax infer --manifest calls.jsonl --model runs/slm
    arecord -q -f S16_LE -r 16000 -t raw | slm-jax infer - --model runs/slm --chunk_seconds 8

`-` reads standard input: WAV (or another audio file) whole, or raw 16-bit little-endian mono
samples at 16 kHz, which with --chunk_seconds are answered as they come. Audio that is longer than
the model takes at once is an error unless --chunk_seconds is given: then it is cut at its pauses.

Of several inputs one that cannot be used is reported on standard error, the others go on, and the
exit status is 1.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from slm_jax import cli, configuration, evaluate

_SAMPLE_RATE = 16000
_FORMATS = ('text', 'json', 'srt', 'vtt')
# The first bytes of the files that may come through a pipe; anything else is raw samples.
_MAGIC = (b'RIFF', b'RF64', b'fLaC', b'OggS', b'ID3', b'FORM', b'\xff\xfb', b'\xff\xf3', b'caff')
_STDIN = '-'


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax infer'
    result.add_argument('files', nargs='*', metavar='FILE', help="recordings; '-' is stdin")
    result.add_argument('--manifest', metavar='FILE', help='JSONL, a recording a line')
    result.add_argument('--instruction', default='', help='default: a transcription')
    result.add_argument('--format', choices=_FORMATS, default='text')
    result.add_argument('--out', metavar='DIR', help='for srt and vtt of several files')
    result.add_argument('--chunk_seconds', type=float, help='cut long audio at its pauses')
    result.add_argument('--overlap', type=float, default=0.0, help='seconds that chunks share')
    result.add_argument('--max_seconds', type=float, help='longest audio taken at once')
    result.add_argument('--batch_seconds', type=float, default=60.0, help='audio in a batch')
    evaluate.add_model_arguments(result, '--model')
    return result


@dataclasses.dataclass
class Recording:
    """One input and what became of it.

    Attributes:
        name: path, or '-'.
        instruction: put to every chunk.
        transcribed: whether it asks for a transcript.
        bounds: (start, end) of each chunk, in seconds.
        texts: the answer to each chunk, None where it is not known yet.
        error: what is wrong with the input; '' if nothing.
        segment: its offset and duration, as `slm_jax.data.segments` reads them; '' where there are none.
    """

    name: str
    instruction: str
    transcribed: bool = False
    bounds: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    texts: list[str | None] = dataclasses.field(default_factory=list)
    error: str = ''
    segment: tuple[str, str] = ('', '')

    @property
    def done(self) -> bool:
        """Whether all that will be known is known."""
        return bool(self.error) or None not in self.texts


class Inference:
    """Answers recordings in batches, and hands each out as soon as it and those before it are done.

    Args:
        model: see `slm_jax.inference.model`.
        max_seconds: longest audio that is put to the model at once.
        chunk_seconds, overlap: see `slm_jax.inference.chunks.cut`; None: nothing is cut.
        batch_seconds: seconds of padded audio in a batch.
        head: what was already read of standard input.
    """

    def __init__(
        self,
        model: Any,
        max_seconds: float,
        chunk_seconds: float | None = None,
        overlap: float = 0.0,
        batch_seconds: float = 60.0,
        head: bytes = b'',
    ):
        self._model, self._max_seconds = model, max_seconds
        self._chunk_seconds, self._overlap = chunk_seconds, overlap
        self._batch_seconds, self._head = batch_seconds, head

    def run(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """Answers recordings, in order; one that has an error already is handed on as it is."""
        from slm_jax.inference import queries

        waiting: list[Recording] = []

        def stream():
            for recording in recordings:
                waiting.append(recording)
                try:
                    pieces = [] if recording.error else self._pieces(recording.name, *recording.segment)
                except ValueError as error:
                    recording.error = str(error)
                    continue
                tokens = queries.encode(self._model.text_vocabulary, recording.instruction)
                recording.bounds = [(start, start + len(samples) / _SAMPLE_RATE) for start, samples in pieces]
                recording.texts = [None] * len(pieces)
                for number, (_, samples) in enumerate(pieces):
                    info = {'of': recording, 'number': number}
                    yield queries.Query(tokens, samples, info, recording.transcribed)

        batches = queries.batched(stream(), self._batch_seconds, self._model.row_multiple)
        for group, batch in batches:
            for (_, query), text in zip(group, self._model.texts(batch), strict=False):
                query.info['of'].texts[query.info['number']] = text
            while waiting and waiting[0].done:
                yield waiting.pop(0)
        yield from waiting  # After the last batch only faulty inputs are left.

    def _pieces(self, name: str, offset: str = '', duration: str = '') -> list[tuple[float, Any]]:
        """(start in seconds, samples) of the chunks of one input."""
        from slm_jax.data import segments
        from slm_jax.inference import chunks, queries

        if name == _STDIN:
            samples = read_bytes(self._head + sys.stdin.buffer.read())
        else:
            samples = segments.read(name, offset, duration)
        if self._chunk_seconds is None:
            queries.check_length(name, samples, self._max_seconds)
            return [(0.0, samples)]
        bounds = chunks.cut(samples, self._chunk_seconds, self._overlap)
        return [(start / _SAMPLE_RATE, samples[start:end]) for start, end in bounds]

    def listen(self, recording: Recording, read: Any) -> Iterator[tuple[float, float, str]]:
        """Answers raw samples chunk by chunk as they come: (start, end, text)."""
        from slm_jax.inference import chunks, queries

        head = io.BytesIO(self._head)

        def both(size):
            return head.read(size) or read(size)

        tokens = queries.encode(self._model.text_vocabulary, recording.instruction)
        for start, samples in chunks.cut_stream(both, self._chunk_seconds, self._overlap):
            query = queries.Query(tokens, samples, transcribed=recording.transcribed)
            rows = self._model.row_multiple
            [(_, batch)] = queries.batched([query], self._batch_seconds, rows)
            yield start, start + len(samples) / _SAMPLE_RATE, self._model.texts(batch)[0]


def read_bytes(content: bytes) -> Any:
    """Samples of an audio file's content, or of raw 16-bit samples at 16 kHz.

    Raises:
        AudioError: neither.
    """
    import numpy as np

    from slm_jax.audio import waveforms

    if content.startswith(_MAGIC):
        file = io.BytesIO(content)
        file.name = 'standard input'
        return waveforms.read_waveform(file)
    if len(content) < 2:
        raise waveforms.AudioError('standard input: holds no samples. Pipe WAV, or raw 16-bit mono samples at 16 kHz.')
    return np.frombuffer(content, '<i2', count=len(content) // 2)


def render(recording: Recording, form: str, overlapping: bool, alone: bool) -> str:
    """One finished recording as text, JSON, SRT or WebVTT.

    Args:
        recording: without an error, except for 'json'.
        form: one of the formats.
        overlapping: whether its chunks overlap.
        alone: whether it is the only input; among several, 'text' names it.
    """
    from slm_jax.inference import chunks

    pieces = [
        chunks.Chunk(start, end, text or '')
        for (start, end), text in zip(recording.bounds, recording.texts, strict=True)
    ]
    if form == 'srt':
        return chunks.srt(pieces)
    if form == 'vtt':
        return chunks.vtt(pieces)
    text = chunks.join([piece.text for piece in pieces], overlapping)
    if form == 'text':
        return (text if alone else f'{recording.name}\t{text}') + '\n'
    line: dict[str, Any] = {'audio': recording.name, 'instruction': recording.instruction}
    if recording.segment[0]:
        line['offset'] = float(recording.segment[0])
    if recording.error:
        line['error'] = recording.error
    else:
        line['text'] = text
        line['duration'] = round(pieces[-1].end, 3)
        if len(pieces) > 1:
            line['chunks'] = [{'start': round(p.start, 3), 'end': round(p.end, 3), 'text': p.text} for p in pieces]
    return json.dumps(line, ensure_ascii=False) + '\n'


def infer(args: argparse.Namespace) -> int:
    """Does what the command line says.

    Returns:
        Exit status: 0, or 1 if an input could not be used.

    Raises:
        ValueError: wrong arguments, or a model or manifest that cannot be read.
    """
    inputs = _inputs(args)
    alone = len(inputs) == 1
    if not inputs:
        raise ValueError("give recordings, a --manifest, or '-' for standard input.")
    subtitles = args.format in ('srt', 'vtt')
    if subtitles and not alone:
        _check_out(args, [recording.name for recording in inputs])
    if args.chunk_seconds is not None:
        from slm_jax.inference import chunks

        chunks.check(args.chunk_seconds, args.overlap)
    elif args.overlap:
        raise ValueError('--overlap: chunks overlap only with --chunk_seconds.')
    name = args.model or packaged_model()
    model = evaluate.load_model(name, args)
    limit = args.max_seconds or model.max_seconds
    if args.chunk_seconds and args.chunk_seconds > limit:
        raise ValueError(
            f'--chunk_seconds {args.chunk_seconds:g}: this model takes {limit:g} s at once; '
            'give less, or raise --max_seconds.'
        )
    head = b''
    live = alone and inputs[0].name == _STDIN and args.chunk_seconds is not None
    if live:
        head = sys.stdin.buffer.read(4)
    inference = Inference(model, limit, args.chunk_seconds, args.overlap, args.batch_seconds, head)
    if live and not head.startswith(_MAGIC):
        return _live(inference, inputs[0], args.format)
    return _write(inference.run(inputs), args, alone)


def _write(recordings: Iterable[Recording], args: argparse.Namespace, alone: bool) -> int:
    status = 0
    for recording in recordings:
        if recording.error:
            print(f'slm-jax infer: {recording.error}', file=sys.stderr)
            status = 1
            if args.format != 'json':
                continue
        text = render(recording, args.format, args.overlap > 0, alone)
        if args.format in ('srt', 'vtt') and args.out:
            path = pathlib.Path(args.out, f'{pathlib.Path(recording.name).stem}.{args.format}')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf-8')
            print(path)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
    return status


def _live(inference: Inference, recording: Recording, form: str) -> int:
    """Writes each chunk of a raw stream as soon as it is answered."""
    from slm_jax.inference import chunks

    if form == 'vtt':
        print(chunks.vtt([]), end='', flush=True)
    cues = 0
    for start, end, text in inference.listen(recording, sys.stdin.buffer.read1):
        piece = chunks.Chunk(start, end, text)
        if form == 'text':
            out = text + '\n'
        elif form == 'json':
            line = {'start': round(start, 3), 'end': round(end, 3), 'text': text}
            out = json.dumps(line, ensure_ascii=False) + '\n'
        else:
            cues += bool(text.strip())
            out = chunks.srt([piece], cues) if form == 'srt' else chunks.vtt([piece])[7:]
            out = f'\n{out}' if form == 'srt' and cues > 1 and out else out
        print(out, end='', flush=True)
    return 0


def _inputs(args: argparse.Namespace) -> list[Recording]:
    """Every input with its instruction."""
    from slm_jax.data import instructions
    from slm_jax.inference import queries

    plain = args.instruction or 'Transcribe the speech.'
    if _STDIN in args.files and (len(args.files) > 1 or args.manifest):
        raise ValueError("'-' (standard input) stands alone.")
    asked = queries.wording(plain, '', '')
    inputs = [Recording(name, asked) for name in args.files]
    if args.manifest:
        from slm_jax.data import manifests

        for line in manifests.read(args.manifest):
            recording = Recording(line['audio'] or line['origin'], '', error=line['error'])
            recording.segment = line['offset'], line['duration']
            if not line['audio'] and not line['error']:
                recording.error = f'{line["origin"]}: field "audio" is missing.'
            if not recording.error:
                asked = args.instruction or line['instruction'] or plain
                recording.instruction = queries.wording(asked, line['lang'], line['target_lang'])
            inputs.append(recording)
    # Here, since the tasks register with gin, which the model's configuration locks.
    for recording in inputs:
        recording.transcribed = instructions.transcribes(recording.instruction)
    return inputs


def _check_out(args: argparse.Namespace, names: Sequence[str]) -> None:
    if not args.out:
        raise ValueError(f'--format {args.format}: of several files, --out says the folder.')
    stems: dict[str, str] = {}
    for name in names:
        stem = pathlib.Path(name).stem
        if stem in stems:
            raise ValueError(
                f'{stems[stem]} and {name} would both become {stem}.{args.format}; rename one, or give them separately.'
            )
        stems[stem] = name


def packaged_model() -> str:
    """Name of the trained model that is installed with the package.

    Raises:
        ValueError: there is none.
    """
    from slm_jax import foundations
    from slm_jax.training import checkpoints

    for name in foundations.known():
        if foundations.card(name).get('kind') == checkpoints.KIND:
            return name
    raise ValueError(
        '--model is missing, and no trained model is installed with the package: give the '
        'directory of a training (`slm-jax train`), or usm_tiny to transcribe by CTC.'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return infer(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, TypeError) as error:
        return cli.fail('infer', error, 2)


if __name__ == '__main__':
    sys.exit(main())
