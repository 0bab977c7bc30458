"""Whisper's own decoder: the rival of an adapter on the same encoder, and the first half of a cascade.

    python -m slm_jax.evaluation.whisper_decoder OUT --task voice_prompts_asr --split test
    python -m slm_jax.evaluation.whisper_decoder OUT --manifest clips.jsonl --beam_size 1 --compute_type int8

transcribes with faster-whisper (pip install 'slm_jax[whisper]'), as OpenAI's program does by default: beams of 5, and
sampling where an answer repeats itself. OUT gets predictions.jsonl, results.json and report.html, as `slm-jax evaluate`
writes them, which takes the first as --predictions, --oracle and, for the second half of a cascade, --text_from.

MODEL is the encoder's name (it comes from the Hub or, where that is out of reach, in packages), a directory of
CTranslate2, or hf:owner/name.
"""

import argparse
import datetime
import importlib.metadata
import math
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from slm_jax import cli, paths

_HOURS = 24 * 3600  # longer than any recording; Whisper takes them in windows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog='python -m slm_jax.evaluation.whisper_decoder',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument('out', metavar='OUT', help='directory')
    result.add_argument('--model', default='whisper_base', metavar='MODEL', help='default: whisper_base')
    result.add_argument('--task', help='registered task or mixture of transcripts')
    result.add_argument('--split', default='test', help='of the task (default: test)')
    result.add_argument('--manifest', metavar='FILE', help='JSONL, a recording a line, with its `text`')
    result.add_argument('--language', default='', help='code; default: what the data says of each example')
    result.add_argument('--beam_size', type=int, default=5, help='1: greedy (default: 5)')
    result.add_argument('--compute_type', choices=('float32', 'int8'), default='float32')
    result.add_argument('--on_bad_example', choices=('raise', 'skip'), default='raise')
    result.add_argument('--cache_dir', help='where prepared tasks are')
    result.add_argument('--data_dir', help='where TFDS keeps its data')
    return result


class Whisper:
    """A whole Whisper."""

    def __init__(self, path: pathlib.Path, compute_type: str, beam_size: int):
        """Loads it.

        Raises:
            ImportError: faster-whisper is not installed.
            ValueError: the directory holds none.
        """
        import ctranslate2
        import faster_whisper

        ctranslate2.set_random_seed(0)
        threads = len(os.sched_getaffinity(0))
        try:
            self._model = faster_whisper.WhisperModel(
                str(path), device='cpu', compute_type=compute_type, cpu_threads=threads
            )
        except Exception as error:  # CTranslate2 raises RuntimeError, tokenizers a bare Exception.
            raise ValueError(f'{path}: no Whisper of CTranslate2 ({error}).') from error
        self._beam_size = beam_size
        self.versions = {name: importlib.metadata.version(name) for name in ('faster-whisper', 'ctranslate2')}
        self.languages = frozenset(self._model.supported_languages)

    def transcript(self, samples: np.ndarray, language: str) -> str:
        """Of int16 samples [n] at 16 kHz."""
        segments, _ = self._model.transcribe(
            samples.astype(np.float32) / 32768, language=language, beam_size=self._beam_size
        )
        return ''.join(segment.text for segment in segments).strip()


def _queries(args: argparse.Namespace, skipped: list[str], on_bad: Callable[[str], None] | None) -> Iterator[Any]:
    from slm_jax.data import instructions, prompts
    from slm_jax.inference import queries

    if args.task:
        import slm_jax.tasks  # noqa: F401
        from slm_jax.data import loader

        data = loader.SpeechTextLoader(
            args.task,
            args.split,
            task_feature_lengths={'speech': _HOURS * queries.SAMPLE_RATE},
            on_bad_example=args.on_bad_example,
            cache_dir=args.cache_dir,
            data_dir=args.data_dir,
        )
        skipped += [error for _, error in data.skipped]
        return queries.from_loader(data, data.vocabulary)
    question = queries.Question(instructions.TEMPLATES['asr'][0], reference_field='text')
    name = pathlib.Path(args.manifest).stem
    return queries.from_manifest(args.manifest, [question], None, math.inf, prompts.Prompt(), on_bad, name)


def _language(args: argparse.Namespace, info: dict[str, Any], whisper: Whisper) -> str:
    from slm_jax.evaluation import metrics

    language = args.language or metrics.base_language(info.get('lang'))
    if language not in whisper.languages:
        known = ', '.join(sorted(whisper.languages)[:12]) + (', …' if len(whisper.languages) > 12 else '')
        raise ValueError(
            f'example {info["id"]!r}: its language is {language or "not known"!r}, and {args.model} knows {known}. '
            'Give the data a field "lang", or --language to all.'
        )
    return language


def transcribe(args: argparse.Namespace, command: str = '') -> pathlib.Path:
    """Does what the command line says; returns the path of the report.

    Raises:
        ImportError: faster-whisper is not installed.
        ValueError, OSError: wrong arguments, bad data, or a model that cannot be had.
    """
    import tqdm

    from slm_jax.evaluation import metrics, report
    from slm_jax.foundations import named
    from slm_jax.importers import fetch
    from slm_jax.inference import queries

    if bool(args.task) == bool(args.manifest):
        raise ValueError('give one of --task and --manifest.')
    if args.beam_size < 1:
        raise ValueError(f'--beam_size {args.beam_size}: give a number from 1 on.')
    wanted = named.FOUNDATIONS.get(args.model)
    if wanted and not wanted.whole_hub:
        whispers = [name for name, each in named.FOUNDATIONS.items() if each.whole_hub]
        raise ValueError(f'--model {args.model} is no Whisper; choose one of {", ".join(whispers)}.')
    skipped: list[str] = []
    on_bad = None if args.on_bad_example == 'raise' else skipped.append
    path = fetch.whole(args.model) if wanted else fetch.whole_directory(args.model)
    whisper = Whisper(path, args.compute_type, args.beam_size)

    def check(query):
        metrics.check_reference(query.info)
        _language(args, query.info, whisper)
        if not query.transcribed:
            raise ValueError(f'{args.task}: asks {query.info.get("instruction")!r}. Choose a task of transcripts.')
        if query.samples is None:
            raise ValueError(f'example {query.info["id"]!r} has no speech.')

    predictions, samples, seconds = [], {}, 0.0
    for query in tqdm.tqdm(queries.checked(_queries(args, skipped, on_bad), check, on_bad), unit='clip', disable=None):
        info = {field: value for field, value in query.info.items() if field not in ('target_lang', 'slot', 'answers')}
        started = time.perf_counter()
        text = whisper.transcript(query.samples, _language(args, info, whisper))
        seconds += time.perf_counter() - started
        samples[len(predictions)] = query.samples
        predictions.append({**info, 'prediction': text})
    if not predictions:
        raise ValueError(f'all {len(skipped)} examples were skipped; the first: {skipped[0]}')
    audio = sum(prediction['duration'] for prediction in predictions)
    results = {
        'schema': report.SCHEMA,
        'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': command,
        'model': {'name': args.model, 'directory': args.model, 'step': None, 'system': 'Whisper with its own decoder'},
        'foundations': {},
        'data': {
            'task': args.task,
            'split': args.split if args.task else None,
            'manifest': args.manifest,
            'examples': len(predictions),
            'audio_seconds': round(audio, 2),
            'skipped': skipped,
        },
        'decode': {'method': 'beam', 'beam_size': args.beam_size, 'compute_type': args.compute_type},
        'truncated': 0,
        'speed': {'seconds': round(seconds, 2), 'rtfx': round(audio / seconds, 2), 'device': 'cpu'},
        'versions': report.versions() | whisper.versions,
        **metrics.score(predictions),
    }
    written = report.write(paths.path(args.out), results, predictions, samples)
    print(report.summary(results))
    for line in skipped:
        print(f'skipped: {line}', file=sys.stderr)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    # Threads that wait would compute nothing at full speed: seven times the CPU time where others work, too.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    try:
        path = transcribe(args, 'python -m slm_jax.evaluation.whisper_decoder ' + shlex.join(arguments))
    except ImportError as error:
        return cli.fail('whisper_decoder', ValueError(f"{error}: pip install 'slm_jax[whisper]'"))
    except (ValueError, OSError) as error:
        return cli.fail('whisper_decoder', error)
    print(f'report: {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
