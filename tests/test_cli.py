"""The console script: light, and a thin door."""

import subprocess
import sys
import types
import warnings

import pytest

from slm_jax import cli

HEAVY = ('jax', 'flax', 'tensorflow', 'seqio', 'numpy', 'matplotlib', 'gin')


def test_help_imports_nothing_heavy():
    code = (
        'import sys; from slm_jax import cli; status = cli.main(["--help"]); '
        f'heavy = [m for m in {HEAVY} if m in sys.modules]; '
        'sys.exit(str(heavy) if heavy else status)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        'prepare',
        'pretrain',
        'import',
        'train',
        'evaluate',
        'answers',
        'translate',
        'infer',
        'export',
        'card',
    ):
        assert f'\n  {command} ' in done.stdout


@pytest.mark.parametrize(
    'command', ['evaluate', 'answers', 'translate', 'infer', 'serve', 'demo', 'export', 'card', 'import']
)
def test_help_of_a_command_imports_nothing_heavy(command):
    module = 'import_' if command == 'import' else command
    code = (
        f'import sys, slm_jax.{module} as program\n'
        'try:\n    program.main(["--help"])\n'
        'except SystemExit as e:\n    assert not e.code, e.code\n'
        f'heavy = [m for m in {HEAVY} if m in sys.modules]\nsys.exit(str(heavy) if heavy else 0)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'slm-jax {command}' in done.stdout


def test_the_rest_of_the_line_reaches_the_program(monkeypatch):
    seen = []
    program = types.SimpleNamespace(main=lambda argv: seen.append(argv))
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: seen.append(name) or program)
    assert cli.main(['train', '--gin_file=a.gin', '--gin.X=1']) == 0
    assert seen == ['slm_jax.train', ['--gin_file=a.gin', '--gin.X=1']]


def test_a_command_that_python_has_a_word_for(monkeypatch):
    seen = []
    program = types.SimpleNamespace(main=lambda argv: 0)
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: seen.append(name) or program)
    assert cli.main(['import', 'a', 'b']) == 0
    assert seen == ['slm_jax.import_']


def test_the_status_of_the_program_is_ours(monkeypatch):
    program = types.SimpleNamespace(main=lambda argv: 3)
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: program)
    assert cli.main(['infer', 'a.wav']) == 3


def test_ctrl_c_is_no_traceback(monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    program = types.SimpleNamespace(main=interrupted)
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: program)
    assert cli.main(['train']) == 130


def test_a_misspelt_command_is_told_the_nearest(capsys):
    assert cli.main(['evalute']) == 2
    assert 'did you mean `slm-jax evaluate`?' in capsys.readouterr().err
    assert cli.main(['zzz']) == 2
    assert 'prepare, pretrain, import, train' in capsys.readouterr().err


def test_no_command_is_an_error_with_the_usage(capsys):
    assert cli.main([]) == 2
    assert 'usage: slm-jax' in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(['--version']) == 0
    assert capsys.readouterr().out.strip()


def test_noise_is_silenced_but_the_users_choice_stays(monkeypatch):
    monkeypatch.delenv('TF_CPP_MIN_LOG_LEVEL', raising=False)
    monkeypatch.setenv('GRPC_VERBOSITY', 'DEBUG')
    cli.quiet_libraries()
    assert cli.os.environ['TF_CPP_MIN_LOG_LEVEL'] == '3'
    assert cli.os.environ['GRPC_VERBOSITY'] == 'DEBUG'
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
    cli.quiet_libraries()
    assert cli.os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'


def test_a_warning_of_ours_is_one_line(monkeypatch):
    from slm_jax.audio import containers

    monkeypatch.setattr(warnings, 'formatwarning', warnings.formatwarning)
    cli.quiet_libraries()
    shown = warnings.formatwarning('a.wav: is odd.', containers.AudioWarning, '/lib/x.py', 7)
    assert shown == 'slm-jax: a.wav: is odd.\n'
    assert warnings.formatwarning('old', UserWarning, '/lib/x.py', 7) == '/lib/x.py:7: UserWarning: old\n'


def test_the_console_script_starts_once_more_with_large_pages(monkeypatch):
    started = []

    class Replaced(Exception):
        """`execv` does not return."""

    def execv(*arguments):
        started.append(arguments)
        raise Replaced

    monkeypatch.setattr(cli.os, 'execv', execv)
    monkeypatch.setattr(cli, 'main', lambda: 7)
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setenv('GLIBC_TUNABLES', '')  # so that it is put back
    monkeypatch.delenv('GLIBC_TUNABLES')
    with pytest.raises(Replaced):
        cli.console()
    assert started == [(sys.executable, sys.orig_argv)]
    assert cli.os.environ['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'
    assert cli.console() == 7 and len(started) == 1
