"""Tokens of a training's targets, counted, as a gin file."""

import collections
import json

import pytest

import gin
from slm_jax import configuration
from slm_jax.corpora import token_counts
from slm_jax.data import vocabularies

RUN = """
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax.data import vocabularies
MIXTURE_OR_TASK_NAME = @tasks.manifest()
tasks.manifest.name = 'counted'
tasks.manifest.path = {path}
LABELS = %gin.REQUIRED
vocabularies.counted_tokens.labels = %LABELS
vocabularies.names.llm = 'somebody'
"""


@pytest.fixture
def run(manifest, vocabulary, tmp_path, monkeypatch):
    import seqio

    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'run.gin').write_text(RUN.format(path={'train': str(manifest), 'test': str(manifest)}))
    yield str(tmp_path / 'run.gin')
    gin.clear_config()
    seqio.TaskRegistry._REGISTRY.pop('counted', None)


def test_all_targets_are_counted_without_their_ends(run, manifest, vocabulary, tmp_path, capsys, monkeypatch):
    (manifest.parent / 'clip03.wav').write_bytes(b'')  # this one cannot be used
    rows = [json.loads(line) for number, line in enumerate(manifest.read_text().splitlines()) if number != 3]
    expected = collections.Counter(token for row in rows for token in vocabulary.encode(row['text']))
    out = tmp_path / 'labels.gin'
    assert token_counts.main(['--gin_file', run, str(out)]) == 0
    assert f'wrote {out}: {len(expected)} tokens, {expected.total():,} in 23 targets' in capsys.readouterr().out
    assert out.read_text().startswith(f'# {len(expected)} tokens of somebody: {expected.total():,} in 23 targets of')
    configuration.parse_gin([run, str(out)])
    tokens = vocabularies.counted_tokens()[1:]
    text = gin.query_parameter('%LABELS')
    assert dict(zip(tokens, vocabularies.label_counts(text), strict=True)) == expected
    assert list(tokens) == sorted(tokens)

    rare = next(token for token, number in expected.items() if number < 3)
    parts = {rare: tuple(token for token, _ in expected.most_common(2))}
    monkeypatch.setattr(vocabulary, 'parts', parts, raising=False)
    assert token_counts.main(['--gin_file', run, '--least', '3', str(out)]) == 0
    configuration.parse_gin([run, str(out)])
    number = expected.pop(rare)
    expected.update(dict.fromkeys(parts[rare], number))
    text = gin.query_parameter('%LABELS')
    assert dict(zip(vocabularies.counted_tokens()[1:], vocabularies.label_counts(text), strict=True)) == expected


def test_what_cannot_be_counted_is_said_in_a_line(run, tmp_path, capsys):
    out = tmp_path / 'labels.gin'
    assert token_counts.main([str(out)]) == 2
    assert 'nothing to count: give a --gin_file that sets MIXTURE_OR_TASK_NAME' in capsys.readouterr().err
    assert token_counts.main(['--gin_file', run, '--gin.MIXTURE_OR_TASK_NAME=voice_prompt', str(out)]) == 2
    assert "no task or mixture is called 'voice_prompt'; did you mean voice_prompts" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'counted': no target of its training split has a token"):
        token_counts.write(collections.Counter(), 0, "'counted'", 'somebody', out)
    assert not out.exists()
