"""Devices that need not be there, to compile for: a TPU slice through libtpu, or CPU devices that stand for GPUs."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

from slm_jax import cli
from slm_jax.training import chips

_UNITS = {'kb': 1e3, 'mb': 1e6, 'gb': 1e9, 'tb': 1e12, 'kib': 2**10, 'mib': 2**20, 'gib': 2**30, 'tib': 2**40}
_MOST_CARDS = 64  # each is a thread of this machine


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind.

    Attributes:
        name: as the user wrote it.
        chip: what each is; None: known is the memory alone.
        usable: bytes of memory that a program may take on one.
        shape: '2x2x4'; of GPUs their number.
    """

    name: str
    chip: chips.Chip | None
    usable: float
    shape: str

    @property
    def size(self) -> int:
        """Devices."""
        return chips.num_chips(self.shape) * (self.chip.devices if self.chip else 1)

    @property
    def simulated(self) -> bool:
        """Whether this machine's CPU stands for the devices, so that the numbers are not the compiler's own."""
        return not (self.chip and self.chip.libtpu)

    def devices(self) -> list[Any]:
        """To make a mesh of; `prepare` comes first.

        Raises:
            ValueError: libtpu knows no such slice.
        """
        import jax

        if self.simulated:
            return jax.devices('cpu')[: self.size]
        from jax.experimental import topologies

        assert self.chip is not None
        name = f'{self.chip.libtpu}:{self.shape}'
        # A v4 chip has two cores that work as one device, as they do on a TPU VM.
        options = {'chip_config_name': 'megacore'} if self.chip.name == 'v4' else {}
        try:
            return list(topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices)
        except Exception as error:
            raise ValueError(
                f'--topology {self.name}: libtpu has no such slice: {str(error).splitlines()[0]}'
            ) from error

    def resized(self, shape: str) -> 'Topology':
        """A slice of another size."""
        kind = self.name.removesuffix(self.shape)
        return dataclasses.replace(self, name=f'{kind}{shape}', shape=shape)


def parse(text: str) -> Topology:
    """The topology that a text names: 'v5p:2x2x4', 'gpu:h100x8', 'gpu:80GBx8'.

    Raises:
        ValueError: no such chip, or no such shape.
    """
    kind, _, rest = text.partition(':')
    if kind == 'gpu':
        return _cards(text, rest)
    tpus = [chip for chip in chips.CHIPS.values() if chip.libtpu]
    chip = next((chip for chip in tpus if kind in (chip.name, chip.libtpu)), None)
    if chip is None:
        raise ValueError(
            f'--topology {text}: there is no chip {kind!r}; there are {", ".join(chip.name for chip in tpus)} '
            '(v5p:2x2x4), and GPUs by name or memory (gpu:h100x8, gpu:80GBx8).'
        )
    axes = chip.slices[0].count('x') + 1
    if not re.fullmatch(r'[1-9]\d*' + r'x[1-9]\d*' * (axes - 1), rest):
        raise ValueError(f'--topology {text}: a slice of {chip.name} is written {kind}:{", ".join(chip.slices)} …')
    return Topology(text, chip, chip.usable, rest)


def _cards(text: str, rest: str) -> Topology:
    what, _, count = rest.rpartition('x')
    chip = chips.CHIPS.get(what.lower())
    size = re.fullmatch(r'([\d.]+)\s*([kmgt]i?b)', what.lower())
    if not re.fullmatch(r'[1-9]\d*', count) or (chip is None or chip.libtpu) and not size:
        gpus = ', '.join(chip.name for chip in chips.CHIPS.values() if not chip.libtpu)
        raise ValueError(f'--topology {text}: write gpu:NAMExN (names: {gpus}) or gpu:MEMORYxN, as gpu:80GBx8.')
    if int(count) > _MOST_CARDS:
        raise ValueError(f'--topology {text}: at most {_MOST_CARDS} GPUs are simulated.')
    usable = chip.usable if chip else 0.92 * float(size[1]) * _UNITS[size[2]] if size else 0.0
    return Topology(text, chip, usable, count)


def prepare(topology: Topology) -> None:
    """Sets up this process, before JAX is first used: it shall compile, and need no device but the CPU.

    Raises:
        ValueError: libtpu is not installed.
    """
    if not topology.simulated and importlib.util.find_spec('libtpu') is None:
        raise ValueError(
            f'--topology {topology.name}: compiling for TPUs takes libtpu, which is not installed: pip install libtpu '
            '(or slm_jax[tpu]). No TPU is needed.'
        )
    os.environ.update(cli.NO_TPU)
    import jax

    jax.config.update('jax_platforms', 'cpu')
    # What is compiled for devices that are not there is written to JAX's cache and cannot be read from it.
    jax.config.update('jax_enable_compilation_cache', False)
    if topology.simulated:
        jax.config.update('jax_num_cpu_devices', max(topology.size, 8))
