"""Splitting a manifest: whole speakers, paths that still lead to the recordings."""

import json

import pytest

from slm_jax.corpora import splits
from slm_jax.data import json_lines, manifests


@pytest.mark.parametrize('field', manifests.AUDIO)
def test_paths_lead_to_the_recordings_from_elsewhere(tmp_path, field):
    (tmp_path / 'in').mkdir()
    rows = [{field: f'{who}.wav', 'speaker': who, 'text': 'a\u2028b', 'duration': '1800'} for who in 'abc']
    json_lines.write(tmp_path / 'in/all.jsonl', rows)
    counts = splits.split_manifest(
        tmp_path / 'in/all.jsonl', tmp_path / 'out/deep', 'speaker', test=('a',), validation=('b',)
    )
    assert counts == {split: (1, 0.5) for split in splits.SPLITS}
    for split, who in zip(splits.SPLITS, 'cba', strict=True):
        (example,) = manifests.read(tmp_path / f'out/deep/{split}.jsonl')
        assert example['audio'] == str(tmp_path / f'in/{who}.wav') and example['text'] == 'a\u2028b'


def test_a_source_that_is_no_recording_stays(tmp_path):
    json_lines.write(tmp_path / 'all.jsonl', [{'audio': 'a.wav', 'source': 'common_voice', 'speaker': 1}])
    splits.split_manifest(tmp_path / 'all.jsonl', tmp_path / 'out', 'speaker', test=('1',))
    (row,) = json_lines.read(tmp_path / 'out/test.jsonl')
    assert row == {'audio': str(tmp_path / 'a.wav'), 'source': 'common_voice', 'speaker': 1}


@pytest.mark.parametrize(
    'line, said',
    [
        (json.dumps({'audio': 'a'}), "no field 'speaker'"),
        (json.dumps({'audio': 'a', 'speaker': 1, 'duration': 'x'}), '"duration" is \'x\''),
        ('[]', 'JSON object'),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    (tmp_path / 'all.jsonl').write_text(line)
    with pytest.raises(ValueError, match=f'all.jsonl:1: .*{said}'):
        splits.split_manifest(tmp_path / 'all.jsonl', tmp_path / 'out', 'speaker')
