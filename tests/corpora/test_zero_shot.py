"""The program that reads the suite's sets aloud, by a voice that hums."""

import collections

import pytest

from slm_jax.corpora import zero_shot
from slm_jax.data import json_lines, manifests

SETS = {'questions', 'passages', 'asked', 'dialogs', 'endings', 'quiz'}


@pytest.fixture
def run(tmp_path, hum, capsys):
    """Runs the program over the first clips of each set; returns its status and what it said."""

    def call(*options, out='out', voice=f'amy={hum} {{out}} {{text}} {{speed}}', limit=4):
        limit = [f'--limit={limit}'] if limit else []
        status = zero_shot.main([str(tmp_path / out), f'--voice={voice}', '--processes=1', *limit, *options])
        return status, ''.join(capsys.readouterr())

    return call


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob('*.flac')}


def test_sets_are_manifests_whose_pairs_stay_together(run, tmp_path):
    assert run()[0] == 0
    out = tmp_path / 'out'
    assert {path.stem for path in out.glob('*.jsonl')} == SETS
    rows = {name: json_lines.read(out / f'{name}.jsonl') for name in SETS}
    for name, lines in rows.items():
        assert len({row['audio'] for row in lines}) == 4 and all(row['text'] and row['id'] for row in lines)
        for line in manifests.read(out / f'{name}.jsonl'):
            assert not line['error'] and line['audio'].startswith(str(out / 'spoken' / name))
    for name in ('endings', 'dialogs'):
        texts = [{'audio': 'a.flac', **row} for row in zero_shot._texts()[name][0]]
        pairs = collections.Counter(zero_shot._line(name, row)['cluster'] for row in texts)
        assert set(pairs.values()) == {2}, 'each pair shares its choices'
        assert {row['cluster'] for row in rows[name]} <= set(pairs)
    for name in ('passages', 'asked'):
        by_story = collections.defaultdict(set)
        for row in rows[name]:
            by_story[row['cluster']].add(row['text'] if name == 'passages' else row['instruction'])
        assert all(len(stories) == 1 for stories in by_story.values())
        assert len(rows[name]) > len(by_story)
    assert 'cluster' not in rows['questions'][0] and len({row['cluster'] for row in rows['quiz']}) == 4
    for row in rows['dialogs']:
        assert row['answer'] in row['choices']


def test_a_run_that_was_broken_off_goes_on(run, tmp_path):
    assert run(limit=2)[0] == 0
    out = tmp_path / 'out'
    spoken, quiz = files(out), (out / 'quiz.jsonl').read_bytes()
    (out / 'quiz.jsonl').unlink()
    assert run(limit=2)[0] == 0
    assert files(out) == spoken and len(spoken) == 12, 'nothing is read twice'
    assert (out / 'quiz.jsonl').read_bytes() == quiz
    status, said = run(limit=3)
    assert status == 2 and 'and was not made by this command. Give another OUT, or remove it' in said


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'voice': 'nobody'}, '--voice nobody: there are '),
        ({'voice': 'amy=false {out}'}, 'amy'),
        ({'out': 'file/out'}, 'file'),
    ],
)
def test_what_cannot_be_read_aloud_is_said(run, tmp_path, options, said):
    (tmp_path / 'file').write_text('')
    status, output = run(limit=1, **options)
    assert status not in (0, None) and said in output and 'Traceback' not in output
    assert not [*tmp_path.glob('out/*.jsonl')]
