"""CoVoST 2 (slm_jax/data/covost2): speech translation to and from English.

covost2_ast_fr_en …   covost2_asr_fr …   covost2_ast_to_en, covost2_ast_from_en   mixtures
"""

import functools

import slm_jax.data.tensorflow_cpu as tensorflow_cpu  # isort: skip  before others load TensorFlow

import seqio

from slm_jax.data import covost2, preprocessors
from slm_jax.data.covost2 import builder
from slm_jax.tasks import registry

tf = tensorflow_cpu.tf


def _fields(source: str, example):
    name = tf.strings.join(['covost2', source, example['id']], separator='/')
    return {
        'id': name,
        'origin': name,
        'lang': tf.constant(source),
        'text': example['text'],
        'content': example['audio'],
        'translations': preprocessors.json_object([''], [example['translation']]),
    }


def _register(kind: str, source: str, target: str) -> str:
    name = f'covost2_ast_{source}_{target}' if kind == 'ast' else f'covost2_{kind}_{source}'
    name = name.replace('-', '_')
    registry.speech_task(
        name,
        seqio.TfdsDataSource(
            f'{covost2.Covost2.name}/{source}_{target}:1.0.0',
            splits=('train', 'validation', 'test'),
        ),
        kind,
        before_cache=(
            preprocessors.canonical_map(functools.partial(_fields, source)),
            preprocessors.decode_content,
        ),
        target_lang=target if kind == 'ast' else '',
    )
    return name


_to = [_register('ast', source, 'en') for source in builder.TO_ENGLISH]
_from = [_register('ast', 'en', target) for target in builder.FROM_ENGLISH]
for _kind in ('asr', 'ctc'):
    for _source in (*builder.TO_ENGLISH, 'en'):
        _register(_kind, _source, 'de' if _source == 'en' else 'en')
registry.mixture(dict.fromkeys(_to, 1), 'covost2_ast_to_en')
registry.mixture(dict.fromkeys(_from, 1), 'covost2_ast_from_en')
