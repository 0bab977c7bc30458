"""The sets of `slm-jax evaluate --suite zero_shot`, spoken: `python -m slm_jax.corpora.zero_shot OUT --voice flite`.

Writes OUT/{questions,passages,asked,dialogs,endings,quiz}.jsonl, manifests of recordings in OUT/spoken. All other
options are those of `slm-jax synthesize`, which reads the texts that stand beside this file (ours, Apache-2.0) and says
what voices there are. A run that was broken off goes on where it was.

    questions   100 general questions
    passages    60 short invented stories; questions on them are written
    asked       the same questions, spoken, on the stories in writing
    dialogs     60 of two to four turns, with two next turns to choose from
    endings     220 stories with two endings to choose from
    quiz        240 questions with four answers to choose from

Endings and dialogs are in pairs with the same choices, each right once: who goes by the choices alone is right in half.
Lines with the same choices, or on the same story, have the same `cluster`: `evaluate` draws them together for its
intervals.
"""

import argparse
import importlib.resources
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from slm_jax import cli, synthesize
from slm_jax.data import json_lines


def _texts() -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """Lines and options of `synthesize` by the name of the set."""
    folder = importlib.resources.files('slm_jax.corpora')

    def read(name):
        return [json.loads(line) for line in folder.joinpath(name).read_text(encoding='utf-8').splitlines()]

    on_passages = [
        {'id': f'{number}/{place}', 'context': row['text'], **asked}
        for number, row in enumerate(read('zero_shot/passages.jsonl'))
        for place, asked in enumerate(row['questions'])
    ]
    sentences = {name: read(f'zero_shot/{name}.jsonl') for name in ('endings', 'quiz')}
    sentences['questions'] = read('questions.jsonl')
    return {
        **{name: (rows, ['--kind', 'sentences']) for name, rows in sentences.items()},
        'passages': (on_passages, ['--kind', 'squad', '--speak', 'context']),
        'asked': (on_passages, ['--kind', 'squad', '--speak', 'question']),
        'dialogs': (read('zero_shot/dialogs.jsonl'), ['--kind', 'dialog']),
    }


def write(out: pathlib.Path, options: Sequence[str]) -> int:
    """Writes the manifests; returns the exit status of the first set that cannot be read aloud, or 0."""
    (out / 'texts').mkdir(parents=True, exist_ok=True)
    for name, (rows, kind) in _texts().items():
        texts, spoken = out / 'texts' / f'{name}.jsonl', out / 'spoken' / name
        json_lines.write(texts, rows)
        spoken.parent.mkdir(exist_ok=True)
        if status := synthesize.main([str(texts), str(spoken), *kind, '--split', 'test', *options]):
            return status
        lines = json_lines.read(spoken / 'test.jsonl')
        json_lines.write(out / f'{name}.jsonl', [_line(name, row) for row in lines])
    return 0


def _line(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A line of a set as it stands in OUT."""
    row = {**row, 'audio': f'spoken/{name}/{row["audio"]}'}
    if 'choices' in row:
        return {**row, 'cluster': ' / '.join(sorted(row['choices']))}
    return {**row, 'cluster': row['id'].partition('/')[0]} if name in ('passages', 'asked') else row


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.zero_shot',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', metavar='OUT', type=pathlib.Path)
    args, options = parser.parse_known_args(argv)
    try:
        return write(args.out, options)
    except (ValueError, OSError) as error:
        return cli.fail('zero_shot', error)


if __name__ == '__main__':
    sys.exit(main())
