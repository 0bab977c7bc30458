"""Cards as people read them, and sizes without allocation."""

import json

import pytest

from slm_jax import card

XXL = ['--gin_file=models/slm_xxl.gin']


def test_byte_text():
    assert card.byte_text(999) == '999 B'
    assert card.byte_text(1500) == '1.5 kB'
    assert card.byte_text(999_600) == '1 MB'
    assert card.byte_text(25_842_302_976) == '25.8 GB'
    assert card.byte_text(3 * 10**15) == '3e+03 TB'


def test_the_papers_size_without_allocating_it(capsys):
    assert card.main([*XXL, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found['parts']) == {'speech_encoder', 'adapter', 'llm'}
    adapter, whole = found['parts']['adapter'], found['whole']
    assert adapter['params'] == pytest.approx(156e6, rel=0.02)
    assert adapter['trained'] == adapter['params'] == whole['trained']
    assert adapter['params'] / whole['params'] == pytest.approx(0.01, abs=0.001)
    llm = found['parts']['llm']
    assert llm['params'] == pytest.approx(12.9e9, rel=0.01)
    assert llm['bytes'] == 2 * llm['params'], 'frozen: two bytes each'
    assert adapter['bytes'] == 4 * adapter['params'], 'trained: four bytes each'
    assert whole['bytes_per_device'] == whole['bytes']
    assert card.main([*XXL, '--json', '--frozen_dtype', 'int8']) == 0
    int8 = json.loads(capsys.readouterr().out)
    for part in ('llm', 'speech_encoder'):
        assert 0.5 < int8['parts'][part]['bytes'] / found['parts'][part]['bytes'] < 0.51
        assert int8['parts'][part]['params'] == found['parts'][part]['params']
    assert int8['parts']['adapter'] == adapter


def test_bytes_per_device_of_a_mesh_that_is_not_there(capsys):
    assert card.main([*XXL, '--json', '--mesh', 'data=4,model=8']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['mesh'] == {'data': 4, 'fsdp': 1, 'model': 8}
    llm = found['parts']['llm']
    assert llm['bytes'] / 8 <= llm['bytes_per_device'] < llm['bytes'] / 7.9
    assert card.main([*XXL, '--json', '--mesh', 'data=1,model=1']) == 0
    assert json.loads(capsys.readouterr().out)['whole']['bytes'] == found['whole']['bytes']


def test_table_of_sizes(capsys):
    bindings = ['--gin_file=models/slm_tiny.gin', '--gin.SlmAdapterConfig.num_layers=1']
    assert card.main([*bindings, '--mesh', 'model=3']) == 0
    out = capsys.readouterr().out
    assert 'models/slm_tiny.gin: SLM' in out and 'data 1, fsdp 1, model 3: 3 devices' in out
    assert 'speech_encoder' in out and '100.00%' in out
    assert "note: axis 'heads' of length 4 is not divided by 3 devices" in out


CARD = {
    'name': 'tiny',
    'kind': 'model',
    'step': 1234567,
    'trainable': ['adapter/.*', 'llm/x'],
    'num_params': {'trained': 1000000, 'frozen': 12},
    'licences': [{'what': 'speech', 'licence': 'CC0'}],
    'scores': {'wer': 12.3456789},
    'best': None,
    'config': 'train.train_steps = 7',
    'evaluations': {
        'prompts-test': {
            'step': 5,
            'created': '2026-01-01',
            'normalizers': {'transcription': 'basic'},
            'scores': {'transcription': {'en': {'wer': 12.0, 'cer': 3.0, 'examples': 9}}},
        }
    },
}


def test_a_card_as_text():
    text = card.card_text(CARD)
    for expected in ('tiny', '1,234,567', 'adapter/.*, llm/x', '1,000,000', 'CC0', '12.35', '–'):
        assert expected in text
    assert 'evaluation prompts-test, step 5' in text
    assert 'WER  12.0  CER   3.0  (9 examples)' in text
    assert 'train_steps' not in text
    assert 'train.train_steps = 7' in card.card_text(CARD, config=True)


def test_a_card_in_a_directory(tmp_path, capsys):
    (tmp_path / 'card.json').write_text(json.dumps(CARD), encoding='utf-8')
    assert card.main([str(tmp_path)]) == 0
    assert 'licence' in capsys.readouterr().out
    assert card.main([str(tmp_path), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == CARD


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'give MODEL'),
        (['x', '--gin_file=models/slm_tiny.gin'], 'not both'),
        (['nowhere'], "No foundation 'nowhere'"),
        (['--gin_file=models/slm_tyny.gin'], "Did you mean 'models/slm_tiny.gin'"),
        (['--gin_file=models/usm_tiny.gin'], 'names no system'),
        (['--gin_file=models/slm_tiny.gin', '--mesh', 'modle=8'], "no axis 'modle'"),
        (['--gin_file=models/slm_tiny.gin', '--mesh', 'model'], 'write NAME=VALUE'),
        (['--gin_file=models/slm_tiny.gin', '--gin.SlmAdapterConfig.depth=1'], 'Did you mean'),
    ],
)
def test_errors_say_what_to_do(argv, message, capsys):
    assert card.main(argv) == 2
    assert message in capsys.readouterr().err
