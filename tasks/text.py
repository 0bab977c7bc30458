# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Text-only tasks: what the language model learns before it meets speech.

The text stands where speech will stand: `inputs` is the text's tokens, then the instruction's, then
EOS. The corpora are the files of slm_jax.data.text_corpora; gin names their folder
(`slm_jax.tasks.text.corpora.folder`). Which wording is taken, which slot is asked for and how a
recogniser's errors fall is a function of the example and of its `template_seed`, so it is another
one in each epoch and the same one after a restart.

    text_span_corruption   T5's objective on sentences in 19 languages
    text_transcription     "Transcribe the speech.", of clean text and of text as CTC would write it
    text_translation       sentence pairs of the prompts, of NTREX, of Common Voice
    text_slots             "Which size was ordered?", of coffee orders; 'none' where none was
    text_requests          the first word, the number of words, the language, the next digit …
    text_pretraining       all of them
"""

import functools
import json
import pathlib
import random
import re
from collections.abc import Callable

import gin
import numpy as np
import seqio
import tensorflow as tf

from slm_jax.data import numerals, text_corpora, text_noise, vocabularies
from slm_jax.tasks import instructions

# Characters. What is longer is left to span corruption, which may cut its text.
LONGEST = 180
RATES = {
    'text_span_corruption': 2.0,
    'text_transcription': 4.0,
    'text_translation': 5.0,
    'text_slots': 2.0,
    'text_requests': 2.0,
}
# How often an epoch meets each line of a source: small corpora that matter, often.
REPEATS = {'voice_prompts': 6, 'prompts': 3, 'common_voice': 2, 'clips': 3, 'numerals': 2}
# The languages with little speech lend breadth, not bulk: one of so many lines is kept.
_THINNED = 4
_MAIN = ('en', 'es', 'fr', 'it', 'ru')

Asked = tuple[str, str, str]  # what is said, the instruction, the answer


@gin.configurable
def corpora(folder: str = '') -> pathlib.Path:
    """The folder of the text corpora.

    Raises:
      FileNotFoundError: it is not named, or holds no corpora.
    """
    if not folder or not pathlib.Path(folder, 'text_train.jsonl').exists():
        raise FileNotFoundError(
            f'no text corpora in {folder or "(no folder named)"}: write them by '
            'python -m slm_jax.data.text_corpora FOLDER, and give '
            "--gin.slm_jax.tasks.text.corpora.folder=\"'FOLDER'\"")
    return pathlib.Path(folder)


def _noisy(text: str, rng: random.Random, share: float) -> str:
    """In `share` of the cases the text as recognised, at error rates of 0 to 0.3, mostly low."""
    if rng.random() >= share:
        return text
    return text_noise.as_recognised(text, min(0.3, rng.expovariate(1 / 0.08)), rng) or text


def transcription(row: dict, rng: random.Random) -> Asked:
    kind = rng.choice(['asr', 'asr_language'])
    request = instructions.instruction(
        kind, rng.randrange(99), language=instructions.language_name(row['lang']))
    return _noisy(row['text'], rng, 0.75), request, row['text']


def translation(row: dict, rng: random.Random) -> Asked:
    kind = rng.choice(['ast', 'ast_language'])
    request = instructions.instruction(
        kind, rng.randrange(99), language=instructions.language_name(row['lang']),
        target_language=instructions.language_name(row['target_lang']))
    return _noisy(row['text'], rng, 0.35), request, row['translation']


def slots(row: dict, rng: random.Random) -> Asked:
    filled = sorted(row['slots'])
    slot = rng.choice(filled) if rng.random() < 0.6 else rng.choice(instructions.SLOTS)
    request = instructions.instruction(f'slot/{slot}', rng.randrange(99))
    return (_noisy(row['text'], rng, 0.6), request,
            row['slots'].get(slot, instructions.NO_VALUE))


def requests(row: dict, rng: random.Random) -> Asked:
    text = row['text']
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text) or text.split()
    answers = {
        'first_word': words[0], 'last_word': words[-1],
        'language': instructions.language_name(row['lang']),
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
    return (_noisy(text, rng, 0.3) if kind == 'language' else text,
            instructions.instruction(kind, rng.randrange(99), **fields), answers[kind])


_ABSENT = ('coffee number press please time conference numero mot appel conferencia mensaje '
           'chiamata messaggio номер звонок сообщение year people world').split()


def _random(row: dict) -> random.Random:
    return random.Random(f'{row["template_seed"]}/{row["id"]}')


def _ask(make: Callable[[dict, random.Random], Asked], row: dict, vocabulary) -> tuple:
    said, request, answer = make(row, _random(row))
    return vocabulary.encode(said) + vocabulary.encode(request), vocabulary.encode(answer)


def _corrupt(row: dict, vocabulary, longest: int) -> tuple:
    rng, tokens = _random(row), vocabulary.encode(row['text'])
    start = rng.randrange(max(1, len(tokens) - longest + 1))
    return text_noise.corrupt_spans(
        np.array(tokens[start:start + longest], np.int32), vocabulary.vocab_size, rng)


def prepare(dataset: tf.data.Dataset, output_features, make) -> tf.data.Dataset:
    """{'row': JSON, 'id', 'template_seed'} -> tokens of `inputs` and `targets`, without EOS."""
    vocabulary = output_features['inputs'].vocabulary

    def tokens(row, id_, seed):
        pair = make({**json.loads(row), 'id': id_.decode(), 'template_seed': int(seed)}, vocabulary)
        return [np.asarray(ids, np.int32) for ids in pair]

    def one(example):
        seed = tf.cast(example.get('template_seed', 0), tf.int64)
        inputs, targets = tf.numpy_function(
            tokens, [example['row'], example['id'], seed], [tf.int32, tf.int32])
        return {**example, 'inputs': tf.ensure_shape(inputs, [None]),
                'targets': tf.ensure_shape(targets, [None])}

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


def _rows(split: str, names: tuple[str, ...], longest: int | None) -> list[str]:
    kept, seen = [], 0
    for name in names:
        for row in text_corpora.read_jsonl(corpora() / f'{name}_{split}.jsonl'):
            if longest and max(len(row['text']), len(row.get('translation', ''))) > longest:
                continue
            seen += 1
            if {row['lang'], row.get('target_lang', 'en')} <= set(_MAIN) or seen % _THINNED == 0:
                repeats = REPEATS.get(row.get('source'), 1) if split == 'train' else 1
                kept += [json.dumps(row, ensure_ascii=False)] * repeats
    return kept


def _register(name: str, files: tuple[str, ...], make, longest: int | None = LONGEST) -> None:
    def dataset(split, shuffle_files=False, seed=None):
        rows = _rows(split, files, longest)
        return tf.data.Dataset.from_tensor_slices({'row': rows, 'id': [
            f'{name}/{split}/{number}' for number in range(len(rows))]})

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=('train', 'validation')),
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            functools.partial(prepare, make=make),
            seqio.preprocessors.append_eos,
        ],
        output_features=vocabularies.output_features())


_register('text_span_corruption', ('text',), functools.partial(_corrupt, longest=100), None)
_register('text_transcription', ('text', 'orders'), functools.partial(_ask, transcription))
_register('text_translation', ('pairs',), functools.partial(_ask, translation))
_register('text_slots', ('orders',), functools.partial(_ask, slots))
_register('text_requests', ('text',), functools.partial(_ask, requests))
seqio.MixtureRegistry.add('text_pretraining', list(RATES.items()))
