"""What tables/ssr.toml is trained on: English sentences that espeak-ng reads, with the times of their words, and texts.

    python tests/benchmarks/ssr_data.py DATA --parallel parallel
    slm-jax prepare --gin_file DATA/prepare.gin --encode models/ssr_smollm2.gin
    python -m slm_jax.corpora.token_counts --gin_file DATA/prepare.gin --gin_file models/smollm2_135m.gin labels.gin
    python tests/benchmarks/ablations.py tests/benchmarks/tables/ssr.toml OUT --gin_file DATA/data.gin \\
        --gin_file labels.gin …

`parallel` is what slm_jax.corpora.parallel_text wrote, with --ntrex. Its sentences of program help and news that have 5
to 14 words and no digit are ordered by their hashes: the first 120 are to test, as many for validation, and 3,000 to
train on (DATA/SPLIT.txt). bench_aligners.py has them read by three voices. Other news are texts to train on beside them
(BOTH) and, in DATA/news.jsonl, to measure perplexity.
"""

import argparse
import hashlib
import pathlib
import re

from ablations import write_prepare
from bench_aligners import make

from slm_jax.data import json_lines

_VOICES = ['en-us', 'en-gb', 'en-gb-x-rp']
_SIZES = {'test': 120, 'validation': 120, 'train': 3000}
_NEWS, _VALIDATION = 40, 100  # texts
_SENTENCE = re.compile(r"[A-Z][A-Za-z ,']+[.?]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=pathlib.Path)
    parser.add_argument('--parallel', type=pathlib.Path, required=True, metavar='DIR')
    args = parser.parse_args()
    data = args.data.resolve()
    task_of = {
        row['translation']: row['task']
        for row in json_lines.read(args.parallel / 'train.jsonl')
        if row['target_lang'] == 'en' and row['task'] in ('help', 'ntrex')
    }
    fit = [text for text in task_of if _SENTENCE.fullmatch(text) and 5 <= len(text.split()) <= 14]
    fit.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    data.mkdir(parents=True)
    print(f'{len(fit):,} sentences to choose from')
    for split, size in _SIZES.items():
        sentences, fit = fit[:size], fit[size:]
        (data / f'{split}.txt').write_text(''.join(f'{text}\n' for text in sentences))
        make(sentences, data / split, _VOICES)
        for text in sentences:
            del task_of[text]
    news = [text for text, task in task_of.items() if task == 'ntrex']
    texts = {'news': news[:_NEWS], 'texts_validation': news[_NEWS:][:_VALIDATION], 'texts': news[_NEWS + _VALIDATION :]}
    for name, of_name in texts.items():
        json_lines.write(
            data / f'{name}.jsonl', ({'id': str(i), 'text': t, 'lang': 'en'} for i, t in enumerate(of_name))
        )
    recordings = {split: str(data / split / 'manifest.jsonl') for split in reversed(_SIZES)}
    written = {'train': str(data / 'texts.jsonl'), 'validation': str(data / 'texts_validation.jsonl')}
    (data / 'data.gin').write_text(
        f"""from __gin__ import dynamic_registration
from slm_jax import tasks
speech/tasks.manifest:
  name = 'read_english'
  path = {recordings!r}
  task = 'asr'
texts/tasks.manifest:
  name = 'texts'
  path = {written!r}
  task = 'text'
both/tasks.mixture:
  name = 'speech_and_texts'
  rates = [(@speech/tasks.manifest(), 1.0), (@texts/tasks.manifest(), 1.0)]
BOTH = @both/tasks.mixture()
MIXTURE_OR_TASK_NAME = @speech/tasks.manifest()
"""
    )
    write_prepare(data, {'speech': 480000, 'inputs': 128, 'targets': 256})


if __name__ == '__main__':
    main()
