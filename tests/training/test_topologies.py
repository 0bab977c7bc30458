"""Names of slices and cards."""

import pytest

from slm_jax.training import chips, topologies


def test_names():
    slice_ = topologies.parse('v5p:2x2x4')
    assert (slice_.size, slice_.shape, slice_.chip.name, slice_.simulated) == (16, '2x2x4', 'v5p', False)
    assert slice_.usable == 95.73 * 2**30
    assert slice_.resized('2x2x1').name == 'v5p:2x2x1' and slice_.resized('2x2x1').size == 4
    assert topologies.parse('v7x:2x2x1').size == topologies.parse('TPU7x:2x2x1').size == 8  # two devices a chip
    cards = topologies.parse('gpu:h100x8')
    assert cards.simulated and cards.size == 8 and cards.chip is chips.CHIPS['h100']
    memory = topologies.parse('gpu:80GBx2')
    assert (
        memory.chip is None and memory.usable == pytest.approx(0.92 * 80e9) and memory.resized('4').name == 'gpu:80GBx4'
    )
    assert topologies.parse('gpu:24GiBx1').usable == pytest.approx(0.92 * 24 * 2**30)
    assert topologies.parse('gpu:a100-40gbx4').usable == 0.92 * 40e9


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('v9:2x2', "no chip 'v9'; there are v4, v5e, v5p, v6e, v7x"),
        ('v5e:2x2x2', r'a slice of v5e is written v5e:1x1, 2x2, 2x4'),
        ('v5p:4', r'a slice of v5p is written v5p:2x2x1'),
        ('v5p', 'a slice of v5p is written'),
        ('gpu:h900x8', r'write gpu:NAMExN \(names: a100-40gb, a100, h100, h200\) or gpu:MEMORYxN'),
        ('gpu:h100', 'write gpu:NAMExN'),
        ('gpu:v5ex4', 'write gpu:NAMExN'),
        ('gpu:h100x1000', 'at most 64 GPUs are simulated'),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        topologies.parse(name)


def test_without_libtpu_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='takes libtpu, which is not installed: pip install libtpu'):
        topologies.prepare(topologies.parse('v5e:2x2'))
