"""docs/pods.md: its scripts' commands are printed by --dry_run, its run file is one, its options exist."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess

import pytest

import gin
from slm_jax import cli

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'docs/pods.md').read_text(encoding='utf-8')
LINES = [
    line.strip()
    for block in re.findall(r'```bash\n(.*?)```', TEXT, flags=re.DOTALL)
    for line in block.replace('\\\n', '').splitlines()
]
BUCKET = 'gs://my-speech-bucket'
# Small models in the layout of those that are imported there.
SMALL = {'hf:facebook/w2v-bert-2.0': 'encoder_goldens/w2v_bert', 'hf:bigscience/mt0-xxl': 't5_goldens/mt5'}


def starting_with(word):
    return [line for line in LINES if line.startswith(word)]


def test_what_nobody_ran_is_marked():
    for line in [*starting_with('gcloud'), *starting_with('kubectl')]:
        assert re.search(r'# (parsed|not run)\b', line), line


@pytest.mark.parametrize('line', [line for line in LINES if 'bash launch/' in line])
def test_scripts_take_these_arguments(line, tmp_path):
    (tmp_path / 'slm_xxl.gin').write_text('')
    environment = '\n'.join(starting_with('export '))
    command = line.partition('  #')[0] + ' --dry_run'
    done = subprocess.run(
        ['bash', '-ec', f'{environment}\ncd {tmp_path}\n' + command.replace('launch/', f'{ROOT}/launch/', 1)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    for word in re.findall(r'\S+\.gin|gs://\S+', command):
        assert word in done.stdout


@pytest.mark.parametrize('line', starting_with('slm-jax'))
def test_programs_have_these_options(line, capsys):
    _, command, *arguments = shlex.split(line, comments=True)
    assert command in cli.COMMANDS
    with pytest.raises(SystemExit):
        importlib.import_module(f'slm_jax.{"import_" if command == "import" else command}').main(['--help'])
    told = capsys.readouterr().out
    for argument in arguments:
        if argument.startswith('--'):
            assert argument.partition('=')[0] in told


def test_the_run_file_is_one(tmp_path, monkeypatch, capsys):
    """With small models; its shapes are computed."""
    monkeypatch.chdir(tmp_path)
    for line in starting_with('slm-jax import'):
        _, _, source, out = shlex.split(line)
        assert (
            cli.main(['import', str(ROOT / 'tests/testdata' / SMALL[source]), out.replace(BUCKET, str(tmp_path))]) == 0
        )
    (text,) = re.findall(r'```gin\n(.*?)```', TEXT, flags=re.DOTALL)
    (tmp_path / 'slm_xxl.gin').write_text(text.replace(BUCKET, str(tmp_path)))
    capsys.readouterr()
    try:
        assert (
            cli.main(['card', '--json', '--gin_file=slm_xxl.gin', '--gin.MODEL_DIR=x', '--mesh', 'fsdp=4,model=4']) == 0
        )
    finally:
        gin.clear_config()
    parts = json.loads(capsys.readouterr().out)['parts']
    assert parts['adapter']['trained'] > 0 and parts['llm']['trained'] == parts['speech_encoder']['trained'] == 0
