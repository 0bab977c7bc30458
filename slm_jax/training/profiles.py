"""A profile of some steps of a training: captured into MODEL_DIR/profile, and read as a table of operations."""

import collections
import contextlib
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

FOLDER = 'profile'
_TOP = 15


class Profile:
    """Traces the steps from `steps[0]` to before `steps[1]`, on every host.

    Attributes:
        steps: None: nothing is traced.
        model_dir: below it the trace is put when it is whole.
        state: gives the training's newest state, with which all its steps are done.
    """

    def __init__(self, steps: Sequence[int] | None, model_dir: pathlib.Path, state: Callable, say: Callable):
        self._steps = range(*(steps or (0, 0)))
        self._model_dir, self._state, self._say = model_dir, state, say
        self._local: tempfile.TemporaryDirectory | None = None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Its body is this step."""
        if number in self._steps and not self._local:
            jax.block_until_ready(self._state())  # so that no earlier step is in the trace
            self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name)
        with jax.profiler.StepTraceAnnotation('train', step_num=number):
            yield
        if number + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one, and puts it where XProf looks for it."""
        if not self._local:
            return
        jax.block_until_ready(self._state())
        jax.profiler.stop_trace()
        to = self._model_dir / FOLDER / 'plugins/profile' / f'steps_{self._steps.start}_{self._steps.stop}'
        to.mkdir(parents=True, exist_ok=True)
        with self._local as name:
            for file in pathlib.Path(name).rglob('*.*.*'):
                # Several processes of one machine would have one name.
                (to / f'host{jax.process_index()}.{file.name.split(".", 1)[1]}').write_bytes(file.read_bytes())
        self._local = None
        self._say(f'a profile is in {to}; `slm-jax profile {self._model_dir}` reads it')


def check(steps: Sequence[int] | None) -> None:
    """Refuses steps that are none.

    Raises:
        ValueError: naming them.
    """
    if steps is not None and not (len(steps) == 2 and 0 <= steps[0] < steps[1]):
        raise ValueError(
            f'train.profile is {tuple(steps)}; it must be the first step and the one after the last, such as (10, 15).'
        )


def describe(model_dir: pathlib.Path) -> str:
    """The profiles below a model directory: for each host and device, where its time went.

    Raises:
        ValueError: there is none.
    """
    files = sorted((model_dir / FOLDER).rglob('*.xplane.pb'), key=str)
    if not files:
        raise ValueError(
            f'{model_dir} has no {FOLDER}/: train it with --gin.PROFILE_STEPS=(10,15), which profiles five steps.'
        )
    return '\n\n'.join(_host(file) for file in files)


def _host(file: pathlib.Path) -> str:
    devices = {}
    for plane in jax.profiler.ProfileData.from_serialized_xspace(file.read_bytes()).planes:
        times, calls = devices.setdefault(plane.name, (collections.Counter(), collections.Counter()))
        for line in plane.lines:
            # A TPU has a line of operations; elsewhere they are among other events.
            whole = line.name == 'XLA Ops'
            for event, seconds in _own_seconds([each for each in line.events if whole or 'hlo_op' in dict(each.stats)]):
                name = re.sub(r' = .*', '', event.name, flags=re.DOTALL)
                times[name] += seconds
                calls[name] += 1
    lines = [str(file)]
    for device, (times, calls) in devices.items():
        total = sum(times.values())
        if total:
            lines += [f'{device}: {total:.4g} s in {len(times)} operations', '   seconds  share   calls  operation']
            lines += [
                f'{seconds:10.4f} {seconds / total:6.1%} {calls[name]:7}  {name[:80]}'
                for name, seconds in times.most_common(_TOP)
            ]
    return '\n'.join(lines)


def _own_seconds(events: Sequence[Any]) -> Iterator[tuple[Any, float]]:
    """Each event of a line with its time less that of the events within it: a loop's contain its body's."""
    ends: list[tuple[float, int]] = []
    own: list[float] = []
    ordered = sorted(events, key=lambda event: (event.start_ns, -event.duration_ns))
    for index, event in enumerate(ordered):
        while ends and ends[-1][0] <= event.start_ns:
            ends.pop()
        if ends:
            own[ends[-1][1]] -= event.duration_ns
        own.append(event.duration_ns)
        ends.append((event.start_ns + event.duration_ns, index))
    yield from ((event, nanoseconds * 1e-9) for event, nanoseconds in zip(ordered, own))
