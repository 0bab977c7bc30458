"""Work in shards: done once, in any number of processes, and gone on with after it was cut."""

import dataclasses
import pathlib

import pytest

from slm_jax.codebooks import shards

NAMES = ['0.txt', '1.txt', '2.txt']


@dataclasses.dataclass(frozen=True)
class Work:
    log: pathlib.Path
    fails_at: int = -1

    def __call__(self, number):
        if number == self.fails_at:
            raise ValueError(f'no {number}')
        with self.log.open('a') as file:
            file.write(f'{number}\n')
        return b'%d' % number


@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_that_was_cut_goes_on(tmp_path, processes):
    log = tmp_path / 'log'
    with pytest.raises(ValueError, match='no 2'):
        shards.make(tmp_path / 'out', {'k': 1}, NAMES, Work(log, fails_at=2), 1, 'Doing')
    files = shards.make(tmp_path / 'out', {'k': 1}, [*NAMES, '3.txt'], Work(log), processes, 'Doing')
    assert [file.read_bytes() for file in files] == [b'0', b'1', b'2', b'3']
    assert sorted(log.read_text().split()) == ['0', '1', '2', '3']
    assert not list((tmp_path / 'out').glob('*.part'))


def test_what_another_run_left_is_refused(tmp_path):
    shards.make(tmp_path, {'k': 1, 'layer': None}, NAMES, Work(tmp_path / 'log'), 1, 'Doing')
    with pytest.raises(ValueError, match=r'is of another run \(other k, layer\). Remove it, or give another OUT'):
        shards.make(tmp_path, {'k': 2, 'layer': 3}, NAMES, Work(tmp_path / 'log'), 1, 'Doing')
