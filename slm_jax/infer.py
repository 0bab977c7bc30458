"""Puts a question to recordings: `slm-jax infer FILE... --instruction "…"`.

    slm-jax infer call.wav --instruction "What does the caller want?"
    slm-jax infer call.wav --model runs/slm --instruction "Translate this speech to English."
    slm-jax infer *.flac --model runs/slm --format json
    slm-jax infer talk.mp3 --model runs/slm --chunk_seconds 15 --format srt > talk.srt
    slm-jax infer talk.mp3 --chunk_seconds 15 --format json --word_times
    slm-jax infer --manifest calls.jsonl --model runs/slm    also prompts, {"interleaved": ["…", {"audio": FILE}, …]}
    slm-jax infer call.wav --phrases "Siobhan, Lake Ohrid"        or a file with a phrase a line
    slm-jax infer --speak "Please hold the line." out.wav --model runs/dmlm --vocoder runs/vocoder
    arecord -q -f S16_LE -r 16000 -t raw | slm-jax infer - --model runs/slm --chunk_seconds 8

Without --model the packaged slm_base answers: Whisper base and Qwen2.5-Coder-0.5B-Instruct, which are fetched on first
use, and an adapter. slm_tiny is packaged whole. --instruction left out asks for a transcript.

`-` reads standard input: WAV (or another audio file) whole, or raw 16-bit little-endian mono
samples at 16 kHz, which with --chunk_seconds are answered as they come. Raw is what begins neither as
an audio file nor as text; --raw says that it is. Audio that is longer than
the model takes at once is an error unless --chunk_seconds is given: then it is cut at its pauses.
Where nothing is heard the answer is empty, and subtitles have no cue. --word_times says in JSON when each word is
said, and makes subtitles of words and not of chunks. The CTC head of the adapter or the speech encoder tells, and where
there is none, the part of the speech that the language model looks at before it writes a token.

Of several inputs one that cannot be used is reported on standard error, the others go on, and the
exit status is 1.
"""

import argparse
import dataclasses
import functools
import gc
import io
import json
import math
import pathlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from slm_jax import cli, configuration, model_arguments, paths
from slm_jax.inference import rendering

_SAMPLE_RATE = 16000
_FORMATS = ('text', 'json', 'srt', 'vtt')
_STDIN = '-'


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax infer'
    result.add_argument('files', nargs='*', metavar='FILE', help="recordings; '-' is stdin")
    result.add_argument('--manifest', metavar='FILE', help='JSONL, a recording a line')
    result.add_argument('--raw', action='store_true', help='stdin is raw samples, whatever it looks like')
    result.add_argument('--instruction', default='', help='default: a transcription')
    result.add_argument(
        '--phrases', default='', metavar='LIST', help='that may be said: parted by commas, or a file with one a line'
    )
    result.add_argument('--format', choices=_FORMATS, default='text')
    result.add_argument('--out', metavar='DIR', help='for srt and vtt of several files')
    result.add_argument('--chunk_seconds', type=float, help='cut long audio at its pauses')
    result.add_argument('--overlap', type=float, default=0.0, help='seconds that chunks share')
    result.add_argument('--word_times', action='store_true', help='when each word of a transcript is said')
    result.add_argument('--max_seconds', type=float, help='longest audio taken at once')
    result.add_argument('--batch_seconds', type=float, default=60.0, help='audio in a batch')
    result.add_argument('--speak', metavar='TEXT', help='let a DMLM say a text; FILE is the WAV that is written')
    result.add_argument('--vocoder', metavar='DIR', help='of --speak: what says units of its codebook')
    model_arguments.add(result, '--model')
    cli.add_multihost(result)
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
        without_ctc: whether CTC has no part in the answers, although it has one in transcripts.
        words: of each answer, with their times from its chunk's start; empty where they are not asked for.
        cuts: the limit that each answer reached, '' where it ended before; see `slm_jax.inference.model.Answer`.
        error: what is wrong with the input; '' if nothing.
        segment: its offset and duration, as `slm_jax.data.segments` reads them; '' where there are none.
        lang: of the speech, '' where nobody but perhaps the instruction says it.
        several: of a prompt with several recordings the line of the manifest, as `slm_jax.inference.interleaved.turns`
            takes it; () of one recording.
    """

    name: str
    instruction: str
    transcribed: bool = False
    without_ctc: bool = False
    bounds: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    texts: list[str | None] = dataclasses.field(default_factory=list)
    words: list[Any] = dataclasses.field(default_factory=list)
    cuts: list[str] = dataclasses.field(default_factory=list)
    error: str = ''
    segment: tuple[str, str] = ('', '')
    lang: str = ''
    several: tuple[Any, ...] = ()

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
        raw: standard input is raw samples, whatever it looks like.
        aligner: `slm_jax.inference.words.Aligner`, which finds the words of transcripts; None: nothing does.
    """

    def __init__(
        self,
        model: Any,
        max_seconds: float,
        chunk_seconds: float | None = None,
        overlap: float = 0.0,
        batch_seconds: float = 60.0,
        head: bytes = b'',
        raw: bool = False,
        aligner: Any = None,
    ):
        self._model, self._max_seconds = model, max_seconds
        self._chunk_seconds, self._overlap = chunk_seconds, overlap
        self._batch_seconds, self._head, self._raw, self._aligner = batch_seconds, head, raw, aligner

    def run(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """Answers recordings, in order; one that has an error already is handed on as it is."""
        from slm_jax.inference import queries

        waiting: list[Recording] = []

        def stream():
            for recording in recordings:
                waiting.append(recording)
                if recording.error:
                    continue
                try:
                    if recording.several:
                        pieces, put = self._several(*recording.several)
                    else:
                        pieces, put = self._pieces(recording.name, *recording.segment), self._put(recording)
                except ValueError as error:
                    recording.error = str(error)
                    continue
                recording.bounds = [(start, start + len(samples) / _SAMPLE_RATE) for start, samples in pieces]
                recording.texts, recording.cuts = [None] * len(pieces), [''] * len(pieces)
                recording.words = [[] for _ in pieces]
                for number, (_, samples) in enumerate(pieces):
                    info = {'of': recording, 'number': number}
                    yield queries.Query(**put, samples=samples, info=info, transcribed=recording.transcribed)

        for group, batch in self._batched(stream()):
            answers = self._model.answers(batch)[: len(group)]
            words = self._aligner.words(batch, [text for text, _ in answers]) if self._aligner else [[]] * len(group)
            for (_, query), answer, said in zip(group, answers, words, strict=True):
                recording, number = query.info['of'], query.info['number']
                recording.texts[number], recording.cuts[number] = answer
                recording.words[number] = said
            while waiting and waiting[0].done:
                yield waiting.pop(0)
        yield from waiting  # After the last batch only faulty inputs are left.

    def _put(self, recording: Recording) -> dict[str, Any]:
        from slm_jax.inference import queries

        model = self._model
        return queries.asked(model.text_vocabulary, model.prompt, recording.instruction, lang=recording.lang)

    def _several(self, raw: Any, line: Any, folder: pathlib.Path) -> tuple[list[tuple[float, Any]], dict[str, Any]]:
        """As `_pieces` and `_put`, of a prompt with several recordings, whose samples stand in a row."""
        import numpy as np

        from slm_jax.inference import interleaved, queries

        model = self._model
        if self._chunk_seconds is not None:
            raise ValueError(f'{line["origin"]}: --chunk_seconds cuts no recording of a prompt; leave it out.')
        check = functools.partial(queries.check_length, max_seconds=self._max_seconds, longest=model.encoder_seconds)
        turns = interleaved.turns(raw, line, folder, '', '', check)
        tokens = model.prompt.interleaved(model.text_vocabulary, turns.parts)
        samples = np.concatenate([np.zeros(0, np.int16), *turns.samples])
        return [(0.0, samples)], {'tokens': tokens, 'recordings': tuple(map(len, turns.samples))}

    def _batched(self, asked):
        from slm_jax.inference import queries

        model = self._model
        limits = {'longest': model.encoder_seconds, 'computed': model.computed_seconds}
        return queries.batched(asked, self._batch_seconds, model.row_multiple, **limits)

    def _pieces(self, name: str, offset: str = '', duration: str = '') -> list[tuple[float, Any]]:
        """(start in seconds, samples) of the chunks of one input."""
        from slm_jax.data import segments
        from slm_jax.inference import chunks, queries

        if name == _STDIN:
            samples = read_bytes(self._head + sys.stdin.buffer.read(), self._raw)
        else:
            samples = segments.read(name, offset, duration)
        if self._chunk_seconds is None:
            queries.check_length(name, samples, self._max_seconds, self._model.encoder_seconds)
            return [(0.0, samples)]
        bounds = chunks.cut(samples, self._chunk_seconds, self._overlap)
        return [(start / _SAMPLE_RATE, samples[start:end]) for start, end in bounds]

    def listen(self, recording: Recording, read: Any) -> Iterator[tuple[float, float, Any]]:
        """Answers raw samples chunk by chunk as they come: (start, end, answer)."""
        from slm_jax.inference import chunks, queries

        head = io.BytesIO(self._head)

        def both(size):
            return head.read(size) or read(size)

        put = self._put(recording)
        assert self._chunk_seconds is not None, 'only what is cut is answered as it comes'
        for start, samples in chunks.cut_stream(both, self._chunk_seconds, self._overlap):
            query = queries.Query(**put, samples=samples, transcribed=recording.transcribed)
            [(_, batch)] = self._batched([query])
            yield start, start + len(samples) / _SAMPLE_RATE, self._model.answers(batch)[0]


def read_bytes(content: bytes, raw: bool = False) -> Any:
    """Samples of an audio file's content, or of raw 16-bit samples at 16 kHz.

    Args:
        content: all that there is.
        raw: it is raw samples, whatever it looks like.

    Raises:
        AudioError: neither.
    """
    import numpy as np

    from slm_jax.audio import containers, waveforms

    if not raw and containers.sniff(content):
        file = io.BytesIO(content)
        file.name = 'standard input'
        return waveforms.read_waveform(file)
    if not raw and (what := containers.foreign(content)):
        raise waveforms.AudioError(
            f'standard input: looks like {what}, not like audio. Pipe an audio file or raw 16-bit mono samples at '
            '16 kHz; --raw takes anything for such samples.'
        )
    if len(content) < 2:
        raise waveforms.AudioError('standard input: holds no samples. Pipe WAV, or raw 16-bit mono samples at 16 kHz.')
    if len(content) % 2:
        odd = f'standard input: {len(content)} bytes are no whole number of 16-bit samples; the last byte is left out.'
        warnings.warn(odd, waveforms.AudioWarning, stacklevel=2)
    return np.frombuffer(content, '<i2', count=len(content) // 2)


def infer(args: argparse.Namespace) -> int:
    """Does what the command line says.

    Returns:
        Exit status: 0, or 1 if an input could not be used.

    Raises:
        ValueError: wrong arguments, or a model or manifest that cannot be read.
    """
    if args.speak is not None or args.vocoder:
        from slm_jax.inference import speaking

        return speaking.speak(args)
    inputs = _inputs(args)
    alone = len(inputs) == 1
    if not inputs:
        asked = '--instruction is put to recordings, and there is none: ' if args.instruction else ''
        raise ValueError(f"{asked}give recordings, a --manifest, or '-' for standard input.")
    if args.multihost and inputs[0].name == _STDIN:
        raise ValueError("--multihost: standard input ('-') is there for one host; give files that all of them have.")
    if args.raw and inputs[0].name != _STDIN:
        raise ValueError("--raw: only standard input ('-') may be raw samples.")
    subtitles = args.format in ('srt', 'vtt')
    if subtitles and not alone:
        _check_out(args, [recording.name for recording in inputs])
    if args.chunk_seconds is not None:
        from slm_jax.inference import chunks

        chunks.check(args.chunk_seconds, args.overlap)
    elif args.overlap:
        raise ValueError('--overlap: chunks overlap only with --chunk_seconds.')
    if args.word_times and (args.format == 'text' or args.overlap):
        raise ValueError(
            '--word_times: give --format json, srt or vtt, and no --overlap, in which words are heard twice.'
        )
    model = model_arguments.load(args.model, args)
    limit = model.let_through(args.max_seconds)
    if args.chunk_seconds and args.chunk_seconds > limit:
        more = limit < (model.encoder_seconds or math.inf)
        raise ValueError(
            f'--chunk_seconds {args.chunk_seconds:g}: this model takes {limit:g} s at once; '
            f'give that or less{", or raise --max_seconds" if more else ""}.'
        )
    _check_asked(args, model, inputs)
    head = b''
    live = alone and inputs[0].name == _STDIN and args.chunk_seconds is not None
    if live and not args.raw:
        from slm_jax.audio import containers

        head = sys.stdin.buffer.read(containers.HEAD)
        live = bool(head) and not containers.sniff(head) and not containers.foreign(head)
    aligner = _aligner(args, model, inputs, live) if args.word_times else None
    inference = Inference(model, limit, args.chunk_seconds, args.overlap, args.batch_seconds, head, args.raw, aligner)
    if live:
        return _live(inference, inputs[0], args.format, model.decode)
    return _write(inference.run(inputs), args, alone, model.decode)


def _check_asked(args: argparse.Namespace, model: Any, recordings: Sequence[Recording]) -> None:
    """Refuses what the model cannot hear or read, and decides where CTC takes part; says where it does not."""
    from slm_jax.data import notices
    from slm_jax.inference import asking, queries

    asking.check_hears(model)
    asking.check_lists(model, args.phrases)
    reads, weight = model.text_vocabulary is not None, model.decode.ctc_weight
    for recording in recordings:
        try:
            if not recording.error:
                asking.check_reads(model, recording.instruction)
                queries.asked(model.text_vocabulary, model.prompt, recording.instruction, lang=recording.lang)
        except ValueError as error:
            if args.instruction:
                raise ValueError(f'--{error}') from None
            recording.error = f'{recording.name}: {error}'
        recording.transcribed |= args.ctc_weight is not None
        recording.without_ctc = bool(reads and weight and not recording.transcribed)
    other = next((recording for recording in recordings if recording.without_ctc and not recording.error), None)
    if other and not notices.silent:
        print(
            f'slm-jax infer: CTC (ctc_weight {weight:g}) takes no part in answers to {other.instruction!r}, which is '
            f'no known wording for a transcript; --ctc_weight {weight:g} lets it.',
            file=sys.stderr,
        )


def _aligner(args: argparse.Namespace, model: Any, recordings: Sequence[Recording], live: bool) -> Any:
    """What finds the words of transcripts, or why nothing can."""
    from slm_jax.inference import words

    if live:
        raise ValueError('--word_times: samples that are answered as they come have none. Give a file.')
    for recording in recordings:
        if not (recording.transcribed or recording.error):
            raise ValueError(
                f'--word_times: the answer to {recording.instruction!r} is no transcript, so nobody says its words.'
            )
    return words.aligner(model)


def _say_cut(name: str, cut: str, decode: Any) -> None:
    from slm_jax.inference import asking

    print(f'slm-jax infer: {name}: {asking.cut_note(cut, decode)}', file=sys.stderr)


def _write(recordings: Iterable[Recording], args: argparse.Namespace, alone: bool, decode: Any) -> int:
    from slm_jax.data import notices

    status = 0
    for recording in recordings:
        if recording.error:
            print(f'slm-jax infer: {recording.error}', file=sys.stderr)
            status = 1
            if args.format != 'json':
                continue
        if notices.silent:
            continue
        for cut in sorted({*recording.cuts} - {''}):
            _say_cut(recording.name, cut, decode)
        text = rendering.render(recording, args.format, args.overlap > 0, alone)
        if args.format in ('srt', 'vtt') and args.out:
            path = paths.path(args.out) / f'{pathlib.Path(recording.name).stem}.{args.format}'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf-8')
            print(path)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
    return status


def _live(inference: Inference, recording: Recording, form: str, decode: Any) -> int:
    """Writes each chunk of a raw stream as soon as it is answered."""
    from slm_jax.inference import chunks

    if form == 'vtt':
        print(chunks.vtt([]), end='', flush=True)
    cues = 0
    stdin: Any = sys.stdin.buffer
    for start, end, (text, cut) in inference.listen(recording, stdin.read1):
        piece = chunks.Chunk(start, end, text)
        if cut:
            _say_cut(f'{start:.1f} to {end:.1f} s', cut, decode)
        if form == 'text':
            out = text + '\n'
        elif form == 'json':
            out = json.dumps(rendering.timed(piece, cut), ensure_ascii=False) + '\n'
        else:
            cues += bool(text.strip())
            out = chunks.srt([piece], cues) if form == 'srt' else chunks.vtt([piece])[7:]
            out = f'\n{out}' if form == 'srt' and cues > 1 and out else out
        print(out, end='', flush=True)
    return 0


def _inputs(args: argparse.Namespace) -> list[Recording]:
    """Every input with its instruction."""
    from slm_jax.data import instructions, phrases
    from slm_jax.inference import queries

    listed = phrases.of_text(args.phrases)
    plain = args.instruction or 'Transcribe the speech.'
    if _STDIN in args.files and (len(args.files) > 1 or args.manifest):
        raise ValueError("'-' (standard input) stands alone.")
    asked = queries.wording(phrases.asked(plain, listed), '', '')
    inputs = [Recording(name, asked) for name in args.files]
    if args.manifest:
        from slm_jax.data import manifests
        from slm_jax.inference import interleaved

        folder = paths.path(args.manifest).parent
        for raw, line in manifests.rows(args.manifest):
            recording = Recording(line['audio'] or line['origin'], '', error=line['error'])
            recording.segment, recording.lang = (line['offset'], line['duration']), line['lang']
            if interleaved.FIELD in raw and not line['error']:
                recording.several = raw, line, folder
                try:
                    parts = interleaved.turns(*recording.several, '', args.instruction, None).parts
                    recording.instruction = ''.join(part if isinstance(part, str) else '…' for part in parts)
                except ValueError as error:
                    recording.error = str(error)
                inputs.append(recording)
                continue
            if not line['audio'] and not line['error']:
                recording.error = f'{line["origin"]}: field "audio" is missing.'
            if not recording.error:
                asked = phrases.asked(args.instruction or line['instruction'] or plain, listed)
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


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    gc.set_threshold(500_000)  # importing and tracing make many objects and little garbage
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    fail = functools.partial(cli.fail, 'infer')
    try:
        with cli.together(args.multihost, fail, ValueError, OSError, TypeError):
            return infer(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, TypeError) as error:
        return fail(error)


if __name__ == '__main__':
    sys.exit(main())
