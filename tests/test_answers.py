"""Answers to transcripts: a manifest that trains as it stands, whole after any break; t5_tiny, and a model of bytes."""

import json
import pathlib
import re

import pytest

from slm_jax import cli, decoding, model_arguments
from slm_jax.data import instructions, languages, manifests, prompts
from slm_jax.inference import model as model_lib

LINES = [
    {'audio': 'a.wav', 'text': 'Please hold the line.', 'lang': 'en', 'id': 'first', 'speaker': 'ann', 'duration': 1.5},
    {'audio_filepath': '/far/b.wav', 'text': 'Ne quittez pas.', 'lang': 'fr', 'offset': 2, 'duration': 3},
    {'audio': 'gs://bucket/c.wav', 'text': 'Goodbye!', 'translation': {'de': 'Auf Wiedersehen!'}},
    {'audio': '~/d.wav', 'text': 'You have three new messages.', 'lang': 'en'},
]  # fmt: skip


class Bytes:
    """A vocabulary: the bytes, from 3 on."""

    def encode(self, text):
        return [3 + byte for byte in text.encode()]


class Echo(model_lib.Model):
    """Says how long its prompt is, and if it samples, in which row; to 'Say nothing.' nothing; it counts for long."""

    row_multiple, text_vocabulary = 1, Bytes()

    def __post_init__(self):
        self.batches, self.killed_at = 0, None

    def answers(self, batch):
        if self.batches == self.killed_at:
            raise KeyboardInterrupt
        self.batches += 1
        return [self.answer(row, tokens) for row, tokens in enumerate(batch['encoder_input_tokens'])]

    def answer(self, row, tokens):
        read = bytes(int(token) - 3 for token in tokens if token > 2).decode()
        if 'Count.' in read:
            return model_lib.Answer('1 2 3', 'max_decode_length')
        sampled = f' as {row}' if self.decode.method == 'sample' else ''
        return model_lib.Answer('' if 'Say nothing.' in read else f'{len(read)} letters{sampled}')


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """ask(*arguments) runs the program on LINES in in/clips.jsonl; `ask.model` answers, `ask.out` is what it writes."""
    (tmp_path / 'in').mkdir()
    (tmp_path / 'out').mkdir()
    manifest, out = tmp_path / 'in' / 'clips.jsonl', tmp_path / 'out' / 'answers.jsonl'
    write(manifest, LINES)

    def load(name, args):
        decode = {'method': args.method, 'seed': args.seed, 'max_decode_length': args.max_decode_length}
        ask.model = Echo(
            pathlib.Path('echo'), {}, None, None, {}, {'llm': {'name': 'echo', 'fingerprint': ask.fingerprint}},
            decoding.DecodeConfig(**{name: value for name, value in decode.items() if value is not None}),
            None, prompts.Prompt(chat='{user}'), 0.0, 0.0, None, None,
        )  # fmt: skip
        ask.model.killed_at = ask.killed_at
        return ask.model

    def ask(*arguments):
        return cli.main(['answers', str(manifest), str(out), '--model', 'echo', *arguments])

    monkeypatch.setattr(model_arguments, 'load', load)
    vars(ask).update(
        killed_at=None, fingerprint='f', manifest=manifest, out=out, part=out.with_name(f'{out.name}.part')
    )
    return ask


def write(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written_is_a_manifest_of_answers(ask):
    assert ask('--instructions', '2') == 0
    rows = read(ask.out)
    assert [row['id'] for row in rows] == [
        f'{name}#{number}' for name in ('first', 'clips:2', 'clips:3', 'clips:4') for number in range(2)
    ]
    assert not ask.part.exists()
    for row in rows:
        assert row['target'] == f'{len(row["text"]) + 1 + len(row["instruction"])} letters'  # a line for each
    assert rows[0] | {'instruction': '', 'target': ''} == {
        'id': 'first#0', 'speaker': 'ann', 'audio': '../in/a.wav', 'duration': 1.5, 'text': 'Please hold the line.',
        'lang': 'en', 'instruction': '', 'target': '', **{k: v for k, v in rows[0].items() if k == 'target_lang'},
    }  # fmt: skip
    audio, folder = str(ask.manifest.parent / 'a.wav'), ask.out.parent
    understood = list(manifests.read(ask.out))[::2]
    assert [pathlib.Path(line['audio']).name for line in understood] == ['a.wav', 'b.wav', 'c.wav', 'd.wav']
    assert (folder / understood[0]['audio']).resolve() == pathlib.Path(audio).resolve()
    assert [line['audio'] for line in understood[1:3]] == ['/far/b.wav', 'gs://bucket/c.wav']
    assert [(line['offset'], line['duration']) for line in understood[:2]] == [('', '1.5'), ('2.0', '3.0')]
    assert not any(line['error'] for line in understood) and rows[7]['audio'] == '~/d.wav'


@pytest.mark.parametrize('method', ['greedy', 'sample'])
def test_a_killed_run_goes_on_to_the_same(ask, method):
    command = ('--instructions', '8', '--decode', method, '--batch_tokens', '200')
    assert ask(*command) == 0
    whole, count = ask.out.read_bytes(), ask.model.batches
    ask.out.unlink()
    assert count > 5
    for ask.killed_at in (0, 2, 1):
        assert ask(*command) == 130
        with ask.part.open('a') as file:
            file.write('{"rows": [[0, {"id": "half a li')
    ask.killed_at = None
    assert ask(*command) == 0
    assert ask.out.read_bytes() == whole and ask.model.batches == count - 3


def test_nothing_goes_on_with_what_another_command_began(ask, capsys):
    ask.killed_at = 1
    assert ask('--batch_tokens', '200') == 130
    ask.killed_at = None
    for arguments, other in (
        (('--batch_tokens', '100'), 'batches'),
        (('--batch_tokens', '200', '--instructions', '2'), 'manifest, instructions or seed'),
        (
            ('--batch_tokens', '200', '--decode', 'sample', '--seed', '1'),
            'manifest, .* and another decoding',
        ),
    ):
        assert ask(*arguments) == 2
        assert re.search(f'{ask.part}: was begun with another {other}', capsys.readouterr().err)
    ask.fingerprint = 'g'
    assert ask('--batch_tokens', '200') == 2
    assert 'was begun with another model. Go on with the same command, or remove it.' in capsys.readouterr().err
    ask.part.write_text('{"audio": "mine.wav"}\n')
    assert ask() == 2
    assert 'is not what a run of this program left' in capsys.readouterr().err
    assert ask.part.read_text() == '{"audio": "mine.wav"}\n' and not ask.out.exists()


def test_what_was_cut_or_is_empty_is_left_out_and_counted(ask, capsys, tmp_path):
    wishes = tmp_path / 'wishes.txt'
    wishes.write_text('Count.\n\nSay nothing.\nSay {{it}} in {target_language}.\nIs this {language}?\n')
    assert ask('--instructions', '9', '--instruction_file', str(wishes)) == 0
    assert 'answers.jsonl: 7 answers; left out: 4 cut by max_decode_length, 4 empty' in capsys.readouterr().err
    rows = read(ask.out)
    assert {'Is this English?', 'Is this French?'} == {r['instruction'] for r in rows if 'this' in r['instruction']}
    for row in rows:
        if 'target_lang' in row:
            assert row['instruction'] == f'Say {{it}} in {languages.name(row["target_lang"])}.'
            assert row['target_lang'] != row.get('lang')
    assert sum('target_lang' in row for row in rows) == 4
    ask.out.unlink()
    wishes.write_text('Count.')
    assert ask('--instruction_file', str(wishes)) == 2
    assert 'no answer is left of 4 (cut by max_decode_length). Raise --max_decode_length' in capsys.readouterr().err
    assert not ask.out.exists() and not ask.part.exists()


def test_lines_that_cannot_be_used_are_listed_and_the_others_go_on(ask, capsys, tmp_path):
    write(ask.manifest, [*LINES, {'text': 'x'}, {'audio': 'e.wav'}, {'audio': 'f.wav', 'text': 'x', 'lang': 'xx'}])
    assert ask() == 1
    said = capsys.readouterr().err
    assert '3 bad examples skipped' in said and 'clips.jsonl:5: field "audio" is missing.' in said
    assert 'clips.jsonl:6: field "text" is missing.' in said and "clips.jsonl:7: unknown language 'xx'" in said
    assert len(read(ask.out)) == 3 * len(LINES)
    ask.out.unlink()
    wishes = tmp_path / 'wishes.txt'
    wishes.write_text('Is this {language}?')
    assert ask('--instruction_file', str(wishes)) == 1
    assert 'clips.jsonl:3: field "lang" is missing. Every instruction names the language' in capsys.readouterr().err
    assert len(read(ask.out)) == len(LINES) - 1
    ask.out.unlink()
    write(ask.manifest, [{'text': 'x'}])
    assert ask() == 2
    assert 'clips.jsonl: no line can be asked; each needs "audio" and "text".' in capsys.readouterr().err


def test_a_speech_encoder_reads_no_text(ask, capsys, monkeypatch):
    monkeypatch.setattr(Echo, 'text_vocabulary', None)
    assert ask() == 2
    assert '--model echo: a speech encoder alone reads no text. Give a language model.' in capsys.readouterr().err


def test_a_model_that_follows_no_instructions_is_refused(ask, capsys, monkeypatch):
    """As an mBART, which only translates."""
    monkeypatch.setattr(prompts.Prompt, 'instructed', False)
    assert ask() == 2
    assert '--model echo: it follows no instructions. `slm-jax translate` lets' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--instructions', '0'], '--instructions 0: give 1 or more'),
        (['--batch_tokens', '0'], '--batch_tokens 0'),
        (['--instruction_file', 'none.txt'], 'none.txt'),
        (['--instruction_file', '{empty}'], 'holds no instruction. Write one a line'),
        (['--instruction_file', '{wrong}'], r'wrong.txt:2: \{word\} is filled by nothing'),
        (['--instruction_file', '{latin}'], 'latin.txt: is not in UTF-8. Save it so'),
        (['--instruction_file', '{brace}'], 'brace.txt:1: .*Write a brace that is no place twice'),
    ],
)
def test_bad_arguments(ask, capsys, tmp_path, arguments, said):
    files = {}
    wrong = {
        'empty': b'\n \n',
        'wrong': b'Say it.\nIs {word} in it?',
        'brace': b'Say } and {',
        'latin': b'R\xe9p\xe8te.',
    }
    for name, text in wrong.items():
        files[name] = tmp_path / f'{name}.txt'
        files[name].write_bytes(text)
    assert ask(*[argument.format(**files) for argument in arguments]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not ask.out.exists() and not ask.part.exists()


def test_out_is_never_written_over(ask, capsys):
    ask.out.write_text('mine')
    assert ask() == 2
    assert 'answers.jsonl: is there already. Remove it, or give another name.' in capsys.readouterr().err
    assert ask.out.read_text() == 'mine'
    for out, said in (('gs://bucket/out.jsonl', 'needs a local disk'), ('none/out.jsonl', 'there is no folder none')):
        assert cli.main(['answers', str(ask.manifest), out]) == 2
        assert said in capsys.readouterr().err


def test_which_instructions_follows_from_id_and_seed():
    def asked(key, count=3, lang='en'):
        return instructions.responses(count, key, lang)

    assert asked('0 a') == asked('0 a') == asked('0 a', 9)[:3]
    assert len({tuple(asked(f'{seed} a')) for seed in range(20)}) > 15
    every = asked('0 a', 999)
    kinds = [kind for kind in instructions.TEMPLATES if kind.startswith('response/')]
    assert len(every) == len(dict(every)) == sum(len(instructions.TEMPLATES[kind]) for kind in kinds)
    for kind in kinds:
        wordings = [
            re.escape(wording).replace(r'\{target_language\}', r'\w+') for wording in instructions.TEMPLATES[kind]
        ]
        said = [text for text, _ in every[: len(kinds)] if any(re.fullmatch(wording, text) for wording in wordings)]
        assert len(said) == 1, 'a second of a kind comes after all kinds'
    for lang in instructions.TARGET_LANGUAGES:
        assert all(target != lang for key in 'abc' for _, target in asked(key, 99, lang))
    assert instructions.responses(5, 'a', '', ['This is {language}.', 'Go on.']) == [('Go on.', '')]


def test_t5_tiny_answers_alike_alone_and_in_a_batch(tmp_path):
    write(tmp_path / 'clips.jsonl', LINES[:2])
    for name, tokens in (('together', '2400'), ('alone', '1')):
        arguments = [
            '--model',
            't5_tiny',
            '--instructions',
            '2',
            '--max_decode_length',
            '200',
            '--batch_tokens',
            tokens,
        ]
        assert cli.main(['answers', str(tmp_path / 'clips.jsonl'), str(tmp_path / name), *arguments]) == 0
    assert (tmp_path / 'together').read_bytes() == (tmp_path / 'alone').read_bytes()
    assert {row['id'].partition('#')[0] for row in read(tmp_path / 'alone')} <= {'first', 'clips:2'}
