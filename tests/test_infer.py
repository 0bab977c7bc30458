"""Inference over generated tones with a model that says how long each one is."""

import io
import json
import types

import numpy as np
import pytest
import soundfile

from slm_jax import evaluate, infer

RATE = 16000


class Seconds:
    """Answers a clip by its length in tenths of a second; notes the shapes it was asked with."""

    text_vocabulary = None
    text_first = True
    row_multiple = 1
    max_seconds = 5.0

    def __init__(self):
        self.shapes, self.transcribed = [], []

    def texts(self, batch):
        self.shapes.append(batch['speech_samples'].shape)
        self.transcribed += batch['transcribed'][: np.sum(batch['speech_lengths'] > 0)].tolist()
        return [f'heard {round(10 * n / RATE)}' for n in batch['speech_lengths']]


@pytest.fixture
def model(monkeypatch):
    model = Seconds()
    monkeypatch.setattr(evaluate, 'load_model', lambda name, args: model)
    return model


@pytest.fixture
def tone(tmp_path):
    def write(name, *seconds):
        """Tone, pause, tone, pause …"""
        parts = []
        for number, length in enumerate(seconds):
            time = np.arange(round(length * RATE)) / RATE
            parts.append((0 if number % 2 else 9000) * np.sin(2 * np.pi * 440 * time))
        samples = np.concatenate(parts).astype(np.int16)
        soundfile.write(tmp_path / name, samples, RATE)
        return str(tmp_path / name)

    return write


@pytest.fixture
def stdin(monkeypatch):
    def put(content):
        stream = types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)))
        monkeypatch.setattr('sys.stdin', stream)

    return put


def run(*argv):
    return infer.main([*argv, '--model', 'fake'])


def test_one_file_is_its_text(model, tone, capsys):
    assert run(tone('a.wav', 1.2)) == 0
    assert capsys.readouterr().out == 'heard 12\n'


def test_segments_of_a_manifest(model, tone, tmp_path, capsys):
    tone('long.wav', 3.0)
    lines = [{'audio_filepath': 'long.wav', 'offset': o, 'duration': d} for o, d in ((0, 1.2), (1.5, 0.5), (2, 4))]
    (tmp_path / 'm.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert run('--manifest', str(tmp_path / 'm.jsonl'), '--format', 'json') == 1
    *found, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(row['offset'], row['duration'], row['text']) for row in found] == [
        (0.0, 1.2, 'heard 12'),
        (1.5, 0.5, 'heard 5'),
    ]
    assert 'a segment of 4 s from 2 s on' in bad['error'] and '3.00 s' in bad['error']


def test_many_files_are_batched_and_come_out_in_order(model, tone, capsys):
    lengths = [1.2, 3.1, 0.4, 1.4, 2.9, 1.3]
    files = [tone(f'{i}.wav', seconds) for i, seconds in enumerate(lengths)]
    assert run(*files) == 0
    expected = [f'{f}\theard {round(10 * s)}' for f, s in zip(files, lengths, strict=True)]
    assert capsys.readouterr().out.splitlines() == expected
    assert len(model.shapes) == 2, 'one batch for each length class'
    assert sorted(model.shapes) == [(2, 4 * RATE), (4, 2 * RATE)]


def test_json(model, tone, capsys):
    assert run(tone('a.wav', 1.2), '--format', 'json', '--instruction', 'What?') == 0
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found.pop('audio').endswith('a.wav')
    assert found == {'instruction': 'What?', 'text': 'heard 12', 'duration': 1.2}


def test_a_bad_file_does_not_stop_the_others(model, tone, tmp_path, capsys):
    (tmp_path / 'bad.wav').write_bytes(b'no audio')
    files = [tone('a.wav', 1.2), str(tmp_path / 'bad.wav'), 'absent.wav', tone('b.wav', 1.4)]
    assert run(*files) == 1
    out, err = capsys.readouterr()
    assert [line.split('\t')[1] for line in out.splitlines()] == ['heard 12', 'heard 14']
    assert 'bad.wav: not audio' in err and 'absent.wav: cannot be opened' in err
    assert run(*files, '--format', 'json') == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ['error' in line for line in lines] == [False, True, True, False]


def test_only_bad_files(model, capsys):
    assert run('absent.wav') == 1
    out, err = capsys.readouterr()
    assert out == '' and 'absent.wav' in err
    assert model.shapes == []


def test_long_audio_is_an_error_unless_cut(model, tone, capsys):
    file = tone('long.wav', 4.0, 0.4, 3.6, 0.4, 2.0)
    assert run(file) == 1
    assert '10.4 s is longer than the 5 s' in capsys.readouterr().err
    assert run(file, '--max_seconds', '60') == 0
    assert capsys.readouterr().out == 'heard 104\n'
    assert run(file, '--chunk_seconds', '5') == 0
    assert capsys.readouterr().out == 'heard 42 heard 40 heard 22\n'


def test_srt_and_vtt_of_chunks(model, tone, capsys):
    file = tone('long.wav', 4.0, 0.4, 3.6)
    assert run(file, '--chunk_seconds', '5', '--format', 'srt') == 0
    assert capsys.readouterr().out == (
        '1\n00:00:00,000 --> 00:00:04,205\nheard 42\n\n2\n00:00:04,205 --> 00:00:08,000\nheard 38\n'
    )
    assert run(file, '--chunk_seconds', '5', '--format', 'vtt') == 0
    assert capsys.readouterr().out.startswith('WEBVTT\n\n00:00:00.000 --> 00:00:04.205\nheard 42\n')


def test_subtitles_of_many_files_need_a_folder(model, tone, tmp_path, capsys):
    files = [tone('a.wav', 1.0), tone('b.wav', 2.0)]
    assert run(*files, '--format', 'srt') == 2
    assert '--out says the folder' in capsys.readouterr().err
    out = tmp_path / 'new'
    assert run(*files, '--format', 'srt', '--out', str(out)) == 0
    assert (out / 'b.srt').read_text() == '1\n00:00:00,000 --> 00:00:02,000\nheard 20\n'
    (tmp_path / 'other').mkdir()
    assert run(files[0], tone('other/a.wav', 1.0), '--format', 'vtt', '--out', str(out)) == 2
    assert 'would both become a.vtt' in capsys.readouterr().err


def test_overlapping_chunks_are_joined_once(model, tone, capsys):
    file = tone('long.wav', 4.0, 0.4, 3.6)
    assert run(file, '--chunk_seconds', '5', '--overlap', '1', '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found['chunks']
    assert first['end'] - second['start'] == pytest.approx(1.0, abs=1e-3)
    assert found['text'] == f'{first["text"]} {second["text"]}', 'nothing in common, nothing lost'


def test_a_manifest_has_its_own_instructions(model, tone, tmp_path, capsys):
    rows = [
        {'audio': tone('a.wav', 1.0), 'instruction': 'Say it in {language}.', 'lang': 'fr'},
        {'text': 'no audio here'},
        {'audio': tone('b.wav', 2.0)},
    ]
    path = tmp_path / 'm.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert run('--manifest', str(path), '--format', 'json') == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get('text') for line in lines] == ['heard 10', None, 'heard 20']
    assert 'm.jsonl:2: field "audio" is missing' in lines[1]['error']
    assert lines[0]['instruction'] == 'Say it in French.'
    assert lines[2]['instruction'] == 'Transcribe the speech.'
    assert sorted(model.transcribed) == [False, True]


def test_stdin_takes_files_and_raw_samples(model, tone, stdin, capsys):
    with open(tone('a.wav', 1.2), 'rb') as file:
        stdin(file.read())
    assert run('-') == 0
    stdin(np.zeros(2 * RATE, np.int16).tobytes())
    assert run('-') == 0
    assert capsys.readouterr().out == 'heard 12\nheard 20\n'
    stdin(b'')
    assert run('-') == 1
    assert 'standard input: holds no samples' in capsys.readouterr().err
    assert run('-', 'a.wav') == 2
    assert 'stands alone' in capsys.readouterr().err


@pytest.mark.parametrize('form', ['text', 'srt', 'vtt'])
def test_a_stream_is_answered_as_a_file_would_be(model, tone, stdin, capsys, form):
    file = tone('long.wav', 4.0, 0.4, 3.6, 0.4, 2.0)
    samples, _ = soundfile.read(file, dtype='int16')
    chunked = ('--chunk_seconds', '5', '--format', form)
    stdin(samples.tobytes())
    assert run('-', *chunked) == 0
    live = capsys.readouterr().out
    assert run(file, *chunked) == 0
    whole = capsys.readouterr().out
    assert live == whole if form != 'text' else live.split() == whole.split()
    with open(file, 'rb') as content:
        stdin(content.read())
    assert run('-', *chunked) == 0
    assert capsys.readouterr().out == whole, 'a WAV on the pipe'


def test_a_stream_as_json_lines(model, stdin, capsys):
    stdin(np.zeros(2 * RATE, np.int16).tobytes())
    assert run('-', '--chunk_seconds', '5', '--format', 'json') == 0
    assert json.loads(capsys.readouterr().out) == {'start': 0.0, 'end': 2.0, 'text': 'heard 20'}


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'give recordings'),
        (['a.wav', '--overlap', '1'], 'only with --chunk_seconds'),
        (['a.wav', '--chunk_seconds', '-1'], 'chunk_seconds must be above 0'),
        (['a.wav', '--chunk_seconds', '9'], 'takes 5 s at once'),
        (['a.wav', '--instruction', 'To {target_language}.'], 'target language is not known'),
        (['--manifest', 'absent.jsonl'], 'absent.jsonl: cannot be read'),
    ],
)
def test_wrong_arguments(model, argv, message, capsys):
    assert run(*argv) == 2
    assert message in capsys.readouterr().err


def test_no_model(monkeypatch, capsys):
    from slm_jax import foundations

    monkeypatch.setattr(foundations, 'known', lambda: [])
    assert infer.main(['a.wav']) == 2
    assert '--model is missing' in capsys.readouterr().err


def test_a_packaged_model_is_the_default(monkeypatch):
    from slm_jax import foundations

    cards = {'usm_tiny': {'kind': 'speech_encoder'}, 'slm_tiny': {'kind': 'model'}}
    monkeypatch.setattr(foundations, 'known', lambda: sorted(cards))
    monkeypatch.setattr(foundations, 'card', cards.get)
    assert infer.packaged_model() == 'slm_tiny'


def test_the_packaged_model_belongs_to_the_packaged_foundations(tone, capsys):
    """It is the default, finds them by name, and its fingerprints are theirs."""
    assert infer.main([tone('a.wav', 1.0), '--max_decode_length', '4']) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
