"""The report: complete in itself, well formed, and it shows what it should."""

import base64
import html.parser
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import soundfile

from slm_jax.evaluation import examples, metrics, page, plots, report

VOID = {'meta', 'link', 'br', 'hr', 'img', 'input'}


class Checker(html.parser.HTMLParser):
    """Notes unbalanced tags, repeated ids, and every attribute that could load something."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.ids, self.sources, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == 'id':
                self.ids.append(value)
            if name in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action'):
                self.sources.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.faults.append((tag, self.open[-3:]))
        else:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def some_predictions():
    spoken = [
        ('en', 'Good morning to you.', 'good mourning to you', 'wake/1'),
        ('fr', 'L\'été <b>arrive</b> & "vite"', "l'hiver arrive", 'saison/1'),
        ('zh', '你好世界', '你们世界', 'zh/1'),
        ('ar', 'مرحبا يا صديقي', 'مرحبا', 'ar/1'),
    ]
    asr = [
        {
            'id': f'{identity}-{n}',
            'task': 'asr',
            'lang': lang,
            'instruction': 'Transcribe the speech.',
            'reference': reference,
            'prediction': reference if n % 3 == 2 else prediction,
            'duration': 1.0 + n,
        }
        for n in range(6)
        for lang, reference, prediction, identity in spoken
    ]
    ast = [
        {
            'id': f'ast{n}',
            'task': 'ast',
            'lang': 'fr',
            'target_lang': 'en',
            'reference': 'the cat sleeps on the mat',
            'prediction': 'the cat sleeps' if n else '',
        }
        for n in range(3)
    ]
    slots = [
        {
            'id': 's',
            'task': 'slots',
            'lang': 'en',
            'slot': 'size',
            'reference': 'none',
            'prediction': 'large',
        }
    ]
    return asr + ast + slots


def some_results(predictions, **data):
    return {
        'schema': report.SCHEMA,
        'created': '2026-01-02T03:04:05Z',
        'model': {'directory': 'runs/tiny', 'step': 1234, 'system': 'SLM'},
        'foundations': {
            'llm': {
                'name': 't5_tiny',
                'fingerprint': {'structure': 'ab' * 32, 'content': 'cd' * 32, 'num_params': 9},
            }
        },
        'data': {
            'task': 'prompts',
            'split': 'test',
            'examples': len(predictions),
            'audio_seconds': 60.0,
            **data,
        },
        'decode': {'method': 'beam', 'beam_size': 4},
        'speed': {'seconds': 10.0, 'audio_seconds_per_second': 6.0, 'rtfx': 61.5, 'device': '2 × cpu'},
        'versions': {'slm_jax': '0.1.0'},
        **metrics.score(predictions),
    }


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    predictions = some_predictions()
    tone = (8000 * np.sin(np.arange(8000) / 9)).astype(np.int16)
    samples = {i: tone for i in range(len(predictions))}
    path = report.write(tmp_path_factory.mktemp('report'), some_results(predictions), predictions, samples)
    return path, path.read_text(encoding='utf-8'), predictions


def test_well_formed_and_complete_in_itself(written):
    _, text, _ = written
    checker = Checker()
    checker.feed(text)
    assert not checker.faults and not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert all(s.startswith(('data:audio/mpeg;base64,', '#')) for s in checker.sources)
    assert "default-src 'none'" in text
    assert '61.5×' in text and 'RTFx' in text
    # Names of XML vocabularies are no addresses to fetch.
    assert not re.findall(r'https?://(?!www\.w3\.org/)[^\s"<]+', text)
    assert '<script' not in text


def test_shows_scores_settings_and_fingerprints(written):
    _, text, predictions = written
    scores = metrics.score(predictions)
    checker = Checker()
    checker.feed(text)
    shown = ' '.join(checker.text)
    assert f'{scores["scores"]["transcription"]["fr"]["wer"]:.1f}' in shown
    for expected in (
        'tiny on prompts · test',
        'step 1,234',
        'method=beam, beam_size=4',
        'basic',
        scores['signatures']['bleu'],
        'structure abababab',
        'content cdcdcdcd',
        'slm_jax',
    ):
        assert expected in shown, expected
    assert '<svg' in text and 'aria-label="Word error rate by kind of error"' in text


def test_what_people_wrote_is_text_not_markup(written):
    _, text, _ = written
    assert '<b>arrive' not in text
    assert '&lt;b&gt;arrive&lt;/b&gt; &amp;' in text
    assert '<script>alert' not in page.table('<script>alert(1)</script>', ['a'], [['<script>alert(2)</script>']])


def test_json_and_predictions_come_back(written):
    path, _, predictions = written
    assert json.loads((path.parent / 'results.json').read_text())['scores']['slots']['size']['f1'] == 0.0
    lines = (path.parent / 'predictions.jsonl').read_text(encoding='utf-8').splitlines()
    assert [json.loads(line) for line in lines] == predictions


def test_audio_is_playable_and_capped():
    tone = (8000 * np.sin(np.arange(16000) / 9)).astype(np.int16)
    budget = examples.AudioBudget(len(examples.encode_audio(tone)))
    first, second = budget.player(tone, 'clip "1"'), budget.player(tone, 'clip 2')
    assert 'aria-label="Audio of clip &quot;1&quot;"' in first
    encoded = base64.b64decode(re.search(r'base64,([^"]+)', first)[1])
    decoded, rate = soundfile.read(io.BytesIO(encoded))
    assert rate == 16000 and abs(len(decoded) - 16000) < 3000
    assert 'size limit' in second and '<audio' not in second
    assert budget.player(None, 'x') == ''
    assert len(encoded) < 8000, 'an MP3 of a second is a few kilobytes'


def test_the_worst_come_first_and_the_rest_is_spread():
    predictions = [
        {
            'id': n,
            'lang': 'en',
            'reference': 'a b c d e f g h i j',
            'prediction': ' '.join('abcdefghij'[:n]),
        }
        for n in range(1, 11)
    ]
    errors = examples.errors(predictions, 'basic')
    bad, spread = examples.chosen(predictions, errors, worst=3)['transcription']
    assert bad == [0, 1, 2]
    assert [errors[i] for i in bad] == [90.0, 80.0, 70.0]
    assert errors[spread[0]] == 0.0 and not set(spread) & set(bad) and len(spread) == 3
    assert examples.chosen(predictions, errors, worst=0)['transcription'] == ([], [])
    assert examples.chosen(predictions[-1:], errors[-1:], worst=3)['transcription'] == ([], [0]), 'right is not bad'


def test_alignment():
    assert examples.alignment(['a', 'b', 'c'], ['a', 'x', 'c', 'd']) == [
        ('same', 'a', 'a'),
        ('sub', 'b', 'x'),
        ('same', 'c', 'c'),
        ('ins', '', 'd'),
    ]
    assert examples.alignment(['a', 'b'], []) == [('del', 'a', ''), ('del', 'b', '')]
    assert examples.alignment(['a'], ['a']) == [('same', 'a', 'a')]
    assert [kind for kind, *_ in examples.alignment('你好', '你们')] == ['same', 'sub']


def test_plots_are_xml_in_the_pages_colours():
    scores = {'en': {'wer': 30.0, 'words': 10, 'substitutions': 1, 'deletions': 1, 'insertions': 1}}
    for svg in (
        plots.error_composition(scores, 'A <title> & more'),
        plots.bars(scores, 'wer', 'WER', 'bars'),
        plots.error_by_length([1.0, 2.0], [10.0, 400.0], 'dots'),
    ):
        xml.etree.ElementTree.fromstring(svg)
        assert 'var(--ink' in svg and 'var(--series-1)' in svg
        assert not re.search(r'(fill|stroke): #(?!000000)', svg)
    assert plots.error_composition(scores, 'same') == plots.error_composition(scores, 'same')
    assert plots.error_composition({'zh': {'cer': 1.0}}, 'none') == ''
    assert plots.bars({}, 'wer', 'WER', 'none') == ''
    with_line = {'en': {**scores['en'], 'intervals': {'wer': [20.0, 80.0]}}}
    assert plots.bars(with_line, 'wer', 'WER', 'bars').count('<path') > plots.bars(scores, 'wer', 'WER', 'bars').count(
        '<path'
    )


def test_answers_with_intervals_beside_the_oracle(tmp_path):
    def system(right):
        return [
            {
                'id': n,
                'lang': 'en',
                'reference': 'two',
                'answers': ['two', '2'],
                'prediction': '2' if n < right else 'x',
            }
            for n in range(20)
        ]

    rows = system(8)
    results = {**some_results(rows, oracle='text/predictions.jsonl'), **metrics.score(rows, others=system(16))}
    text = report.write(tmp_path, results, rows).read_text(encoding='utf-8')
    low, high = results['scores']['answers']['en']['intervals']['contains']
    assert f'40.0 [{low:.1f},&nbsp;{high:.1f}]' in text and '[95% bootstrap interval]' in text
    assert 'Beside text/predictions.jsonl' in text and 'percent of them that is kept' in text
    low, high = results['oracle']['shares']['answers']['en']['intervals']['contains']
    assert f'50.0 [{low:.1f},&nbsp;{high:.1f}]' in text
    assert '<dd lang="en" dir="auto">two / 2</dd>' in text
    said = report.summary(results)
    assert (
        f'  en  contains  50.0 [{low:.1f}, {high:.1f}]  F1' in said and 'in percent of text/predictions.jsonl' in said
    )
    checker = Checker()
    checker.feed(text)
    assert not checker.faults and not checker.open


def test_a_control_run_and_skipped_examples_are_said(tmp_path):
    predictions = some_predictions()
    results = some_results(predictions, shuffle_audio=True, skipped=['a.wav: empty'])
    text = report.write(tmp_path / 'new' / 'folder', results, predictions).read_text(encoding='utf-8')
    assert 'audio of another clip' in text and '1 unreadable' in text
    assert '<audio' not in text
