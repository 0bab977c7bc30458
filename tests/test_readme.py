"""The README's commands, run as they stand."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import gin
from slm_jax import cli, evaluate, foundations
from slm_jax.inference import model as model_lib

TESTDATA = pathlib.Path(__file__).parent / 'testdata'
# Small models in the layout of those that the README imports.
SMALL = {
    'hf:openai/whisper-small': 'encoder_goldens/whisper',
    'hf:facebook/w2v-bert-2.0': 'encoder_goldens/w2v_bert',
    'hf:google/flan-t5-base': 't5_goldens/t5_1_1',
    'hf:bigscience/mt0-xl': 't5_goldens/mt5',
}
README = (pathlib.Path(__file__).parents[1] / 'README.md').read_text(encoding='utf-8')
INSTRUCTIONS = (pathlib.Path(__file__).parents[1] / 'docs' / 'instructions.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```bash\n(.*?)```', README, flags=re.DOTALL)


def test_the_two_commands_are_there():
    scripts = re.findall(r'^bash (\S+)', BLOCKS[0], flags=re.MULTILINE)
    assert scripts == ['launch/quickstart.sh', 'launch/test.sh']
    for script in scripts:
        subprocess.run(['bash', '-n', pathlib.Path(__file__).parents[1] / script], check=True)


@pytest.mark.parametrize('block', [block for block in BLOCKS if 'import hf:' in block])
def test_public_foundations(block, tmp_path, monkeypatch, capsys):
    """Each name and option means something; the system is made by its shapes."""
    import slm_jax.tasks  # noqa: F401  registers them
    from slm_jax.data import mixtures

    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for line in block.replace('\\\n', '').splitlines()]
    encoder, llm, prepare, train, score = [line[1:] for line in lines]
    for _, source, out in (encoder, llm):
        assert cli.main(['import', str(TESTDATA / SMALL[source]), out]) == 0
    if train[0] == 'launch/tpu_vm.sh':
        train = ['train', f'--gin_file={train[1]}', f'--gin.MODEL_DIR={train[2]}', *train[3:]]
    capsys.readouterr()
    try:
        assert cli.main(['card', '--json', *train[1:]]) == 0
        parts = json.loads(capsys.readouterr().out)['parts']
        data, model_dir = model_lib.query('%MIXTURE_OR_TASK_NAME'), model_lib.query('%MODEL_DIR')
    finally:
        gin.clear_config()
    for part, (_, _, out) in (('speech_encoder', encoder), ('llm', llm)):
        assert parts[part]['params'] == foundations.card(out)['fingerprint']['num_params']
        assert parts[part]['trained'] == 0
    assert parts['adapter']['trained'] == parts['adapter']['params']
    args = evaluate.parser().parse_args(score[1:])
    assert [data] == prepare[1:] == [args.task] and args.model == model_dir
    assert all(args.split in task.splits for task in mixtures.tasks_and_rates(data)[0])


@pytest.mark.slow
def test_train_on_your_own_recordings(tmp_path, write_wav):
    for split in ('train', 'dev', 'test'):
        lines = []
        for number in range(12):
            write_wav(tmp_path / f'{split}{number}.wav', 1.0 + 0.1 * number)
            text = ('please hold', 'goodbye', 'thank you')[number % 3]
            lines.append(json.dumps({'audio': f'{split}{number}.wav', 'text': text, 'lang': 'en'}))
        (tmp_path / f'{split}.jsonl').write_text('\n'.join(lines))
    write_wav(tmp_path / 'recording.wav', 2.0)
    (tmp_path / '.venv/bin').mkdir(parents=True)
    (tmp_path / '.venv/bin/activate').write_text(f'PATH={pathlib.Path(sys.executable).parent}:$PATH\n')
    (block,) = (block for block in BLOCKS if 'cat > mine.gin' in block)
    subprocess.run(
        ['bash', '-e', '-c', block],
        cwd=tmp_path,
        check=True,
        env={**os.environ, 'SLM_JAX_CACHE': str(tmp_path / 'cache')},
    )
    (results,) = tmp_path.glob('runs/mine/evaluations/*/results.json')
    assert 'wer' in json.loads(results.read_text())['scores']['transcription']['en']


@pytest.mark.slow
def test_a_task_of_ones_own(tmp_path, write_wav):
    for split in ('train', 'dev', 'test'):
        lines = []
        for number in range(12):
            write_wav(tmp_path / f'{split}{number}.wav', 1.0 + 0.1 * number)
            size = ('small', 'large')[number % 2]
            row = {'id': str(number), 'audio': f'{split}{number}.wav', 'text': f'a {size} latte', 'lang': 'en'}
            lines.append(json.dumps({**row, 'instruction': 'Which size?', 'target': size}))
        (tmp_path / f'{split}.jsonl').write_text('\n'.join(lines))
    (block,) = re.findall(r'```bash\n(.*?)```', INSTRUCTIONS, flags=re.DOTALL)
    path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    environment = {**os.environ, 'SLM_JAX_CACHE': str(tmp_path / 'cache'), 'PATH': path}
    block = block.replace('TRAIN_STEPS=500', 'TRAIN_STEPS=20 --gin.WARMUP_STEPS=2')
    subprocess.run(['bash', '-e', '-c', block], cwd=tmp_path, check=True, env=environment)
    found = [json.loads(path.read_text())['data'] for path in tmp_path.glob('runs/orders/evaluations/*/results.json')]
    assert sorted((data['shuffle_audio'], bool(data['oracle'])) for data in found) == [(False, True), (True, False)]
    assert (tmp_path / 'oracle' / 'report.html').is_file()
