"""Skipped examples: the first on the terminal, all in a file."""

from slm_jax.data import json_lines, notices


def test_a_training_keeps_all_and_lists_the_first(tmp_path, capsys):
    skipped = {'train': [(str(n), f'clip{n}.wav: bad') for n in range(25)], 'validation': []}
    notices.record(tmp_path / 'model', skipped)
    rows = json_lines.read(tmp_path / 'model/skipped.jsonl')
    assert len(rows) == 25 and rows[3] == {'data': 'train', 'id': '3', 'error': 'clip3.wav: bad'}
    notices.remind(tmp_path / 'model', skipped)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == 'train: 25 bad examples skipped:' and len(said) == 22
    assert said[-1] == f'    … and 5 more: {tmp_path}/model/skipped.jsonl'
    assert len(notices.listing('train', ['clip.wav: bad'] * 30).splitlines()) == 2  # of one recording in many tasks
    notices.record(tmp_path / 'model', {'train': []})
    assert not (tmp_path / 'model/skipped.jsonl').exists()
