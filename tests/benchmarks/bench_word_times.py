"""How exactly `slm-jax infer --word_times` finds words whose times are known.

    python tests/benchmarks/bench_word_times.py --model slm_tiny --sentences FILE    a sentence a line
    python tests/benchmarks/bench_word_times.py --model slm_tiny --splice digits.jsonl
    … --attention [--heads 1,0 1,5]    by what the language model looks at, as where there is no CTC head

Sentences are read by espeak-ng (Debian's libespeak-ng1), which says when it begins each word. Recordings of single
words (a manifest) are joined to rows of four, with silence between them; each begins where it is a tenth as loud as at
its loudest. The known text is aligned, not the answer, so errors are of the alignment alone.
"""

import argparse
import pathlib

import numpy as np

from slm_jax import cli
from slm_jax.audio import waveforms
from slm_jax.corpora import phones
from slm_jax.data import manifests
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries, words


def spliced(manifest: pathlib.Path, count: int, rng: np.random.Generator):
    """(text, samples at 16 kHz, seconds at which each word begins) of rows of four recordings."""
    rows = list(manifests.read(manifest))
    for picked in rng.permutation(len(rows))[: 4 * count].reshape(-1, 4):
        pieces, begun, text = [], [], []
        for row in (rows[number] for number in picked):
            samples = waveforms.read_waveform(row['audio'])
            loudness = np.convolve(np.abs(samples.astype(np.float32)), np.ones(160) / 160, 'same')
            loud = np.flatnonzero(loudness > 0.1 * loudness.max())
            pieces.append(np.zeros(int(rng.uniform(0.1, 0.4) * 16_000), np.int16))
            begun.append((sum(map(len, pieces)) + loud[0]) / 16_000)
            pieces.append(samples)
            text.append(row['text'])
        yield ' '.join(text), np.concatenate(pieces), begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--sentences', type=pathlib.Path)
    what.add_argument('--splice', type=pathlib.Path, metavar='MANIFEST')
    parser.add_argument('--count', type=int, default=50, help='rows of spliced words')
    parser.add_argument('--model', default='slm_tiny')
    parser.add_argument('--voice', default='en-us')
    parser.add_argument('--attention', action='store_true', help='and not CTC')
    parser.add_argument('--heads', nargs='*', metavar='LAYER,HEAD', help='SLM.alignment_heads')
    args = parser.parse_args()
    cli.quiet_libraries()
    heads = [f'SLM.alignment_heads = {[tuple(map(int, each.split(","))) for each in args.heads]}'] if args.heads else []
    model, errors, left_out = model_lib.load(args.model, bindings=heads), [], 0
    aligner = words.AttentionAligner(model) if args.attention else words.aligner(model)
    prompt = (
        () if model.text_vocabulary is None else model.prompt.tokens(model.text_vocabulary, queries.wording('', '', ''))
    )
    if args.splice:
        known = list(spliced(args.splice, args.count, np.random.default_rng(0)))
    else:
        sentences = [line for line in args.sentences.read_text().splitlines() if line.strip()]
        read = phones.spoken(args.voice, sentences)
        known = [(text, clip.samples, clip.words) for text, clip in zip(sentences, read)]
    asked = [
        queries.Query(prompt, samples, {'text': text, 'begun': begun})
        for text, samples, begun in known
        if len(begun) == len(text.split())  # espeak-ng reads some, as numbers, as several
    ]
    for group, batch in queries.batched(asked, 60.0, model.row_multiple):
        found = aligner.words(batch, [query.info['text'] for _, query in group])
        for (_, query), said in zip(group, found):
            left_out += not said
            errors += [word.start - start for word, start in zip(said, query.info['begun'])]
    late, off = np.array(errors), np.abs(errors)
    print(f'{len(asked)} of {len(known)} clips, {len(errors)} words, {left_out} clips that could not be aligned')
    print(f'words begin on average {1000 * late.mean():+.0f} ms late, median error {1000 * np.median(off):.0f} ms')
    print(', '.join(f'{100 * np.mean(off <= limit):.0f}% within {1000 * limit:.0f} ms' for limit in (0.05, 0.1, 0.2)))


if __name__ == '__main__':
    main()
