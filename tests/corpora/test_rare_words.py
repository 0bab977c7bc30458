"""Rare words as phrases: those that training never met, or that are not among its most frequent."""

import pytest

from slm_jax.corpora import rare_words
from slm_jax.data import json_lines


@pytest.fixture
def files(tmp_path):
    (tmp_path / 'there').mkdir()
    texts = ['Please call her now.', 'Please call Margaret.', 'Please call the office.']
    json_lines.write(tmp_path / 'train.jsonl', [{'text': text} for text in texts])
    rows = [{'audio': 'a.wav', 'text': 'Call Siobhan, please, and Margaret.'}, {'audio': 'b.wav', 'text': 'Call her.'}]
    json_lines.write(tmp_path / 'there/test.jsonl', rows)
    return tmp_path / 'train.jsonl', tmp_path / 'there/test.jsonl', tmp_path / 'out.jsonl', tmp_path / 'pool.txt'


def test_phrases_are_words_that_were_not_met(files):
    assert rare_words.write(*files) == (2, 1, 1)
    rows = json_lines.read(files[2])
    assert [(row['audio'], row['phrases']) for row in rows] == [('there/a.wav', ['siobhan']), ('there/b.wav', [])]
    assert files[3].read_text() == 'siobhan\n'


def test_or_that_are_not_frequent(files):
    assert rare_words.write(*files, common=2) == (2, 1, 3)
    assert json_lines.read(files[2])[0]['phrases'] == ['siobhan', 'margaret']
    assert files[3].read_text().split() == ['margaret', 'office', 'siobhan']


def test_what_cannot_be(files, capsys):
    train, _, out, pool = files
    with pytest.raises(ValueError, match='all its words are in .*train.jsonl. Give texts of another kind, or --common'):
        rare_words.write(train, train, out, pool)
    assert not out.exists()
    json_lines.write(train, [{'audio': 'a.wav'}])
    with pytest.raises(SystemExit, match='2'):
        rare_words.main([str(train), str(train), str(out), '--pool', str(pool)])
    assert 'object 1: field "text" is missing. Give a manifest with transcripts' in capsys.readouterr().err
