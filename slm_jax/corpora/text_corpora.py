"""The text that the tiny foundations are pretrained on, held-out sentences removed.

    python -m slm_jax.corpora.text_corpora OUT --speech DIR … --orders DIR --ntrex DIR --messages DIR --heard FILE …

Every DIR of --speech and --orders holds train, validation and test.jsonl (slm_jax.corpora.splits
writes such folders). Written to OUT:
    speech.jsonl                        training clips: audio, text, lang, duration, source
    text_{train,validation}.jsonl       text, lang, source
    pairs_{train,validation}.jsonl      text, lang, translation, target_lang, source
    orders_{train,validation}.jsonl     text, lang, slots (coffee orders made from a grammar)
    held_out.txt                        normalised sentences that nothing above contains in training
Two clips of one `id` in two languages are translations of each other, as are line n of two NTREX
files. The DIR of --messages holds the catalogues of programs (slm_jax.corpora.messages); what is taken
of them is said in words that the clips of --speech have. A FILE of --heard is the predictions.jsonl
of an evaluation of an encoder over training clips: lines for training whose text was spoken there
get `heard`, what the encoder wrote of it where at least half of the characters are right. The
output is a pure function of the input and of --seed.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping

import jiwer

from slm_jax import paths
from slm_jax.corpora import messages, numerals, splits
from slm_jax.data import ctc_text, json_lines

NTREX = {
    'eng': 'en',
    'spa': 'es',
    'fra': 'fr',
    'ita': 'it',
    'rus': 'ru',
    'deu': 'de',
    'por': 'pt',
    'nld': 'nl',
    'pol': 'pl',
    'cat': 'ca',
    'ces': 'cs',
    'swe': 'sv-SE',
    'tur': 'tr',
    'ind': 'id',
    'vie': 'vi',
    'hin': 'hi',
    'arb': 'ar',
    'jpn': 'ja',
    'zho-CN': 'zh-CN',
}
# NTREX is translated to and from English for these; the others lend their text only.
PAIRED = ('es', 'fr', 'it', 'ru', 'de', 'pt', 'nl', 'pl', 'ca', 'sv-SE')
_FAMILIAR = 0.6  # The share of a message's English words that the clips have.
_DIRECTIONS = 6  # of a message's twenty
_LEGIBLE = 0.5  # More wrong characters than this leave nothing to correct, only to invent.
_MODIFIERS = ('size', 'roast', 'numberOfShots')
_ADDITIONS = ('sugarAmount', 'milkAmount')


class Orders:
    """Coffee orders in the words of a manifest whose lines carry `text` and `slots`.

    An order is opener, article, the modifiers in any order, the drink, and up to two additions
    after 'with'; openers and values are those met in the manifest, the combinations are new.
    """

    def __init__(self, rows: list[dict]):
        self.values = {
            slot: sorted({r['slots'][slot] for r in rows if slot in r['slots']})
            for slot in ('coffeeDrink', *_MODIFIERS, *_ADDITIONS)
        }
        # What stands before the first value, without its article.
        openers = set()
        for row in rows:
            start = min(row['text'].find(value) for value in row['slots'].values())
            if opener := re.sub(r'\s+(an?|the)$', '', row['text'][: max(start, 0)].strip()):
                openers.add(opener)
        self.openers = sorted(openers)

    def sample(self, rng: random.Random) -> dict:
        """One order: {'text', 'lang', 'slots'}; absent slots are not in `slots`."""
        slots = {'coffeeDrink': rng.choice(self.values['coffeeDrink'])}
        before = [slot for slot in _MODIFIERS if self.values[slot] and rng.random() < 0.45]
        after = [slot for slot in _ADDITIONS if self.values[slot] and rng.random() < 0.45]
        rng.shuffle(before)
        rng.shuffle(after)
        for slot in before + after:
            slots[slot] = rng.choice(self.values[slot])
        words = ' '.join(slots[slot] for slot in before + ['coffeeDrink'])
        if before or rng.random() < 0.7:
            words = ('an ' if words[0] in 'aeiou' else 'a ') + words
        if after:
            words += ' with ' + ' and '.join(slots[slot] for slot in after)
        return {'text': f'{rng.choice(self.openers)} {words}', 'lang': 'en', 'slots': slots}


def prompt_pairs(rows: list[dict]) -> Iterator[dict]:
    """Every ordered pair of languages that share an `id`."""
    by_id = collections.defaultdict(dict)
    for row in rows:
        if row.get('id'):
            by_id[row['id']][row['lang']] = row['text']
    for _, texts in sorted(by_id.items()):
        for source, target in itertools.permutations(sorted(texts), 2):
            yield {
                'text': texts[source],
                'lang': source,
                'translation': texts[target],
                'target_lang': target,
                'source': 'prompts',
            }


def translation_pairs(rows: list[dict]) -> Iterator[dict]:
    """Both directions of each `translation: {language: text}` field."""
    for row in rows:
        for target, text in sorted((row.get('translation') or {}).items()):
            ends = (row['lang'], row['text']), (target, text)
            for (lang, source), (target_lang, translation) in (ends, ends[::-1]):
                yield {
                    'text': source,
                    'lang': lang,
                    'translation': translation,
                    'target_lang': target_lang,
                    'source': 'clips',
                }


def ntrex_texts(folder: str | os.PathLike) -> dict[str, list[str]]:
    """{language: its line-aligned sentences}."""
    found = {lang: pathlib.Path(folder, f'{name}.txt') for name, lang in NTREX.items()}
    # Not splitlines(): a line may hold U+2028; nor other white space than the plain space.
    texts = {
        lang: [' '.join(line.split()) for line in path.read_text(encoding='utf-8').rstrip('\n').split('\n')]
        for lang, path in found.items()
        if path.exists()
    }
    if 'en' not in texts:
        raise FileNotFoundError(f'{folder} holds no eng.txt; give the folder of the NTREX files')
    return texts


def phrases(sentence: str, shortest: int = 8, longest: int = 90) -> list[str]:
    """The sentence cut at punctuation into pieces that can be said in one breath, in characters."""
    pieces = re.split(r'(?<=[.!?;:,])\s+|\s[–—-]\s|["“”«»()„]', sentence)
    pieces = [piece.strip(' ,;:') for piece in pieces]
    return [piece for piece in pieces if shortest <= len(piece) <= longest]


def build(
    out: str | os.PathLike,
    speech: list[str],
    orders: str | None = None,
    ntrex: str | None = None,
    program_messages: str | None = None,
    num_orders: int = 12_000,
    num_numerals: int = 800,
    seed: int = 0,
    heard: Iterable[str | os.PathLike] = (),
) -> dict[str, int]:
    """Writes the files of the module's docstring; returns {file name: lines}."""
    out = paths.path(out)
    out.mkdir(parents=True, exist_ok=True)
    corpora = {
        paths.path(folder).name: {
            split: json_lines.read(paths.path(folder) / f'{split}.jsonl') for split in splits.SPLITS
        }
        for folder in speech
    }
    # One spoken word out of a closed set (a digit) is everybody's: there the speakers are held out.
    held_out = {
        ctc_text.normalize(row['text'])
        for rows in corpora.values()
        for row in rows['validation'] + rows['test']
        if not _is_digit_clip(row)
    }
    held_out.discard('')

    def allowed(text: str) -> bool:
        return bool(ctc_text.normalize(text)) and ctc_text.normalize(text) not in held_out

    clips, texts, pairs = [], collections.defaultdict(list), collections.defaultdict(list)
    for name, rows in corpora.items():
        train = [row for row in rows['train'] if allowed(row['text']) or _is_digit_clip(row)]
        clips += [{**{k: row[k] for k in ('audio', 'text', 'lang', 'duration')}, 'source': name} for row in train]
        for split, part in (('train', train), ('validation', rows['validation'])):
            texts[split] += [
                {'text': row['text'], 'lang': row['lang'], 'source': name} for row in part if not _is_digit_clip(row)
            ]
            pairs[split] += [*prompt_pairs(part), *translation_pairs(part)]
    if ntrex:
        lines = ntrex_texts(ntrex)
        for lang, sentences in lines.items():
            for number, sentence in enumerate(sentences):
                split = splits.split_of(f'ntrex/{number}', 40)
                if split == 'test' or not allowed(sentence):
                    continue
                texts[split].append({'text': sentence, 'lang': lang, 'source': 'ntrex'})
                texts[split] += [
                    {'text': p, 'lang': lang, 'source': 'phrases'}
                    for p in phrases(sentence)
                    if allowed(p) and p != sentence
                ]
                if lang in PAIRED:
                    ends = ('en', lines['en'][number]), (lang, sentence)
                    for (source, text), (target, translation) in (ends, ends[::-1]):
                        pairs[split].append(_pair(text, source, translation, target, 'ntrex'))
    if program_messages:
        spoken_words = {
            word
            for row in texts['train']
            if row['lang'] == 'en' and row['source'] in corpora
            for word in ctc_text.normalize(row['text']).split()
        }
        for message in messages.translations(program_messages, numerals.LANGUAGES[1:]):
            english = ctc_text.normalize(message['en']).split()
            familiar = sum(word in spoken_words for word in english) >= _FAMILIAR * len(english)
            split = splits.split_of(f'messages/{message["en"]}', 40)
            if split == 'test' or not familiar or not all(map(allowed, message.values())):
                continue
            texts[split] += [{'text': text, 'lang': lang, 'source': 'messages'} for lang, text in message.items()]
            draw = random.Random(f'{seed}/{message["en"]}')
            for source, target in draw.sample([*itertools.permutations(numerals.LANGUAGES, 2)], _DIRECTIONS):
                pairs[split].append(_pair(message[source], source, message[target], target, 'messages'))
    rng = random.Random(seed)
    for split, count, draw in (
        ('train', num_numerals, rng),
        ('validation', num_numerals // 10, random.Random(seed + 1)),
    ):
        for words in (numerals.sample(draw) for _ in range(count)):
            texts[split] += [
                {'text': text, 'lang': lang, 'source': 'numerals'} for lang, text in words.items() if allowed(text)
            ]
            lang, target = draw.sample(numerals.LANGUAGES, 2)
            pairs[split].append(_pair(words[lang], lang, words[target], target, 'numerals'))
    made: dict[str, list[dict]] = {'train': [], 'validation': []}
    if orders:
        folder = paths.path(orders)
        grammar = Orders(json_lines.read(folder / 'train.jsonl'))
        held_out |= {
            ctc_text.normalize(row['text'])
            for split in ('validation', 'test')
            for row in json_lines.read(folder / f'{split}.jsonl')
        }
        seen = set(held_out)
        for _ in range(num_orders):
            order = grammar.sample(rng)
            if order['text'] not in seen:
                seen.add(order['text'])
                made['validation' if len(seen) % 40 == 0 else 'train'].append(order)
    files: dict[str, list[dict]] = {
        'speech': clips,
        **{f'text_{split}': _unique(texts[split]) for split in made},
        **{
            f'pairs_{split}': [
                p for p in _unique(pairs[split]) if split != 'train' or allowed(p['text']) and allowed(p['translation'])
            ]
            for split in made
        },
        **{f'orders_{split}': rows for split, rows in made.items()},
    }
    recognised = _recognised(heard)
    for name, content in files.items():
        if name.endswith('_train'):
            content = [_with_heard(row, recognised) for row in content]
        json_lines.write(out / f'{name}.jsonl', content)
    (out / 'held_out.txt').write_text(''.join(text + '\n' for text in sorted(held_out)), encoding='utf-8')
    return {name: len(content) for name, content in files.items()} | {'held_out': len(held_out)}


def _pair(text: str, lang: str, translation: str, target_lang: str, source: str) -> dict:
    return {
        'text': text,
        'lang': lang,
        'translation': translation,
        'target_lang': target_lang,
        'source': source,
    }


def _recognised(heard: Iterable[str | os.PathLike]) -> dict[str, list[str]]:
    """What a recogniser wrote of each text, as far as it is legible: from predictions.jsonl files."""
    recognised = collections.defaultdict(list)
    for row in itertools.chain.from_iterable(map(json_lines.read, heard)):
        said = ctc_text.normalize(row['reference'])
        if said and row['prediction'] and jiwer.cer(said, row['prediction']) <= _LEGIBLE:
            recognised[said].append(row['prediction'])
    return recognised


def _with_heard(row: dict, recognised: Mapping[str, list[str]]) -> dict:
    spoken = recognised.get(ctc_text.normalize(row['text']))
    return {**row, 'heard': spoken} if spoken else row


def _is_digit_clip(row: dict) -> bool:
    return row['lang'] == 'en' and row['text'] in numerals.DIGITS and not row.get('id')


def _unique(rows: list[dict]) -> list[dict]:
    return list({json.dumps({k: v for k, v in row.items() if k != 'source'}): row for row in rows}.values())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m slm_jax.corpora.text_corpora',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out')
    parser.add_argument('--speech', nargs='+', default=[], metavar='DIR')
    parser.add_argument('--orders', metavar='DIR')
    parser.add_argument('--ntrex', metavar='DIR')
    parser.add_argument('--messages', metavar='DIR')
    parser.add_argument('--heard', nargs='+', default=[], metavar='FILE')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        counts = build(
            args.out,
            args.speech,
            args.orders,
            args.ntrex,
            args.messages,
            seed=args.seed,
            heard=args.heard,
        )
    except (ImportError, OSError, ValueError, KeyError) as error:
        parser.exit(2, f'{type(error).__name__}: {error}\n')
    for name, count in counts.items():
        print(f'{name}: {count} lines')


if __name__ == '__main__':
    main()
