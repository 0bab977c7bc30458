"""Questions to one recording after another, answered as they are written, each after those before it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int16

from slm_jax.inference import asking, queries
from slm_jax.inference.writing import Writing

_TOKENS = 1024  # of a prompt; older turns are left out


class Session:
    """A recording, and what was asked about it.

    Where the language model has a chat template it reads the turns before; else each question stands alone.

    Args:
        model: see `slm_jax.inference.model`.
        max_seconds: longest recording.
        with_ctc: see `asking.query`.

    Attributes:
        turns: (instruction, answer) of all that was asked about the recording.
        forgets: why earlier turns are not put to the model; '' if they are.
        cut: the limit that the last answer reached, see `slm_jax.inference.model.Answer`.
    """

    def __init__(self, model: Any, max_seconds: float, with_ctc: bool = False):
        asking.check_hears(model)
        self._model, self._max_seconds, self._with_ctc = model, max_seconds, with_ctc
        self._samples: np.ndarray | None = None
        self.turns: list[tuple[str, str]] = []
        self.forgets = asking.reads_history(model)
        self.cut = ''

    def hear(self, name: str, samples: Int16[np.ndarray, ' n']) -> None:
        """Takes a recording in the place of the one before, and begins anew.

        Raises:
            ValueError: it is longer than the model takes at once.
        """
        queries.check_length(name, samples, self._max_seconds, self._model.encoder_seconds)
        self._samples, self.turns = samples, []

    def answer(self, instruction: str) -> Iterator[str]:
        """The answer, piece by piece; what was given when its reader stops is what is remembered.

        Raises:
            ValueError: there is no recording, or the model does not read such a thing.
        """
        if self._samples is None:
            raise ValueError('there is no recording yet: /load FILE, or /record.')
        query, self.cut, text = self._query(instruction), '', ''
        shape = queries.shape_of(query, self._model.encoder_seconds)
        writing = Writing(self._model, queries.batch_of([query], shape, self._model.row_multiple))
        try:
            while not writing.over:
                part = writing.more()[0]
                new, text = part.text[len(text) :], part.text
                if new:
                    yield new
                if part.over:
                    self.cut = part.cut
                    return
        finally:
            self.turns.append((instruction, text))

    def _query(self, instruction: str) -> queries.Query:
        """The instruction after as many of the turns before as there is room for."""
        turns = [] if self.forgets else self.turns
        for first in range(len(turns) + 1):
            said = [turn for pair in turns[first:] for turn in zip(('user', 'assistant'), pair, strict=True)]
            said.append(('user', instruction))
            messages = [asking.Message(role, text, not number) for number, (role, text) in enumerate(said)]
            query = asking.query(self._model, messages, self._samples, self._with_ctc)
            if len(query.tokens) <= _TOKENS:
                return query
        raise ValueError(f'the instruction has {len(query.tokens)} tokens; {_TOKENS} are read at most.')
