"""Pseudo-labels: a manifest that a model learns from, whole after any break; by a model, by a command, scored."""

import json
import pathlib
import re
import sys

import pytest

from slm_jax import cli, decoding, model_arguments
from slm_jax.data import manifests, prompts
from slm_jax.inference import model as model_lib

LINES = [
    {'audio': 'a.wav', 'text': 'Ne quittez pas la ligne.', 'lang': 'fr', 'id': 'first', 'speaker': 'ann'},
    {'audio': '/far/b.wav', 'text': 'Cuelgue\nahora.', 'lang': 'es', 'offset': 2, 'duration': 3},
    {'audio': 'c.wav', 'text': 'Au revoir.', 'lang': 'fr', 'translation': {'en': 'Goodbye.', 'de': 'Tschüss.'}},
    {'audio': 'd.wav', 'text': 'Hold on.', 'lang': 'en'},
    {'text': 'Un deux trois quatre.', 'lang': 'fr-CA', 'translation': 'Eins zwei.', 'target_lang': 'de'},
]  # fmt: skip
UPPER = f"{sys.executable} -c 'import sys; sys.stdout.write(sys.stdin.read().upper())'"


class Bytes:
    """A vocabulary: the bytes, from 10 on; codes of three languages."""

    languages = {'fr_XX': 3, 'es_XX': 4, 'en_XX': 5}

    def encode(self, text):
        return [10 + byte for byte in text.encode()]


class Reverse(model_lib.Model):
    """Writes texts backwards; its score of each token is one hundredth of how many there are, below zero."""

    row_multiple, text_vocabulary = 1, Bytes()

    def __post_init__(self):
        self.batches, self.killed_at = 0, None

    def answers(self, batch):
        if self.batches == self.killed_at:
            raise KeyboardInterrupt
        self.batches += 1
        assert {*batch['first_tokens']} <= {0, 5}
        read = [bytes(int(token) - 10 for token in row if token > 9).decode() for row in batch['encoder_input_tokens']]
        return [model_lib.Answer(text[::-1].title(), 'max_decode_length' if 'long' in text else '') for text in read]

    def log_likelihoods(self, batch):
        lengths = (batch['decoder_target_tokens'] > 0).sum(axis=1)
        assert all(batch['decoder_target_tokens'][lengths > 0][:, 0] == 5)
        scored = batch['decoder_loss_weights'].sum(axis=1)
        assert all(scored[lengths > 0] == lengths[lengths > 0] - 1), 'the code of the language is given'
        return (-(scored**2) / 100).tolist()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(*arguments) runs the program on LINES in in/clips.jsonl, into English; `run.model` is the last one."""
    (tmp_path / 'in').mkdir()
    manifest, out = tmp_path / 'in' / 'clips.jsonl', tmp_path / 'pseudo.jsonl'
    write(manifest, LINES)

    def load(name, args):
        foundations = {'llm': {'name': 'mt', 'fingerprint': {'content': 'f' * 64}}}
        run.model = Reverse(
            pathlib.Path('mt'), {}, None, None, {}, foundations, decoding.DecodeConfig(), None,
            prompts.Prompt(template='{speech}'), 0.0, 0.0, None, None,
        )  # fmt: skip
        run.model.killed_at = run.killed_at
        return run.model

    def run(*arguments):
        return cli.main(['translate', str(manifest), str(out), '--target_lang', 'en', *arguments])

    monkeypatch.setattr(model_arguments, 'load', load)
    vars(run).update(killed_at=None, manifest=manifest, out=out, part=out.with_name(f'{out.name}.part'))
    return run


def write(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_translates_and_says_who_and_how_well(run, capsys):
    assert run('--model', 'mt') == 0
    said = capsys.readouterr().err
    assert 'pseudo.jsonl: 3 translations; left out: 1 in the target language, 1 translated already' in said
    rows = read(run.out)
    assert [row['id'] for row in rows] == ['first', 'clips:2', 'clips:5']
    text = '.Engil Al Sap Zettiuq En'
    assert rows[0] == {
        'id': 'first', 'speaker': 'ann', 'audio': 'in/a.wav', 'text': 'Ne quittez pas la ligne.', 'lang': 'fr',
        'translation': {'en': text}, 'target_lang': 'en',
        'translated_by': {'model': 'mt', 'fingerprint': {'llm': 'f' * 16}}, 'score': -(len(text) + 1) / 100,
    }  # fmt: skip
    assert rows[1]['audio'] == '/far/b.wav' and rows[1]['offset'] == 2.0 and 'audio' not in rows[2]
    assert rows[2]['translation'] == {'de': 'Eins zwei.', 'en': '.Ertauq Siort Xued Nu'}
    understood = [*manifests.read(run.out)]
    assert not any(line['error'] for line in understood)
    assert [json.loads(line['translations'])['en'] for line in understood] == [row['translation']['en'] for row in rows]


def test_a_command_translates_and_a_model_scores(run, capsys):
    assert run('--command', UPPER) == 2
    said = capsys.readouterr().err
    assert re.search(
        r'not told which language it reads, and there are fr, es \(.*:1; .*:2\). Choose one by --langs', said
    )
    assert run('--command', UPPER, '--langs', 'es', 'de') == 0
    assert read(run.out)[0]['translated_by'] == {'command': UPPER} and 'score' not in read(run.out)[0]
    run.out.unlink()
    capsys.readouterr()
    command = f'{sys.executable} -c \'import sys; print("{{lang}} {{target_lang}}", len([*sys.stdin]))\''
    assert run('--command', command, '--model', 'mt', '--min_score', '-0.095', '--max_ratio', '9') == 0
    assert 'left out: 1 below -0.095, 1 in the target' in capsys.readouterr().err
    assert [row['translation']['en'] for row in read(run.out)] == ['fr en 1', 'es en 1']  # 'fr-CA en 1' is longer


def test_what_is_left_out(run, capsys):
    write(run.manifest, [
        {'text': 'long', 'lang': 'fr'}, {'text': 'abba', 'lang': 'fr'}, {'text': 'un deux nu', 'lang': 'fr'},
        {'text': 'a b a', 'lang': 'fr'}, {'text': 'x' * 50, 'lang': 'fr'},
    ])  # fmt: skip
    assert run('--model', 'mt', '--min_score', '-0.4') == 0
    said = capsys.readouterr().err
    assert 'left out: 1 below -0.4, 1 cut by max_decode_length, 1 not translated' in said
    assert [row['text'] for row in read(run.out)] == ['abba', 'un deux nu']
    run.out.unlink()
    quiet = f'{sys.executable} -c \'import sys; [print("" if "abba" in line else line[:4]) for line in sys.stdin]\''
    assert run('--command', quiet) == 0
    assert 'left out: 1 empty, 1 unlike in length' in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same(run, capsys):
    write(run.manifest, [{'text': f'Numéro {n} {"un " * n}', 'lang': 'fr'} for n in range(30)])
    command = ('--model', 'mt', '--batch_tokens', '300')
    assert run(*command) == 0
    whole, count = run.out.read_bytes(), run.model.batches
    run.out.unlink()
    assert count > 4
    for run.killed_at in (0, 2):
        assert run(*command) == 130
    run.killed_at = None
    assert run('--model', 'mt', '--batch_tokens', '200') == 2
    assert 'was begun with another batches or filters' in capsys.readouterr().err
    assert run(*command) == 0
    assert run.out.read_bytes() == whole and run.model.batches == count - 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'who translates? Give --model, --command'),
        (('--command', 'cat', '--min_score', '-1'), '--min_score: a command says no score. Give a --model'),
        (('--command', "cat '"), 'No closing quotation. Close what is quoted'),
        (('--command', 'cat {language}'), "'language'. Close what is quoted, and use no names in braces but {lang}"),
        (('--command', 'no-such-program {lang}'), 'no-such-program: No such file or directory. Install it'),
        (('--command', 'false {lang}'), 'exit status 1.'),
        (('--command', 'echo {lang}'), "1 lines came for 2, the first of them 'Ne quittez pas la ligne.'"),
        (('--model', 'mt', '--langs', 'xx'), '--langs xx: unknown language'),
        (('--model', 'mt', '--langs', 'en'), 'no line can be translated (4 of another language, 1 in the target'),
        (('--model', 'mt', '--max_ratio', '0.5'), '--max_ratio 0.5: give 1 or more.'),
        (('--model', 'mt', '--min_score', '0'), 'no answer is left of 3 (below 0). Change --max_ratio or --min_score'),
    ],
)
def test_what_is_refused(run, capsys, arguments, message):
    write(run.manifest, [{**line, 'lang': line['lang'].split('-')[0]} for line in LINES])
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not run.out.exists()


def test_a_text_that_is_longer_than_the_model_reads_is_listed(run, capsys, monkeypatch):
    monkeypatch.setattr(Reverse, 'most_tokens', 64)
    write(run.manifest, [{'text': 'Un ' * 30, 'lang': 'fr'}, {'text': 'Un deux trois.', 'lang': 'fr'}])
    assert run('--model', 'mt') == 1
    said = capsys.readouterr().err
    assert 'clips:1: 91 tokens are read of it, and the language model has 64 positions. Cut the text' in said
    assert [row['text'] for row in read(run.out)] == ['Un deux trois.']
    run.out.unlink()
    write(run.manifest, [{'text': 'Un deux trois quatre cinq six.', 'lang': 'fr'}])
    longer = f'{sys.executable} -c \'print("one two " * 9)\''
    assert run('--command', longer, '--model', 'mt') == 0
    assert 'score' not in read(run.out)[0], 'nor is one that is longer than it writes scored'


def test_a_language_without_a_code_and_lines_without_text_are_listed(run, capsys):
    write(run.manifest, [*LINES[:1], {'text': 'Bore da.', 'lang': 'cy'}, {'text': 'x'}, {'lang': 'fr'}])
    assert run('--model', 'mt') == 1
    said = capsys.readouterr().err
    assert "clips:2: the language model has no code for the language 'cy' (Welsh)" in said
    assert 'clips.jsonl:3: field "lang" is missing.' in said and 'clips.jsonl:4: field "text" is missing.' in said
    assert len(read(run.out)) == 1
