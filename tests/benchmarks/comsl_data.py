"""What tables/comsl.toml is trained on: digits spoken in four languages, with the English words as translation.

    python tests/benchmarks/comsl_data.py DATA --text_model out/mbart_tiny
    python tests/benchmarks/ablations.py tests/benchmarks/tables/comsl.toml OUT --gin_file DATA/data.gin \\
        --only translation …
    slm-jax translate DATA/plain.jsonl DATA/pseudo.jsonl --target_lang en --model OUT/translation.0
    slm-jax prepare --gin_file DATA/prepare.gin --encode DATA/encode.gin
    slm-jax prepare --gin_file DATA/prepare.gin --encode DATA/encode.gin --gin.MIXTURE_OR_TASK_NAME=%UNLABELLED_TASKS

Strings are read as in spoken_digits.py. Every other one of the training split, in all languages, is left without its
translation (plain.jsonl). The text model learns from the others alone, and then translates the rest; hidden.jsonl has
what would be right. DATA/test.jsonl is of other strings and voices.
"""

import argparse
import collections
import pathlib

from ablations import write_prepare
from spoken_digits import SPLITS, make, spoken

from slm_jax.data import json_lines

_NAMES = ('french', 'spanish', 'italian', 'russian')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=pathlib.Path)
    parser.add_argument('--text_model', required=True, metavar='DIR')
    args = parser.parse_args()
    data, text_model = args.data.resolve(), str(pathlib.Path(args.text_model).resolve())
    make(data, _NAMES)
    rows, counts = collections.defaultdict(list), collections.Counter()
    for name, split, row in spoken(data):
        counts[name] += split == 'train'
        if split == 'train' and counts[name] % 2:
            rows['hidden'].append(dict(row))
            del row['translation'], row['target_lang']
            split = 'plain'
        rows['labelled' if split == 'train' else split].append(row)
    for name, of_name in rows.items():
        json_lines.write(data / f'{name}.jsonl', of_name)
    texts = {split: data / f'text_{split}.jsonl' for split in SPLITS[:2]}
    for split, path in texts.items():
        of_split = rows['labelled' if split == 'train' else split]
        pairs = [row | {'translation': row['translation']['en']} for row in of_split]
        json_lines.write(
            path, ({key: row[key] for key in ('text', 'lang', 'translation', 'target_lang')} for row in pairs)
        )
    of_task = '\n'.join(
        f"""{kind}/tasks.manifest:
  name = 'digits_{kind}'
  path = {{'train': {str(data / kind) + '.jsonl'!r}, 'validation': {str(data / 'validation.jsonl')!r}}}
  task = '{task}'
"""
        for kind, task in (('labelled', 'ast'), ('pseudo', 'ast'), ('plain', 'asr'))
    )
    (data / 'data.gin').write_text(
        f"""from __gin__ import dynamic_registration
from slm_jax import tasks
TEXT_MODEL = {text_model!r}
TEXT_MANIFEST = { ({split: str(path) for split, path in texts.items()})!r}
{of_task}
with_labels/tasks.mixture:
  name = 'digits_with_labels'
  rates = [(@labelled/tasks.manifest(), 1.0), (@pseudo/tasks.manifest(), 1.0)]
without_labels/tasks.mixture:
  name = 'digits_without_labels'
  rates = [(@labelled/tasks.manifest(), 1.0), (@plain/tasks.manifest(), 1.0)]
SPEECH_TASKS = @with_labels/tasks.mixture()
UNLABELLED_TASKS = @without_labels/tasks.mixture()
"""
    )
    lengths = {'speech': 176000, 'inputs': 128, 'targets': 128, 'teacher_inputs': 128}
    write_prepare(data, lengths, 'MIXTURE_OR_TASK_NAME = %SPEECH_TASKS')
    (data / 'encode.gin').write_text(
        f"""from __gin__ import dynamic_registration
LLM = {text_model!r}
include 'models/comsl_tiny.gin'
LLM = {text_model!r}
FOUNDATIONS = {{'speech_encoder': 'whisper_base'}}
"""
    )


if __name__ == '__main__':
    main()
