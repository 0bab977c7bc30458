"""Spoken sentences: sentences and voices of one split are in no other, and a run goes on where it was broken off."""

import pathlib
import random

import numpy as np
import pytest
import soundfile

from slm_jax.corpora import spoken_sentences, voices
from slm_jax.data import json_lines
from slm_jax.evaluation import normalizers

_RATE = 24_000


class _Engines:
    """Every voice hums for 0.1 s a word; `dumb` sentences it does not read."""

    def __init__(self, kokoro):
        self.read_texts = []

    def voices(self, engine, lang):
        return ['af_heart', 'am_puck', 'af_bella'] if engine == 'kokoro' else ['one']

    def read(self, engine, voice, text, lang, speed):
        if 'dumb' in text:
            raise ValueError(f'{voice} is dumb')
        self.read_texts.append(text)
        assert 0.8 < speed < 1.25
        return np.sin(np.arange(len(text.split()) * _RATE // 10) / 10).astype(np.float32), _RATE


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Reads sentences aloud into tmp_path/out; returns what was told and the texts that were read."""
    monkeypatch.setattr(voices, 'kokoro_files', lambda voices, out: None)
    monkeypatch.setattr(spoken_sentences, 'SHARES', {'en': {'kokoro': 1, 'pico': 1}})

    def read(rows, **options):
        json_lines.write(tmp_path / 'sentences.jsonl', rows)
        engines = _Engines('')
        monkeypatch.setattr(spoken_sentences, '_engines', lambda kokoro: engines)
        return spoken_sentences.write(tmp_path / 'sentences.jsonl', tmp_path / 'out', '', **options), engines.read_texts

    return read


def _rows(number):
    return [
        {'text': f'One two three four number {n}', 'lang': 'en', 'source': 'x', 'split': split}
        for n, split in zip(range(number), ['train', 'train', 'validation', 'test'] * number)
    ]


def test_voices_of_one_split_are_in_no_other(run, tmp_path):
    told, _ = run(_rows(40), readings=2)
    assert {split: clips for split, (clips, _) in told.items()} == {'train': 40, 'validation': 20, 'test': 20}
    rows = {split: json_lines.read(tmp_path / f'out/{split}.jsonl') for split in told}
    speakers = {split: {row['speaker'] for row in part} for split, part in rows.items()}
    assert speakers['train'] == {'kokoro/af_heart', 'pico/one'}
    assert speakers['validation'] == {'kokoro/am_puck'} and speakers['test'] == {'kokoro/af_bella'}
    assert len({row['id'] for part in rows.values() for row in part}) == 80
    for row in rows['train']:
        assert set(row) == set(spoken_sentences.FIELDS)
        info = soundfile.info(tmp_path / 'out' / row['audio'])
        assert info.samplerate == 16_000 and info.duration == pytest.approx(row['duration'], abs=1e-3)
    assert len({row['duration'] for row in rows['train']}) > 20
    assert {row['duration'] for row in rows['test']} == {0.6}


def test_what_else_a_line_has_reaches_the_manifest(run, tmp_path):
    run([{**row, 'answers': [f'{n}', 'none']} for n, row in enumerate(_rows(4))])
    (row,) = json_lines.read(tmp_path / 'out/test.jsonl')
    assert list(row) == [*spoken_sentences.FIELDS, 'answers'] and row['answers'] == ['3', 'none']
    with pytest.raises(ValueError, match=r"object 1 has the field 'duration', which is written of its clip. Rename it"):
        run([{**_rows(1)[0], 'duration': 3}])


def test_the_questions_of_the_package_have_answers():
    rows = json_lines.read(pathlib.Path(spoken_sentences.__file__).with_name('questions.jsonl'))
    assert len({row['text'] for row in rows}) == 100
    for row in rows:
        assert (row['lang'], row['source'], row['split']) == ('en', 'questions', 'test') and row['text'][-1] == '?'
        assert row['answers'] and all(normalizers.squad(answer) for answer in row['answers'])
        assert not any(
            f' {normalizers.squad(answer)} ' in f' {normalizers.squad(row["text"])} ' for answer in row['answers']
        )


def test_a_run_that_was_broken_off_goes_on(run, tmp_path):
    run(_rows(8))
    out = tmp_path / 'out'
    whole = {path.name: path.read_bytes() for path in [*out.glob('*.jsonl'), *out.glob('audio/*')]}
    lines = (out / 'done.jsonl').read_text().splitlines(keepends=True)
    (out / 'done.jsonl').write_text(''.join(lines[:4]) + lines[4][:20])
    _, read = run(_rows(8))
    assert read == [f'One two three four number {n}' for n in range(3, 8)]
    assert whole == {path.name: path.read_bytes() for path in [*out.glob('*.jsonl'), *out.glob('audio/*')]}
    with pytest.raises(
        ValueError, match=r"done.jsonl is of another run \(seed: .*'seed': 0}, not .*'seed': 1}\). Give another OUT"
    ):
        run(_rows(8), seed=1)


def test_sentences_that_are_not_read_are_left_out_and_many_stop_it(run, tmp_path):
    dumb = {'text': 'all are dumb here', 'lang': 'en', 'source': 'x', 'split': 'train'}
    told, _ = run([dumb, *_rows(8)])
    assert told['train'][0] == 4
    (tmp_path / 'out/done.jsonl').unlink()
    with pytest.raises(RuntimeError, match=r'6 sentences were not read; .* is dumb'):
        run([dumb] * 9 + _rows(8))


def test_sentences_without_a_split_are_refused(run, tmp_path):
    with pytest.raises(
        ValueError, match=r'sentences.jsonl: object 2 needs text, source, lang \(en\) and split \(train, '
    ):
        run([*_rows(1), {'text': 'no split', 'lang': 'en', 'source': 'x'}])
    assert not (tmp_path / 'out').exists()


def test_a_reading_too_short_or_too_long_is_none(monkeypatch):
    monkeypatch.setattr(spoken_sentences, 'SHARES', {'en': {'pico': 1}})
    for text in ('one', 'word ' * 250):
        with pytest.raises(ValueError, match=r'pico/one read .* in \d+\.\d s'):
            spoken_sentences.read_aloud(_Engines(''), {'text': text, 'lang': 'en', 'split': 'train'}, random.Random(0))
