"""The README's commands, run as they stand."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).parents[1] / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```bash\n(.*?)```', README, flags=re.DOTALL)


def test_the_two_commands_are_there():
    scripts = re.findall(r'^bash (\S+)', BLOCKS[0], flags=re.MULTILINE)
    assert scripts == ['launch/quickstart.sh', 'launch/test.sh']
    for script in scripts:
        subprocess.run(['bash', '-n', pathlib.Path(__file__).parents[1] / script], check=True)


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
    (block,) = (block for block in BLOCKS if 'mine.gin' in block)
    subprocess.run(
        ['bash', '-e', '-c', block], cwd=tmp_path, check=True, env={**os.environ, 'SLM_JAX_CACHE': str(tmp_path / 'cache')}
    )
    (results,) = tmp_path.glob('runs/mine/evaluations/*/results.json')
    assert 'wer' in json.loads(results.read_text())['scores']['transcription']['en']
