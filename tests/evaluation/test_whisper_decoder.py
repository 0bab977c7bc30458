"""Whisper's own decoder: what it is asked, and that its predictions are those of `slm-jax evaluate`."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from slm_jax import evaluate
from slm_jax.data import json_lines
from slm_jax.evaluation import whisper_decoder
from slm_jax.importers import fetch
from slm_jax.inference import controls


class Deaf:
    """Writes the language and the tenths of a second."""

    languages = frozenset({'en', 'fr'})
    versions = {'faster-whisper': '1.2.3'}

    def __init__(self, path, compute_type, beam_size):
        assert (path.name, compute_type, beam_size) == ('whisper_base', 'float32', 5)

    def transcript(self, samples, language):
        assert samples.dtype == np.int16
        return f'{language} {len(samples) // 1600}'


@pytest.fixture(autouse=True)
def _deaf(monkeypatch):
    monkeypatch.setattr(whisper_decoder, 'Whisper', Deaf)
    monkeypatch.setattr(fetch, 'whole', pathlib.Path)


def run(*argv):
    return whisper_decoder.main([*map(str, argv)])


def test_a_manifest_is_transcribed_and_scored(manifest, tmp_path, capsys):
    out = tmp_path / 'out'
    lines = json_lines.read(manifest)
    lines[1] |= {'target_lang': 'fr', 'answers': ['a']}
    json_lines.write(manifest, [*lines, {'audio': 'gone.wav', 'text': 'x', 'lang': 'en'}])
    assert run(out, '--manifest', manifest) == 2
    assert 'gone.wav: cannot' in capsys.readouterr().err and not out.exists()
    assert run(out, '--manifest', manifest, '--on_bad_example', 'skip') == 0
    said = capsys.readouterr()
    assert 'skipped: ' in said.err and f'report: {out / "report.html"}' in said.out and '  overall  WER' in said.out
    predictions = json_lines.read(out / 'predictions.jsonl')
    assert [row['reference'] for row in predictions] == [line['text'] for line in lines]
    assert [row['prediction'] for row in predictions] == [
        f'{line["lang"]} {int(10 * line["duration"])}' for line in lines
    ]
    results = json.loads((out / 'results.json').read_text())
    assert set(results['scores']) == {'transcription'} and len(results['data']['skipped']) == 1
    assert results['decode']['beam_size'] == 5 and results['speed']['rtfx'] > 0
    assert set(controls.texts_by_id(out / 'predictions.jsonl')) == {f'{manifest}:{n}' for n in range(1, 25)}
    assert evaluate.main(['--predictions', str(out / 'predictions.jsonl'), '--out', str(tmp_path / 'again')]) == 0
    assert json.loads((tmp_path / 'again' / 'results.json').read_text())['scores'] == results['scores']


def test_a_task_is_transcribed(monkeypatch, tmp_path, capsys):
    from slm_jax.data import loader

    asked = {}
    info = types.SimpleNamespace(
        **{'id': 'a', 'task': 't', 'lang': 'fr-CA', 'target_lang': '', 'instruction': 'Transcribe the French speech.'},
        **{'reference': 'oui', 'audio': None, 'seconds': 0.5, 'offset': None, 'phrases': None},
    )
    batch = {
        'speech_samples': np.ones((1, 16000), np.int16),
        'speech_lengths': np.array([8000]),
        'encoder_input_tokens': np.ones((1, 2), np.int32),
        'decoder_target_tokens': np.ones((1, 2), np.int32),
    }

    def load(task, split, **options):
        asked.update(options, task=task, split=split)
        return types.SimpleNamespace(skipped=[], vocabulary=None, examples=lambda: [(batch, [info])])

    monkeypatch.setattr(loader, 'SpeechTextLoader', load)
    assert run(tmp_path / 'out', '--task', 'mine', '--split', 'dev', '--data_dir', 'd') == 0
    assert (asked['task'], asked['split'], asked['data_dir']) == ('mine', 'dev', 'd')
    (row,) = json_lines.read(tmp_path / 'out' / 'predictions.jsonl')
    assert row['prediction'] == 'fr 5' and row['reference'] == 'oui'
    info.instruction = 'Translate this speech to English.'
    assert run(tmp_path / 'no', '--task', 'mine') == 2
    assert "mine: asks 'Translate this speech to English.'. Choose a task of transcripts." in capsys.readouterr().err
    info.instruction, batch['speech_lengths'] = 'Transcribe the speech.', np.array([0])
    assert run(tmp_path / 'no', '--task', 'mine') == 2
    assert "example 'a' has no speech" in capsys.readouterr().err and not (tmp_path / 'no').exists()


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'give one of --task and --manifest'),
        (['--task', 'a', '--manifest', 'b'], 'give one of --task and --manifest'),
        (['--manifest', 'b', '--beam_size', '0'], '--beam_size 0: give a number from 1 on'),
        (['--manifest', 'b', '--model', 'smollm2_135m'], 'smollm2_135m is no Whisper; choose one of whisper_base, '),
        (['--manifest', 'b', '--model', 'none/such'], 'none/such has no config.json, so it is no whole Whisper'),
        (['--manifest', 'absent.jsonl'], 'absent.jsonl: cannot be read'),
        (['--manifest', 'MANIFEST', '--language', 'xx'], "its language is 'xx', and whisper_base knows en, fr. Give"),
    ],
)
def test_errors_say_what_to_do(manifest, tmp_path, argv, message, capsys):
    assert run(tmp_path / 'out', *(manifest if word == 'MANIFEST' else word for word in argv)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_language_that_is_not_known(manifest, tmp_path, capsys):
    json_lines.write(manifest, [{**json_lines.read(manifest)[0], 'lang': ''}])
    assert run(tmp_path / 'out', '--manifest', manifest) == 2
    assert "its language is 'not known', and whisper_base knows en, fr" in capsys.readouterr().err
    assert run(tmp_path / 'out', '--manifest', manifest, '--language', 'fr') == 0


def test_without_faster_whisper(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(fetch, 'whole', pathlib.Path)
    monkeypatch.setitem(sys.modules, 'ctranslate2', None)
    assert run(tmp_path / 'out', '--manifest', manifest) == 2
    assert "pip install 'slm_jax[whisper]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    'SLM_JAX_FOUNDATIONS' not in os.environ or not shutil.which('espeak-ng'),
    reason='SLM_JAX_FOUNDATIONS names no folder with ct2/whisper_base of CTranslate2, or there is no espeak-ng',
)
@pytest.mark.parametrize(('compute_type', 'beam_size'), [('float32', 5), ('int8', 1)])
def test_a_real_whisper_hears(tmp_path, monkeypatch, compute_type, beam_size):
    pytest.importorskip('faster_whisper')
    monkeypatch.undo()
    text = 'The weather is very nice today.'
    subprocess.run(['espeak-ng', '-v', 'en-us', '-w', str(tmp_path / 'a.wav'), text], check=True)
    json_lines.write(tmp_path / 'a.jsonl', [{'audio': 'a.wav', 'text': text, 'lang': 'en'}])
    model = pathlib.Path(os.environ['SLM_JAX_FOUNDATIONS'], 'ct2/whisper_base')
    argv = ('--model', model, '--beam_size', beam_size, '--compute_type', compute_type)
    assert run(tmp_path / 'out', '--manifest', tmp_path / 'a.jsonl', *argv) == 0
    (row,) = json_lines.read(tmp_path / 'out' / 'predictions.jsonl')
    assert row['prediction'].endswith(' is very nice today.')
    (tmp_path / 'broken').mkdir()
    for name in ('config.json', 'tokenizer.json', 'model.bin'):
        (tmp_path / 'broken' / name).write_bytes((model / name).read_bytes()[:20])
    assert run(tmp_path / 'no', '--manifest', tmp_path / 'a.jsonl', '--model', tmp_path / 'broken') == 2
