"""The mesh over several TPU slices, which no network but the data centre's joins."""

import dataclasses

import pytest

from slm_jax.training import partitioning


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = 'tpu'
    device_kind: str = 'TPU v5 lite'
    core_on_chip: int = 0

    @property
    def process_index(self):
        return self.slice_index


CHIPS = [Chip(4 * s + 2 * y + x, s, (x, y, 0)) for s in range(2) for y in range(2) for x in range(2)]


@pytest.mark.parametrize('sizes', [{}, {'fsdp': 4}, {'model': 4}, {'fsdp': 2, 'model': 2}])
def test_a_slice_has_whole_parameters_of_its_own(sizes):
    mesh = partitioning.Partitioner(**sizes).mesh(CHIPS)
    assert mesh.shape['data'] == 8 // (mesh.shape['fsdp'] * mesh.shape['model'])
    for copy in mesh.devices:
        assert len({chip.slice_index for chip in copy.flat}) == 1
    assert [chips[0, 0].slice_index for chips in mesh.devices] == sorted(
        chips[0, 0].slice_index for chips in mesh.devices
    )


def test_parameters_over_slices_are_refused():
    with pytest.raises(ValueError, match='Partitioner.data is 1; on 2 TPU slices it must be a multiple of 2'):
        partitioning.Partitioner(data=1, fsdp=8).mesh(CHIPS)


def test_a_mesh_that_the_torus_does_not_have_is_refused():
    torus = [Chip(4 * y + x, 0, (x, y, 0), device_kind='TPU v4') for y in range(4) for x in range(4)]
    with pytest.raises(ValueError, match='data=1, fsdp=2, model=8: JAX does not lay this mesh onto these TPUs'):
        partitioning.Partitioner(data=1, fsdp=2, model=8).mesh(torus)
