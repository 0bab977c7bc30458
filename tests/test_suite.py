"""`slm-jax evaluate --suite`: each part with its controls, in one report."""

import json

from test_evaluate import read, run

from slm_jax.data import seen
from slm_jax.evaluation import suite_report


def test_a_suite_has_its_controls(world, manifest, tmp_path, capsys):
    data, suite_file = tmp_path / 'data', tmp_path / 'two.gin'
    data.mkdir()
    more = {'answers': ['two'], 'answer': 'two', 'cluster': 'all'}
    lines = [{**line, 'id': str(n), **more} for n, line in enumerate(read(manifest)[:4])]
    for line in lines:
        line['audio'] = str(manifest.with_name(line['audio']))
    (data / 'asked.jsonl').write_text(''.join(json.dumps({**line, 'choices': ['two', 'six']}) + '\n' for line in lines))
    suite_file.write_text("""
from __gin__ import dynamic_registration
from slm_jax import suite
a/suite.Part:
  name = 'questions'
  manifest = 'asked.jsonl'
  instruction = 'Answer.'
  reference_field = 'answers'
  wordings = {'loud': 'ANSWER.'}
b/suite.Part:
  name = 'chosen'
  manifest = 'asked.jsonl'
  reference_field = 'answer'
  instruction = 'Answer.'
  score_choices = True
  written = True
suite.Suite.parts = [@a/suite.Part(), @b/suite.Part()]
""")
    out = tmp_path / 'out'
    met = {'instructions': seen.hashes(['answer']), 'targets': seen.hashes([lines[0]['text'].upper() + '!'])}
    seen.write(world / 'slm', met)
    assert run(world / 'slm', '--suite', suite_file, '--suite_data', data, '--out', out) == 0
    said = capsys.readouterr().out
    assert 'true transcript' in said and f'report: {out}/report.html' in said
    parts = json.loads((out / 'results.json').read_text())['parts']
    assert {name: part['metric'] for name, part in parts.items()} == {'questions': 'contains', 'chosen': 'accuracy'}
    for name, part in parts.items():
        assert set(part['controls']) == {'speech', 'oracle', 'cascade', 'wrong_audio'}
        assert part['controls']['speech']['intervals'] == {}, 'all four lines are one cluster'
        wrong = json.loads((out / name / 'wrong_audio' / 'results.json').read_text())
        assert wrong['data']['shuffle_audio'] and wrong['data']['oracle'] == str(
            out / name / 'oracle/predictions.jsonl'
        )
        texts = {row['id']: row['prediction'] for row in read(out / name / 'transcripts' / 'predictions.jsonl')}
        assert set(texts) == {line['id'] for line in lines}
    written = parts['chosen']['written']
    assert (written['kind'], written['metric'], parts['questions']['written']) == ('answers', 'f1', None)
    assert set(written['controls']) == set(written['follows']) == set(parts['chosen']['controls'])
    assert written['controls']['speech']['examples'] == 4 and 0 <= written['controls']['oracle']['f1'] <= 100
    assert parts['chosen']['controls']['speech']['perplexity'] > 1 and 'chosen, of the right one' in said
    assert 'chosen, as written' in said
    assert set(parts['questions']['wordings']) == {'loud'} and parts['chosen']['follows']['speech'] is None
    assert 0 <= parts['questions']['follows']['speech'] <= 100
    assert parts['questions']['seen'] == {'instructions': 100.0, 'answers': 0.0, 'sentences': 25.0}
    page = (out / 'report.html').read_text()
    assert 'ANSWER.' in page and '<svg' in page and 'no <code>seen.npz</code>' not in page
    results = json.loads((out / 'results.json').read_text())
    results['parts'] = {name: {**part, 'seen': None} for name, part in parts.items()}
    assert 'no <code>seen.npz</code>' in suite_report.render(results), 'what is not known is said not to be'

    for change, message in (
        (('--suite_data', tmp_path), "asked.jsonl: the recordings of 'questions' are not there. --suite_data names"),
        (('--suite_data', data, '--slots', 'all'), '--suite: its parts say what is asked; leave out --slots.'),
        (('--suite_data', data, '--suite', 'zero_shots'), 'zero_shots.gin'),
    ):
        assert run(world / 'slm', '--suite', suite_file, *change, '--out', tmp_path / 'no') == 2
        assert message in capsys.readouterr().err
    (data / 'asked.jsonl').write_text(json.dumps({**lines[0], 'text': None}) + '\n')
    assert run(world / 'slm', '--suite', suite_file, '--suite_data', data) == 2
    assert 'asked.jsonl:1: a line of a suite needs "id" and "text"' in capsys.readouterr().err
