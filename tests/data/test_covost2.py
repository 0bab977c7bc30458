"""CoVoST 2 on three clips: tables are joined, splits are CoVoST's, the manual part is asked for."""

import pytest
import tensorflow_datasets as tfds

from slm_jax.data import covost2

VALIDATED = """client_id\tpath\tsentence\tup_votes
s1\ta.mp3\tIl dit "bonjour\t2
s2\tb.mp3\tAu revoir.\t2
s3\tc.mp3\tMerci.\t2
s4\td.mp3\tJamais traduit.\t2
s5\te.mp3\tOui.\t2
"""
TABLE = """path\ttranslation\tsplit\tclient_id
a.mp3\tHe says "hello\ttrain\ts1
b.mp3\tGoodbye.\tdev\ts2
c.mp3\tThanks.\ttrain_covost\ts3
e.mp3\tYes.\ttest\ts5
f.mp3\tGone.\ttest\ts6
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    unpacked = tmp_path / 'unpacked'
    unpacked.mkdir()
    (unpacked / 'covost_v2.fr_en.tsv').write_text(TABLE, encoding='utf-8')
    monkeypatch.setattr(tfds.download.DownloadManager, 'download_and_extract', lambda self, url: unpacked)


def prepare(tmp_path):
    builder = covost2.Covost2(config='fr_en', data_dir=tmp_path / 'data')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / 'manual'))
    return builder


def test_builder(table, tmp_path, capsys):
    clips = tmp_path / 'manual/fr/clips'
    clips.mkdir(parents=True)
    (clips.parent / 'validated.tsv').write_text(VALIDATED, encoding='utf-8')
    for name in 'abcde':
        (clips / f'{name}.mp3').write_bytes(name.encode())
    builder = prepare(tmp_path)
    assert 'covost2/fr_en test: 1 of 2 translated clips are left out' in capsys.readouterr().err
    found = {
        split: sorted(
            (e['id'], e['audio'], e['text'].decode(), e['translation'].decode(), e['client_id'])
            for e in builder.as_dataset(split=split).as_numpy_iterator()
        )
        for split in builder.info.splits
    }
    assert found == {
        'train': [
            (b'a.mp3', b'a', 'Il dit "bonjour', 'He says "hello', b's1'),
            (b'c.mp3', b'c', 'Merci.', 'Thanks.', b's3'),
        ],
        'validation': [(b'b.mp3', b'b', 'Au revoir.', 'Goodbye.', b's2')],
        'test': [(b'e.mp3', b'e', 'Oui.', 'Yes.', b's5')],
    }


def test_the_manual_download_is_asked_for(table, tmp_path):
    (tmp_path / 'manual/de').mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError,
        match=r'(?s)fr holds no validated.tsv.*mozilladatacollective\.com.*MANUAL_DIR/LANGUAGE holds clips/',
    ):
        prepare(tmp_path)


def test_all_pairs():
    names = [config.name for config in covost2.Covost2.BUILDER_CONFIGS]
    assert len(names) == 21 + 15 and 'zh-CN_en' in names and 'en_sv-SE' in names
