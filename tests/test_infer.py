"""Inference over generated tones with a model that says how long each one is."""

import io
import json
import pathlib
import types

import numpy as np
import pytest
import soundfile

from slm_jax import decoding, infer, model_arguments
from slm_jax.data import prompts
from slm_jax.inference import asking
from slm_jax.inference import model as model_lib

RATE = 16000


class Words:
    """A vocabulary: a word is its length."""

    def encode(self, text):
        return [1 + len(word) for word in text.split()]


class Seconds(model_lib.Model):
    """Answers a clip by its length in tenths of a second, silence by nothing; notes the shapes it was asked with."""

    row_multiple, text_vocabulary = 1, Words()

    def __post_init__(self):
        self.shapes, self.transcribed = [], []

    def answers(self, batch):
        self.shapes.append(batch['speech_samples'].shape)
        self.transcribed += batch['transcribed'][: np.sum(batch['speech_lengths'] > 0)].tolist()
        return [self.answer(row[:n]) for row, n in zip(batch['speech_samples'], batch['speech_lengths'], strict=True)]

    def answer(self, samples):
        text = f'heard {round(10 * len(samples) / RATE)}' if samples.any() else ''
        limit = self.decode.max_decode_length
        return model_lib.Answer(text[:limit], 'max_decode_length' if len(text) > limit else '')


@pytest.fixture
def model(monkeypatch):
    system = types.SimpleNamespace(max_seconds=None)
    decode = decoding.DecodeConfig(ctc_weight=0.3, max_decode_length=99)
    model = Seconds(
        pathlib.Path('fake'),
        {},
        1,
        system,
        {'speech_encoder': {}, 'llm': {}},
        {},
        decode,
        None,
        prompts.Prompt(),
        5.0,
        0.0,
        None,
        None,
    )
    monkeypatch.setattr(model_arguments, 'load', lambda name, args: model)
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
    assert found == {'instruction': 'What?', 'text': 'heard 12', 'duration': 1.2, 'ctc': False}


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


def test_what_the_encoder_takes_is_known_to_all(model, tone, stdin, capsys):
    """An encoder of 3 s: nothing is padded beyond, and no advice leads there."""
    model.system.max_seconds = model.max_seconds = 3.0
    assert run(tone('a.wav', 2.5), tone('b.wav', 3.0)) == 0
    assert model.shapes == [(2, 3 * RATE)], 'and not 4 s'
    long = tone('long.wav', 2.5, 0.4, 2.5)
    assert run(long) == 1
    err = capsys.readouterr().err
    assert '5.4 s is longer than the 3 s' in err and '`slm-jax infer --chunk_seconds 3` cuts' in err
    assert '--max_seconds' not in err
    assert run(long, '--max_seconds', '4') == 2
    assert '--max_seconds 4: the speech encoder of fake takes 3 s at once' in capsys.readouterr().err
    assert run(long, '--chunk_seconds', '4') == 2
    assert 'takes 3 s at once; give that or less.' in capsys.readouterr().err
    assert run(long, '--chunk_seconds', '3', '--format', 'json') == 0
    assert len(json.loads(capsys.readouterr().out)['chunks']) == 2
    stdin(soundfile.read(long, dtype='int16')[0].tobytes())
    assert run('-', '--chunk_seconds', '3') == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert {samples for _, samples in model.shapes} == {3 * RATE}
    model.max_seconds = 2.0
    assert run(long, '--chunk_seconds', '2.5') == 2
    assert 'takes 2 s at once; give that or less, or raise --max_seconds.' in capsys.readouterr().err
    assert run(tone('c.wav', 2.7)) == 1
    assert '--max_seconds 3 lets it through' in capsys.readouterr().err


def test_a_language_model_alone_hears_nothing(model, tone, capsys):
    del model.params['speech_encoder']
    assert run(tone('a.wav', 1.0)) == 2
    assert 'a language model alone hears nothing' in capsys.readouterr().err
    assert model.shapes == []


def test_an_encoder_alone_reads_no_instruction(model, tone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Seconds, 'text_vocabulary', None)
    file = tone('a.wav', 1.0)
    assert run(file) == run(file, '--instruction', 'write down what is said') == 0
    capsys.readouterr()
    assert run(file, '--instruction', 'Which size was ordered?') == 2
    assert "--instruction 'Which size was ordered?': fake reads none" in capsys.readouterr().err
    path = tmp_path / 'm.jsonl'
    path.write_text(f'{json.dumps({"audio": file, "instruction": "Which size?"})}\n{json.dumps({"audio": file})}\n')
    assert run('--manifest', str(path), '--format', 'json') == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert 'reads none' in first['error'] and second['text'] == 'heard 10'


def test_what_is_not_heard_has_no_cue(model, tone, tmp_path, capsys):
    file = str(tmp_path / 'silence.wav')
    soundfile.write(file, np.zeros(12 * RATE, np.int16), RATE)
    for form, expected in {'text': '\n', 'srt': '', 'vtt': 'WEBVTT\n'}.items():
        assert run(file, '--chunk_seconds', '5', '--format', form) == 0
        assert capsys.readouterr().out == expected
    assert run(file, '--chunk_seconds', '5', '--format', 'json') == 0
    line = json.loads(capsys.readouterr().out)
    assert line['text'] == '' and {chunk['text'] for chunk in line['chunks']} == {''}


def test_a_cut_answer_says_so(model, tone, stdin, capsys):
    file = tone('long.wav', 4.0, 0.4, 0.5)
    model.decode = decoding.DecodeConfig(max_decode_length=7)
    assert run(file, '--chunk_seconds', '5', '--format', 'json') == 0
    out, err = capsys.readouterr()
    assert json.loads(out)['text'] == 'heard 4' and json.loads(out)['truncated'] is True
    assert f'{file}: the answer is cut, it reached max_decode_length 7; --max_decode_length 14 lets it go on.' in err
    model.decode = decoding.DecodeConfig(max_decode_length=8)
    assert run(file, '--chunk_seconds', '4.2', '--format', 'json') == 0
    out, err = capsys.readouterr()
    assert 'truncated' not in out and err == '', 'as long as the limit, and whole'
    model.decode = decoding.DecodeConfig(max_decode_length=7)
    stdin(soundfile.read(file, dtype='int16')[0].tobytes())
    assert run('-', '--chunk_seconds', '5', '--format', 'json') == 0
    out, err = capsys.readouterr()
    assert json.loads(out)['truncated'] is True and '0.0 to 4.9 s: the answer is cut' in err


def test_where_ctc_takes_part_is_said(model, tone, capsys):
    file = tone('a.wav', 1.0)
    assert run(file, '--instruction', ' transcribe  the FRENCH speech') == 0
    assert capsys.readouterr().err == '' and model.transcribed == [True]
    assert run(file, '--instruction', 'Which size?', '--format', 'json') == 0
    out, err = capsys.readouterr()
    assert "CTC (ctc_weight 0.3) takes no part in answers to 'Which size?'" in err
    assert json.loads(out)['ctc'] is False and model.transcribed == [True, False]
    assert run(file, '--instruction', 'Which size?', '--ctc_weight', '0.3', '--format', 'json') == 0
    out, err = capsys.readouterr()
    assert err == '' and 'ctc' not in json.loads(out) and model.transcribed[-1] is True


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


def test_prompts_of_several_recordings(model, tone, tmp_path, capsys):
    turns = ['Is ', {'audio': tone('a.wav', 1.0)}, ' as ', {'audio': tone('b.wav', 2.0), 'offset': 0, 'duration': 0.5}]
    rows = [{'id': 'x', 'interleaved': turns}, {'interleaved': ['Is', 3]}]
    path = tmp_path / 'm.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert run('--manifest', str(path), '--format', 'json') == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first['text'] == 'heard 15' and first['duration'] == 1.5 and first['instruction'] == 'Is … as …'
    assert 'm.jsonl:2: field "interleaved": has 3; a list of texts and' in second['error']
    for options, message in (
        (['--chunk_seconds', '2'], 'm.jsonl:1: --chunk_seconds cuts no recording of a prompt; leave it out.'),
        (
            ['--instruction', 'Go on.'],
            'm.jsonl:1: has "interleaved", which is all that is asked; leave out --instruction.',
        ),
    ):
        assert run('--manifest', str(path), *options) == 1
        assert message in capsys.readouterr().err


def test_stdin_takes_files_and_raw_samples(model, tone, stdin, capsys):
    with open(tone('a.wav', 1.2), 'rb') as file:
        stdin(file.read())
    assert run('-') == 0
    stdin(np.ones(2 * RATE, np.int16).tobytes())
    assert run('-') == 0
    assert capsys.readouterr().out == 'heard 12\nheard 20\n'
    for live in ((), ('--chunk_seconds', '5')):
        stdin(b'')
        assert run('-', *live) == 1
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
    stdin(np.ones(2 * RATE, np.int16).tobytes())
    assert run('-', '--chunk_seconds', '5', '--format', 'json') == 0
    assert json.loads(capsys.readouterr().out) == {'start': 0.0, 'end': 2.0, 'text': 'heard 20'}


@pytest.mark.parametrize('live', [(), ('--chunk_seconds', '5')])
@pytest.mark.parametrize('kind', [('ipod', 'aac'), ('webm', 'libopus'), ('adts', 'aac'), ('mp3', 'libmp3lame')])
def test_a_container_on_stdin_is_no_raw_sound(model, recorded, stdin, capsys, kind, live):
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(57600) / 48000)
    stdin(recorded(samples, 48000, *kind, write_xing=0, id3v2_version=0))
    assert run('-', *live) == 0
    assert capsys.readouterr().out in ('heard 12\n', 'heard 13\n'), 'a bare stream of AAC begins with silence'


@pytest.mark.parametrize('live', [(), ('--chunk_seconds', '5')])
def test_text_on_stdin_is_refused_unless_it_is_said_to_be_raw(model, stdin, capsys, live):
    for page in (
        b'<html><body>404 Not Found</body></html>\n' * 800,
        b'{"detail": "no such clip"}',
        b'\xef\xbb\xbfhello\n',
    ):
        stdin(page)
        assert run('-', *live) == 1
        out, err = capsys.readouterr()
        assert out == '' and 'standard input: looks like text, not like audio.' in err and '--raw' in err
    stdin(b'hello world, ' * 2462)
    assert run('-', '--raw', *live) == 0
    assert capsys.readouterr().out == 'heard 10\n'
    assert model.shapes


@pytest.mark.parametrize('live', [(), ('--chunk_seconds', '5')])
def test_raw_sound_may_begin_as_an_mp3_does(model, stdin, capsys, live):
    samples = np.random.default_rng(0).normal(0, 3000, RATE).astype('<i2')
    for first in (-1025, -3073, -1281, -3329):
        samples[0] = first
        stdin(samples.tobytes())
        assert run('-', *live) == 0
        assert capsys.readouterr().out == 'heard 10\n'


def test_half_a_raw_sample_is_left_out_with_a_warning(model, stdin):
    stdin(bytes(2 * RATE + 1))
    with pytest.warns(UserWarning, match='standard input: 32001 bytes'):
        assert run('-') == 0


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['a.wav', '--raw'], '--raw: only standard input'),
        ([], 'give recordings'),
        (['--instruction', 'Why?'], '--instruction is put to recordings, and there is none: give recordings'),
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


def test_a_packaged_model_is_the_default():
    assert infer.parser().parse_args(['a.wav']).model == 'slm_base'


def test_the_packaged_model_belongs_to_the_packaged_foundations(tone, capsys):
    """It finds them by name, and its fingerprints are theirs."""
    assert infer.main([tone('a.wav', 1.0), '--model', 'slm_tiny', '--max_decode_length', '4']) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_packaged_model_writes_nothing_where_nothing_is_said(tmp_path, capsys):
    """Silence, hum, a tone, noise, from soft to loud."""
    time, noise = np.arange(2 * RATE) / RATE, np.random.default_rng(0).standard_normal(2 * RATE)
    hum = sum(np.sin(2 * np.pi * 50 * k * time + k) / k for k in (1, 2, 3, 5)) / 2
    sounds = {'silence': 0 * time, 'hum': hum, 'mains': np.sin(2 * np.pi * 50 * time)}
    sounds |= {'tone': np.sin(2 * np.pi * 440 * time), 'noise': noise / 4}
    files = []
    for name, sound in sounds.items():
        for level in (30, 300, 3000, 20_000):
            files.append(str(tmp_path / f'{name}{level}.wav'))
            soundfile.write(files[-1], np.clip(level * sound, -32768, 32767).astype(np.int16), RATE)
    for argv in ((), ('--instruction', 'Translate this speech to French.')):
        assert infer.main([*files, *argv, '--model', 'slm_tiny']) == 0
        assert capsys.readouterr().out.splitlines() == [f'{file}\t' for file in files]


def test_phrases_are_listed_in_what_is_asked(tmp_path):
    rows = [{'audio': 'a.wav'}, {'audio': 'a.wav', 'instruction': 'Is one of {phrases} called?'}]
    (tmp_path / 'm.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    listed = ' Some of these may be said: Ann, Bob.'

    def asked(*argv):
        found = infer._inputs(infer.parser().parse_args([*argv, '--phrases', 'Ann, Bob']))
        return [(recording.instruction, recording.transcribed) for recording in found]

    assert asked('a.wav') == [('Transcribe the speech.' + listed, True)]
    assert asked('a.wav', '--instruction', 'Who calls?') == [('Who calls?' + listed, False)]
    named = ('Is one of Ann, Bob called?', False)
    assert asked('--manifest', str(tmp_path / 'm.jsonl')) == [('Transcribe the speech.' + listed, True), named]
    model = types.SimpleNamespace(text_vocabulary=None, directory=pathlib.Path('usm_tiny'))
    with pytest.raises(ValueError, match='phrases: usm_tiny reads none; by CTC it writes what is said'):
        asking.check_lists(model, ('Ann',))
