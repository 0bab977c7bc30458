"""Bytes that a compiled program sends, against numbers by hand."""

import json
import os
import subprocess
import sys

import pytest

from slm_jax.training import collectives


def program(entry: str, *computations: str) -> str:
    """HLO text of 8 chips."""
    parts = [
        'HloModule jit_f, is_scheduled=true, num_partitions=8',
        *computations,
        f'ENTRY %main () -> f32[] {{{entry}}}',
    ]
    return '\n\n'.join(parts)


GROUPS = 'replica_groups={{0,1,2,3},{4,5,6,7}}'


def test_each_kind_with_its_bytes_and_group():
    text = program(f"""
  %p = bf16[2,3]{{1,0:T(8,128)(2,1)}} parameter(0)
  %ag = bf16[8,3]{{1,0:T(8,128)(2,1)S(1)}} all-gather(%p), {GROUPS}, dimensions={{0}}, metadata={{op_name="jit(f)/dot"}}
  %ar = (f32[10]{{0}}, f32[]) all-reduce(%p, %p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %rs = f32[5]{{0}} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=4] {{'a', 'b':(1)2}}, to_apply=%add
  %aa = s8[6]{{0}} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {{'b'}}
  %one = s8[999]{{0}} all-to-all(%p), replica_groups={{{{0}},{{1}}}}
  ROOT %cp = pred[7]{{0}} collective-permute(%p), source_target_pairs={{{{0,1}},{{1,0}}}}
""")
    found = collectives.collectives(text)
    assert found.by_kind == {
        'all-gather': 8 * 3 * 2,
        'all-reduce': 10 * 4 + 4,
        'all-to-all': 6,
        'collective-permute': 7,
        'reduce-scatter': 5 * 4,
    }
    assert {each.kind: each.group for each in found.found} == {
        'all-gather': 4,
        'all-reduce': 2,
        'all-to-all': 4,
        'collective-permute': 8,
        'reduce-scatter': 4,
    }
    assert found.sent == 48 * 3 / 4 + 44 + 6 * 3 / 4 + 7 + 20 * 3
    assert found.largest(1)[0].op_name == 'jit(f)/dot'
    assert found.open_loops == ()


def test_an_asynchronous_collective_counts_once():
    """As start and done, as a wrapped computation, and as a TPU's fusions: start, what runs beside, done."""
    text = program(
        f"""
  %p = f32[2]{{0}} parameter(0)
  %s = (f32[2]{{0}}, f32[8]{{0}}) all-gather-start(%p), channel_id=1, {GROUPS}, dimensions={{0}}
  %d = f32[8]{{0}} all-gather-done(%s)
  %cs = (f32[2]{{0}}, f32[2]{{0}}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{{{0,1}}}}
  %cd = f32[2]{{0}} collective-permute-done(%cs)
  %as = ((f32[2]{{0}}), f32[2]{{0}}, u32[]) async-start(%p), calls=%wrapped
  %ad = f32[2]{{0}} async-done(%as)
  %fs = (f32[4]{{0}}, u32[]) fusion(%p), kind=kCustom, calls=%begin
  %work = (f32[3]{{0}}, u32[]) fusion(%fs), kind=kCustom, calls=%beside
  %fd = f32[4]{{0}} fusion(%work), kind=kCustom, calls=%end
  ROOT %r = f32[1]{{0}} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1, metadata={{op_name="jit(f)/sum"}}
""",
        f'%wrapped (q: f32[2]) -> f32[2] {{\n  %q = f32[2]{{0}} parameter(0)\n'
        f'  ROOT %aa = f32[2]{{0}} all-to-all(%q), {GROUPS}\n}}',
        *(
            f'%{name} (q: f32[2]) -> f32[4] {{\n  %q = f32[2]{{0}} parameter(0)\n'
            f'  ROOT %g.{name} = f32[4]{{0}} all-gather(%q), channel_id=7, replica_groups=[4,2]<=[8]\n}}'
            for name in ('begin', 'beside', 'end')
        ),
        '%all-reduce-scatter.1 (q: f32[2]) -> f32[1] {\n  %q = f32[2]{0} parameter(0)\n'
        '  %a = f32[2]{0} all-reduce(%q), channel_id=9, replica_groups=[4,2]<=[8], to_apply=%add\n'
        '  ROOT %slice = f32[1]{0} dynamic-slice(%a, %q), dynamic_slice_sizes={1}\n}',
    )
    found = collectives.collectives(text)
    assert found.by_kind == {
        'all-gather': 32 + 16,
        'all-to-all': 8,
        'collective-permute': 8,
        'reduce-scatter': 4,
    }
    assert [each.op_name for each in found.found if each.kind == 'reduce-scatter'] == ['jit(f)/sum']


def loop(condition: str, body: str = '%add = s32[] add(%i, %one)', known: str = '') -> str:
    """A program whose loop sends 8 bytes in each iteration; its state is (counter, limit, data)."""
    state = '(s32[], s32[], f32[2])'
    return program(
        f"""
  %zero = s32[]{{:T(128)}} constant(3)
  %copied = s32[] copy(%zero)
  %limit = s32[] constant(11)
  %x = f32[2]{{0}} parameter(0)
  %init = {state} tuple(%copied, %limit, /*index=2*/%x)
  ROOT %while.1 = {state} while(%init), condition=%cond, body=%body, metadata={{op_name="jit(f)/while"}}{known}
""",
        f"""%body (s: {state}) -> {state} {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %y = f32[2]{{0}} get-tuple-element(%s), index=2
  %one = s32[] constant(2)
  {body}
  %sum = f32[2]{{0}} all-reduce(%y), {GROUPS}, to_apply=%plus
  ROOT %t = {state} tuple(%add, %n, %sum)
}}""",
        f"""%cond (s: {state}) -> pred[] {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %ten = s32[] constant(10)
  {condition}
}}""",
        """%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}""",
    )


@pytest.mark.parametrize(
    ('condition', 'known', 'times', 'open_loop'),
    [
        ('ROOT %c = pred[] compare(%i, %ten), direction=LT', '', 4, None),  # 3, 5, 7, 9
        ('ROOT %c = pred[] compare(%i, %n), direction=LE', '', 5, None),  # the limit is carried along
        ('ROOT %c = pred[] compare(%ten, %i), direction=GT', '', 4, None),
        ('ROOT %c = pred[] fusion(%i, %ten), kind=kLoop, calls=%compared', '', 4, None),
        ('ROOT %c = pred[] custom-call(%i)', ', backend_config={"known_trip_count":{"n":"6"}}', 6, None),
        ('ROOT %c = pred[] custom-call(%i)', '', 1, collectives.Loop('jit(f)/while', None)),
        (
            '%c = pred[] compare(%i, %ten), direction=LT\n  %d = pred[] custom-call(%i)\n'
            '  ROOT %e = pred[] and(%c, %d)',
            '',
            4,
            collectives.Loop('jit(f)/while', 4),
        ),
    ],
    ids=['constant', 'carried', 'turned', 'fused', 'known', 'unknown', 'at most'],
)
def test_a_loop_counts_as_often_as_it_runs(condition, known, times, open_loop):
    found = collectives.collectives(loop(condition, known=known))
    assert found.by_kind == {'all-reduce': 8 * times}
    assert found.open_loops == ((open_loop,) if open_loop else ())


def test_a_step_that_is_not_known_makes_a_bound():
    found = collectives.collectives(
        loop('ROOT %c = pred[] compare(%i, %ten), direction=LT', body='%add = s32[] custom-call(%i)')
    )
    assert found.by_kind == {'all-reduce': 8 * 7}
    assert found.open_loops == (collectives.Loop('jit(f)/while', 7),)


def test_of_branches_the_dearest_counts():
    branch = (
        '%{0} (q: f32[{1}]) -> f32[{1}] {{\n  %q = f32[{1}] parameter(0)\n'
        '  ROOT %a{1} = f32[{1}] all-reduce(%q), {2}, to_apply=%p\n}}'
    )
    text = program(
        '\n  %p = f32[2]{0} parameter(0)\n'
        '  ROOT %c = f32[2]{0} conditional(%p, %p, %p), branch_computations={%small, %large}\n',
        branch.format('small', 2, GROUPS),
        branch.format('large', 4, GROUPS),
    )
    assert collectives.collectives(text).by_kind == {'all-reduce': 16}


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match='no ENTRY computation'):
        collectives.collectives('HloModule empty')


SCAN = """
import json
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from slm_jax.training import collectives

mesh = jax.make_mesh((2, 4), ('data', 'model'), (jax.sharding.AxisType.Auto,) * 2)

def abstract(*shape, spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

def layers(x, up, down):
    def layer(x, kernels):
        return x + jnp.tanh(x @ kernels[0]) @ kernels[1], None
    return jax.lax.scan(layer, x, (up, down))[0]

def search(x, up, down):
    def more(state):
        return (state[0] < 9) & jnp.any(state[1] < 1)
    return jax.lax.while_loop(more, lambda state: (state[0] + 1, layers(state[1], up, down)), (0, x))[1]

x = abstract(16, 32, spec=('data',))
arguments = x, abstract(5, 32, 64, spec=(None, None, 'model')), abstract(5, 64, 32, spec=(None, 'model'))
for function in (layers, search):
    program = jax.jit(function, out_shardings=x.sharding).lower(*arguments).compile()
    found = collectives.collectives(program.as_text())
    flops = program.cost_analysis()['flops']
    print(json.dumps([found.by_kind, [[loop.op_name, loop.most] for loop in found.open_loops], flops]))
"""


def test_a_program_with_loops_on_eight_devices():
    """Each layer reduces [8, 32] float32 over the model axis; the search runs five layers at most nine times."""
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    done = subprocess.run(
        [sys.executable, '-c', SCAN],
        env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=True,
    )
    layers, search = map(json.loads, done.stdout.splitlines())
    layer = 8 * 32 * 4
    assert layers[0] == {'all-reduce': 5 * layer} and layers[1] == []
    assert search[0]['all-reduce'] in range(9 * 5 * layer, 9 * 5 * layer + 11 * 4)  # and whether any is left
    assert search[1] == [['jit(search)/while', 9]]
    assert layers[2] < 2 * (2 * 8 * 32 * 16 * 2), 'XLA counts one layer of five: its FLOPs are of no use here'
