"""What accelerators can do, by their makers' data sheets, and what a step takes on them at best: an estimate.

TPUs: the pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" of docs.cloud.google.com/tpu/docs (memory, its bandwidth, peak
rates). GPUs: NVIDIA's data sheets of the SXM cards, without sparsity. `usable` of a TPU is the limit that its compiler
names when a program does not fit (libtpu 0.0.52); of a GPU JAX takes 3/4 unless XLA_PYTHON_CLIENT_MEM_FRACTION says
otherwise, and 0.92 of it is about what can be had. `link` is what one chip sends along one axis of its torus, both ways
together (jax-ml.github.io/scaling-book, "How to think about TPUs"), of a GPU over NVLink; `dcn` its share of its host's
network.
"""

import dataclasses
import math
from collections.abc import Iterable

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator; rates are a second, sizes in bytes.

    Attributes:
        name: as in --topology.
        libtpu: as libtpu calls it; '' of a GPU.
        memory: HBM.
        usable: HBM that a program can have.
        bf16, int8: peak operations of matrix products.
        memory_rate: bytes to and from HBM.
        link, dcn: see the module's docstring.
        slices: shapes that are offered, by number of chips; a GPU's is a number of cards.
        devices: JAX devices of a chip; all figures are of one device.
    """

    name: str
    libtpu: str
    memory: float
    usable: float
    bf16: float
    int8: float
    memory_rate: float
    link: float
    dcn: float
    slices: tuple[str, ...]
    devices: int = 1


_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
_SQUARES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CARDS = ('1', '2', '4', '8')
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 'v4', 32 * GIB, 30.75 * GIB, 275e12, 275e12, 1.228e12, 90e9, 6.25e9, _CUBES),
        Chip('v5e', 'v5e', 16 * GIB, 15.75 * GIB, 197e12, 393e12, 0.819e12, 90e9, 3.125e9, _SQUARES),
        Chip('v5p', 'v5p', 96 * GIB, 95.73 * GIB, 459e12, 918e12, 2.765e12, 180e9, 6.25e9, _CUBES),
        Chip('v6e', 'v6e', 32 * GIB, 31.24 * GIB, 918e12, 1836e12, 1.640e12, 180e9, 12.5e9, _SQUARES),
        Chip('v7x', 'TPU7x', 96 * GIB, 94.74 * GIB, 1153e12, 1153e12, 3.690e12, 180e9, 6.25e9, _CUBES, devices=2),
        Chip('a100-40gb', '', 40e9, 0.92 * 40e9, 312e12, 624e12, 1.555e12, 300e9, 25e9, _CARDS),
        Chip('a100', '', 80e9, 0.92 * 80e9, 312e12, 624e12, 2.039e12, 300e9, 25e9, _CARDS),
        Chip('h100', '', 80e9, 0.92 * 80e9, 989e12, 1979e12, 3.35e12, 450e9, 50e9, _CARDS),
        Chip('h200', '', 141e9, 0.92 * 141e9, 989e12, 1979e12, 4.8e12, 450e9, 50e9, _CARDS),
    )
}


def num_chips(shape: str) -> int:
    """'2x2x4' -> 16."""
    return math.prod(map(int, shape.split('x')))


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters that tokens pass through.

    Attributes:
        params: that take part in matrix products, so no embeddings that are looked up.
        tokens: positions that pass through each of them in a step.
        kind: 'frozen', where no gradient passes (before the first trained part); 'passed', frozen where it does; or
            'trained'.
    """

    params: float
    tokens: float
    kind: str


_PASSES = {'frozen': 2, 'passed': 4, 'trained': 6}


def model_flops(parts: Iterable[Part]) -> float:
    """FLOPs of a training step by the usual rule, without attention's products between positions.

    With N parameters, a token takes 2N forward; 2N more where the gradient passes through to what lies before, and 2N
    more for the gradient of the parameters themselves: 2N frozen, 4N passed, 6N trained.
    """
    return sum(_PASSES[part.kind] * part.params * part.tokens for part in parts)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """At best, seconds of a step. An estimate: no kernel reaches its peak, and a measured step takes longer.

    Attributes:
        compute, memory, network: seconds of each alone.
        flops: of one chip.
        peak: of the chip.
    """

    compute: float
    memory: float
    network: float
    flops: float
    peak: float

    @property
    def seconds(self) -> float:
        """Compute and memory run side by side, and the network after them: max(compute, memory) + network."""
        return max(self.compute, self.memory) + self.network

    @property
    def mfu(self) -> float:
        """Share of the peak rate that the step's FLOPs make use of in that time."""
        return self.flops / (self.seconds * self.peak) if self.seconds else 0.0


def roofline(chip: Chip, flops: float, memory_bytes: float, sent_bytes: float, over_dcn: bool = False) -> Roofline:
    """The estimate of a step, from what one chip does in it.

        compute = flops / chip.bf16
        memory = memory_bytes / chip.memory_rate
        network = sent_bytes / chip.link (or chip.dcn, between slices)

    Weights in int8 are multiplied in bfloat16, so bf16's rate holds for them too. A collective is taken to use one axis
    of the torus; XLA may use more, and may hide it behind products.

    Args:
        chip: of `CHIPS`.
        flops: of matrix products on one chip.
        memory_bytes: that it reads and writes in HBM.
        sent_bytes: that it sends to others, `Collectives.sent`.
        over_dcn: whether these go over the data center's network.
    """
    rate = chip.dcn if over_dcn else chip.link
    return Roofline(flops / chip.bf16, memory_bytes / chip.memory_rate, sent_bytes / rate, flops, chip.bf16)


def memory_traffic(weights: float, optimizer: float, temporary: float, passes: int) -> float:
    """Bytes that a step moves to and from HBM, roughly.

    Each weight is read once a pass (3 in training: forward, what is computed again, backward; 1 in evaluation;
    decoding one for each token), the optimizer's state read and written, temporaries written and read.

    Args:
        weights: bytes of the weights that a chip multiplies with: all of them divided by `model` alone, because what
            `fsdp` divides is gathered first.
        optimizer: bytes of state and trained parameters on the chip.
        temporary: bytes of activations.
        passes: over the weights.
    """
    return passes * weights + 2 * optimizer + 2 * temporary


def chip_hours(chip: Chip, flops: float, mfu: float) -> float:
    """Hours of one chip that so many FLOPs take at that share of its peak rate."""
    return flops / (chip.bf16 * mfu) / 3600
