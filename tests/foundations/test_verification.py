"""Damaged parameters are never computed with: each byte of a foundation is what its card says, or it is refused."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from slm_jax import cli, foundations, paths
from slm_jax.foundations import FoundationError, verification
from slm_jax.training import origins


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A foundation of some kilobytes, which no compression makes smaller."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp('foundations') / 'whole'
    params = {
        'a': {
            'kernel': rng.integers(0, 2**32, (16, 64), dtype=np.uint32).view(np.int32),
            'none': np.zeros(3, np.float32),
        },
        'b': {'layers': rng.normal(size=(2, 5, 7)).astype(np.float32), 'scale': np.float32(2)},
    }
    foundations.save(path, params, {'name': 'whole', 'kind': 'llm'})
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """One that may be damaged."""
    return shutil.copytree(whole, tmp_path / 'copy')


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def kernel_file(path):
    return max((path / 'params').rglob('*'), key=lambda file: file.stat().st_size if 'd' in file.parts else 0)


def test_a_flipped_bit(copy):
    origins.find({'llm': str(copy)})
    file = kernel_file(copy)
    stat = file.stat()
    flip(file, stat.st_size // 2)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a copy that keeps times shows nothing
    said = foundations.card(copy)['fingerprint']['content']
    for read in (foundations.load, lambda path: origins.find({'llm': str(path)})):
        with pytest.raises(
            FoundationError, match=f'{copy}/params has the content (?!{said}).{{64}}, .* {said}. .*copy it'
        ):
            read(copy)
    assert foundations.abstract(copy)


def test_programs_refuse_it(tmp_path, write_wav, capsys):
    """Before anything is answered, by name."""
    copy = shutil.copytree(foundations.find('usm_tiny'), tmp_path / 'usm_tiny')
    flip(kernel_file(copy), 20_000)
    write_wav(tmp_path / 'clip.wav', 1)
    assert cli.main(['infer', str(tmp_path / 'clip.wav'), '--model', str(copy)]) == 2
    error = capsys.readouterr().err
    assert re.search(f'slm-jax infer: {copy}/params (has the content|cannot be read).*copy it again', error)


@pytest.mark.parametrize('damage', ['empty', 'cut', 'zeros', 'gone'])
def test_damage_is_refused_or_of_no_effect(damage, whole, tmp_path):
    expected = foundations.fingerprint(foundations.load(whole))
    refused = 0
    for number, file in enumerate(sorted(path for path in whole.rglob('*') if path.is_file() and path.stat().st_size)):
        copy = shutil.copytree(whole, tmp_path / str(number))
        damaged = copy / file.relative_to(whole)
        data = damaged.read_bytes()
        damaged.write_bytes({'cut': data[: len(data) // 2], 'zeros': bytes(len(data))}.get(damage, b''))
        if damage == 'gone':
            damaged.unlink()
        try:
            assert foundations.fingerprint(foundations.load(copy)) == expected
        except FoundationError as error:
            refused += 1
            assert str(copy) in str(error) or 'No foundation' in str(error)
    assert refused >= 4  # the card, the manifest, the list of parameters and the file with the kernel


def test_what_is_known_is_not_read_again(copy, monkeypatch, tmp_path):
    foundations.load(copy)
    read, reads = verification._content, []
    monkeypatch.setattr(verification, '_content', lambda *args: reads.append(args) or read(*args))
    foundations.load(copy)
    assert not reads
    os.utime(kernel_file(copy))
    foundations.load(copy)
    assert len(reads) == 1
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'copy' / 'card.json'))  # where nothing can be written
    foundations.load(copy)
    foundations.load(copy)
    monkeypatch.setenv('SLM_JAX_CACHE', '~of_nobody')
    foundations.load(copy)
    assert len(reads) == 4


def test_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv('SLM_JAX_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert paths.cache() == tmp_path / 'slm_jax'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert paths.cache() == tmp_path / '.cache' / 'slm_jax'


@pytest.mark.parametrize('text', ['[]', '{"name": "whole"}', '{"fingerprint": {"structure": ""}}', '\xff'])
def test_cards(copy, text):
    (copy / 'card.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(FoundationError, match=f'{copy}/card.json .*Restore the file'):
        foundations.load(copy)


def test_a_note_that_is_damaged_is_made_anew(copy, monkeypatch, tmp_path):
    monkeypatch.setenv('SLM_JAX_CACHE', str(tmp_path / 'cache'))
    foundations.load(copy)
    (note,) = (tmp_path / 'cache').rglob('*.json')
    good = json.loads(note.read_text())
    note.write_text('{')
    foundations.load(copy)
    assert json.loads(note.read_text()) == good


def test_a_tokenizer_that_is_not_the_one_of_the_card(sentencepiece_model, tmp_path):
    foundations.save(
        tmp_path / 'llm', {'kernel': np.ones(3, np.float32)}, {'name': 'llm', 'kind': 'llm'}, [sentencepiece_model]
    )
    assert foundations.vocabulary(tmp_path / 'llm').encode('the')
    flip(tmp_path / 'llm' / 'tokenizer.model', 5000)
    with pytest.raises(
        FoundationError, match='llm/tokenizer.model has the SHA-256 .* by its card it is .*copy it again'
    ):
        foundations.vocabulary(tmp_path / 'llm')


@pytest.mark.parametrize('name', ['t5_tiny', 'usm_tiny'])
def test_the_packaged_tokenizers(name):
    assert foundations.card(name)['files'].keys() == {'tokenizer.model'}
    assert foundations.vocabulary(name).encode('the')
