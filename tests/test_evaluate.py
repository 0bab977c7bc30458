"""Evaluation from a directory alone: a tiny SLM on tiny foundations, made here, untrained."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from slm_jax import evaluate, foundations, infer
from slm_jax.data import loader
from slm_jax.inference import model as model_lib
from slm_jax.inference import queries

QUICK = ('--max_decode_length', '8', '--batch_seconds', '20')


def run(*argv):
    return evaluate.main([*map(str, argv), *QUICK])


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text('utf-8').splitlines()]


def test_a_model_from_its_directory_alone(world, manifest, tmp_path, capsys):
    out = tmp_path / 'out'
    question = ('--instruction', 'Transcribe the {language} speech.', '--reference_field', 'text')
    with manifest.open('a') as file:
        file.write('{"audio": "gone.wav", "text": "x", "lang": "en"}\nno JSON\n')
    assert run(world / 'slm', '--manifest', manifest, *question, '--out', out, '--on_bad_example', 'skip') == 0
    said = capsys.readouterr()
    assert 'report: ' in said.out
    assert '2 bad examples skipped:' in said.err and 'gone.wav: cannot' in said.err and ':26: not JSON' in said.err
    predictions = read(out / 'predictions.jsonl')
    assert [p['id'] for p in predictions] == [f'{manifest}:{n}' for n in range(1, 25)]
    assert {p['instruction'] for p in predictions} == {
        'Transcribe the English speech.',
        'Transcribe the French speech.',
    }
    assert any(p['prediction'] for p in predictions)
    results = json.loads((out / 'results.json').read_text())
    assert set(results['scores']['transcription']) == {'en', 'fr', 'overall', 'average'}
    assert results['model']['step'] == 7 and results['model']['system'] == 'SLM'
    assert results['decode']['max_decode_length'] == 8
    cut = [p['id'] for p in predictions if p.get('truncated')]
    assert results['truncated'] == len(cut) > 0
    assert f'{len(cut)} answers are cut, they reached a limit (max_decode_length 8' in said.out
    assert f'{len(cut)} answers are cut' in (out / 'report.html').read_text()
    assert set(results['foundations']) == {'speech_encoder', 'llm'}
    assert results['data']['examples'] == 24 and results['data']['audio_seconds'] > 20
    assert {'jax', 'jiwer', 'sacrebleu', 'slm_jax'} <= set(results['versions'])
    assert results['command'].startswith('slm-jax evaluate')
    speed = results['speed']
    assert speed['rtfx'] > 2 * speed['audio_seconds_per_second'], 'which counts loading and compilation'
    assert '<audio' in (out / 'report.html').read_text()
    card = json.loads((world / 'slm' / 'card.json').read_text())
    [(label, noted)] = card['evaluations'].items()
    assert label.startswith(f'{tmp_path.name}-manifest-Transcribe') and noted['step'] == 7
    assert noted['scores'] == results['scores']

    again = tmp_path / 'again'
    assert run('--predictions', out / 'predictions.jsonl', '--out', again) == 0
    scored_anew = json.loads((again / 'results.json').read_text())
    assert all(scored_anew[key] == results[key] for key in ('scores', 'model', 'foundations', 'decode', 'speed'))


def test_batched_as_alone(world, manifest):
    model = model_lib.load(world / 'slm', decode={'max_decode_length': 8})
    question = queries.Question('Say {language}.')
    asked = list(queries.from_manifest(manifest, [question], model.text_vocabulary, 30, model.prompt))
    # Of one length class, so that two programs are compiled and not a dozen.
    asked = [query for query in asked if 1.5 < len(query.samples) / 16000 <= 2.0]
    [(group, batch)] = queries.batched(asked)
    together = model.answers(batch)[: len(group)]
    alone = []
    for query in asked:
        [(_, batch)] = queries.batched([query])
        alone.append(model.answers(batch)[0])
    assert together == alone
    assert len(set(alone)) > 1, 'it hears something'


def test_a_foundation_alone_and_a_cascade(world, manifest, tmp_path):
    heard = tmp_path / 'heard'
    gin = f'--gin_file={world / "sizes.gin"}'
    field = ('--reference_field', 'text', '--instruction', 'Transcribe the speech.')
    assert run(world / 'usm', gin, '--manifest', manifest, *field, '--out', heard) == 0
    results = json.loads((heard / 'results.json').read_text())
    assert results['model']['system'] == 'EncoderCtc' and results['model']['step'] is None
    assert 'CTC' in results['decode']['method']
    assert 'evaluations' not in json.loads((world / 'usm' / 'card.json').read_text())

    english = [line for line in read(manifest) if line['lang'] == 'en']
    path = manifest.with_name('english.jsonl')
    for number, line in enumerate(english):
        line['id'] = f'{manifest}:{number}'
    texts = [{'id': line['id'], 'prediction': line['text'], 'reference': ''} for line in english]
    path.write_text(''.join(json.dumps(line) + '\n' for line in english))
    (heard / 'texts.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in texts))
    out = tmp_path / 'cascade'
    cascade = ('--text_from', heard / 'texts.jsonl', '--target_lang', 'fr')
    assert run(world / 't5', gin, '--manifest', path, *cascade, '--out', out) == 0
    results = json.loads((out / 'results.json').read_text())
    assert set(results['scores']['translation']) == {'en-fr'}
    assert results['model']['system'] == 'TextToText'
    assert '<audio' not in (out / 'report.html').read_text(), 'nothing was heard'

    assert run(world / 't5', gin, '--manifest', path, '--text_field', 'text', '--out', out) == 0


def test_a_language_model_alone_hears_nothing(world, manifest, tmp_path, capsys):
    gin = f'--gin_file={world / "sizes.gin"}'
    assert run(world / 't5', gin, '--manifest', manifest, '--out', tmp_path / 'out') == 2
    assert 't5 is a language model alone and hears nothing of' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_task_is_looked_through_before_it_is_decoded(world, monkeypatch, tmp_path, capsys):
    """A language model alone hears none of its recordings, and a reference may be empty."""
    info = loader.ExampleInfo('a', 'some', 'en', '', 'Say.', '...', None, 0.1)

    class Stored:
        """A task of one clip."""

        skipped, plan = (), types.SimpleNamespace(buckets=[types.SimpleNamespace(samples=1600)], evaluation=lambda: ())

        def __init__(self, *args, **options):
            del args, options

        def examples(self):
            tokens = np.array([[3, 1]], np.int32)
            speech = {'speech_samples': np.ones((1, 1600), np.int16), 'speech_lengths': np.array([1600], np.int32)}
            yield speech | {'encoder_input_tokens': tokens, 'decoder_target_tokens': tokens}, [info]

    monkeypatch.setattr(loader, 'SpeechTextLoader', Stored)
    argv = ('--task', 'some', '--out', tmp_path / 'out')
    assert run(world / 't5', f'--gin_file={world / "sizes.gin"}', *argv) == 2
    assert 't5 is a language model alone and hears nothing of some' in capsys.readouterr().err
    assert run(world / 'slm', *argv) == 2
    assert "example 'a': its reference '...' is empty" in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_first_lines_alone(world, manifest, tmp_path, capsys):
    texts, out = ('--text_field', 'text', '--target_lang', 'fr'), tmp_path / 'out'
    english = rewritten(manifest, 'english.jsonl', {'lang': 'en', 'translation': 'oui', 'target_lang': 'fr'}, 0, 1, 2)
    argv = (world / 't5', f'--gin_file={world / "sizes.gin"}', '--manifest', english, *texts, '--out', out)
    assert run(*argv, '--limit', 3) == 0
    assert len(read(out / 'predictions.jsonl')) == 3
    assert json.loads((out / 'results.json').read_text())['data']['limit'] == 3
    for wrong in ((*argv, '--limit', 0), ('--predictions', out / 'predictions.jsonl', '--limit', 2)):
        assert run(*wrong) == 2
        assert '--limit: a number from 1 on, of a --manifest or a --task.' in capsys.readouterr().err


def test_a_foundation_alone_knows_the_tasks():
    """In a process where nothing else has registered them."""
    argv = [sys.executable, '-m', 'slm_jax.evaluate', 'usm_tiny', '--task', 'voice_prompt']
    found = subprocess.run(argv, capture_output=True, text=True)
    assert found.returncode == 2 and 'did you mean voice_prompts' in found.stderr


def test_an_encoder_alone_reads_no_instruction(world, manifest, capsys):
    gin = f'--gin_file={world / "sizes.gin"}'
    for argv in ((), ('--instruction', 'Which size?')):
        assert run(world / 'usm', gin, '--manifest', manifest, *argv) == 2
        assert 'usm reads none; by CTC it writes what is said' in capsys.readouterr().err


def rewritten(manifest, name, change, *numbers):
    """A manifest beside the other, with some of its lines changed."""
    lines = read(manifest)
    for number in numbers:
        lines[number].update(change)
    path = manifest.with_name(name)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def test_what_cannot_be_scored_is_found_before_anything_is_decoded(world, manifest, tmp_path, monkeypatch, capsys):
    path = rewritten(manifest, 'empty.jsonl', {'target': '(…)', 'id': 'laughter'}, 20)
    asked = []
    monkeypatch.setattr(model_lib.Model, 'answers', lambda self, batch: asked.append(batch))
    assert run(world / 'slm', '--manifest', path, '--out', tmp_path / 'out') == 2
    err = capsys.readouterr().err
    assert "example 'laughter': its reference '(…)' is empty after normalising (basic)" in err
    assert '--on_bad_example skip' in err and '--normalizer none' in err
    texts = tmp_path / 'texts.jsonl'
    texts.write_text(''.join(json.dumps({'id': f'{manifest}:{n}', 'prediction': 'a'}) + '\n' for n in range(1, 24)))
    cascade = ('--manifest', manifest, '--text_from', texts, '--out', tmp_path / 'out')
    assert run(world / 'slm', *cascade) == 2
    assert f"no text for example '{manifest}:24'" in capsys.readouterr().err
    assert not asked and not (tmp_path / 'out').exists()


def test_what_cannot_be_scored_is_skipped_where_that_is_said(world, manifest, tmp_path, capsys):
    path = rewritten(manifest, 'empty.jsonl', {'target': '(…)'}, 3, 20)
    out, skip = tmp_path / 'out', ('--on_bad_example', 'skip')
    assert run(world / 'slm', '--manifest', path, '--out', out, *skip) == 0
    results = json.loads((out / 'results.json').read_text())
    assert results['data']['examples'] == 22 and len(results['data']['skipped']) == 2
    assert all('empty after normalising' in line for line in results['data']['skipped'])
    predictions = out / 'predictions.jsonl'
    again = rewritten(predictions, 'again.jsonl', {'reference': '...', 'id': 'dots'}, 7)
    assert run('--predictions', again, '--out', tmp_path / 'again') == 2
    assert "example 'dots': its reference '...' is empty" in capsys.readouterr().err
    assert run('--predictions', again, '--out', tmp_path / 'again', *skip) == 0
    assert json.loads((tmp_path / 'again' / 'results.json').read_text())['data']['examples'] == 21
    again.write_text(json.dumps({'id': 'dots', 'reference': '...', 'prediction': ''}))
    assert run('--predictions', again, '--out', tmp_path / 'again', *skip) == 2
    assert "all 1 examples were skipped; the first: example 'dots'" in capsys.readouterr().err


def test_ctc_takes_part_in_transcripts_and_where_its_weight_is_given(world, manifest, monkeypatch, tmp_path):
    answers = [model_lib.Answer('a')] * 64
    monkeypatch.setattr(model_lib.Model, 'answers', lambda self, batch: answers[: len(batch['transcribed'])])

    def written_with_ctc(*argv):
        assert run(world / 'slm', '--manifest', manifest, '--out', tmp_path, *argv) == 0
        return json.loads((tmp_path / 'results.json').read_text())['decode'].get('answers_with_ctc')

    configured = '--gin.DecodeConfig.ctc_weight=0.5'
    assert written_with_ctc() is None
    assert written_with_ctc(configured) == 0
    assert written_with_ctc(configured, '--instruction', 'transcribe the speech') == 24
    assert written_with_ctc('--ctc_weight', '0.5') == 24


def test_installed_models_are_read_only(world, manifest, tmp_path, monkeypatch):
    """Those of the package: scores go into the working directory, and the card stays."""
    monkeypatch.setattr(foundations, '__file__', str(world / '__init__.py'))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (world / 'slm').rglob('*')}
    for argv in ((), ('--out', 'elsewhere')):
        assert run('slm', '--manifest', manifest, *argv) == 0
    assert {path: path.stat().st_mtime_ns for path in (world / 'slm').rglob('*')} == before
    assert list(tmp_path.glob('evaluations/slm/*/report.html')) and list(tmp_path.glob('elsewhere/report.html'))


def test_without_its_foundations_model_file_it_asks(world, manifest, capsys):
    assert run(world / 'usm', '--manifest', manifest) == 2
    assert 'which system is it? Give --gin_file' in capsys.readouterr().err


def test_shuffled_audio(world, manifest, tmp_path):
    out = tmp_path / 'shuffled'
    assert run(world / 'slm', '--manifest', manifest, '--shuffle_audio', '--out', out) == 0
    assert json.loads((out / 'results.json').read_text())['data']['shuffle_audio'] is True
    assert 'audio of another clip' in (out / 'report.html').read_text()
    card = json.loads((world / 'slm' / 'card.json').read_text())
    assert any(label.endswith('-shuffled') for label in card['evaluations'])


def test_the_share_of_another_run(world, manifest, tmp_path, capsys):
    def predicted(name, texts):
        path = tmp_path / name
        line = {'lang': 'en', 'answers': ['two', '2'], 'reference': 'two'}
        path.write_text(''.join(json.dumps({**line, 'id': n, 'prediction': text}) + '\n' for n, text in texts.items()))
        return path

    ours = predicted('ours.jsonl', {'a': '2', 'b': 'three', 'c': 'two'})
    theirs = predicted('theirs.jsonl', {'c': '2', 'z': '', 'b': 'It is two.', 'a': '2'})
    assert run('--predictions', ours, '--oracle', theirs, '--out', tmp_path / 'out') == 0
    said = capsys.readouterr().out
    assert 'answers (normaliser squad)\n  en  contains  66.7 [0.0, 100.0]  F1  66.7' in said
    assert f'answers, in percent of {theirs}\n  en  contains  66.7 [' in said
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert results['data']['oracle'] == str(theirs)
    assert results['oracle']['scores']['answers']['en']['contains'] == 100.0, 'of the same examples'
    assert results['oracle']['shares']['answers']['en']['accuracy'] == pytest.approx(100.0)
    few = predicted('few.jsonl', {'a': '2', 'b': '2'})
    for path, message in (
        (few, "few.jsonl: no line for example 'c' with the reference 'two'. Evaluate both runs on the same data"),
        (predicted('without.jsonl', {'a': None}), 'example \'a\' has no text in its field "prediction"'),
        (tmp_path / 'absent.jsonl', 'absent.jsonl: cannot be read'),
    ):
        assert run('--predictions', ours, '--oracle', path, '--out', tmp_path / 'no') == 2
        assert message in capsys.readouterr().err
    few.write_text(few.read_text() + few.read_text().replace('"prediction": "2"', '"prediction": "4"'))
    assert run('--predictions', ours, '--oracle', few) == 2
    assert "two lines of id 'a' have different predictions" in capsys.readouterr().err
    out = tmp_path / 'undone'
    assert run(world / 'slm', '--manifest', manifest, '--oracle', theirs, '--out', out) == 2
    assert f"no line for example '{manifest}:1'" in capsys.readouterr().err and not out.exists(), 'said before decoding'


def test_how_likely_texts_are(world, manifest, tmp_path, capsys):
    lines = [
        {**line, 'choices': [line['text'], 'large oat milk'], 'id': str(n)} for n, line in enumerate(read(manifest)[:6])
    ]
    path = manifest.with_name('choices.jsonl')
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    asked = ('--manifest', path, '--instruction', 'Go on.', '--reference_field', 'text', '--score_choices')
    assert run(world / 'slm', *asked, '--out', tmp_path / 'out') == 0
    assert 'choices (normaliser none)' in capsys.readouterr().out
    found = read(tmp_path / 'out' / 'predictions.jsonl')
    model = model_lib.load(world / 'slm')
    question = [queries.Question('Go on.', reference_field='text')]
    asked_alone = queries.from_manifest(path, question, model.text_vocabulary, 30, model.prompt)
    loss_of = jax.jit(lambda params, batch: model.system.loss(params, batch, None)[0])
    for line, query in zip(found, asked_alone, strict=True):
        assert line['prediction'] == line['choices'][int(np.argmax(line['log_likelihoods']))]
        target = tuple(model.vocabulary.encode(line['reference']))
        assert line['tokens'][0] == len(target)
        [(_, batch)] = queries.batched([query.with_target(target)])
        expected = -float(loss_of(model.params, batch)) * len(target)
        assert line['log_likelihoods'][0] == pytest.approx(expected, rel=1e-4)
    gin = f'--gin_file={world / "sizes.gin"}'
    text = ('--manifest', manifest, '--text_field', 'text', '--score_choices', '--out', tmp_path / 'text')
    assert run(world / 't5', gin, *text) == 0
    results = json.loads((tmp_path / 'text' / 'results.json').read_text())
    assert results['scores']['likelihood']['en']['perplexity'] > 1
    assert 'bits a byte' in (tmp_path / 'text' / 'report.html').read_text()

    assert run(world / 'usm', gin, '--manifest', path, '--instruction', 'Transcribe the speech.', *asked[4:]) == 2
    assert 'usm has no language model, which alone says how likely' in capsys.readouterr().err
    for choices, message in (
        ('large', "choices.jsonl:1: choices is 'large'; it must be a list of two or more different texts."),
        (['a', 'a'], 'two or more different texts'),
        (['a', 'b'], 'choices.jsonl:1: none of the choices is the reference'),
    ):
        path.write_text(json.dumps({**lines[0], 'choices': choices}) + '\n')
        assert run(world / 'slm', *asked, '--out', tmp_path / 'no') == 2
        assert message in capsys.readouterr().err


def test_an_older_step_and_a_missing_one(world, capsys):
    assert model_lib.load(world / 'slm', step=3).step == 3
    with pytest.raises(ValueError, match='no checkpoint of step 5; the newest is 7'):
        model_lib.load(world / 'slm', step=5)


def test_another_foundation_is_refused(world, tmp_path, sentencepiece_model):
    params = foundations.load(world / 't5')
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    other = tmp_path / 'other'
    foundations.save(other, changed, {'name': 't5', 'kind': 'llm'}, [sentencepiece_model])
    with pytest.raises(ValueError, match='was trained with llm = .* and cannot be used with'):
        model_lib.load(world / 'slm', foundations={'llm': str(other)})
    same = tmp_path / 'same'
    foundations.save(same, params, {'name': 't5', 'kind': 'llm'}, [sentencepiece_model])
    model_lib.load(world / 'slm', foundations={'llm': str(same)})


def test_decode_settings_by_flag_and_by_gin(world):
    bindings = ['DecodeConfig.beam_size=3', 'DecodeConfig.method=beam']
    model = model_lib.load(world / 'slm', bindings=bindings, decode={'alpha': 0.1})
    assert (model.decode.method, model.decode.beam_size, model.decode.alpha) == ('beam', 3, 0.1)
    assert model.max_seconds == 4.0, 'what training let through'


def test_infer_from_the_directory_alone(world, manifest, capsys):
    file = str(manifest.with_name('clip01.wav'))
    argv = ['--model', str(world / 'slm'), '--instruction', 'Say.', *QUICK]
    assert infer.main([file, *argv, '--format', 'json']) == 0
    assert json.loads(capsys.readouterr().out)['instruction'] == 'Say.'


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'one of --task, --manifest and --predictions'),
        (['--task', 'a', '--manifest', 'b'], 'one of --task, --manifest and --predictions'),
        (['--manifest', 'b'], 'MODEL is missing'),
        (['nowhere', '--manifest', 'b'], "No foundation 'nowhere'"),
        (['x', '--task', 'b', '--normalizer', 'basik'], "'basik' is unknown"),
        (['SLM', '--manifest', 'absent.jsonl'], 'absent.jsonl: cannot be read'),
        (['SLM', '--task', 'voice_prompt'], 'did you mean voice_prompts'),
        (['SLM', '--task', 'voice_prompts', '--slots', 'all'], '--slots: only for a --manifest'),
        (['SLM', '--task', 'voice_prompts', '--phrases', 'own'], '--phrases: only for a --manifest'),
        (['SLM', '--manifest', 'b', '--phrases', 'own+3'], '--phrases own+3: give --phrase_pool, a file with a phrase'),
        (['SLM', '--manifest', 'b', '--slots', 'colour'], '--slots colour: give --instruction'),
        (['SLM', '--manifest', 'b', '--max_seconds', '0'], '--max_seconds 0: Give a number above 0;'),
        (['SLM', '--manifest', 'b', '--mesh', 'model=3'], 'do not multiply to'),
        (['SLM', '--manifest', 'b', '--foundation', 'llm'], 'write NAME=VALUE'),
    ],
)
def test_errors_say_what_to_do(world, argv, message, capsys):
    assert run(*(world / 'slm' if word == 'SLM' else word for word in argv)) == 2
    assert message in capsys.readouterr().err


def test_labels():
    def label(*argv):
        return evaluate.label(evaluate.parser().parse_args(['m', *argv]))

    assert label('--task', 'prompts', '--split', 'dev') == 'prompts-dev'
    assert label('--task', 'prompts', '--shuffle_audio') == 'prompts-test-shuffled'
    assert label('--manifest', 'a/b.jsonl', '--instruction', 'What? Now!') == 'a-b-What_Now'
    assert label('--manifest', 'b.jsonl') == 'b'
    assert label('--manifest', 'b.jsonl', '--phrases', 'own+9', '--phrase_pool', 'p.txt') == 'b-own_9'
    assert label('--task', 'p', '--text_from', 'x', '--decode', 'beam') == 'p-test-beam-text'
