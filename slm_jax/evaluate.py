"""Scores a model: `slm-jax evaluate MODEL --task NAME --split test`.

MODEL is the directory of a training (its card names the foundations and holds the configuration), a packaged
one (slm_base, slm_tiny), or a foundation: a speech encoder is read out by CTC, a language model gets text:

    --task NAME --split test           a registered task or mixture
    --manifest FILE.jsonl              recordings of one's own, or an earlier predictions.jsonl
    --predictions FILE.jsonl           nothing is decoded; an earlier run is scored anew
    --suite zero_shot                  several sets, each beside its controls; see `slm_jax.suite`

Written are predictions.jsonl, results.json and report.html, and a line into the model's card.

    slm-jax evaluate runs/slm --task voice_prompts --split test
    slm-jax evaluate runs/slm --task voice_prompts_asr --split test --shuffle_audio
    slm-jax evaluate usm_tiny --task voice_prompts_ctc --split test --out ctc
    slm-jax evaluate t5_tiny --task voice_prompts_ast --split test --text_from ctc/predictions.jsonl
    slm-jax evaluate runs/slm --manifest orders.jsonl --slots all
    slm-jax evaluate t5_tiny --manifest orders.jsonl --slots all --text_field text
    slm-jax evaluate runs/slm --manifest questions/test.jsonl --instruction "Answer briefly." --reference_field answers
    slm-jax evaluate runs/slm --manifest endings.jsonl --instruction "Go on." --score_choices

The third and fourth are a cascade: what CTC heard is put to the language model in writing.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from slm_jax import cli, configuration, model_arguments, paths

_AUDIO_BYTES = 600_000_000  # kept in memory for the report's players: five hours


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax evaluate'
    model_arguments.add(result)
    cli.add_multihost(result)
    data = result.add_argument_group('data')
    data.add_argument('--task', help='registered task or mixture')
    data.add_argument('--split', default='test', help='of the task (default: test)')
    data.add_argument('--manifest', metavar='FILE', help='JSONL, a recording a line')
    data.add_argument('--predictions', metavar='FILE', help='score this file; decode nothing')
    data.add_argument('--suite', metavar='NAME', help='several sets with their controls: gin/tasks/NAME.gin, or a file')
    data.add_argument('--suite_data', metavar='DIR', help="where the suite's manifests are")
    data.add_argument(
        '--limit', type=int, metavar='N', help='the first N lines of a manifest, or examples of each task'
    )
    data.add_argument('--batch_seconds', type=float, default=60.0, help='audio in a batch')
    data.add_argument('--max_seconds', type=float, help='longest audio let through')
    data.add_argument('--on_bad_example', choices=('raise', 'skip'), default='raise')
    data.add_argument('--cache_dir', help='where prepared tasks are')
    data.add_argument('--data_dir', help='where TFDS keeps its data')
    ask = result.add_argument_group('what is asked of a manifest')
    ask.add_argument('--instruction', default='', help='may hold {language}, {target_language}')
    ask.add_argument('--target_lang', default='', help='expect this translation as the answer')
    ask.add_argument(
        '--reference_field',
        default='',
        help="the answer's field, as in slots.size; a list of all that is accepted is scored as SQuAD is",
    )
    ask.add_argument('--answers', action='store_true', help='score the one answer of each line as such a list is')
    ask.add_argument(
        '--phrases',
        default='',
        metavar='own+N',
        help='list the `phrases` of a line and N others; N alone; or candidates',
    )
    ask.add_argument('--phrase_pool', default='', metavar='FILE', help='a phrase a line, to draw the N others of')
    ask.add_argument('--slots', default='', help="ask for these slots: size,roast or 'all'")
    ask.add_argument(
        '--score_choices',
        action='store_true',
        help="write nothing; score each line's `choices` (or its reference alone) by their likelihood as the answer",
    )
    change = result.add_argument_group('instead of the speech')
    change.add_argument('--shuffle_audio', action='store_true', help="another clip's audio")
    change.add_argument('--text_from', metavar='FILE', help='a text, looked up by id in a predictions.jsonl')
    change.add_argument('--text_field', default='', help='its field, or the one of the manifest (prediction, text)')
    scores = result.add_argument_group('scores')
    scores.add_argument(
        '--normalizer',
        default='auto',
        help="for WER, CER, slots, answers: basic, none, whisper_english (OpenAI's), squad, or auto: whisper_english "
        'for English transcripts, squad for answers and basic for all else (default: auto)',
    )
    scores.add_argument('--translation_normalizer', default='none', help='for BLEU and chrF')
    scores.add_argument(
        '--oracle',
        metavar='FILE',
        help="another run's predictions.jsonl of the same examples, as of true transcripts (--text_field text): say "
        'what share of its scores is kept',
    )
    scores.add_argument('--out', metavar='DIR', help='default: MODEL/evaluations/NAME')
    scores.add_argument('--worst', type=int, default=20, help='examples in the report')
    return result


def evaluate(args: argparse.Namespace, command: str = '', model: Any = None) -> dict[str, Any]:
    """Does what the command line says, with `model` if that is loaded already; returns the results.

    Raises:
        ValueError: wrong arguments, a model that cannot be loaded, bad data.
    """
    from slm_jax.data import notices
    from slm_jax.evaluation import metrics, normalizers, oracle, report
    from slm_jax.inference import controls, queries

    sources = [args.task, args.manifest, args.predictions]
    if sum(source is not None for source in sources) != 1:
        raise ValueError('give one of --task, --manifest and --predictions.')
    if args.normalizer != normalizers.AUTO:
        normalizers.get(args.normalizer)
    normalizers.get(args.translation_normalizer)
    if args.limit is not None and (args.limit < 1 or args.predictions):
        raise ValueError('--limit: a number from 1 on, of a --manifest or a --task.')
    if args.predictions and args.multihost:
        raise ValueError('--multihost: of --predictions nothing is decoded; leave it out.')
    started = time.perf_counter()
    skipped: list[str] = []
    samples: dict[int, Any] = {}
    tally: collections.Counter[str] = collections.Counter()
    others = oracle.read(args.oracle) if args.oracle else None
    if args.predictions:
        out = paths.path(args.out or paths.path(args.predictions).parent)
        lines = (queries.Query((), info=line) for line in controls.read_lines(args.predictions))
        predictions = [dict(query.info) for query in queries.checked(lines, _check(args), _on_bad(args, skipped))]
    else:
        model = model or model_arguments.load(args.model, args)
        out = paths.path(args.out or place(model, label(args)))
        predictions = _decode(args, model, out, samples, skipped, tally)
    if notices.silent:
        return {}
    seconds = time.perf_counter() - started
    if skipped and not predictions:
        raise ValueError(f'all {len(skipped)} examples were skipped; the first: {skipped[0]}')
    theirs = None if others is None else [oracle.answered(args.oracle, others, each) for each in predictions]
    scored = metrics.score(predictions, args.normalizer, args.translation_normalizer, theirs)
    results = {
        'schema': report.SCHEMA,
        'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': command,
        **_about(args, model, predictions, skipped, seconds, tally),
        **scored,
    }
    path = report.write(out, results, predictions, samples, args.worst, normalizer=args.normalizer)
    if model is not None:
        record(model.directory, label(args), results)
    print(report.summary(results))
    print(f'report: {path}')
    if skipped:
        notices.say(notices.listing(label(args), skipped, f'data.skipped of {path.with_name("results.json")}'))
    return results


def label(args: argparse.Namespace) -> str:
    """A short name for what is evaluated: a folder's name, and an entry's in the card."""
    if args.task:
        parts = [args.task, args.split]
    else:  # Every collection has a test.jsonl.
        file = pathlib.Path(args.manifest or args.predictions)
        parts = [name for name in (file.parent.name, file.stem) if name]
    for flag in ('instruction', 'target_lang', 'slots', 'phrases', 'method'):
        if getattr(args, flag):
            parts.append(getattr(args, flag))
    read = bool(args.text_from or args.text_field)
    parts += (
        ['likelihood'] * args.score_choices
        + ['answers'] * args.answers
        + ['text'] * read
        + [f'first_{args.limit}'] * bool(args.limit)
        + ['shuffled'] * args.shuffle_audio
    )
    return re.sub(r'[^\w.-]+', '_', '-'.join(parts)).strip('_')[:120]


def place(model: Any, name: str) -> pathlib.Path:
    """Where an evaluation of a model goes that is told no other place."""
    from slm_jax import foundations

    if model.step is None or foundations.installed(model.directory):
        return pathlib.Path('evaluations', model.directory.name, name)
    return model.directory / 'evaluations' / name


def _on_bad(args: argparse.Namespace, skipped: list[str]) -> Callable[[str], None] | None:
    return None if args.on_bad_example == 'raise' else skipped.append


def _check(
    args: argparse.Namespace, model: Any = None, texts: Mapping[str, str] | None = None
) -> Callable[[Any], None]:
    """What refuses a query that cannot be scored, or whose text or instruction the model cannot be given."""
    from slm_jax.evaluation import metrics, oracle
    from slm_jax.inference import controls, queries

    others = oracle.read(args.oracle) if args.oracle else None

    def check(query):
        metrics.check_reference(query.info, args.normalizer, args.translation_normalizer)
        if others is not None:
            oracle.answered(args.oracle, others, query.info)
        if texts is not None:
            controls.text_of(query, texts)
        if model:
            queries.check_tokens(query, model.most_tokens)
        asked = query.info.get('instruction')
        if model and model.text_vocabulary is None and asked and not query.transcribed:
            other = "--instruction 'Transcribe the speech.' stands for each line's own; --reference_field is scored."
            raise ValueError(
                f'example {query.info.get("id")!r}: instruction {asked!r}: {model.directory.name} reads none; by CTC '
                f'it writes what is said. {"Choose a task of transcripts." if args.task else other}'
            )

    return check


def _queries(args: argparse.Namespace, model: Any, skipped: list[str]) -> tuple[Iterator[Any], int]:
    """What is put to the model, and how many they are (faulty ones included).

    What would be raised for one of them is raised now, as far as it can be told without its recording.
    """
    from slm_jax.inference import controls, queries

    source, total = _source(args, model, skipped)
    texts = controls.texts_by_id(args.text_from, args.text_field or 'prediction') if args.text_from else None
    check, on_bad = _check(args, model, texts), _on_bad(args, skipped)
    if on_bad is None:
        for query in source(listen=False):
            check(query)
    stream = queries.checked(source(listen=True), check, on_bad)
    if args.ctc_weight is not None:
        stream = (dataclasses.replace(query, transcribed=True) for query in stream)
    if texts is not None:
        stream = controls.with_texts(stream, texts, model.text_vocabulary, model.prompt)
    if args.shuffle_audio:
        stream = controls.shuffle_audio(stream)
    return stream, total


def _source(args: argparse.Namespace, model: Any, skipped: list[str]) -> tuple[Callable[..., Iterator[Any]], int]:
    """The task's or manifest's queries, as a function of whether recordings are read, and how many they are."""
    from slm_jax.data import instructions, json_lines, phrases
    from slm_jax.inference import model as model_lib
    from slm_jax.inference import queries

    vocabulary = model.text_vocabulary
    if (args.text_from or args.text_field) and vocabulary is None:
        raise ValueError(f'--text_field, --text_from: {model.directory.name} reads no text.')
    max_seconds = model.let_through(args.max_seconds)
    deaf = not model.hears and not (args.text_from or args.text_field)
    if args.task:
        given = ('instruction', 'target_lang', 'reference_field', 'answers', 'slots', 'phrases', 'phrase_pool')
        if wrong := [f'--{name}' for name in given if getattr(args, name)]:
            raise ValueError(f'{", ".join(wrong)}: only for a --manifest; a task has its own.')
        if args.text_field and not args.text_from:
            raise ValueError('--text_field: with a --task, give --text_from as well.')
        import slm_jax.tasks  # noqa: F401  a foundation's configuration registers none
        from slm_jax.data import loader

        # A run's own tasks, such as those over manifests, are registered when gin makes them.
        model_lib.configure(model.card, args.gin_file, args.gin_bindings, training=True)
        with contextlib.suppress(ValueError):
            model_lib.query('%MIXTURE_OR_TASK_NAME')
        data = loader.SpeechTextLoader(
            args.task,
            args.split,
            seconds_per_batch=args.batch_seconds,
            task_feature_lengths={'speech': int(max_seconds * queries.SAMPLE_RATE)},
            on_bad_example=args.on_bad_example,
            cache_dir=args.cache_dir,
            data_dir=args.data_dir,
            limit=args.limit,
        )
        skipped += [error for _, error in data.skipped]
        deaf = deaf and any(bucket.samples for bucket in data.plan.buckets)
        total = sum(int((batch.rows[:, 0] >= 0).sum()) for batch in data.plan.evaluation())

        def source(listen):  # What is stored is read at once.
            return queries.from_loader(data, model.vocabulary)

    else:
        slots = instructions.SLOTS if args.slots == 'all' else args.slots.split(',')
        if args.slots and args.instruction and len(slots) > 1:
            raise ValueError('--instruction: one wording does not ask for several --slots.')
        if args.answers and args.score_choices:
            raise ValueError('--answers: with --score_choices nothing is answered; leave one of them out.')
        asked, listed = [], phrases.of_option(args.phrases, args.phrase_pool)
        read_from = '' if args.text_from else args.text_field
        for slot in slots:
            if slot and slot not in instructions.SLOTS and not args.instruction:
                known = ', '.join(instructions.SLOTS)
                raise ValueError(f'--slots {slot}: give --instruction, or one of {known}.')
            wording = instructions.TEMPLATES[f'slot/{slot}'][0] if slot else ''
            wording, score = args.instruction or wording, args.score_choices
            field = args.reference_field
            asked.append(
                queries.Question(wording, args.target_lang, slot, field, read_from, score, args.answers, listed)
            )
        total = sum(1 for _ in itertools.islice(json_lines.lines(args.manifest), args.limit)) * len(asked)
        source = functools.partial(
            queries.from_manifest,
            args.manifest,
            asked,
            vocabulary,
            max_seconds,
            model.prompt,
            _on_bad(args, skipped),
            task=pathlib.Path(args.manifest).stem,
            longest=model.encoder_seconds,
            limit=args.limit,
        )
    if deaf:
        raise ValueError(
            f'{model.directory.name} is a language model alone and hears nothing of {args.task or args.manifest}. '
            'Give a trained model, or what is to be read instead: --text_from predictions.jsonl'
            + ('.' if args.task else ', or --text_field text.')
        )
    return source, total


def _decode(
    args: argparse.Namespace,
    model: Any,
    out: pathlib.Path,
    samples: dict[int, Any],
    skipped: list[str],
    tally: collections.Counter[str],
) -> list[dict[str, Any]]:
    """Decodes everything, in the order of the data; each line is on disk as soon as it is known."""
    import tqdm

    from slm_jax.data import notices
    from slm_jax.inference import answering

    stream, total = _queries(args, model, skipped)
    lines = pathlib.Path(os.devnull) if notices.silent else out / 'predictions.jsonl'
    lines.parent.mkdir(parents=True, exist_ok=True)
    answered: dict[int, dict[str, Any]] = {}
    kept = 0
    with (
        tqdm.tqdm(total=total, unit='example', disable=notices.silent or None) as bar,
        lines.open('w', encoding='utf-8') as file,
    ):
        found = answering.said(model, stream, args.batch_seconds, total > 2000, args.score_choices)
        for position, query, fields in found:
            answered[position] = {**query.info, **fields}
            tally['with_ctc'] += query.transcribed and query.samples is not None and not args.score_choices
            print(json.dumps(answered[position], ensure_ascii=False), file=file, flush=True)
            if query.samples is not None and kept < _AUDIO_BYTES:
                samples[position] = query.samples
                kept += query.samples.nbytes
            bar.update()
    return [answered[position] for position in sorted(answered)]


def _about(
    args: argparse.Namespace,
    model: Any,
    predictions: Sequence[dict[str, Any]],
    skipped: Sequence[str],
    seconds: float,
    tally: Mapping[str, int],
) -> dict[str, Any]:
    from slm_jax.evaluation import report

    audio = sum(prediction.get('duration') or 0.0 for prediction in predictions)
    about: dict[str, Any] = {
        'model': {},
        'foundations': {},
        'data': {
            'task': args.task,
            'split': args.split if args.task else None,
            'manifest': args.manifest or args.predictions,
            'instruction': args.instruction or None,
            'phrases': ' of '.join(filter(None, (args.phrases, args.phrase_pool))) or None,
            'text_from': args.text_from,
            'text_field': args.text_field or None,
            'shuffle_audio': args.shuffle_audio,
            'oracle': args.oracle,
            'examples': len(predictions),
            'audio_seconds': round(audio, 2),
            'limit': args.limit,
            'skipped': list(skipped),
        },
        'truncated': sum(bool(prediction.get('truncated')) for prediction in predictions),
        'versions': report.versions(),
    }
    if model is None:  # who answered stands beside the answers
        earlier = paths.path(args.predictions).with_name('results.json')
        told = json.loads(earlier.read_text(encoding='utf-8')) if earlier.exists() else {}
        return about | {key: told[key] for key in ('model', 'foundations', 'decode', 'speed') if key in told}
    import jax

    heard = audio and not (args.text_from or args.text_field)
    about['model'] = {
        'name': model.card.get('name'),
        'directory': str(model.directory),
        'step': model.step,
        'system': type(model.system).__name__,
        'num_params': model.card.get('num_params'),
    }
    about['foundations'] = model.foundations
    about['decode'] = dataclasses.asdict(model.decode)
    if model.decode.ctc_weight:
        about['decode']['answers_with_ctc'] = tally['with_ctc']
    if model.text_vocabulary is None:
        about['decode'] = {'method': 'CTC, the likeliest label of each frame'}
    about['speed'] = {
        'seconds': round(seconds, 2),
        'audio_seconds_per_second': round(audio / seconds, 2) if heard else None,
        'rtfx': round(audio / model.seconds, 2) if heard and model.seconds else None,
        'device': f'{model.mesh.size} × {jax.local_devices()[0].device_kind}',
    }
    return about


def record(directory: pathlib.Path, name: str, results: dict[str, Any]) -> None:
    """Writes the scores into the card of a trained model (that of a foundation or installed model is left alone)."""
    from slm_jax import foundations
    from slm_jax.training import checkpoints

    path = directory / foundations.CARD
    card = json.loads(path.read_text(encoding='utf-8'))
    if card.get('kind') != checkpoints.KIND or foundations.installed(directory):
        return
    kept = ('created', 'data', 'decode', 'normalizers', 'signatures', 'scores')
    entry = {'step': results['model']['step']} | {k: results[k] for k in kept}
    card['evaluations'] = {**(card.get('evaluations') or {}), name: entry}
    try:
        paths.write(path, json.dumps(card, ensure_ascii=False, indent=2) + '\n')
    except OSError as error:
        print(f'{path}: the scores could not be noted ({error.strerror}).', file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    fail = functools.partial(cli.fail, 'evaluate')
    from slm_jax import suite  # which asks this

    try:
        with cli.together(args.multihost, fail, ValueError, OSError, TypeError):
            command = 'slm-jax evaluate ' + shlex.join(arguments)
            suite.run(args, command) if args.suite else evaluate(args, command)
    except (ValueError, OSError, TypeError) as error:
        return fail(error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
