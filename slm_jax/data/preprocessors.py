"""The steps of a speech task, in the order in which a SeqIO Task runs them.

    source
    canonical…        one layout for every source: `manifests.FIELDS`, all strings
    decode…           + speech: int16 at 16 kHz, mono; speech_length
    seqio.CacheDatasetPlaceholder    what is above is stored once (cache.py)
    to_text           + inputs (an instruction), targets
    tokenize          inputs → the prompt's token ids; targets → token ids, EOS
    check             stops at bad and over-long examples

An example that cannot be used is not dropped where the fault is found: its `error` says what is
wrong, and `check`, or whoever feeds the loader, decides whether to stop.
"""

from slm_jax.data import ctc_text

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import dataclasses
import io
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from slm_jax.audio import waveforms
from slm_jax.data import alignments, languages, phrases, prompts, segments
from slm_jax.data.manifests import FIELDS
from slm_jax.data.phrases import PhraseList


class BadExampleError(ValueError):
    """An example that cannot be used: `str()` names it, what is wrong, and the remedy."""


KINDS = ('asr', 'ast', 'mt', 'instruct', 'text', 'ctc', 'phrase')
_TRANSLATED = ('ast', 'mt')
# Every wording is measured by reading the seeds 0 … MAX_TEMPLATES-1, so no task may have more.
MAX_TEMPLATES = 8


def canonical(example: Mapping[str, tf.Tensor], **fields) -> dict[str, tf.Tensor]:
    """Lays an example out as every source must: `FIELDS`, '' where nothing is given."""
    unknown = set(fields) - {*FIELDS, 'content', 'samples'}
    if unknown:
        raise ValueError(f'no such fields in a canonical example: {sorted(unknown)}')
    kept = {k: example[k] for k in ('source_index',) if k in example}
    return {field: tf.constant('') for field in FIELDS} | fields | kept


@dataclasses.dataclass(frozen=True)
class canonical_map:  # in the place of a function, as functools.partial
    """A preprocessor that lays examples out by `fields(example) -> {field: tensor}`."""

    fields: Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]]

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(
            lambda example: canonical(example, **self.fields(example)), num_parallel_calls=tf.data.AUTOTUNE
        )


def json_object(names: Sequence[str], texts: Sequence[tf.Tensor]) -> tf.Tensor:
    """A JSON object {name: text} as a string tensor, without the texts that are empty."""

    def write(*values):
        return json.dumps({k: v.decode() for k, v in zip(names, values) if v}).encode()

    result = tf.numpy_function(write, texts, tf.string, stateful=False)
    result.set_shape([])
    return result


def each_choice(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """An example for each of the `choices` of a line, which is its `target`: their likelihoods are to be compared.

    A line without any has an `error`.
    """

    def expand(example):
        def targets(choices: bytes, origin: bytes, error: bytes):
            if choices and not error:
                return np.array([text.encode() for text in json.loads(choices)['texts']], object), error
            said = 'field "choices" has to be two or more different texts, one of which is the field "answer".'
            return np.array([b''], object), error or f'{origin.decode()}: {said}'.encode()

        given = [example[name] for name in ('choices', 'origin', 'error')]
        texts, error = tf.numpy_function(targets, given, (tf.string, tf.string), stateful=False)
        texts.set_shape([None])
        error.set_shape([])

        def one(number, text):
            name = tf.strings.join([example['id'], '#', tf.strings.as_string(number)])
            return example | {'id': name, 'target': text, 'error': error}

        return tf.data.Dataset.from_tensor_slices(texts).enumerate().map(one)

    return dataset.flat_map(expand)


def decode_file(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Reads the file at `audio`, or its segment, into `speech`; without one, `speech` is empty (a text example)."""

    def read(path: bytes, offset: bytes, duration: bytes, origin: bytes, error: bytes):
        if error or not path:
            return np.zeros(0, np.int16), error
        name, times = path.decode(), (offset.decode(), duration.decode())
        try:
            return segments.read(name, *times), b''
        except segments.SegmentError as problem:
            return _unread(origin.decode(), problem)
        except Exception as problem:
            return _unread(name, problem)

    return _with_speech(dataset, read, ('audio', 'offset', 'duration', 'origin', 'error'))


def decode_content(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Reads `content`, the bytes of an audio file, into `speech`."""

    def read(content: bytes, origin: bytes, error: bytes):
        if error:
            return np.zeros(0, np.int16), error
        file = io.BytesIO(content)
        file.name = origin.decode()
        try:
            return waveforms.read_waveform(file), b''
        except Exception as problem:
            return _unread(file.name, problem)

    return _with_speech(dataset, read, ('content', 'origin', 'error'))


def decode_samples(dataset: tf.data.Dataset, rate: int) -> tf.data.Dataset:
    """Turns `samples` (integers on int16's scale at `rate` per second) into `speech`."""

    def convert(samples: np.ndarray, origin: bytes):
        try:
            return waveforms.to_int16(samples, rate, origin.decode()), b''
        except Exception as problem:
            return _unread(origin.decode(), problem)

    return _with_speech(dataset, convert, ('samples', 'origin'))


def leave_unheard(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Makes text examples: `speech` is empty, whatever recordings there are."""

    def leave(error: bytes):
        return np.zeros(0, np.int16), error

    return _with_speech(dataset, leave, ('error',))


def _unread(name: str, problem: Exception) -> tuple[np.ndarray, bytes]:
    """No samples, and what is wrong. Whatever a recording does to its reader is a fault of that one example."""
    text = str(problem)
    if not isinstance(problem, (waveforms.AudioError, segments.SegmentError)):
        text = f'cannot be read ({type(problem).__name__}: {text}). Write it again as 16-bit WAV, or remove it.'
    if not text.startswith(f'{name}: '):
        text = f'{name}: {text}'
    return np.zeros(0, np.int16), text.encode(errors='replace')


def _with_speech(dataset, function, arguments):
    described = ('alignment', 'id', 'audio', 'text', 'origin')

    def read(*values):
        texts = {name: value.decode() for name, value in zip(described, values)}
        speech, error = function(*values[len(described) :])
        alignment = ''
        if texts['alignment'] and not error:
            names = texts['id'], pathlib.PurePosixPath(texts['audio']).stem
            seconds = len(speech) / waveforms.SAMPLE_RATE
            try:
                alignment = alignments.spans(texts['alignment'], names, texts['text'], seconds, texts['origin'])
            except alignments.AlignmentError as problem:
                error = str(problem).encode()
        return speech, error, alignment.encode()

    def add(example):
        given = [example[name] for name in (*described, *arguments)]
        speech, error, alignment = tf.numpy_function(read, given, (tf.int16, tf.string, tf.string), stateful=False)
        speech.set_shape([None])
        error.set_shape([])
        alignment.set_shape([])
        rest = {k: v for k, v in example.items() if k not in ('samples', 'content')}
        return rest | {'speech': speech, 'speech_length': tf.size(speech), 'error': error, 'alignment': alignment}

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class ExampleStep:
    """A SeqIO preprocessor that is a Python function of one example.

    SeqIO maps it over a dataset; the loader, which takes single examples in an order of its own,
    calls it as it is, which is some fifty times cheaper. Both see the same function.

    Attributes:
        function: (example, output_features, sequence_length) → the features it adds or replaces;
            None leaves the example out, which must not depend on `template_seed`. Strings are bytes.
        reads: the features it looks at; those that are absent it does not get.
        adds: {feature: (dtype, rank)} of the features it returns.
        wordings: of one that reads `template_seed`: how many ways it has to write an example, which the seeds below
            that number choose among; None: without end.
        output_features, sequence_length: filled in by SeqIO when it builds a pipeline.
    """

    function: Callable[..., Mapping[str, np.ndarray | bytes] | None]
    reads: tuple[str, ...]
    adds: Mapping[str, tuple[tf.DType, int]]
    wordings: int | None = None
    output_features: Mapping[str, seqio.Feature] | None = None
    sequence_length: Mapping[str, int] | None = None

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        names = [name for name in self.reads if name in dataset.element_spec]

        def call(*values):
            added = self.function(dict(zip(names, values)), self.output_features, self.sequence_length)
            if added is None:
                added = {
                    k: b'' if dtype == tf.string else np.zeros([0] * rank, dtype.as_numpy_dtype)
                    for k, (dtype, rank) in self.adds.items()
                }
                return [False, *added.values()]
            return [True, *(added[name] for name in self.adds)]

        def add(example):
            keep, *values = tf.numpy_function(
                call,
                [example[name] for name in names],
                (tf.bool, *(dtype for dtype, _ in self.adds.values())),
                stateful=False,
            )
            for value, (_, rank) in zip(values, self.adds.values()):
                value.set_shape([None] * rank)
            keep.set_shape([])
            return keep, {**example, **dict(zip(self.adds, values))}

        def kept(keep, unused_example):
            return keep

        def without_keep(unused_keep, example):
            return example

        return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE).filter(kept).map(without_keep)


_STRING = (tf.string, 0)
_TOKENS = (tf.int32, 1)


def to_text(
    kind: str,
    templates: tuple[str, ...] = (),
    target_lang: str = '',
    translated_only: bool = False,
    listed: PhraseList | None = None,
) -> ExampleStep:
    """A step that adds `inputs`, what the model is asked, and `targets`, what it should answer.

    Which wording an example gets is its `template_seed` modulo their number; where there is no
    `template_seed`, a hash of its id stands for it.

    Args:
        kind: 'asr' (targets = text), 'ast' (the translation into `target_lang`), 'mt' (the same of the text, which
            is read in the place of speech), 'instruct' (the example's own instruction and target), 'text' (the same
            without speech; of a line without a target its text, after its instruction if it has one), 'ctc' (no
            instruction; text as CTC spells it), 'phrase' (no instruction; one of its phrases, or without any some words
            of the text, as CTC spells them).
        templates: wordings; `{language}` and `{target_language}` are filled in. Wordings that name
            the language are passed over for an example whose language is not known.
        target_lang: for 'ast' and 'mt'; '' takes the example's own.
        translated_only: leave out examples without that translation, instead of calling it a fault.
        listed: which phrases an instruction carries, drawn by the `template_seed` too. Wordings that name {phrases} are
            for examples that have any, the others for those that have none.
    """
    if kind not in KINDS:
        raise ValueError(f'kind {kind!r}: one of {KINDS} was expected')
    if len(templates) > MAX_TEMPLATES:
        raise ValueError(f'{len(templates)} templates; at most {MAX_TEMPLATES} are supported')

    def write(example, unused_output_features, unused_sequence_length):
        texts = {k: v.decode() for k, v in example.items() if isinstance(v, bytes)}
        texts['target_lang'] = target_lang or texts['target_lang']
        seed = example.get('template_seed')
        if seed is None:
            seed = zlib.crc32(example['id'])
        if listed:
            own = json.loads(texts.get('phrases') or '[]')
            texts['listed'] = phrases.written(listed(own, texts['text'], f'{texts["id"]}/{seed}'))
        inputs, targets, error = _request(kind, templates, texts, int(seed), int(example.get('speech_length', 0)))
        if translated_only and kind in _TRANSLATED and not targets:
            return None
        return {
            'inputs': inputs.encode(),
            'targets': targets.encode(),
            'error': (texts['error'] or error).encode(),
            'target_lang': texts['target_lang'].encode(),
            'answer_lang': _answer_lang(kind, texts).encode(),
            'said': texts['text'].encode() if kind == 'mt' else b'',
        }

    return ExampleStep(
        write,
        reads=(
            'id',
            'error',
            'origin',
            'text',
            'lang',
            'translations',
            'target_lang',
            'instruction',
            'target',
            'phrases',
            'template_seed',
            'speech_length',
        ),
        adds=dict.fromkeys(('inputs', 'targets', 'error', 'target_lang', 'answer_lang', 'said'), _STRING),
        wordings=None if listed or kind == 'phrase' else max(len(templates), 1),
    )


def _answer_lang(kind: str, example: Mapping[str, str]) -> str:
    own, target = example['lang'], example['target_lang']
    return {'asr': own, **dict.fromkeys(_TRANSLATED, target)}.get(kind, target or own)


def to_answer(templates: tuple[str, ...] = ()) -> ExampleStep:
    """As `to_text` of 'instruct', for lines of questions, dialogs and stories, of which each is scored as what it is.

    Args:
        templates: instructions of lines that have none.
    """

    def write(example, unused_output_features, unused_sequence_length):
        texts = {k: v.decode() for k, v in example.items() if isinstance(v, bytes)}
        seed = int(example.get('template_seed', zlib.crc32(example['id'])))
        if templates and not texts['instruction']:
            texts['instruction'] = templates[seed % len(templates)]
        texts['target'] = texts['target'] or next(iter(json.loads(texts.get('answers') or '[]')), '')
        inputs, targets, error = _request('instruct', (), texts, seed, int(example['speech_length']))
        return {'inputs': inputs.encode(), 'targets': targets.encode(), 'error': (texts['error'] or error).encode()}

    reads = ('id', 'error', 'origin', 'instruction', 'target', 'answers', 'template_seed', 'speech_length')
    adds = dict.fromkeys(('inputs', 'targets', 'error'), _STRING)
    return ExampleStep(write, reads=reads, adds=adds, wordings=max(len(templates), 1))


def _request(kind: str, templates, example: Mapping[str, str], seed: int, speech_length: int) -> tuple[str, str, str]:
    """(inputs, targets, error) of one example."""

    def lacks(field: str, remedy: str) -> tuple[str, str, str]:
        return '', '', f'{example["origin"]}: field "{field}" is missing. {remedy}'

    if kind == 'text':
        targets = example['target'] or example['text']
        return (example['instruction'], targets, '') if targets else lacks('text', 'A task of texts needs one.')
    if kind == 'mt' and not example['text']:
        return lacks('text', "A task of kind 'mt' translates it.")
    if not speech_length and kind != 'mt':
        return lacks('audio', f'A task of kind {kind!r} needs the path of a recording.')
    if kind == 'instruct':
        for field in ('instruction', 'target'):
            if not example[field]:
                return lacks(field, "A task of kind 'instruct' needs both of its texts.")
        return example['instruction'], example['target'], ''
    if kind in _TRANSLATED:
        to = example['target_lang']
        if not to:
            return lacks('target_lang', 'Give it on the line or to the task.')
        translations = json.loads(example['translations'] or '{}')
        targets = translations.get(to) or translations.get('')
        if not targets:
            return lacks(
                'translation',
                f'There is none into {to!r}: add it, or leave the line out (`langs` of the task chooses lines).',
            )
    else:
        targets = example['text']
        if not targets:
            return lacks('text', f'A task of kind {kind!r} needs the transcript.')
    if kind == 'ctc':
        return '', ctc_text.normalize(targets), ''
    if kind == 'phrase':
        listed = json.loads(example.get('phrases') or '[]')
        return '', phrases.one_of(listed, targets, f'{example["id"]}/{seed}'), ''
    usable = [t for t in templates if ('{phrases}' in t) == bool(example.get('listed'))]
    if not usable:
        return lacks('phrases', 'Every wording of this task lists phrases: give the task a pool, or other wordings.')
    usable = [t for t in usable if example['lang'] or '{language}' not in t]
    if not usable:
        return lacks('lang', 'Every wording of this task names the language of the speech.')
    names = {
        'language': languages.name(example['lang']),
        'target_language': languages.name(example['target_lang']),
        'phrases': example.get('listed', ''),
    }
    return usable[seed % len(usable)].format(**names), targets, ''


def _tokenize(example, output_features, unused_sequence_length):
    tokens, error = {}, example.get('error', b'')
    lang, answer_lang = (example.get(name, b'').decode() for name in ('lang', 'answer_lang'))
    for name in ('inputs', 'targets'):
        feature, text = output_features[name], example[name].decode()
        vocabulary = getattr(feature.vocabulary, 'vocabulary', feature.vocabulary)  # gin is asked once which it is
        ids = ()
        try:
            if name == 'inputs' and feature.add_eos:  # a language model's: CTC reads no prompt
                speech = prompts.SPEECH if example.get('speech_length') else example.get('said', b'').decode()
                languages.begun(vocabulary, lang)  # one that is not stated is a fault, too
                ids = prompts.Prompt().tokens(vocabulary, text, speech, lang)
            else:
                begun = languages.begun(vocabulary, answer_lang) if feature.add_eos else ()
                ids = [*begun, *vocabulary.encode(text), *[vocabulary.eos_id] * feature.add_eos]
        except ValueError as problem:  # a language that the language model has no code for
            error = error or f'{example["origin"].decode()}: {problem}'.encode()
        tokens[name] = np.array(ids, np.int32)
        tokens[f'{name}_pretokenized'] = example[name]
    return {**tokens, 'error': error}


# Encodes `inputs` as a prompt (`prompts.Prompt`) and `targets` with EOS, and keeps the texts as `…_pretokenized`. For a
# language model with codes of languages, both begin with theirs.
tokenize = ExampleStep(
    _tokenize,
    reads=('inputs', 'targets', 'said', 'speech_length', 'lang', 'answer_lang', 'error', 'origin'),
    adds={
        'error': _STRING,
        'inputs': _TOKENS,
        'targets': _TOKENS,
        'inputs_pretokenized': _STRING,
        'targets_pretokenized': _STRING,
    },
)


def teacher_inputs(example: Mapping[str, Any], output_features: Mapping[str, seqio.Feature]) -> dict[str, Any]:
    """What the teacher of distillation reads of a tokenized example: its prompt with the transcript as the speech.

    Nothing of an example without speech, or of a task of CTC, which has no prompt; an `error` where there is no
    transcript.
    """
    feature, text = output_features['inputs'], example.get('text', b'').decode()
    if example.get('error') or not example.get('speech_length') or not feature.add_eos:
        return {'teacher_inputs': np.zeros(0, np.int32)}
    if not text:
        fault = (
            'field "text" is missing. The transcript is needed: the teacher of a distillation (SLM.objective) or the '
            'text encoder of ComSL reads it.'
        )
        error = f'{example["origin"].decode()}: {fault}'.encode()
        return {'teacher_inputs': np.zeros(0, np.int32), 'error': error}
    lang = example.get('lang', b'').decode()
    ids = prompts.Prompt().tokens(feature.vocabulary, example['inputs_pretokenized'].decode(), text, lang)
    return {'teacher_inputs': np.array(ids, np.int32)}


def _check(example, unused_output_features, sequence_length):
    if 'index' not in example:
        if example['error']:
            raise BadExampleError(example['error'].decode())
        for feature, limit in (sequence_length or {}).items():
            if limit is not None and feature in example and len(example[feature]) > limit:
                raise BadExampleError(too_long(example['origin'].decode(), feature, len(example[feature]), limit))
    return {}


# Stops at an example with an `error`, and at one longer than `sequence_length` allows, which SeqIO
# would trim in silence. The loader marks its examples by `index` and looks at them itself, since it
# may have been told to skip what is bad.
check = ExampleStep(_check, reads=('index', 'error', 'origin', 'speech', 'inputs', 'targets'), adds={})


def too_long(name: str, feature: str, length: int, limit: int) -> str:
    """What is wrong with an example of which a feature is longer than allowed."""
    if feature == 'speech':
        return (
            f'{name}: {length / waveforms.SAMPLE_RATE:.1f} s of speech where '
            f'{limit / waveforms.SAMPLE_RATE:.1f} s are allowed. Raise '
            "task_feature_lengths['speech'] (in samples; of evaluate, --max_seconds), or split the recording."
        )
    return (
        f'{name}: {length} tokens of {feature} where {limit} are allowed. Raise '
        f"task_feature_lengths['{feature}'], or split the example."
    )
