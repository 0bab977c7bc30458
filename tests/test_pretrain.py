"""`slm-jax pretrain`: stages one after another, and a foundation that says what it was made of."""

import dataclasses
import json
import shutil

import pytest

import gin
from slm_jax import configuration, foundations, pretrain
from slm_jax.inference import model
from slm_jax.training import checkpoints

SOURCES = {
    'text': ('voice_prompts', 'numerals', 'ntrex', 'messages'),
    'pairs': ('prompts', 'numerals', 'ntrex', 'messages'),
}
SMALL = [
    '--gin.TRAIN_STEPS=2',
    '--gin.WARMUP_STEPS=1',
    '--gin.EVAL_BATCHES=1',
    '--gin.NUM_BUCKETS=1',
    '--gin.BATCH_SECONDS=6.0',
    '--gin.train.train.num_samples=0',
    '--gin.t5.T5Config.emb_dim=16',
    '--gin.t5.T5Config.mlp_dim=16',
    '--gin.t5.T5Config.num_encoder_layers=1',
    '--gin.t5.T5Config.num_decoder_layers=1',
    '--gin.t5.T5Config.vocab_size=400',
]


@pytest.fixture
def folder(tmp_path, sentencepiece_model, monkeypatch):
    """A directory with corpora and a tokenizer; gin is as it was afterwards."""
    (tmp_path / 'text').mkdir()
    for split in ('train', 'validation'):
        for name, sources in SOURCES.items():
            lines = [
                {'text': f'Please hold line {n}.', 'lang': 'en', 'translation': 'Ne quittez pas.', 'target_lang': 'fr',
                 'source': source}
                for source in sources for n in range(8)
            ]  # fmt: skip
            write(tmp_path / f'text/{name}_{split}.jsonl', lines)
        write(
            tmp_path / f'text/orders_{split}.jsonl',
            [{'text': 'a large latte', 'lang': 'en', 'slots': {'size': 'large'}}] * 8,
        )
    (tmp_path / 'tokenizer').mkdir()
    shutil.copy(sentencepiece_model, tmp_path / 'tokenizer/tokenizer.model')
    (tmp_path / 'tokenizer/card.json').write_text('{"name": "tokenizer", "extra_ids": 32}')
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    yield tmp_path
    gin.clear_config()


def write(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')


def run(folder, *options):
    gin.clear_config()
    return pretrain.main([
        't5_tiny', str(folder / 'out'), '--tokenizer', str(folder / 'tokenizer'),
        f"--gin.TEXT_CORPORA='{folder / 'text'}'", *SMALL, *options,
    ])  # fmt: skip


@pytest.mark.parametrize('stages', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_stages_follow_each_other_and_leave_a_foundation(folder, monkeypatch, stages):
    recipe = pretrain.RECIPES['t5_tiny']
    assert len(recipe.stages) == 4
    monkeypatch.setitem(pretrain.RECIPES, 't5_tiny', dataclasses.replace(recipe, stages=recipe.stages[:stages]))
    assert run(folder) == 0
    first, second = (checkpoints.load_for_inference(folder / 'out/stages' / name)[1] for name in ('text', 'refine'))
    assert first['step'] == second['step'] == 2
    assert not first['initialised_from'] and set(second['initialised_from']) == {'llm'}
    made = folder / 'out/t5_tiny'
    card = foundations.card(made)
    assert card['extra_ids'] == 32 and card['kind'] == 'llm' and 'mimetic' in card['recipe']
    assert str(folder / 'out') not in json.dumps(card)
    params = foundations.load(made)
    assert params['token_embedder']['embedding'].dtype == 'bfloat16'
    assert foundations.vocabulary(made).extra_ids == 32

    before = sorted(folder.glob('out/stages/*/checkpoints/*'))
    assert run(folder) == 0  # nothing is trained again
    assert sorted(folder.glob('out/stages/*/checkpoints/*')) == before


def test_a_wrong_corpus_is_named(folder, capsys):
    shutil.rmtree(folder / 'text')
    assert run(folder) == 2
    assert 'no text corpora in' in capsys.readouterr().err


@pytest.mark.parametrize('recipe', ['comsl', 'comsl_tiny'])
def test_the_stages_of_comsl_begin_where_those_before_them_end(recipe):
    given = ['TEXT_MODEL=/text', 'TEXT_MANIFEST=/pairs.jsonl', 'SPEECH_ENCODER=/whisper', "MODEL_DIR='/model'"]
    earlier = {'translation': [], 'speech': ["TRANSLATION='/first'"]}
    earlier['joint'] = [*earlier['speech'], "SPEECH='/second'"]
    for stage, parts in (
        ('translation', {'llm': '/text'}),
        ('speech', {'llm': '/first', 'speech_encoder': '/whisper'}),
        ('joint', {'llm': '/first', 'speech_encoder': '/second', 'adapter': '/second'}),
    ):
        configuration.parse_gin([f'pretrain/{recipe}/{stage}.gin'], [*given, *earlier[stage]])
        assert model.query('slm_jax.train.train.foundations') == parts
        assert model.query('slm_jax.data.vocabularies.names.llm') == '/text'
    gin.clear_config()
