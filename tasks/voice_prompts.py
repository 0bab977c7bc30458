"""Telephone prompts in five languages: recognition, translation between all pairs, and CTC.

voice_prompts_asr_{en,es,fr,it,ru}   voice_prompts_asr
voice_prompts_ast_{src}_{tgt}        voice_prompts_ast        voice_prompts_ast_to_en
voice_prompts_ctc_{en,…}             voice_prompts_ctc      voice_prompts = asr + ast
"""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import functools
import itertools

import seqio

import slm_jax.data.voice_prompts  # noqa: F401  registers the data set with TFDS
from slm_jax.data import preprocessors
from slm_jax.data.voice_prompts.fetch import LANGUAGES
from slm_jax.tasks import registry

_SPLITS = ('train', 'validation', 'test')


def _only(lang: str):
    def keep(dataset):
        return dataset.filter(lambda example: example['lang'] == lang)

    return keep


def _fields(example):
    name = tf.strings.join(['voice_prompts/', example['lang'], '/', example['id']])
    translations = preprocessors.json_object(LANGUAGES, [example['translations'][lang] for lang in LANGUAGES])
    return {
        'id': name,
        'origin': name,
        'text': example['text'],
        'lang': example['lang'],
        'translations': translations,
        'samples': example['audio'],
    }


def _register(name: str, lang: str, kind: str, target_lang: str = '') -> str:
    registry.speech_task(
        name,
        seqio.TfdsDataSource('voice_prompts:1.2.0', splits=_SPLITS),
        kind,
        before_cache=(
            _only(lang),
            preprocessors.canonical_map(_fields),
            functools.partial(preprocessors.decode_samples, rate=8000),
        ),
        target_lang=target_lang,
        translated_only=True,
    )
    return name


ASR = [_register(f'voice_prompts_asr_{lang}', lang, 'asr') for lang in LANGUAGES]
AST = [
    _register(f'voice_prompts_ast_{lang}_{to}', lang, 'ast', to) for lang, to in itertools.permutations(LANGUAGES, 2)
]
CTC = [_register(f'voice_prompts_ctc_{lang}', lang, 'ctc') for lang in LANGUAGES]

registry.mixture(dict.fromkeys(ASR, 1), 'voice_prompts_asr')
registry.mixture(dict.fromkeys(AST, 1), 'voice_prompts_ast')
registry.mixture({name: 1 for name in AST if name.endswith('_en')}, 'voice_prompts_ast_to_en')
registry.mixture(dict.fromkeys(CTC, 1), 'voice_prompts_ctc')
registry.mixture({'voice_prompts_asr': 1, 'voice_prompts_ast': 1}, 'voice_prompts')
