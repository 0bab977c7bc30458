"""Trains the two SentencePiece models of the tiny foundations on a folder of text corpora.

    python -m slm_jax.corpora.tokenizers CORPORA OUT

reads what slm_jax.corpora.text_corpora wrote and writes
    OUT/t5_tiny/tokenizer.model   one piece a character, with byte fallback: any text round-trips.
                                  Read it with 32 extra ids (sentinels), as SeqIO appends them.
    OUT/usm_tiny/tokenizer.model  one piece a character of `ctc_text.normalize`d text.
and beside each a card.json, so that the folder can stand for the foundation while that is made. In
both, id 0 is padding (the CTC blank), 1 ends a text, 2 is the unknown piece. Sorted input and
a fixed seed: the same corpora give the same bytes.

    python -m slm_jax.corpora.tokenizers pairs.jsonl OUT --parallel

reads a manifest of texts and their translations (`text`, `lang`, `translation`, `target_lang`) and writes
    OUT/mbart_tiny/tokenizer.model   subwords, then codes of languages as mBART-50 has them: its own, and one of
                                     each other language that the manifest has.
"""

import argparse
import collections
import io
import json
import os
from typing import Any

from slm_jax import paths
from slm_jax.data import ctc_text, json_lines, languages, manifests
from slm_jax.importers import mbart

LLM_PIECES = 736  # At most: with the 32 sentinels 768, whole tiles for a matrix unit.
EXTRA_IDS = 32
# Characters of these scripts are too many to learn from the speech at hand.
UNSPELT = ('ja', 'zh-CN')
MBART_PIECES = 8000
_SPECIAL: dict[str, Any] = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1, 'minloglevel': 2, 'num_threads': 1}


def train_llm_tokenizer(corpora: str | os.PathLike) -> bytes:
    """The language model's tokenizer: one piece a character.

    Characters, as the speech encoder writes: what a small adapter hears stands for the same units that the language
    model reads.
    """
    rows = json_lines.read(paths.path(corpora) / 'text_train.jsonl')
    return _train(
        [row['text'] for row in rows if row['lang'] not in UNSPELT],
        model_type='char',
        vocab_size=LLM_PIECES,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name='nmt_nfkc',
    )


def train_ctc_tokenizer(corpora: str | os.PathLike, seldom: int = 20) -> bytes:
    """The speech encoder's characters: those of the clips, and those met `seldom` times in text."""
    clips = [
        ctc_text.normalize(row['text'])
        for row in json_lines.read(paths.path(corpora) / 'speech.jsonl')
        if row['lang'] not in UNSPELT
    ]
    counts = collections.Counter()
    for row in json_lines.read(paths.path(corpora) / 'text_train.jsonl'):
        if row['lang'] not in UNSPELT:
            counts.update(ctc_text.normalize(row['text']))
    common = sorted(c for c, n in counts.items() if n >= seldom and c != ' ')
    characters = set(''.join(clips) + ''.join(common)) - {' '}
    return _train(
        clips + common,
        model_type='char',
        vocab_size=len(characters) + 4,
        character_coverage=1.0,
        normalization_rule_name='identity',
        add_dummy_prefix=False,
        hard_vocab_limit=False,
    )


def train_mbart_tokenizer(manifest: str | os.PathLike, pieces: int = MBART_PIECES) -> tuple[bytes, dict[str, Any]]:
    """Subwords of both sides of a manifest in mBART's layout, and what its card says of them.

    Args:
        manifest: of texts and their translations.
        pieces: at most, without codes of languages.

    Raises:
        ValueError: a line that cannot be read.
    """
    lines, codes = [], dict.fromkeys(mbart.CODES, 0)
    found = set()
    for row in manifests.read(manifest):
        if row['error']:
            raise ValueError(row['error'])
        translations = json.loads(row['translations'] or '{}')
        found |= {row['lang'], *translations}
        lines += [row['text'], *translations.values()]
    for lang in sorted(found - {''}):
        try:
            languages.code(tuple(codes), lang)
        except ValueError:
            codes[f'{languages.main(lang)}_XX'] = 0
    model = _train(
        list(filter(None, lines)), vocab_size=pieces, hard_vocab_limit=False, character_coverage=0.9999,
        normalization_rule_name='nmt_nfkc', pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip
    own, more = [code for code in codes if code in mbart.CODES], [code for code in codes if code not in mbart.CODES]
    model, ids = mbart.with_tokens(model, (*own, mbart.MASK, *more))
    return model, {'swapped': [list(pair) for pair in mbart.SWAPPED], 'languages': {code: ids[code] for code in codes}}


def _train(lines: list[str], **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(lines)),
        model_writer=model,
        shuffle_input_sentence=False,
        **(_SPECIAL | options),
    )
    return model.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.tokenizers',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('corpora')
    parser.add_argument('out')
    parser.add_argument('--parallel', action='store_true', help='CORPORA is a manifest of texts and translations')
    parser.add_argument('--pieces', type=int, default=MBART_PIECES, help=f'of --parallel (default: {MBART_PIECES})')
    args = parser.parse_args(argv)
    if args.parallel:
        try:
            model, said = train_mbart_tokenizer(args.corpora, args.pieces)
        except (ValueError, OSError, RuntimeError) as error:
            parser.exit(2, f'{error}\n')
        _write(args.out, 'mbart_tiny', model, {'kind': 'llm', **said})
        return
    try:
        models = {
            't5_tiny': train_llm_tokenizer(args.corpora),
            'usm_tiny': train_ctc_tokenizer(args.corpora),
        }
    except FileNotFoundError as error:
        parser.exit(2, f'{error}; write the corpora by python -m slm_jax.corpora.text_corpora\n')
    for name, model in models.items():
        kind, extra_ids = ('llm', EXTRA_IDS) if name == 't5_tiny' else ('speech_encoder', 0)
        _write(args.out, name, model, {'kind': kind, 'extra_ids': extra_ids})


def _write(out: str, name: str, model: bytes, card: dict[str, Any]) -> None:
    path = paths.path(out) / name / 'tokenizer.model'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    path.with_name('card.json').write_text(json.dumps({'name': name, **card}) + '\n')
    print(f'{path}: {len(model)} bytes')


if __name__ == '__main__':
    main()
