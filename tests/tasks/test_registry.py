"""Registering by one call: repeated calls are harmless, contradictions are refused."""

import pytest
import seqio

from slm_jax import tasks
from slm_jax.data import instructions, languages, preprocessors
from slm_jax.tasks import registry


@pytest.fixture(autouse=True)
def fresh_registry():
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    known = [dict(r._REGISTRY) for r in registries]
    yield
    for r, names in zip(registries, known):
        r._REGISTRY.clear()
        r._REGISTRY.update(names)


def test_manifest_is_idempotent_and_guards_its_name():
    assert tasks.manifest('mine', 'a.jsonl') == tasks.manifest('mine', 'a.jsonl') == 'mine'
    with pytest.raises(ValueError, match="task 'mine' is registered already"):
        tasks.manifest('mine', 'b.jsonl')
    with pytest.raises(ValueError, match="task 'voice_prompts_asr_en' is registered already"):
        tasks.manifest('voice_prompts_asr_en', 'a.jsonl')
    with pytest.raises(ValueError, match="kind 'asq'"):
        tasks.manifest('other', 'a.jsonl', task='asq')
    with pytest.raises(ValueError, match="unknown language 'klingon'"):
        tasks.manifest('other', 'a.jsonl', task='ast', target_lang='klingon')


def test_mixture_is_idempotent_and_guards_its_name():
    rates = {'voice_prompts_asr': 1.0, 'librispeech_asr': 2.0}
    assert tasks.mixture(rates, 'both') == tasks.mixture(rates, 'both') == 'both'
    assert tasks.mixture(rates) == tasks.mixture(dict(rates))
    with pytest.raises(ValueError, match="mixture 'both' with other rates"):
        tasks.mixture({'voice_prompts_asr': 2.0}, 'both')
    mixture = seqio.get_mixture_or_task('both')
    assert mixture.get_rate(seqio.get_mixture_or_task('librispeech_asr')) == 2.0
    assert mixture.get_rate(seqio.get_mixture_or_task('voice_prompts_asr_it')) == pytest.approx(0.2)


def test_wordings():
    for kind, templates in registry.TEMPLATES.items():
        assert len(templates) <= preprocessors.MAX_TEMPLATES
        assert len(set(templates)) == len(templates)
        if kind in ('asr', 'ast'):
            assert len(templates) >= 4
    named = [t for t in registry.TEMPLATES['asr'] if '{language}' in t]
    assert 0 < len(named) < len(registry.TEMPLATES['asr'])  # language named, and not
    assert all('{target_language}' in t for t in registry.TEMPLATES['ast'])
    assert registry.TEMPLATES['ast'][0] in instructions.TEMPLATES['ast']


def test_what_asks_for_a_transcript_is_known_by_its_wording():
    fields = {
        'language': 'Norwegian (Bokmål)',
        'target_language': 'French',
        'word': 'speech',
        'phrases': 'Siobhan, Lake Ohrid',
    }
    for kind, wordings in instructions.TEMPLATES.items():
        for wording in wordings:
            assert instructions.transcribes(wording.format(**fields)) == kind.startswith('asr'), wording
    assert not instructions.transcribes('Transcribe the speech. Then translate it.')


def test_a_task_has_at_most_so_many_wordings():
    with pytest.raises(ValueError, match='9 templates; at most 8'):
        preprocessors.to_text('asr', tuple('abcdefghi'))


@pytest.mark.parametrize(
    'code, name',
    [
        ('en', 'English'),
        ('pt-BR', 'Portuguese'),
        ('zh_CN', 'Chinese'),
        ('cmn', 'Mandarin Chinese'),
        ('xx', None),
        ('', None),
    ],
)
def test_language_names(code, name):
    assert languages.name(code) == name


def test_every_corpus_language_has_a_name():
    from slm_jax.data.covost2 import builder
    from slm_jax.tasks import common_voice, fleurs

    codes = [
        *common_voice.LANGUAGES,
        *map(fleurs.code, fleurs.LANGUAGES),
        *(code for pair in builder.PAIRS for code in pair),
    ]
    assert [code for code in codes if languages.name(code) is None] == []
