"""Text-only tasks: what the language model learns before it meets speech.

The text stands where speech will stand (`prompts.Prompt`). The corpora are the files of
slm_jax.corpora.text_corpora; gin names their folder
(`slm_jax.tasks.text.corpora.folder`). Which wording is taken, which slot is asked for and how a
recogniser's errors fall is a function of the example and of its `template_seed`, so it is another
one in each epoch and the same one after a restart.

    text_span_corruption   T5's objective on sentences in 17 languages
    text_words             a few words in no order, so that what was never read can be written too
    text_transcription     "Transcribe the speech.", of clean text and of text as CTC would write it
    text_translation       sentence pairs of the prompts, of NTREX, of Common Voice, of programs' messages
    text_slots             "Which size was ordered?", of coffee orders; 'none' where none was
    text_requests          the first word, the number of words, the language, the next digit …
    text_pretraining       all of them

These are mixtures of one task per kind of text (`text_transcription_prompts`, `…_news`, …).
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import random
import re
import zlib
from collections.abc import Callable

import numpy as np
import seqio

import gin
from slm_jax import paths
from slm_jax.corpora import numerals, text_noise, tokenizers
from slm_jax.data import instructions, json_lines, languages, output_features, preprocessors, prompts
from slm_jax.data.tensorflow_cpu import tf
from slm_jax.tasks import registry

# Characters. What is longer is left to span corruption, which may cut its text.
LONGEST = 120
_MAIN = ('en', 'es', 'fr', 'it', 'ru')
# Kind of text: the file, the sources in it, and one of how many lines is taken in the languages
# that are spoken most and in the others, which lend breadth and not bulk.
TEXTS = {
    'prompts': ('text', ('voice_prompts', 'common_voice', 'coffee_commands'), 1, 1),
    'numerals': ('text', ('numerals',), 1, 1),
    'news': ('text', ('ntrex', 'phrases'), 1, 12),
    'messages': ('text', ('messages',), 1, 1),
    'orders': ('orders', (None,), 1, 1),
    'prompt_pairs': ('pairs', ('prompts', 'clips'), 1, 1),
    'numeral_pairs': ('pairs', ('numerals',), 1, 1),
    'news_pairs': ('pairs', ('ntrex',), 1, 12),
    'message_pairs': ('pairs', ('messages',), 1, 1),
}
RATES = {
    'text_span_corruption': {'prompts': 0.1, 'news': 0.2},
    'text_words': {'news': 0.3},
    'text_transcription': {'prompts': 4.0, 'numerals': 0.8, 'news': 2.0, 'orders': 1.0, 'messages': 1.0},
    'text_translation': {'prompt_pairs': 1.5, 'numeral_pairs': 0.2, 'news_pairs': 0.2, 'message_pairs': 2.5},
    'text_slots': {'orders': 4.0},
    'text_requests': {'prompts': 0.2, 'numerals': 0.3, 'news': 0.1},
}

Asked = tuple[str, str, str]  # what is said, the instruction, the answer


@gin.configurable
def corpora(folder: str = '') -> pathlib.Path:
    """The folder of the text corpora.

    Raises:
        FileNotFoundError: it is not named, or holds no corpora.
    """
    if not folder or not (paths.path(folder) / 'text_train.jsonl').exists():
        raise FileNotFoundError(
            f'no text corpora in {folder or "(no folder named)"}: write them by '
            'python -m slm_jax.corpora.text_corpora FOLDER, and give '
            '--gin.slm_jax.tasks.text.corpora.folder="\'FOLDER\'"'
        )
    return paths.path(folder)


def _noisy(row: dict, rng: random.Random, share: float) -> str:
    """In `share` of the cases the row's text as recognised.

    In half of them as an encoder heard it, if one did, else with made-up errors at rates of 0 to 0.6, 0.17 in the mean.
    """
    text = row['text']
    if rng.random() >= share:
        return text
    if row.get('heard') and rng.random() < 0.5:
        return rng.choice(row['heard'])
    return text_noise.as_recognised(text, min(0.6, rng.expovariate(1 / 0.18)), rng) or text


def transcription(row: dict, rng: random.Random) -> Asked:
    kind = rng.choice(['asr', 'asr_language'])
    request = instructions.instruction(kind, rng.randrange(99), language=languages.name(row['lang']))
    return _noisy(row, rng, 0.8), request, row['text']


def words(row: dict, rng: random.Random) -> Asked:
    said = re.findall(r'\w+', row['text']) or row['text'].split()
    rng.shuffle(said)
    said = ' '.join(said[: rng.randint(1, 6)])
    return said, instructions.instruction('asr', rng.randrange(99)), said


def translation(row: dict, rng: random.Random) -> Asked:
    kind = rng.choice(['ast', 'ast_language'])
    request = instructions.instruction(
        kind,
        rng.randrange(99),
        language=languages.name(row['lang']),
        target_language=languages.name(row['target_lang']),
    )
    return _noisy(row, rng, 0.6), request, row['translation']


def slots(row: dict, rng: random.Random) -> Asked:
    slot = rng.choice(instructions.SLOTS)  # Half of them not filled: 'none' is to be learnt too.
    request = instructions.instruction(f'slot/{slot}', rng.randrange(99))
    return (_noisy(row, rng, 0.7), request, row['slots'].get(slot, instructions.NO_VALUE))


def requests(row: dict, rng: random.Random) -> Asked:
    text = row['text']
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text) or text.split()
    answers = {
        'first_word': words[0],
        'last_word': words[-1],
        'language': languages.name(row['lang']),
    }
    if len(words) < 20:
        answers['count_words'] = numerals.number(len(words), 'en')
    if len(text) <= 60:
        answers['repeat_twice'] = f'{text} {text}'
    kind, fields = rng.choice([*answers, 'contains', 'what_follows']), {}
    if row['lang'] == 'en' and words[-1] in numerals.DIGITS and rng.random() < 0.6:
        kind = 'next_digit'
        answers[kind] = numerals.DIGITS[(numerals.DIGITS.index(words[-1]) + 1) % 10]
    elif kind == 'contains':
        said = rng.random() < 0.5
        fields['word'] = rng.choice(words) if said else rng.choice(_ABSENT)
        answers[kind] = 'yes' if fields['word'].lower() in (w.lower() for w in words) else 'no'
    elif kind == 'what_follows':
        place = rng.randrange(len(words))
        fields['word'] = words[place]
        following = {words[i + 1] for i in range(len(words) - 1) if words[i] == words[place]}
        answers[kind] = words[place + 1] if place + 1 < len(words) else 'nothing'
        if len(following) > 1 or words.index(words[place]) != place:
            kind = 'first_word'
    return (
        _noisy(row, rng, 0.3) if kind == 'language' else text,
        instructions.instruction(kind, rng.randrange(99), **fields),
        answers[kind],
    )


_ABSENT = (
    'coffee number press please time conference numero mot appel conferencia mensaje '
    'chiamata messaggio номер звонок сообщение year people world'
).split()


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Tokens of what is said and asked, and of the answer."""

    make: Callable[[dict, random.Random], Asked]

    def __call__(self, row: dict, rng: random.Random, vocabulary) -> tuple:
        said, request, answer = self.make(row, rng)
        return (
            prompts.Prompt().tokens(vocabulary, request, said),
            vocabulary.encode(answer),
            f'{said} {request}',
            answer,
        )

    @property
    def fingerprint(self) -> str:
        """Of all that decides the tokens: lengths are measured once for each."""
        parts = [self.make.__name__, str(instructions.TEMPLATES)]
        parts += [inspect.getsource(inspect.getmodule(part)) for part in (_noisy, text_noise)]
        return hashlib.sha256(''.join(parts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Corrupt:
    """Span corruption of at most `longest` tokens, cut out where the text is longer."""

    longest: int

    def __call__(self, row: dict, rng: random.Random, vocabulary) -> tuple:
        tokens = vocabulary.encode(row['text'])
        start = rng.randrange(max(1, len(tokens) - self.longest + 1))
        corrupted, spans = text_noise.corrupt_spans(tokens[start : start + self.longest], vocabulary.vocab_size, rng)
        return [*corrupted, vocabulary.eos_id], spans, row['text'], row['text']

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f'{self}{inspect.getsource(text_noise)}'.encode()).hexdigest()


def _tokens(example, output_features, unused_sequence_length, make):
    """Tokens of `inputs` and `targets`, and the texts they came from."""
    key = example['id'].decode()
    seed = int(example.get('template_seed', zlib.crc32(example['id'])))
    vocabulary = output_features['inputs'].vocabulary
    # The vocabulary may stand for a foundation that is looked for at each use.
    vocabulary = getattr(vocabulary, 'vocabulary', vocabulary)
    inputs, targets, said, answer = make(json.loads(example['row']), random.Random(f'{seed}/{key}'), vocabulary)
    return {
        'inputs': np.array(inputs, np.int32),
        'targets': np.array([*targets, vocabulary.eos_id], np.int32),
        'inputs_pretokenized': said.encode(),
        'targets_pretokenized': answer.encode(),
    }


def prepare(make) -> preprocessors.ExampleStep:
    """The step after the store: what `make` asks and answers, another time in each epoch."""
    return preprocessors.ExampleStep(
        functools.partial(_tokens, make=make),
        reads=('id', 'row', 'template_seed'),
        adds={
            'inputs': (tf.int32, 1),
            'targets': (tf.int32, 1),
            'inputs_pretokenized': (tf.string, 0),
            'targets_pretokenized': (tf.string, 0),
        },
    )


class _Lines:
    """The lines of one kind of text as examples: `row` (JSON), `id`, `lang`, `target_lang`."""

    def __init__(self, name: str, text: str, longest: int | None):
        self._name, self._text, self._longest = name, text, longest

    def fingerprint(self, split: str) -> list:
        file = corpora() / f'{TEXTS[self._text][0]}_{split}.jsonl'
        return [self._name, TEXTS[self._text], self._longest, hashlib.sha256(file.read_bytes()).hexdigest()]

    def __call__(self, split: str, shuffle_files: bool = False, seed: int | None = None):
        file, sources, main, others = TEXTS[self._text]
        kept, seen = [], 0
        for row in json_lines.read(corpora() / f'{file}_{split}.jsonl'):
            longest = max(len(row['text']), len(row.get('translation', '')))
            if (
                row.get('source') in sources
                and row['lang'] not in tokenizers.UNSPELT
                and not (self._longest and longest > self._longest)
            ):
                seen += 1
                if seen % (main if {row['lang'], row.get('target_lang', 'en')} <= {*_MAIN} else others) == 0:
                    kept.append(row)
        return tf.data.Dataset.from_tensor_slices(
            {
                'id': [f'{self._name}/{split}/{number}' for number in range(len(kept))],
                'row': [json.dumps(row, ensure_ascii=False) for row in kept],
                'lang': [row['lang'] for row in kept],
                'target_lang': [row.get('target_lang', '') for row in kept],
            }
        )


def _register(name: str, text: str, make, longest: int | None) -> str:
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(_Lines(name, text, longest), splits=('train', 'validation')),
        preprocessors=[seqio.CacheDatasetPlaceholder(), prepare(make)],
        output_features=output_features.output_features(),
    )
    return name


_MAKERS = {
    'text_span_corruption': _Corrupt(longest=200),
    'text_words': _Ask(words),
    'text_transcription': _Ask(transcription),
    'text_translation': _Ask(translation),
    'text_slots': _Ask(slots),
    'text_requests': _Ask(requests),
}
for _name, _rates in RATES.items():
    _longest = None if _name == 'text_span_corruption' else LONGEST
    registry.mixture(
        {_register(f'{_name}_{text}', text, _MAKERS[_name], _longest): rate for text, rate in _rates.items()}, _name
    )
registry.mixture({name: sum(rates.values()) for name, rates in RATES.items()}, 'text_pretraining')
