"""The model files of slm_base and its runs: what they are made of, by shapes alone."""

import types

import jax
import pytest

import gin
from slm_jax import configuration
from slm_jax.data import vocabularies
from slm_jax.inference import model
from slm_jax.training import state
from slm_jax.training.setup import least_batch

LABELS = '13:4,900:1,151935:7'


@pytest.fixture
def parsed(monkeypatch):
    """parsed(file, *bindings): the system of it."""
    tokenizer = types.SimpleNamespace(vocab_size=151_936, parts={14: (13, 900)})
    monkeypatch.setattr(vocabularies, '_load', lambda name: tokenizer)

    def parse(file, *bindings):
        configuration.parse_gin([file], [f"LABELS='{LABELS}'", *bindings])
        return model.configured_system()

    yield parse
    gin.clear_config()


def test_its_parts(parsed):
    system = parsed('models/slm_base.gin')
    params = state.unboxed(jax.eval_shape(system.init, jax.random.key(0), least_batch()))
    counts = {part: state.num_params(params[part]) for part in params}
    assert counts['speech_encoder'] == 20_590_592 and counts['llm'] == 630_167_424
    assert 10.3e6 < counts['adapter'] < 10.5e6
    assert system.label_tokens == (-1, 13, 900, 151935) and system.adapter.config.label_counts == (4, 1, 7)
    assert system.objective == 'cross_entropy'


def test_its_runs(parsed):
    given = ('MODEL_DIR=somewhere', 'MIXTURE_OR_TASK_NAME=voice_prompts')
    system = parsed('runs/slm_base_ctc.gin', *given)
    assert system.objective == 'ctc' and system.spellings[14] == (1, 2)
    assert model.query('%FOUNDATIONS') == {'speech_encoder': 'whisper_base', 'llm': 'qwen2.5_coder_0.5b'}
    assert parsed('runs/slm_base_llm.gin', 'ADAPTER=trained', *given).objective == 'cross_entropy'
    assert model.query('%FOUNDATIONS')['adapter'] == 'trained'
    system = parsed('runs/slm_base_voice_prompts.gin', 'MODEL_DIR=somewhere')
    assert system.objective == 'ctc' and system.ctc_answers is False and model.query('%ENCODED')
    assert model.query('%FOUNDATIONS')['adapter'] == 'slm_base'
