"""Evaluations side by side."""

import json

from slm_jax.evaluation import side_by_side

SCORES = {
    'before': {'transcription': {'en': {'wer': 40.0, 'cer': 1.0}, 'es': {'wer': 9.96}, 'all': {'wer': 25.0}}},
    'after': {'transcription': {'en': {'wer': 8.04}, 'all': {'wer': 7.0}}, 'slots': {'size': {'f1': 50.0}}},
}


def written(folder):
    for name, scores in SCORES.items():
        (folder / name).mkdir()
        (folder / name / 'results.json').write_text(json.dumps({'scores': scores}))
    return [f'{name}={folder / name}' for name in SCORES]


def test_groups_that_all_have(tmp_path, capsys):
    assert side_by_side.main(written(tmp_path)) == 0
    assert capsys.readouterr().out == 'WER  before  after\n en    40.0    8.0\nall    25.0    7.0\n'


def test_what_cannot_be_compared(tmp_path, capsys):
    given = written(tmp_path)
    assert side_by_side.main([*given, '--metric', 'f1']) == 2
    assert '--metric f1: no group of examples has it in all of before, after.' in capsys.readouterr().err
    assert side_by_side.main([f'x={tmp_path}/none']) == 2
    assert 'none/results.json' in capsys.readouterr().err
