"""Corpora of the tiny foundations: what is held out stays out, and what an encoder heard goes with what was said."""

from slm_jax.corpora import splits, text_corpora
from slm_jax.data import json_lines


def test_held_out_sentences_are_nowhere_and_hearsay_is_for_training(tmp_path):
    said = {'train': ['Press one.', 'Hang up!'], 'validation': ['Hold on.'], 'test': ['Press two.']}
    for split in splits.SPLITS:
        rows = [
            {'audio': f'{split}{number}.wav', 'text': text, 'lang': 'en', 'duration': 1.0}
            for number, text in enumerate([*said[split], *(['Press two.'] if split == 'train' else [])])
        ]
        json_lines.write(tmp_path / f'{split}.jsonl', rows)
    heard = tmp_path / 'predictions.jsonl'
    spoken = [
        ('Press one.', 'pres on'),
        ('press one', 'bress won'),
        ('Press one.', ''),
        ('Press one.', 'tread softly'),
        ('Hold on.', 'hol don'),
    ]
    json_lines.write(heard, [{'reference': text, 'prediction': written} for text, written in spoken])
    counts = text_corpora.build(tmp_path / 'out', [str(tmp_path)], num_numerals=10, heard=[heard])

    rows = {
        split: [row for row in json_lines.read(tmp_path / f'out/text_{split}.jsonl') if row['source'] != 'numerals']
        for split in ('train', 'validation')
    }
    assert [(row['text'], row.get('heard')) for row in rows['train']] == [
        ('Press one.', ['pres on', 'bress won']),
        ('Hang up!', None),
    ]
    assert [(row['text'], row.get('heard')) for row in rows['validation']] == [('Hold on.', None)]
    assert (tmp_path / 'out/held_out.txt').read_text().split('\n') == ['hold on', 'press two', '']
    assert counts['speech'] == 2 and counts['held_out'] == 2
