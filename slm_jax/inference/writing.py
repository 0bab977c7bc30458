"""Answers while they are written: a batch's texts some tokens at a time, the same in the end as all at once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from slm_jax.inference import pieces

_EOS = 1
_UNFINISHED = '\ufffd'  # what the first bytes of a character are read as


class Part(NamedTuple):
    """What is written of one answer.

    Attributes:
        text: all that is sure, from the beginning.
        tokens: ids of it, without the end.
        over: whether nothing follows.
        cut: of an answer that is over, as `slm_jax.inference.model.Answer` has it.
    """

    text: str
    tokens: tuple[int, ...]
    over: bool
    cut: str = ''


class Writing:
    """The answers to a batch, which is read now and answered as `more` is called.

    A system that does not write in steps (`System`) gives its answers whole.

    Attributes:
        over: whether all rows are finished or gone.
    """

    def __init__(self, model: Any, batch: Mapping[str, np.ndarray]):
        self._model, self._batch = model, batch
        self._gone = np.zeros(len(batch['speech_lengths']), bool)
        self._proceed: Any = None  # compiled by the first step
        self.over = False
        self._in_steps = getattr(model.system, 'in_steps', False)
        if self._in_steps:
            given = model.placed(pieces.listened(model, batch))
            begin = model.program('begin', lambda p, given: model.system.begin(p, given, model.decode), given)
            self._state = begin(model.params, given)

    def leave(self, row: int) -> None:
        """Says that a row's answer is no longer wanted."""
        self._gone[row] = True

    def more(self, steps: int = 1) -> list[Part]:
        """What is written of each row after at most so many tokens more; of those that are gone, nothing of meaning."""
        if not self._in_steps:
            self.over = True
            answers = self._model.answers(self._batch)
            return [Part(text, (), True, cut) for text, cut in answers]
        tokens, sure, over = self._written(steps)
        self.over = bool(over.all())
        return [self._part(*row) for row in zip(tokens, sure, over, strict=True)]

    def _written(self, steps: int) -> tuple[np.ndarray, ...]:
        import jax

        from slm_jax.training import partitioning

        model, everywhere = self._model, partitioning.replicated(self._model.mesh)
        arguments = self._state, *jax.device_put((np.int32(steps), self._gone), everywhere)
        if self._proceed is None:

            def proceed(params, state, steps, gone):
                return model.system.proceed(params, state, model.decode, steps, gone)

            out = jax.tree.map(lambda x: x.sharding, self._state), everywhere
            self._proceed = model.program('proceed', proceed, *arguments, donated=(1,), out=out)
        self._state, written = self._proceed(model.params, *arguments)
        return tuple(map(np.asarray, written))

    def _part(self, tokens: np.ndarray, sure: np.integer, over: np.bool_) -> Part:
        model = self._model
        ids = [token for token in (tokens if over else tokens[:sure]).tolist() if token not in (0, _EOS)]
        text = model.vocabulary.decode(ids)
        if over:
            return Part(text, tuple(ids), True, model.cut(tokens))
        return Part(text.rstrip(_UNFINISHED), tuple(ids), False)
