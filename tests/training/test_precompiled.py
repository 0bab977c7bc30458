"""A training compiled for devices that are not there."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import optax
import pytest
import toy

from slm_jax.decoding import DecodeConfig
from slm_jax.training import partitioning, precompiled, topologies

SIZE = precompiled.Size(rows=6, seconds=1.0, inputs=2, targets=3)


@pytest.fixture(scope='module')
def training():
    return precompiled.Training(
        toy.ToySystem(), ('adapter/.*',), optax.adam(1e-2), partitioning.Partitioner(), 'bfloat16', DecodeConfig()
    )


def test_bytes_by_kind(training):
    """Two matrices of 8 x 8: one trained, in float32 with Adam's two moments and its count, one frozen in bfloat16."""
    topology = topologies.parse('gpu:1GBx1')
    train, evaluate = precompiled.compiled(training, topology, {'data': 1}, SIZE, ['train', 'evaluate'])
    batch = 6 * (16_000 * 2 + 4 + 2 * 4 + 3 * 3 * 4)
    assert train.arguments == {'frozen': 128, 'trained': 256, 'optimizer': 2 * 256 + 4, 'batch': batch}
    assert evaluate.arguments == {**train.arguments, 'optimizer': 0}
    assert train.total == sum(train.arguments.values()) + train.temporary + train.outputs + train.code
    assert train.fits and train.moved.by_kind == {} and train.roofline is None, 'of 1 GB nothing but that is known'
    assert train.flops == 6 * 8 * 8 * 2 * (2 + 1 + 1), 'two forward, one back through the frozen, one for the gradient'
    assert json.loads(json.dumps(train.as_json()))['bytes']['batch'] == batch


def test_what_does_not_fit(training):
    tight = dataclasses.replace(topologies.parse('gpu:1GBx1'), usable=1000.0)
    (report,) = precompiled.compiled(training, tight, {'data': 1}, SIZE, ['train'])
    assert not report.fits and report.total > 1000
    found, tried = precompiled.best(training, tight, SIZE, 'train', list)
    assert not found.fits and tried == 1
    assert precompiled.smallest(training, found, SIZE, lambda items: items[:1]) is None


def test_a_mesh_that_the_devices_do_not_make(training):
    with pytest.raises(ValueError, match='data=1, fsdp=1, model=3 do not multiply to the 1 devices'):
        precompiled.compiled(training, topologies.parse('gpu:1GBx1'), {'data': 1, 'model': 3}, SIZE)


def test_meshes_are_all_factorisations():
    found = precompiled.meshes(8)
    assert len(found) == len({tuple(mesh.values()) for mesh in found}) == 10
    assert all(mesh['data'] * mesh['fsdp'] * mesh['model'] == 8 for mesh in found)
    assert SIZE.rounded_up({'data': 2, 'fsdp': 2, 'model': 2}).rows == 8


def test_the_compilers_own_words_on_memory():
    said = (
        'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
        'temporaries (242.14G) exceeds available HBM (15.75G).',
    )
    assert precompiled._needed(said, {'frozen': 1, 'batch': 2}) == int(242.14 * 2**30) - 3, 'arguments are among them'
    assert precompiled._needed(('Used 20.00M of 15.75M hbm.',), {'frozen': 2**20}) == 19 * 2**20
    assert precompiled._needed(('something else',), {}) is None


ON_A_SLICE = """
import json
import optax
import toy
from slm_jax.decoding import DecodeConfig
from slm_jax.training import partitioning, precompiled, topologies

topology = topologies.parse('v5e:2x2')
topologies.prepare(topology)
toy.WIDTH = 256
training = precompiled.Training(
    toy.ToySystem(), ('adapter/.*',), optax.adam(1e-2), partitioning.Partitioner(), 'bfloat16', DecodeConfig()
)
size = precompiled.Size(rows=8, seconds=0.1, inputs=2, targets=3)
best, tried = precompiled.best(training, topology, size, 'train', list, most=2)
divided = precompiled.compiled(training, topology, {'data': 1, 'fsdp': 2, 'model': 2}, size, ['train'])[0]
large = precompiled.Size(rows=2**19, seconds=9.0, inputs=2, targets=3)  # 151 GB of samples, a quarter on each
too_large = precompiled.compiled(training, topology, {'data': 4, 'fsdp': 1, 'model': 1}, large, ['train'])[0]
print(json.dumps([tried, *(report.as_json() for report in (best, divided, too_large))]))
"""


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extras dev and tpu)')
def test_for_a_tpu_slice_by_its_own_compiler():
    two = [  # at once: they share no lock
        subprocess.Popen(
            [sys.executable, '-c', ON_A_SLICE],
            env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (out, err), (other, _) = [each.communicate() for each in two]
    assert err == '', 'nothing of libtpu is shown'
    tried, best, divided, too_large = json.loads(out)
    assert json.loads(other)[2]['bytes'] == divided['bytes']
    assert tried == 2 and best['fits'] and best['usable_bytes'] == int(15.75 * 2**30)
    assert divided['bytes']['frozen'] == 256 * 256 * 2 // 4 and divided['bytes']['trained'] == 256 * 256 * 4 // 4
    assert divided['collectives'] and divided['sent_bytes'] > 0
    assert best['sent_bytes'] <= divided['sent_bytes']
    assert 0 < divided['estimate']['mfu'] < 1
    assert not too_large['fits'] and too_large['collectives'] is None
    assert 'Ran out of memory' in too_large['notes'][0]
    assert too_large['bytes']['total'] == pytest.approx(too_large['bytes']['batch'], rel=0.1)
