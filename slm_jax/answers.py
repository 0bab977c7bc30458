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
import os
import pathlib
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
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

    out = pathlib.Path(args.out).expanduser()
    part = out.with_name(f'{out.name}.part')
    _check(args, out)
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
    done = _begin(part, _settings(args, model, asked))
    _answer(part, done, model, asked, args.batch_tokens)
    left_out = _finish(part, out)
    said = ', '.join(f'{count} {why}' for why, count in sorted(left_out.items()))
    notices.say(f'{out}: {len(asked) - left_out.total()} answers' + (f'; left out: {said}' if said else ''))
    return 1 if bad else 0


def _check(args: argparse.Namespace, out: pathlib.Path) -> None:
    """Refuses at once what would be found out after hours."""
    for flag in ('instructions', 'batch_tokens'):
        if getattr(args, flag) < 1:
            raise ValueError(f'--{flag} {getattr(args, flag)}: give 1 or more.')
    if paths.is_url(args.out):
        raise ValueError(f'{args.out}: answers are written line by line, which needs a local disk; copy OUT then.')
    if out.exists():
        raise ValueError(f'{out}: is there already. Remove it, or give another name.')
    if not out.parent.is_dir():
        raise ValueError(f'{out}: there is no folder {out.parent}. Make it first.')


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

    file = paths.path(manifest)
    for raw, line in manifests.rows(file):
        missing = next((field for field in ('audio', 'text') if not line[field].strip()), None)
        if line['error'] or missing:
            bad.append(line['error'] or f'{line["origin"]}: field "{missing}" is missing.')
            continue
        identity = line['id'] if line['id'] != line['origin'] else f'{file.stem}:{line["origin"].rpartition(":")[2]}'
        kept = {name: value for name, value in raw.items() if name not in manifests.KNOWN}
        audio = next(raw[name] for name in manifests.AUDIO if raw.get(name))
        kept |= {'audio': manifests.moved(audio, file.parent, out.absolute().parent)}
        kept |= {name: float(line[name]) for name in ('offset', 'duration') if line[name]}
        kept |= {name: line[name] for name in ('text', 'lang') if line[name]}
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


def _begin(part: pathlib.Path, settings: Mapping[str, Any]) -> int:
    """Opens the file of what is answered so far; returns how many batches are in it.

    Raises:
        ValueError: it is of another command, or none of ours.
    """
    content = part.read_bytes() if part.exists() else b''
    whole = content[: content.rfind(b'\n') + 1]
    if not whole:
        paths.write(part, json.dumps(settings) + '\n')
        return 0
    lines = whole.split(b'\n')[:-1]
    try:
        begun = json.loads(lines[0])
        other = [name for name, value in settings.items() if begun[name] != json.loads(json.dumps(value))]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f'{part}: is not what a run of this program left. Move it away.') from None
    if other:
        raise ValueError(
            f'{part}: was begun with another {" and another ".join(other)}. Go on with the same command, or remove it.'
        )
    if len(whole) < len(content):
        os.truncate(part, len(whole))
    return len(lines) - 1


def _answer(part: pathlib.Path, done: int, model: Any, asked: Sequence[Asked], batch_tokens: int) -> None:
    """Appends to `part` a line for each batch but the first `done`: (place in `asked`, row) and what is left out."""
    from tqdm import tqdm

    from slm_jax.inference import queries

    stream = (
        queries.Query(model.prompt.tokens(model.text_vocabulary, each.row['instruction'], each.text)) for each in asked
    )
    seconds = batch_tokens / queries.TOKENS_PER_SECOND
    with tqdm(total=len(asked), unit=' answers', disable=None) as bar, part.open('a', encoding='utf-8') as file:
        for number, (group, batch) in enumerate(queries.batched(stream, seconds, model.row_multiple)):
            if number >= done:
                rows, left_out = [], collections.Counter()
                for (place, _), (text, cut) in zip(group, model.answers(batch), strict=False):
                    why = f'cut by {cut}' if cut else '' if text.strip() else 'empty'
                    if why:
                        left_out[why] += 1
                    else:
                        rows.append([place, asked[place].row | {'target': text}])
                file.write(json.dumps({'rows': rows, 'left_out': left_out}, ensure_ascii=False) + '\n')
                file.flush()
            bar.update(len(group))


def _finish(part: pathlib.Path, out: pathlib.Path) -> collections.Counter:
    """Makes `out` of `part`, in the order of the manifest; returns how many answers were left out, and why."""
    from slm_jax.data import json_lines

    rows, left_out = [], collections.Counter()
    for batch in json_lines.read(part)[1:]:
        rows += batch['rows']
        left_out.update(batch['left_out'])
    if not rows:
        part.unlink()
        raise ValueError(
            f'{out}: no answer is left of {left_out.total()} ({", ".join(left_out)}). Raise --max_decode_length, or '
            'give another --model.'
        )
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for _, row in sorted(rows, key=lambda each: each[0])]
    paths.write(out, ''.join(lines))
    part.unlink()
    return left_out


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    cli.quiet_libraries()
    args = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return answers(args)
    except (ValueError, OSError) as error:
        return cli.fail('answers', error, status=2)


if __name__ == '__main__':
    sys.exit(main())
