"""How far the boundaries of aligners are off words whose times are known.

    python tests/benchmarks/bench_aligners.py make SENTENCES OUT [--voice en-us --voice en-gb …]    a sentence a line
    python tests/benchmarks/bench_aligners.py align MANIFEST OUT.jsonl [--model slm_base]        recordings of people
    python tests/benchmarks/bench_aligners.py measure OUT/manifest.jsonl MODEL_DIR [MODEL_DIR …]

`make` lets espeak-ng (Debian's libespeak-ng1) read sentences and writes recordings and a manifest whose "alignment"
says when each word begins; a word ends where the next one begins. Sentences that it reads as another number of words,
as numbers, or in parts, are left out. A training (runs/ssr_aligner.gin) with it as validation tells how far boundaries
are off, too: validation/boundary_ms.
`align` writes the lines of a manifest again, with the times of their words by the CTC head of a model, as `slm-jax
infer --word_times` has them; what is too short for its words is left out.
`measure` aligns the known transcripts and, where an aligner writes tokens itself, tells how many of them, and its word
errors.
"""

import argparse
import pathlib

import jiwer
import numpy as np
import soundfile

from slm_jax import cli
from slm_jax.corpora import phones
from slm_jax.data import alignments, ctc_text, json_lines, manifests, segments
from slm_jax.encoders import aligners
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries, words
from slm_jax.systems.aligner import transcript


def make(sentences: list[str], out: pathlib.Path, voices: list[str]) -> None:
    """Writes OUT/*.wav and OUT/manifest.jsonl; sentence i is read by voice i modulo their number."""
    out.mkdir(parents=True)
    rows = []
    for number, voice in enumerate(voices):
        own = sentences[number :: len(voices)]
        for text, (samples, _, begun) in zip(own, phones.spoken(voice, own)):
            words = text.split()
            if len(begun) != len(words) or begun != sorted(begun):
                continue
            name = f'{len(rows):05d}.wav'
            soundfile.write(out / name, samples, 16_000)
            times = [round(time, 3) for time in (*begun, len(samples) / 16_000)]
            alignment = [list(each) for each in zip(words, times, times[1:])]
            rows.append({'audio': name, 'text': text, 'lang': 'en', 'speaker': voice, 'alignment': alignment})
    json_lines.write(out / 'manifest.jsonl', rows)
    print(f'{len(rows)} of {len(sentences)} sentences: {out / "manifest.jsonl"}')


def align(manifest: pathlib.Path, out: pathlib.Path, name: str) -> None:
    """Writes OUT, a manifest of those lines whose words a model finds."""
    model = model_lib.load(name)
    aligner, rows, asked = words.aligner(model), list(manifests.rows(manifest)), []
    vocabulary = model.text_vocabulary
    prompt = () if vocabulary is None else model.prompt.tokens(vocabulary, queries.wording('', '', ''))
    for number, (_, line) in enumerate(rows):
        samples = segments.read(line['audio'], line['offset'], line['duration'])
        asked.append(queries.Query(prompt, samples, {'number': number, 'text': line['text']}))
    found = {}
    limits = {'computed': model.computed_seconds, 'longest': model.encoder_seconds}
    for group, batch in queries.batched(asked, 60.0, model.row_multiple, **limits):
        for (_, query), said in zip(group, aligner.words(batch, [query.info['text'] for _, query in group])):
            found[query.info['number']] = [list(word) for word in said]
    kept = [
        {**raw, 'audio': str(pathlib.Path(line['audio']).absolute()), 'alignment': found[number]}
        for number, (raw, line) in enumerate(rows)
        if found[number]
    ]
    json_lines.write(out, kept)
    print(f'{len(kept)} of {len(rows)} recordings: {out}')


def measure(manifest: pathlib.Path, directory: str) -> None:
    """Prints a line on one aligner."""
    import jax

    model = model_lib.load(directory)
    system, vocabulary = model.system, model.vocabulary
    align = jax.jit(system.align, static_argnames='written')
    rate, off, said, counts = system.frame_rate(), [], [], []
    asked = []
    for row in manifests.read(manifest):
        samples = segments.read(row['audio'], row['offset'], row['duration'])
        tokens = (*vocabulary.encode(row['text']), vocabulary.eos_id)
        spans = alignments.spans(row['alignment'], (row['id'],), row['text'], len(samples) / 16_000, row['origin'])
        ends = alignments.token_ends({'targets': tokens, 'alignment': spans}, vocabulary)
        asked.append(
            queries.Query((), samples, {'name': row['audio'], 'text': row['text'], 'ends': ends}, target=tokens)
        )
    for group, batch in queries.batched(asked, 60.0, computed=model.computed_seconds, longest=model.encoder_seconds):
        found = align(model.params, batch)
        aligners.check_fits(found, transcript(batch)[1], [query.info['name'] for _, query in group])
        written = None if system.aligner.needs_tokens else align(model.params, batch, written=True)
        for row, (_, query) in enumerate(group):
            n, ends = int(found.lengths[row]), query.info['ends']
            known = (ends > 0) & (np.arange(len(ends)) < n - 1)
            off += ((np.array(found.boundaries[row])[: len(ends)] + 1) / rate - ends)[known].tolist()
            if written is not None:
                count = int(written.lengths[row])
                counts.append((count, len(query.target) - 1))
                answer = vocabulary.decode(np.array(written.tokens[row])[:count].tolist())
                said.append((ctc_text.normalize(query.info['text']), ctc_text.normalize(answer)))
    late, error = 1000 * np.array(off), 1000 * np.abs(off)
    text = ', '.join(f'{np.mean(error <= limit):.0%} within {limit} ms' for limit in (20, 50, 100))
    print(f'{directory}: {len(asked)} clips, {len(off)} words end {late.mean():+.0f} ms late on average; off by')
    print(f'    {error.mean():.0f} ms on average, median {np.median(error):.0f} ms; {text}')
    if counts:
        ours, theirs = np.array(counts).T
        wrong = jiwer.wer([right for right, _ in said], [answer for _, answer in said])
        ratio, apart = ours.sum() / theirs.sum(), np.abs(ours - theirs).mean()
        print(f'    writes {ratio:.2f} of the tokens, off by {apart:.1f} a clip; WER {wrong:.1%}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    making = commands.add_parser('make')
    making.add_argument('sentences', type=pathlib.Path)
    making.add_argument('out', type=pathlib.Path)
    making.add_argument('--voice', action='append', default=[])
    aligning = commands.add_parser('align')
    aligning.add_argument('manifest', type=pathlib.Path)
    aligning.add_argument('out', type=pathlib.Path)
    aligning.add_argument('--model', default='slm_base')
    measuring = commands.add_parser('measure')
    measuring.add_argument('manifest', type=pathlib.Path)
    measuring.add_argument('models', nargs='+')
    args = parser.parse_args()
    cli.quiet_libraries()
    if args.command == 'make':
        lines = [line.strip() for line in args.sentences.read_text().splitlines() if line.strip()]
        make(lines, args.out, args.voice or ['en-us'])
    if args.command == 'align':
        align(args.manifest, args.out, args.model)
    for directory in args.models if args.command == 'measure' else ():
        measure(args.manifest, directory)


if __name__ == '__main__':
    main()
