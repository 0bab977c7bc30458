"""What a compiled step sends between its chips, read from its optimised HLO text.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs.

**What is counted**: the bytes of a collective's result on one chip, each time it is executed. For an all-gather that is
the gathered array, for an all-reduce the reduced array, for a reduce-scatter the chip's own part. What goes over a
chip's links is another number (`Collective.sent`). Layers of padding that a chip's memory layout adds are not counted.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,<=]*)\]')
_NAME = re.compile(r'%([\w.\-]+)')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_SAME = ('copy', 'bitcast', 'convert', 'reshape', 'copy-done', 'copy-start')  # the same number, elsewhere


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: one of `KINDS`.
        result_bytes: of its result on one chip.
        times: how often a chip executes it.
        group: chips that take part in one.
        op_name: where in the model it comes from, as JAX named it.
    """

    kind: str
    result_bytes: int
    times: int
    group: int
    op_name: str

    @property
    def bytes(self) -> int:
        """Of all executions."""
        return self.result_bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in all executions by the ring algorithms: an all-reduce sends its array twice."""
        others = self.group - 1
        factor = {
            'all-reduce': 2 * others / self.group,
            'reduce-scatter': others,
            'collective-permute': 1,
        }.get(self.kind, others / self.group)
        return self.bytes * factor


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop with collectives, of which the program does not say how often it runs.

    Attributes:
        op_name: which loop.
        most: how often its body runs at most, and is taken to run here: of decoding, `max_decode_length`. None: nothing
            is known, and once is counted.
    """

    op_name: str
    most: int | None


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All that a program sends.

    Attributes:
        found: its collectives; of the branches of a conditional, those of the one that moves most.
        open_loops: loops whose number of iterations is not fixed.
    """

    found: tuple[Collective, ...]
    open_loops: tuple[Loop, ...]

    @property
    def by_kind(self) -> dict[str, int]:
        """{kind: bytes} of one chip, see the module's docstring; only kinds that occur."""
        result: collections.Counter[str] = collections.Counter()
        for each in self.found:
            result[each.kind] += each.bytes
        return dict(sorted(result.items()))

    @property
    def sent(self) -> float:
        """Bytes that a chip sends."""
        return sum(each.sent for each in self.found)

    def largest(self, count: int = 5) -> list[Collective]:
        """Those that move most."""
        return sorted(self.found, key=lambda each: -each.bytes)[:count]


def collectives(hlo_text: str) -> Collectives:
    """The collectives of a compiled program.

    Args:
        hlo_text: `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    program = _Program(hlo_text)
    if not program.entry:
        raise ValueError('the HLO text has no ENTRY computation.')
    loops: dict[Loop, None] = {}
    found = tuple(each for each in program.walk(program.entry, 1, loops) if each.group > 1)
    return Collectives(found, tuple(loops))


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    literal: str  # between the parentheses, as a constant's value
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        return self.attribute(r'op_name="([^"]*)"') or self.name


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in re.finditer(r'[()]', text[start:]):
        depth += 1 if place[0] == '(' else -1
        if depth == 0:
            return start + place.start()
    raise ValueError(f'HLO: a parenthesis does not close: {text[:200]}')


def _instruction(line: str) -> _Instruction | None:
    name, equals, rest = line.strip().partition(' = ')
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    opens = rest.index('(', end)
    closes = _closing(rest, opens)
    inside = rest[opens + 1 : closes]
    return _Instruction(
        name.removeprefix('ROOT ').removeprefix('%'),
        rest[:end],
        rest[end:opens].strip(),
        tuple(_NAME.findall(inside)),
        inside,
        rest[closes + 1 :],
        name.startswith('ROOT '),
    )


def array_bytes(type_text: str) -> int:
    """Bytes of the arrays of an HLO type, such as '(bf16[2,3]{1,0}, s32[])'."""
    total = 0
    for dtype, dims in _ARRAY.findall(type_text):
        bits = 8 if dtype == 'pred' else int(found[0]) if (found := re.findall(r'\d+', dtype)) else 0
        total += math.prod(int(dim.lstrip('<=')) for dim in dims.split(',') if dim) * bits // 8
    return total


class _Program:
    """The computations of an HLO module."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ''
        self.chips = math.prod(int(n) for n in re.findall(r'\bnum_(?:partitions|replicas)=(\d+)', text[:100_000]))
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith(' ') and (instruction := _instruction(line)):
                current[instruction.name] = instruction

    def walk(self, name: str, times: int, loops: dict[Loop, None]) -> Iterator[Collective]:
        """The collectives of a computation that runs so many times."""
        for instruction in self.computations[name].values():
            opcode = instruction.opcode
            if opcode == 'while':
                yield from self._loop(name, instruction, times, loops)
            elif opcode == 'conditional':
                branches = re.findall(r'(?:true|false)_computation=%([\w.\-]+)', instruction.attributes)
                if listed := instruction.attribute(r'branch_computations=\{([^}]*)\}'):
                    branches = _NAME.findall(listed)
                each = [list(self.walk(branch, times, loops)) for branch in branches]
                yield from max(each, key=lambda found: sum(one.bytes for one in found))
            elif opcode == 'call':
                yield from self.walk(instruction.attribute(r'to_apply=%([\w.\-]+)') or '', times, loops)
            elif opcode.removesuffix('-done') in KINDS:
                yield self._collective(name, instruction, times)
        yield from self._fused(name, times)

    def _fused(self, name: str, times: int) -> Iterator[Collective]:
        """Collectives in fusions and asynchronous calls.

        A TPU's asynchronous one occurs in the fusion that starts it, in those that it runs beside and in the one that
        ends it, always with its channel.
        """
        seen = set()
        for instruction in self.computations[name].values():
            if instruction.opcode not in ('fusion', 'async-start'):
                continue
            called = instruction.attribute(r'calls=%([\w.\-]+)') or ''
            for place, inner in self._inside(called):
                channel = inner.attribute(r'channel_id=(\d+)') or inner.name
                if channel in seen:
                    continue
                seen.add(channel)
                found = self._collective(place, inner, times)
                if found.op_name == inner.name:
                    found = dataclasses.replace(found, op_name=instruction.op_name)
                if 'all-reduce-scatter' in place:  # a TPU's reduce-scatter is an all-reduce and a slice, in one
                    own = array_bytes(self._root(place).type)
                    found = dataclasses.replace(found, kind='reduce-scatter', result_bytes=own)
                yield found

    def _inside(self, name: str) -> Iterator[tuple[str, _Instruction]]:
        for instruction in self.computations.get(name, {}).values():
            if instruction.opcode in KINDS:
                yield name, instruction
            elif instruction.opcode == 'fusion':
                yield from self._inside(instruction.attribute(r'calls=%([\w.\-]+)') or '')

    def _collective(self, computation: str, instruction: _Instruction, times: int) -> Collective:
        started = instruction
        if instruction.opcode.endswith('-done'):
            started = self.computations[computation][instruction.operands[0]]
        return Collective(
            instruction.opcode.removesuffix('-done'),
            array_bytes(instruction.type),
            times,
            self._group(started.attributes),
            instruction.op_name,
        )

    def _group(self, attributes: str) -> int:
        """Chips in a group: listed, counted, or as the axes of a mesh."""
        if found := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
            return len(found[1].split(','))
        if found := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
            return int(found[1])
        if found := re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', attributes):
            sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
            return math.prod(int(part) if part else sizes[name] for name, part in axes)
        return max(self.chips, 1)

    # ------------------------------------------------------------------ loops

    def _loop(self, name: str, instruction: _Instruction, times: int, loops: dict[Loop, None]) -> Iterator[Collective]:
        condition = instruction.attribute(r'condition=%([\w.\-]+)') or ''
        body = instruction.attribute(r'body=%([\w.\-]+)') or ''
        trips, exact = self._trips(name, instruction, condition, body)
        inner: dict[Loop, None] = {}
        runs = times * (1 if trips is None else trips)
        found = [*self.walk(body, runs, inner), *self.walk(condition, runs + times, inner)]
        if found and not exact:
            loops[Loop(instruction.op_name, trips)] = None
        loops.update(inner)
        yield from found

    def _trips(self, name: str, loop: _Instruction, condition: str, body: str) -> tuple[int | None, bool]:
        """(how often the body runs, whether exactly so and not at most)."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
            return int(known), True
        first = self.computations[name].get(loop.operands[0])
        start = [self._number(name, operand) for operand in first.operands] if first and first.opcode == 'tuple' else []

        def given(index: int) -> int | None:
            return start[index] if index < len(start) else None

        best: tuple[int | None, bool] = (None, False)
        for (counter, limit, inclusive), alone in self._limits(condition, body, given):
            step = self._step(body, counter)
            begin = given(counter)
            trips = max(0, -(-(limit + inclusive - (begin or 0)) // (step or 1)))
            if best[0] is None or trips < best[0]:
                best = trips, alone and begin is not None and step is not None
        return best

    def _limits(self, condition: str, body: str, given) -> Iterator[tuple[tuple[int, int, bool], bool]]:
        """((index of the counter, its limit, whether included), whether nothing else ends the loop)."""
        waiting: list[tuple[str, _Instruction, dict]] = [(condition, self._root(condition), {})]
        alone = True
        while waiting:
            place, each, arguments = waiting.pop()
            if each.opcode == 'fusion' or each.opcode == 'call':
                called = each.attribute(r'(?:calls|to_apply)=%([\w.\-]+)') or ''
                outer = {number: (place, operand, arguments) for number, operand in enumerate(each.operands)}
                waiting.append((called, self._root(called), outer))
            elif each.opcode == 'and':
                alone = False
                waiting += [(place, self.computations[place][operand], arguments) for operand in each.operands]
            elif each.opcode in _SAME:
                waiting.append((place, self.computations[place][each.operands[0]], arguments))
            elif each.opcode == 'parameter' and int(each.literal) in arguments:
                place, operand, arguments = arguments[int(each.literal)]
                waiting.append((place, self.computations[place][operand], arguments))
            elif each.opcode == 'compare':
                direction = each.attribute(r'direction=(\w+)')
                sides = [self._term(place, operand, arguments) for operand in each.operands]
                if direction in ('GT', 'GE'):
                    sides.reverse()
                (counter, _), (index, limit) = sides
                if limit is None and index is not None and self._kept(body, index):
                    limit = given(index)
                if direction in ('LT', 'LE', 'GT', 'GE') and counter is not None and limit is not None:
                    yield (counter, limit, direction in ('LE', 'GE')), alone

    def _term(self, place: str, name: str, arguments: Mapping) -> tuple[int | None, int | None]:
        """(index in the loop's state, None) or (None, a number), as far as it is one of both."""
        each = self.computations[place].get(name)
        while each and each.opcode in _SAME:
            each = self.computations[place].get(each.operands[0])
        if each is None:
            return None, None
        if each.opcode == 'parameter' and (outer := arguments.get(int(each.literal))):
            return self._term(*outer)
        if each.opcode == 'get-tuple-element':
            return int(each.attribute(r'index=(\d+)') or 0), None
        return None, self._number(place, name)

    def _number(self, place: str, name: str) -> int | None:
        """The value of a whole number that the program fixes."""
        each = self.computations[place].get(name)
        while each and each.opcode in _SAME and each.operands:
            each = self.computations[place].get(each.operands[0])
        if each and each.opcode == 'constant' and re.fullmatch(r'-?\d+', each.literal):
            return int(each.literal)
        return None

    def _root(self, name: str) -> _Instruction:
        return next(each for each in self.computations[name].values() if each.root)

    def _next(self, body: str, index: int) -> _Instruction | None:
        """What a loop's body returns in this place of its state."""
        root = self._root(body)
        if root.opcode != 'tuple':
            return None
        each = self.computations[body].get(root.operands[index])
        while each and each.opcode in _SAME:
            each = self.computations[body].get(each.operands[0])
        return each

    def _step(self, body: str, index: int) -> int | None:
        """By how much the body counts up this place of its state; None: not known."""
        each, place = self._next(body, index), body
        if each and each.opcode == 'fusion':
            place = each.attribute(r'calls=%([\w.\-]+)') or ''
            each = self._root(place)
        if each is None or each.opcode != 'add':
            return None
        steps = [step for operand in each.operands if (step := self._number(place, operand)) is not None]
        return steps[0] if steps and steps[0] > 0 else None

    def _kept(self, body: str, index: int) -> bool:
        """Whether the body leaves this place of its state as it is."""
        each = self._next(body, index)
        return bool(each and each.opcode == 'get-tuple-element' and each.attribute(r'index=(\d+)') == str(index))
