"""Where parameters lie, and what steps send between devices because of it: A and B of generation and evaluation."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import layouts
import pytest

from slm_jax import cli, configuration
from slm_jax.foundations import flatten
from slm_jax.inference import model
from slm_jax.training import partitioning, setup

# Made anew by `python tests/training/test_partitioning.py`, when a change of it is meant.
GOLDEN = pathlib.Path(__file__).parents[1] / 'testdata' / 'layouts' / 'slm_xxl.txt'


def xxl() -> str:
    """A line for each parameter of SLM-XXL: its path, shape and the axes of the mesh 2,4,8 that divide it."""
    configuration.parse_gin(['models/slm_xxl.gin'], [])
    partitioner = partitioning.Partitioner(2, 4, 8)
    mesh = jax.sharding.AbstractMesh((2, 4, 8), ('data', 'fsdp', 'model'))
    layout = setup.lay_out(model.configured_system(), ('adapter/.*',), partitioner, mesh)
    leaves = sorted(flatten(layout.trainable).items()) + sorted(flatten(layout.frozen).items())
    return ''.join(
        f'{path} {",".join(map(str, leaf.shape))} {",".join(str(axes or "-") for axes in leaf.sharding.spec)}\n'
        for path, leaf in leaves
    )


def test_where_the_parameters_of_slm_xxl_lie():
    assert xxl().splitlines() == GOLDEN.read_text().splitlines()


def test_generation_has_rules_of_its_own_for_the_rows_of_the_language_model_alone():
    training, generation = dict(partitioning.LOGICAL_AXIS_RULES), dict(partitioning.GENERATION_RULES)
    assert training.keys() == generation.keys()
    assert {name for name in training if training[name] != generation[name]} == {'llm_batch'}


def sent(*names):
    """What `layouts.py` finds on eight simulated devices."""
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    ran = subprocess.run(
        [sys.executable, layouts.__file__, *names],
        env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def check_decoding(found, name):
    """In the loop no weight and no vocabulary is gathered: nothing but what attention gives for the rows."""
    rows = layouts.ROWS * layouts.DECODE[name].beams
    of_attention = 4 * rows * layouts.HEADS // 2 * layouts.WIDTH
    in_loop = [each for each in found['sent'][name] if each[2] % layouts.STEPS == 0]
    assert {'all-gather', 'all-reduce'} <= {kind for kind, *_ in in_loop}
    gathers = [(size, times, where) for kind, size, times, where in in_loop if kind == 'all-gather']
    assert max(gathers)[0] <= of_attention, max(gathers)
    # Of each layer its two attentions; and, once a step, a few candidates of each row.
    of_step = layouts.LAYERS * 2 * of_attention + 100 * rows
    assert sum(size * times for size, times, _ in gathers) <= layouts.STEPS * of_step
    # Sums are of the rows' activations, of which none is wider than both branches of the feed-forward block.
    assert max(size for _, size, *_ in in_loop) <= 4 * rows * 2 * 256 // 2


def check_evaluation(found):
    """In the speech encoder and the adapter rows stay divided: sums over `model` are of a quarter of them."""
    frames = 13  # half a second
    inside = [each for each in found['sent']['evaluation'] if re.search('conformer|SlmAdapter', each[3])]
    sums = [(size, where) for kind, size, _, where in inside if kind == 'all-reduce']
    assert sums and max(sums)[0] <= 4 * layouts.ROWS // 4 * frames * 64, max(sums)
    largest_weight = 4 * 64 * 256 // 2
    assert max(size for _, size, *_ in inside) <= largest_weight


@pytest.fixture(scope='module')
def small():
    return sent('evaluation', 'ctc')


def test_generation_leaves_weights_and_vocabulary_where_they_are(small):
    check_decoding(small, 'ctc')


def test_evaluation_divides_rows_inside_the_speech_encoder(small):
    check_evaluation(small)


def test_what_is_generated_is_that_of_one_device(small):
    several, one = small['tokens']['ctc']
    assert several == one


def test_the_best_of_a_divided_vocabulary_are_the_best_of_all(small):
    assert small['best'] == [True, True, True]


@pytest.mark.slow
def test_every_way_to_generate_leaves_weights_where_they_are():
    names = ('greedy', 'beam', 'sample')
    found = sent(*names)
    for name in names:
        check_decoding(found, name)
        several, one = found['tokens'][name]
        assert several == one


@pytest.mark.slow
@pytest.mark.parametrize(
    ('topology', 'sizes', 'rows', 'step', 'kind', 'most'),
    [
        ('v5e:4x8', (1, 4, 8), 32, 'greedy', 'all-gather', 1.0e9),
        ('v5e:4x8', (1, 4, 8), 32, 'beam', 'all-gather', 1.25e9),
        ('v5e:8x8', (1, 64, 1), 256, 'evaluation', 'all-reduce', 2.0e9),
    ],
)
def test_what_slm_xxl_sends_on_tpus(topology, sizes, rows, step, kind, most):
    """15 s clips, 64 + 128 tokens. Needs libtpu, no TPU; minutes and 3 GB each."""
    pytest.importorskip('libtpu')
    environment = {**cli.NO_TPU, 'JAX_PLATFORMS': 'cpu'}
    ran = subprocess.run(
        [sys.executable, layouts.__file__, topology, ','.join(map(str, sizes)), str(rows), step],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert 0 < json.loads(ran.stdout)[kind] < most, ran.stdout


if __name__ == '__main__':
    GOLDEN.write_text(xxl())
