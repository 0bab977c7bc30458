"""FLEURS (102 languages, some 12 h each, n-way parallel), the `xtreme_s` of TFDS.

    fleurs_asr_fr_fr …           fleurs_ctc_fr_fr …
    fleurs_ast_fr_fr_en_us …     every language to and from English; `ast(src, tgt)` for other pairs
    fleurs_asr, fleurs_ctc, fleurs_ast_to_en, fleurs_ast_from_en    mixtures

A translation is what the target language reads under the same sentence id. TFDS needs
`pip install slm_jax[corpora]` to read the recordings.
"""

import functools
import json

import slm_jax.data.tensorflow_cpu as tensorflow_cpu  # isort: skip  before others load TensorFlow

import seqio
import tensorflow_datasets as tfds
from tensorflow_datasets.audio.xtreme_s import xtreme_s

from slm_jax.data import preprocessors
from slm_jax.tasks import registry

tf = tensorflow_cpu.tf

LANGUAGES = tuple(config.lang_name for config in xtreme_s.XtremeS.BUILDER_CONFIGS if config.lang_name != 'all')
ENGLISH = 'en_us'


def code(language: str) -> str:
    """'cmn_hans_cn' → 'cmn'."""
    return language.split('_')[0]


def _dataset(language: str) -> str:
    return f'xtreme_s/fleurs.{language}:2.0.0'


def _fields(language: str, example):
    file = tf.strings.split(example['path'], '/')[-1]
    name = tf.strings.join(['fleurs', language, tf.strings.as_string(example['id']), file], separator='/')
    return {
        'id': name,
        'origin': name,
        'lang': tf.constant(code(language)),
        'text': example['raw_transcription'],
        'samples': example['audio'],
    }


@functools.cache
def _sentences(language: str) -> dict[str, str]:
    """{sentence id: text} of all splits of a language."""
    source = seqio.TfdsDataSource(_dataset(language))
    builder = source.tfds_dataset.builder
    builder.download_and_prepare()
    sentences = {}
    for split in builder.info.splits or ('train', 'validation', 'test'):
        for example in tfds.as_numpy(builder.as_dataset(split=split, decoders={'audio': tfds.decode.SkipDecoding()})):
            sentences[str(example['id'])] = example['raw_transcription'].decode()
    return sentences


def _translate(target: str) -> preprocessors.ExampleStep:
    """Finds the sentence of the same id in the target language."""

    def find(example, unused_output_features, unused_sequence_length):
        text = _sentences(target).get(example['id'].decode().split('/')[2], '')
        return {'translations': json.dumps({code(target): text} if text else {}).encode()}

    return preprocessors.ExampleStep(find, reads=('id',), adds={'translations': (tf.string, 0)})


def _register(name: str, language: str, kind: str, target: str = '') -> str:
    registry.speech_task(
        name,
        seqio.TfdsDataSource(_dataset(language), splits=('train', 'validation', 'test')),
        kind,
        before_cache=(
            preprocessors.canonical_map(functools.partial(_fields, language)),
            functools.partial(preprocessors.decode_samples, rate=16000),
        ),
        after_cache=(_translate(target),) if target else (),
        target_lang=code(target),
        translated_only=True,
    )
    return name


def ast(source: str, target: str) -> str:
    """Registers `fleurs_ast_{source}_{target}` and returns its name."""
    return _register(f'fleurs_ast_{source}_{target}', source, 'ast', target)


def _mix(name: str, tasks) -> None:
    registry.mixture(dict.fromkeys(tasks, 1), name)


_others = [language for language in LANGUAGES if language != ENGLISH]
_mix('fleurs_asr', [_register(f'fleurs_asr_{lang}', lang, 'asr') for lang in LANGUAGES])
_mix('fleurs_ctc', [_register(f'fleurs_ctc_{lang}', lang, 'ctc') for lang in LANGUAGES])
_mix('fleurs_ast_to_en', [ast(lang, ENGLISH) for lang in _others])
_mix('fleurs_ast_from_en', [ast(ENGLISH, lang) for lang in _others])
