"""Phrases by their keys: what is nearest, with and without a graph, kept on disk, and the program over it all."""

import dataclasses
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from slm_jax import cli, import_
from slm_jax.data import ctc_text, json_lines, phrases
from slm_jax.data.prompts import Prompt
from slm_jax.inference import model, queries, retrieval

RATE = queries.SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class System:
    """A phrase's key is a unit vector that its letters draw; speech says phrases by their number, one every second."""

    said: tuple[str, ...]

    def phrase_keys(self, params, letters):
        drawn = np.random.default_rng(0).standard_normal((128, 16))[: letters.shape[1]]
        waves = jnp.sin(letters @ jnp.array(drawn))
        return waves / jnp.linalg.norm(waves, axis=1, keepdims=True)

    def speech_keys(self, params, batch):
        longest = max(map(len, self.said))
        letters = np.zeros((len(self.said), longest), np.int32)
        for row, phrase in zip(letters, self.said):
            row[: len(phrase)] = np.frombuffer(phrase.encode(), np.uint8) + 3
        numbers = batch['speech_samples'][:, RATE // 2 :: RATE]
        return self.phrase_keys(params, jnp.array(letters))[numbers], batch['speech_lengths'] // RATE


SAID = ('nobody', 'siobhan', 'lake ohrid', 'bratislava')


@pytest.fixture
def retriever(tmp_path, monkeypatch):
    loaded = types.SimpleNamespace(
        system=System(SAID), params={}, directory=tmp_path / 'retriever', step=7, encoder_seconds=None
    )
    monkeypatch.setattr(model, 'load', lambda name, **_: loaded)
    monkeypatch.setattr(import_, 'ensure_for', lambda *_: None)
    return retrieval.Retriever(loaded)


def speech(*numbers):
    return np.repeat(np.array(numbers, np.int16), RATE)


def pool(count):
    return [*(f'name {n}' for n in range(count)), 'Siobhan', 'Lake Ohrid!', 'Bratislava']


def test_the_nearest_to_any_part_come_first(retriever):
    index = retrieval.build(retriever, pool(600))
    found = index.nearest(retriever.of_speech(speech(0, 2, 1)), 2)
    assert {phrase for phrase, _ in found} == {'Siobhan', 'Lake Ohrid!'}
    assert [cosine for _, cosine in found] == pytest.approx([1, 1], abs=2e-3)
    assert index.nearest(retriever.of_speech(speech(3)), 1)[0][0] == 'Bratislava'
    assert len(index.nearest(retriever.of_speech(speech(3)), 9999)) == 603
    assert len(retriever.seconds) == 3


def test_a_graph_finds_what_comparing_all_finds(retriever, monkeypatch, tmp_path):
    pytest.importorskip('usearch', reason="pip install 'slm_jax[retrieval]'")
    compared = retrieval.build(retriever, pool(1500))
    monkeypatch.setattr(retrieval, 'BRUTE', 100)
    index = retrieval.build(retriever, pool(1500))
    index.write(tmp_path / 'index', retriever.identity)
    kept = retrieval.read(tmp_path / 'index', retriever.identity)
    keys = retriever.of_speech(speech(2, 0, 1))
    for each in (index, kept):
        found, expected = each.nearest(keys, 5), compared.nearest(keys, 5)
        assert (
            {phrase for phrase, _ in found[:2]} == {phrase for phrase, _ in expected[:2]} == {'Siobhan', 'Lake Ohrid!'}
        )
        assert [cosine for _, cosine in found] == pytest.approx([cosine for _, cosine in expected], abs=0.02)


def test_an_index_is_of_one_retriever_and_whole(retriever, tmp_path):
    retrieval.build(retriever, pool(3)).write(tmp_path / 'index', retriever.identity)
    index = retrieval.read(tmp_path / 'index', retriever.identity)
    assert index.phrases == pool(3) and not (tmp_path / 'index.part').exists()
    assert index.nearest(retriever.of_speech(speech(1)), 1)[0][0] == 'Siobhan'
    with pytest.raises(ValueError, match=r'is the index of .*, step 7, and not of .*, step 8. Remove it, or give'):
        retrieval.read(tmp_path / 'index', {**retriever.identity, 'step': 8})
    (tmp_path / 'index/index.json').unlink()
    with pytest.raises(ValueError, match='index: is no index of phrases .* Remove it, and it is made again'):
        retrieval.read(tmp_path / 'index', retriever.identity)


def test_another_system_is_refused():
    other = types.SimpleNamespace(system=object(), directory=pathlib.Path('slm'))
    with pytest.raises(ValueError, match=r'slm is object, no phrase retriever. Train one \(gin/runs/phrase_retriever'):
        retrieval.Retriever(other)


@pytest.fixture
def run(retriever, tmp_path, capsys):
    """Runs the program over three recordings; returns its status and what it said."""
    rows = []
    (tmp_path / 'clips').mkdir()
    for number, phrase in enumerate(SAID[1:], 1):
        soundfile.write(tmp_path / f'clips/{number}.wav', speech(0, number), RATE)
        rows.append({'audio': f'{number}.wav', 'text': f'it is {phrase}', 'phrases': [phrase]})
    json_lines.write(tmp_path / 'clips/test.jsonl', rows)
    (tmp_path / 'pool.txt').write_text('\n'.join(pool(40)))

    def call(*options, phrases=tmp_path / 'pool.txt'):
        given = ['--manifest', str(tmp_path / 'clips/test.jsonl'), '--out', str(tmp_path / 'found.jsonl'), *options]
        status = cli.main(['retrieve', 'retriever', str(phrases), *given])
        return status, ''.join(capsys.readouterr())

    return call


def test_candidates_are_found_and_listed(run, tmp_path, vocabulary):
    for index in ('', f'--index={tmp_path / "index"}', f'--index={tmp_path / "index"}'):
        status, said = run('--top_k=2', *filter(None, [index]))
        assert status == 0 and 'recall of 3 phrases that are said, %: @1 100.0  @2 100.0' in said
        assert '43 phrases' in said and '3 queries: keys ' in said
    assert 'indexed' not in said  # it was there
    rows = json_lines.read(tmp_path / 'found.jsonl')
    assert [ctc_text.normalize(row['candidates'][0]) for row in rows] == [*SAID[1:]]
    assert all((tmp_path / row['audio']).exists() and len(row['candidates']) == 2 for row in rows)
    question = queries.Question(listed=phrases.of_option('candidates', ''))
    asked = list(queries.from_manifest(tmp_path / 'found.jsonl', [question], vocabulary, 30.0, Prompt()))
    for query, row in zip(asked, rows, strict=True):
        assert ', '.join(row['candidates']) in query.info['instruction'] and query.transcribed
    with pytest.raises(ValueError, match='test.jsonl:1: no field "candidates", which slm-jax retrieve writes'):
        list(queries.from_manifest(tmp_path / 'clips/test.jsonl', [question], vocabulary, 30.0, Prompt()))


def test_what_cannot_be_done(run, tmp_path):
    assert run(f'--index={tmp_path / "index"}')[0] == 0
    (tmp_path / 'other.txt').write_text('Siobhan\n')
    for options, given, said in (
        (['--top_k=0'], {}, '--top_k 0: a whole number from 1 to 1000 was expected'),
        ([], {'phrases': tmp_path / 'none.txt'}, 'none.txt: cannot be read'),
        ([f'--index={tmp_path / "index"}'], {'phrases': tmp_path / 'other.txt'}, 'index: is not of the phrases of'),
        ([f'--manifest={tmp_path / "none.jsonl"}'], {}, 'none.jsonl: cannot be read'),
    ):
        status, told = run(*options, **given)
        assert status == 2 and said in told and 'Traceback' not in told
