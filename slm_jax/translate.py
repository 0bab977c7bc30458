"""Translates transcripts, for a model to learn from (pseudo-labels): `slm-jax translate MANIFEST OUT --target_lang en`.

    slm-jax translate clips.jsonl pseudo.jsonl --target_lang en --model out/mbart_tiny
    slm-jax translate clips.jsonl pseudo.jsonl --target_lang en --command 'apertium -u spa-eng' --langs es
    slm-jax translate clips.jsonl pseudo.jsonl --target_lang en --command './mt {lang}' --model out/mbart_tiny

Each transcript (`text`, in `lang`) is translated by a model, or by any command that reads lines and writes as many.
OUT is a manifest: the recording, its transcript, the `translation` into `target_lang`, who made it (`translated_by`),
and its `score`, the mean log-probability (to base e) of its tokens by --model. Beside a --command, a --model scores.

Left out, and counted: what has such a translation already, what a limit cut or is empty, what is unlike in length
(--max_ratio, of characters), what is not translated, and what scores below --min_score. Lines that cannot be used are
listed, the others go on, and the exit status is 1. Until all is translated, what there is stands in OUT.part: the same
command goes on after its last whole batch.
"""

import argparse
import collections
import hashlib
import json
import math
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from slm_jax import cli, configuration, model_arguments, paths

_LINES = 256  # for a command at once
_SLACK = 10  # characters, in which short texts may differ
_WIDTH = {'ja': 2.0, 'zh': 2.8}  # characters of others that one of theirs stands for
_EOS = 1


class Asked(NamedTuple):
    """A transcript: `row` is the line that its translation completes."""

    text: str
    lang: str
    row: dict[str, Any]


class Written(NamedTuple):
    """What was written for the transcript at `place`; `cut` names the limit that ended it."""

    place: int
    text: str
    cut: str = ''


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax translate'
    result.add_argument('manifest', metavar='MANIFEST', help='JSONL with text and lang')
    result.add_argument('out', metavar='OUT', help='the manifest that is written')
    result.add_argument('--target_lang', required=True, metavar='LANG', help='to translate into')
    result.add_argument(
        '--command',
        metavar='COMMAND',
        help='translates lines of its standard input; may hold {lang} and {target_lang}',
    )
    result.add_argument('--langs', nargs='+', metavar='LANG', help='lines of these languages alone')
    result.add_argument('--max_ratio', type=float, default=2.5, metavar='R', help='of lengths (default: 2.5)')
    result.add_argument('--min_score', type=float, metavar='S', help='as -1.5; default: all are kept')
    result.add_argument('--batch_tokens', type=int, default=2400, help='tokens in a batch (default: 2400)')
    model_arguments.add(result, '--model')
    result.set_defaults(model=None)
    return result


def translate(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
        ValueError: nothing can be translated, or OUT or OUT.part is something else; names it and the remedy.
        OSError: OUT cannot be written, or the command cannot be run.
    """
    from slm_jax.data import notices
    from slm_jax.inference import answer_file

    _check(args)
    out, part = answer_file.place(args.out)
    bad: list[str] = []
    skipped: collections.Counter[str] = collections.Counter()
    asked = list(_asked(args, out, bad, skipped))
    model = None
    if args.model is not None:
        model = model_arguments.load(args.model, args)
        if model.text_vocabulary is None:
            raise ValueError(f'--model {args.model}: a speech encoder alone reads no text. Give a language model.')
        asked = [each for each in asked if _known(model, each, args.target_lang, bad)]
    if bad:
        notices.say(notices.listing(args.manifest, bad))
    if not asked:
        why = ', '.join(f'{count} {why}' for why, count in skipped.items())
        raise ValueError(f'{args.manifest}: no line can be translated{f" ({why})" if why else ""}.')
    done = answer_file.begin(part, _settings(args, model, asked))
    _write(args, part, done, model, asked)
    left_out = answer_file.finish(part, out, 'Change --max_ratio or --min_score, or what translates.') + skipped
    notices.say(answer_file.said(out, len(asked) + skipped.total(), left_out, 'translations'))
    return 1 if bad else 0


def _check(args: argparse.Namespace) -> None:
    """Refuses at once what would be found out after hours."""
    from slm_jax.data import languages

    if args.command is None and args.model is None:
        raise ValueError('who translates? Give --model, --command, or a --command that translates and a --model.')
    for flag, value in (('target_lang', args.target_lang), *(('langs', lang) for lang in args.langs or ())):
        if languages.name(value) is None:
            raise ValueError(f'--{flag} {value}: unknown language. Use an ISO 639 code such as "en".')
    if args.batch_tokens < 1:
        raise ValueError(f'--batch_tokens {args.batch_tokens}: give 1 or more.')
    if not args.max_ratio >= 1:
        raise ValueError(f'--max_ratio {args.max_ratio:g}: give 1 or more.')
    if args.min_score is not None and args.model is None:
        raise ValueError('--min_score: a command says no score. Give a --model that does.')
    if args.command is not None:
        try:
            words = shlex.split(args.command)
            [word.format(lang='en', target_lang='en') for word in words]
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f'--command {args.command!r}: {error}. Close what is quoted, and use no names in braces but {{lang}} '
                'and {target_lang}.'
            ) from None
        if not words:
            raise ValueError('--command: it is empty.')


def _asked(
    args: argparse.Namespace, out: pathlib.Path, bad: list[str], skipped: collections.Counter[str]
) -> Iterator[Asked]:
    """What is to be translated; `bad` is told what is wrong with a line, `skipped` which need no translation."""
    from slm_jax.data import languages, manifests
    from slm_jax.inference import answer_file

    file = paths.path(args.manifest)
    wanted = None if args.langs is None else {languages.main(lang) for lang in args.langs}
    met: dict[str, str] = {}
    for raw, line in manifests.rows(file):
        missing = next((field for field in ('text', 'lang') if not line[field].strip()), None)
        if line['error'] or missing:
            bad.append(line['error'] or f'{line["origin"]}: field "{missing}" is missing.')
            continue
        lang, given = languages.main(line['lang']), json.loads(line['translations'] or '{}')
        if wanted is not None and lang not in wanted:
            skipped['of another language'] += 1
        elif lang == languages.main(args.target_lang):
            skipped['in the target language'] += 1
        elif any(languages.main(code) == languages.main(args.target_lang) for code in given):
            skipped['translated already'] += 1
        else:
            met.setdefault(lang, line['origin'])
            row = {'id': answer_file.identity(line, file), **answer_file.kept(raw, line, file.parent, out)}
            row |= {'translation': given, 'target_lang': args.target_lang}
            yield Asked(' '.join(line['text'].split()), line['lang'], row)
    if args.command is not None and len(met) > 1 and '{lang}' not in args.command:
        raise ValueError(
            f'--command {args.command!r}: it is not told which language it reads, and there are {", ".join(met)} '
            f'({"; ".join(met.values())}). Choose one by --langs, or write {{lang}} into it.'
        )


def _known(model: Any, each: Asked, target_lang: str, bad: list[str]) -> bool:
    """Whether the model has what it takes to read the text and to write its language; `bad` is told if not."""
    from slm_jax.inference import queries

    try:
        queries.check_tokens(_query(model, each, target_lang), model.most_tokens)
    except ValueError as error:
        bad.append(f'{each.row["id"]}: {error}')
        return False
    return True


def _query(model: Any, each: Asked, target_lang: str) -> Any:
    """How the model is asked for a translation."""
    from slm_jax.inference import queries

    vocabulary = model.text_vocabulary
    instruction = queries.wording('', each.lang, target_lang)
    put = queries.asked(vocabulary, model.prompt, instruction, each.text, each.lang, target_lang)
    return queries.Query(**put)


def _settings(args: argparse.Namespace, model: Any, asked: Sequence[Asked]) -> dict[str, Any]:
    """What makes up the translations, each by its name for people."""
    return {
        'manifest or target language': hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        'command': args.command,
        'model': None if model is None else _who(args.model, model),
        'decoding': None if model is None else repr(model.decode),
        'batches or filters': [args.batch_tokens, args.max_ratio, args.min_score, model and model.row_multiple],
    }


def _who(name: str, model: Any) -> dict[str, Any]:
    """A model, for provenance."""
    parts = {part: entry['fingerprint'] for part, entry in model.foundations.items()}
    return {'model': name, 'step': model.step, 'foundations': parts}


def _write(args: argparse.Namespace, part: pathlib.Path, done: int, model: Any, asked: Sequence[Asked]) -> None:
    """Appends to `part` a line for each batch but the first `done`."""
    from tqdm import tqdm

    from slm_jax.inference import answer_file

    by = {'command': args.command} if args.command is not None else _short(args.model, model)
    groups = _by_model(args, model, asked, done) if args.command is None else _by_command(args, asked, done)
    with tqdm(total=len(asked), unit=' translations', disable=None) as bar, part.open('a', encoding='utf-8') as file:
        for size, written in groups:
            bar.update(size)
            if written is None:  # it is there already
                continue
            scores = {} if model is None else _scores(model, asked, written, args.target_lang)
            rows, left_out = [], collections.Counter()
            for each in written:
                score = scores.get(each.place)
                if why := _fault(args, asked[each.place], each, score):
                    left_out[why] += 1
                    continue
                row = dict(asked[each.place].row)
                row |= {'translation': {**row['translation'], args.target_lang: each.text}, 'translated_by': by}
                rows.append((each.place, row | ({} if score is None else {'score': round(score, 4)})))
            answer_file.append(file, rows, left_out)


def _short(name: str, model: Any) -> dict[str, Any]:
    """What a line says of the model that translated it."""
    content = {part: entry['fingerprint'].get('content', '')[:16] for part, entry in model.foundations.items()}
    return {'model': name} | ({'step': model.step} if model.step is not None else {'fingerprint': content})


def _by_model(
    args: argparse.Namespace, model: Any, asked: Sequence[Asked], done: int
) -> Iterator[tuple[int, list[Written] | None]]:
    """(number, what was written) of each batch; None of those that are done."""
    from slm_jax.inference import queries

    stream = (_query(model, each, args.target_lang) for each in asked)
    seconds = args.batch_tokens / queries.TOKENS_PER_SECOND
    for number, (group, batch) in enumerate(queries.batched(stream, seconds, model.row_multiple)):
        written = None
        if number >= done:
            answers = zip(group, model.answers(batch), strict=False)
            written = [Written(place, answer.text.strip(), answer.cut) for (place, _), answer in answers]
        yield len(group), written


def _by_command(
    args: argparse.Namespace, asked: Sequence[Asked], done: int
) -> Iterator[tuple[int, list[Written] | None]]:
    """As `_by_model`: what a command writes to the lines of one language at a time."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(asked):
        places.setdefault(each.lang, []).append(place)
    groups = [
        (lang, of_lang[start : start + _LINES])
        for lang, of_lang in places.items()
        for start in range(0, len(of_lang), _LINES)
    ]
    for number, (lang, group) in enumerate(groups):
        written = None
        if number >= done:
            texts = _run(args.command, lang, args.target_lang, [asked[place].text for place in group])
            written = [Written(place, text.strip()) for place, text in zip(group, texts, strict=True)]
        yield len(group), written


def _run(command: str, lang: str, target_lang: str, texts: Sequence[str]) -> list[str]:
    """The lines that a command makes of lines.

    Raises:
        ValueError: it fails, or writes another number of lines.
        OSError: it cannot be run.
    """
    words = [word.format(lang=lang, target_lang=target_lang) for word in shlex.split(command)]
    try:
        ran = subprocess.run(words, input='\n'.join(texts) + '\n', capture_output=True, text=True, encoding='utf-8')
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(
            f'--command {command!r}: {words[0]}: {error.strerror}. Install it, or give its path.'
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f'--command {command!r}: what it writes is not UTF-8.') from None
    if ran.returncode:
        said = ran.stderr.strip().splitlines()
        raise ValueError(f'--command {command!r}: exit status {ran.returncode}{f": {said[-1]}" if said else ""}.')
    lines = ran.stdout.removesuffix('\n').split('\n')
    if len(lines) != len(texts):
        raise ValueError(
            f'--command {command!r}: {len(lines)} lines came for {len(texts)}, the first of them {texts[0]!r}. It must '
            'write a line for each.'
        )
    return lines


def _scores(model: Any, asked: Sequence[Asked], written: Sequence[Written], target_lang: str) -> dict[int, float]:
    """The mean log-probability of each translation's tokens, its end included, by its place.

    None of an empty one, and of one that is longer than the model writes.
    """
    from slm_jax.inference import queries

    found = {}
    put = []
    for each in written:
        if each.text and not each.cut:
            query = _query(model, asked[each.place], target_lang)
            query = query.with_target((*model.text_vocabulary.encode(each.text), _EOS))
            if len(query.target) <= (model.most_tokens or math.inf):
                put.append((each.place, query))
    for (widths, rows), group in _alike(put, len(written), model).items():
        batch = queries.batch_of([query for _, query in group], (0.0, widths[0]), rows, widths[1])
        values = zip(group, model.log_likelihoods(batch), strict=False)
        found |= {place: value / (len(query.target) - bool(query.first)) for (place, query), value in values}
    return found


def _alike(
    put: Sequence[tuple[int, Any]], count: int, model: Any
) -> dict[tuple[tuple[int, int], int], list[tuple[int, Any]]]:
    """Queries by the widths of their prompts and targets, powers of two, and the rows of a batch: few shapes."""
    rows = -(-(1 << (count - 1).bit_length()) // model.row_multiple) * model.row_multiple
    groups: dict[tuple[tuple[int, int], int], list[tuple[int, Any]]] = {}
    for place, query in put:
        widths = (max(16, 1 << (len(tokens) - 1).bit_length()) for tokens in (query.tokens, query.target))
        prompt, target = (min(width, model.most_tokens or width) for width in widths)
        groups.setdefault(((prompt, target), rows), []).append((place, query))
    return groups


def _fault(args: argparse.Namespace, each: Asked, written: Written, score: float | None) -> str:
    """Why a translation is left out, '' if it is not."""
    from slm_jax.data import ctc_text, languages

    if written.cut or not written.text:
        return f'cut by {written.cut}' if written.cut else 'empty'
    sizes = [
        len(text) * _WIDTH.get(languages.main(lang), 1.0)
        for text, lang in ((each.text, each.lang), (written.text, args.target_lang))
    ]
    if max(sizes) > args.max_ratio * min(sizes) + _SLACK:
        return 'unlike in length'
    if len(each.text.split()) > 2 and ctc_text.normalize(each.text) == ctc_text.normalize(written.text):
        return 'not translated'
    if args.min_score is not None and (score is None or score < args.min_score):
        return f'below {args.min_score:g}'
    return ''


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return translate(args)
    except (ValueError, OSError) as error:
        return cli.fail('translate', error)


if __name__ == '__main__':
    sys.exit(main())
