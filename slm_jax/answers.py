"""Lets a language model answer transcripts: `slm-jax answers MANIFEST OUT --model FOUNDATION`.

    slm-jax answers clips.jsonl answers.jsonl --model qwen2.5_coder_0.5b
    slm-jax answers clips.jsonl answers.jsonl --model qwen2.5_coder_0.5b --instructions 5 --decode sample --top_p 0.9
    slm-jax answers clips.jsonl answers.jsonl --model qwen2.5_coder_0.5b --instruction_file wishes.txt

Each transcript (`text`) of the manifest is put to the model under some instructions, in the place where speech will
stand. OUT is a manifest, a line for each answer: the recording, its transcript, the `instruction`, and the answer as
`target`. An adapter learns from it as it is: tasks.manifest(task='instruct'), with SLM.objective 'distil' (what the
language model says to the transcript, as distributions), 'cross_entropy' (what it wrote), or both.

Which instructions a line gets follows from its id and --seed; the wordings are in slm_jax/data/instructions.py. Left
out, and counted, is an answer that a limit cut (--max_decode_length), since it has no end, and one that is empty.
Until all is answered, what there is stands in OUT.part: the same command goes on after its last whole line, and the
result is the same as without a break. Lines that cannot be used are listed, the others go on, and the exit status is 1.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import string
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from slm_jax import cli, configuration, model_arguments, paths

_PLACES = {'language', 'target_language'}


class Asked(NamedTuple):
    """A transcript under an instruction: `row` is the line that its answer will complete."""

    text: str
    row: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = configuration.parser(__doc__)
    result.prog = 'slm-jax answers'
    result.add_argument('manifest', metavar='MANIFEST', help='JSONL, a recording with its text a line')
    result.add_argument('out', metavar='OUT', help='the manifest that is written')
    result.add_argument('--instructions', type=int, default=3, metavar='N', help='for each transcript (default: 3)')
    result.add_argument(
        '--instruction_file',
        metavar='FILE',
        help="take these instead of the package's: one a line, which may hold {language} and {target_language}",
    )
    result.add_argument('--batch_tokens', type=int, default=2400, help='tokens of prompts in a batch (default: 2400)')
    model_arguments.add(result, '--model')
    return result


def answers(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
        ValueError: nothing can be asked, or OUT or OUT.part is something else; names it and the remedy.
        OSError: OUT cannot be written.
    """
    from slm_jax.data import notices
    from slm_jax.inference import answer_file

    for flag in ('instructions', 'batch_tokens'):
        if getattr(args, flag) < 1:
            raise ValueError(f'--{flag} {getattr(args, flag)}: give 1 or more.')
    out, part = answer_file.place(args.out)
    wordings = None if args.instruction_file is None else _wordings(args.instruction_file)
    bad: list[str] = []
    asked = list(_asked(args.manifest, out, args.instructions, args.seed or 0, wordings, bad))
    if bad:
        notices.say(notices.listing(args.manifest, bad))
    if not asked:
        raise ValueError(f'{args.manifest}: no line can be asked; each needs "audio" and "text".')
    model = model_arguments.load(args.model, args)
    if model.text_vocabulary is None:
        raise ValueError(f'--model {args.model}: a speech encoder alone reads no text. Give a language model.')
    if not model.prompt.instructed:
        raise ValueError(f'--model {args.model}: it follows no instructions. `slm-jax translate` lets it translate.')
    done = answer_file.begin(part, _settings(args, model, asked))
    _answer(part, done, model, asked, args.batch_tokens)
    left_out = answer_file.finish(part, out, 'Raise --max_decode_length, or give another --model.')
    notices.say(answer_file.said(out, len(asked), left_out, 'answers'))
    return 1 if bad else 0


def _wordings(path: str) -> list[str]:
    """The instructions of a user's file."""
    result = []
    try:
        text = paths.path(path).read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise ValueError(f'{path}: is not in UTF-8. Save it so.') from None
    for number, line in enumerate(text.removeprefix('\ufeff').split('\n'), 1):
        try:
            places = {name for _, name, _, _ in string.Formatter().parse(line) if name is not None}
        except ValueError as error:
            raise ValueError(f'{path}:{number}: {error}. Write a brace that is no place twice.') from None
        if not places <= _PLACES:
            raise ValueError(
                f'{path}:{number}: {{{min(places - _PLACES)}}} is filled by nothing; there are {{language}} and '
                '{target_language}. Write a brace that is no place twice.'
            )
        if line.strip():
            result.append(line.strip())
    if not result:
        raise ValueError(f'{path}: holds no instruction. Write one a line.')
    return list(dict.fromkeys(result))


def _asked(
    manifest: str, out: pathlib.Path, count: int, seed: int, wordings: Sequence[str] | None, bad: list[str]
) -> Iterator[Asked]:
    """Each transcript under each of its instructions; `bad` is told what is wrong with a line."""
    from slm_jax.data import instructions, manifests
    from slm_jax.inference import answer_file

    file = paths.path(manifest)
    for raw, line in manifests.rows(file):
        missing = next((field for field in ('audio', 'text') if not line[field].strip()), None)
        if line['error'] or missing:
            bad.append(line['error'] or f'{line["origin"]}: field "{missing}" is missing.')
            continue
        identity, kept = answer_file.identity(line, file), answer_file.kept(raw, line, file.parent, out)
        requests = instructions.responses(count, f'{seed} {identity}', line['lang'], wordings)
        if not requests:
            bad.append(f'{line["origin"]}: field "lang" is missing. Every instruction names the language of the text.')
        for number, (instruction, target_lang) in enumerate(requests):
            row = {'id': f'{identity}#{number}', **kept, 'instruction': instruction}
            yield Asked(line['text'], row | ({'target_lang': target_lang} if target_lang else {}))


def _settings(args: argparse.Namespace, model: Any, asked: Sequence[Asked]) -> dict[str, Any]:
    """What makes up the answers, each by its name for people."""
    lines = hashlib.sha256(json.dumps(asked).encode())
    return {
        'manifest, instructions or seed': lines.hexdigest(),
        'model': [model.step, {part: entry['fingerprint'] for part, entry in model.foundations.items()}],
        'prompt': repr(model.prompt),
        'decoding': repr(model.decode),
        'batches': [args.batch_tokens, model.row_multiple],
    }


def _answer(part: pathlib.Path, done: int, model: Any, asked: Sequence[Asked], batch_tokens: int) -> None:
    """Appends to `part` a line for each batch but the first `done`: (place in `asked`, row) and what is left out."""
    from tqdm import tqdm

    from slm_jax.inference import answer_file, queries

    stream = (
        queries.Query(model.prompt.tokens(model.text_vocabulary, each.row['instruction'], each.text)) for each in asked
    )
    seconds = batch_tokens / queries.TOKENS_PER_SECOND
    with tqdm(total=len(asked), unit=' answers', disable=None) as bar, part.open('a', encoding='utf-8') as file:
        for number, (group, batch) in enumerate(queries.batched(stream, seconds, model.row_multiple)):
            if number >= done:
                rows: list[tuple[int, dict[str, Any]]] = []
                left_out: collections.Counter[str] = collections.Counter()
                for (place, _), (text, cut) in zip(group, model.answers(batch), strict=False):
                    why = f'cut by {cut}' if cut else '' if text.strip() else 'empty'
                    if why:
                        left_out[why] += 1
                    else:
                        rows.append((place, asked[place].row | {'target': text}))
                answer_file.append(file, rows, left_out)
            bar.update(len(group))


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return answers(args)
    except (ValueError, OSError) as error:
        return cli.fail('answers', error)


if __name__ == '__main__':
    sys.exit(main())
