"""Which SeqIO tasks a name stands for, and how often each is drawn."""

import difflib
from collections.abc import Mapping

import seqio


def tasks_and_rates(name: str | Mapping[str, float]) -> tuple[list[seqio.Task], list[float]]:
    """The tasks of a task, of a mixture, or of {name: rate}, and how often each is drawn.

    A mixture's rate is shared by its tasks in proportion to theirs.

    Raises:
        ValueError: no such name; says which are near.
    """
    if isinstance(name, Mapping):
        parts = [(tasks_and_rates(part), float(rate)) for part, rate in name.items()]
        return (
            [task for (tasks, _), _ in parts for task in tasks],
            [rate * r / sum(rates) for (_, rates), rate in parts for r in rates],
        )
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3)
        raise ValueError(
            f'no task or mixture is called {name!r}' + (f'; did you mean {" or ".join(near)}?' if near else '')
        )
    provider = seqio.get_mixture_or_task(name)
    tasks = seqio.get_subtasks(provider)
    if isinstance(provider, seqio.Task):
        return [provider], [1.0]
    return list(tasks), [float(provider.get_rate(task)) for task in tasks]
