"""Estimates, against numbers by hand."""

import jax
import jax.numpy as jnp
import pytest

from slm_jax.training import chips, flops


def test_the_rule_of_2n_4n_6n_is_what_a_training_step_computes():
    """Frozen before what trains: forward alone; trained: all; frozen behind it: the gradient passes through."""
    tokens, width = 12, 8
    kernels = {name: jnp.ones((width, width)) for name in ('frozen', 'trained', 'passed')}

    def loss(trained, x):
        for kernel in (kernels['frozen'], kernels['frozen'], trained, kernels['passed'], kernels['passed']):
            x = jnp.tanh(x @ kernel)
        return jnp.sum(x)

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(kernels['trained'], jnp.ones((tokens, width)))
    n = width * width
    parts = [chips.Part(2 * n, tokens, 'frozen'), chips.Part(n, tokens, 'trained'), chips.Part(2 * n, tokens, 'passed')]
    assert chips.model_flops(parts) == (2 * 2 * n + 6 * n + 4 * 2 * n) * tokens
    # What lies before the first trained kernel needs no gradient, so that kernel's input gets none: 4N of its 6N.
    assert flops.count(jaxpr.jaxpr) == chips.model_flops(parts) - 2 * n * tokens


def test_flops_of_loops_convolutions_and_branches():
    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]

    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))
    once = 2 * 3 * 4 * 4
    assert flops.count(jax.make_jaxpr(scanned)(x, w).jaxpr) == 7 * once

    def search(x, w):
        return jax.lax.while_loop(lambda x: jnp.any(x > 0), lambda x: x @ w, x)

    assert flops.count(jax.make_jaxpr(search)(x, w).jaxpr, open_trips=5) == 5 * once

    def branches(i, x, w):
        return jax.lax.switch(i, [lambda x: x, lambda x: x @ w, lambda x: x @ w @ w], x)

    assert flops.count(jax.make_jaxpr(branches)(1, x, w).jaxpr) == 2 * once

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), 'SAME', feature_group_count=2)

    image, kernel = jnp.ones((2, 4, 10)), jnp.ones((6, 2, 3))  # 4 channels in 2 groups to 6, 3 wide
    assert flops.count(jax.make_jaxpr(convolved)(image, kernel).jaxpr) == 2 * (2 * 6 * 10) * 2 * 3


def test_a_roofline_by_hand():
    chip = chips.CHIPS['v5p']
    line = chips.roofline(chip, flops=459e12, memory_bytes=2 * 2.765e12, sent_bytes=90e9)
    assert (line.compute, line.memory, line.network) == (1.0, 2.0, 0.5)
    assert line.seconds == 2.5 and line.mfu == 0.4
    across = chips.roofline(chip, 459e12, 0, 6.25e9, over_dcn=True)
    assert across.seconds == 2.0 and across.mfu == 0.5
    assert chips.memory_traffic(weights=10, optimizer=3, temporary=4, passes=3) == 30 + 6 + 8
    assert chips.chip_hours(chip, 459e12 * 3600, 0.5) == 2.0


@pytest.mark.parametrize('chip', chips.CHIPS.values(), ids=list(chips.CHIPS))
def test_figures_are_of_one_device(chip):
    assert 0.9 * chip.memory < chip.usable < chip.memory
    assert chip.bf16 <= chip.int8 and chip.dcn < chip.link < chip.memory_rate
    sizes = list(map(chips.num_chips, chip.slices))
    assert sizes == sorted(set(sizes)) and len({shape.count('x') for shape in chip.slices}) == 1
