"""Puts queries to a model: what it answers, or how likely given texts are as answers, or recordings by themselves."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from slm_jax.inference import queries


def said(
    model: Any, asked: Iterable[queries.Query], seconds_per_batch: float, fine: bool = False, score: bool = False
) -> Iterator[tuple[int, queries.Query, dict[str, Any]]]:
    """What predictions.jsonl says of the answers.

    Args:
        model: a `Model`.
        asked: what is put to it.
        seconds_per_batch, fine: see `queries.batched`.
        score: nothing is written; of each query the `choices`, or its reference alone, are scored.

    Yields:
        (place among the queries, the query, fields), in the order in which they are known. Fields are `prediction`,
        `truncated` where a limit cut it, and of scored texts `log_likelihoods` and `tokens`; see `metrics`.
    """
    limits = {'longest': model.encoder_seconds, 'computed': model.computed_seconds}
    candidates = _Candidates(asked, model.vocabulary) if score else None
    stream = asked if candidates is None else candidates
    for group, batch in queries.batched(stream, seconds_per_batch, model.row_multiple, fine, **limits):
        if candidates is None:
            for (position, query), (text, cut) in zip(group, model.answers(batch), strict=False):
                yield position, query, {'prediction': text} | ({'truncated': True} if cut else {})
            continue
        # Where there is no text to be scored, what is heard is.
        values = (model.log_likelihoods if group[0][1].target else model.heard_likelihoods)(batch)
        for (position, query), value in zip(group, values, strict=False):
            if (scored := candidates.scored(position, query, value)) is not None:
                yield scored[0], query, scored[1]


class _Candidates:
    """Each query as one for every text that is scored, and back.

    The end token is not scored, as in EleutherAI's lm-evaluation-harness.
    """

    def __init__(self, asked: Iterable[queries.Query], vocabulary: Any):
        self._asked, self._vocabulary = asked, vocabulary
        self._owners: list[tuple[int, int]] = []  # of each text: the number of its query, and its own
        self._found: dict[int, dict[int, tuple[float, int]]] = {}

    def __iter__(self) -> Iterator[queries.Query]:
        for number, query in enumerate(self._asked):
            if query.heard:
                self._owners += [(number, which) for which in range(len(query.heard))]
                yield from (dataclasses.replace(query, samples=samples) for samples in query.heard)
                continue
            for which, text in enumerate(_texts(query)):
                target = tuple(self._vocabulary.encode(text))
                if not target:
                    raise ValueError(f'example {query.info.get("id")!r}: the tokenizer makes nothing of {text!r}.')
                self._owners.append((number, which))
                yield query.with_target(target)

    def scored(self, position: int, query: queries.Query, value: Any) -> tuple[int, dict[str, Any]] | None:
        """Notes the log-likelihood of a text; with the last of its query returns the query's place and fields.

        `value` is (log-likelihood, tokens) of a recording.
        """
        number, which = self._owners[position]
        found = self._found.setdefault(number, {})
        found[which] = value if query.heard else (value, len(query.target) - bool(query.first))
        texts = _texts(query)
        if len(found) < len(texts):
            return None
        del self._found[number]
        values, tokens = zip(*(found[each] for each in range(len(texts))), strict=True)
        return number, {
            'prediction': texts[values.index(max(values))],
            'log_likelihoods': [round(value, 4) for value in values],
            'tokens': [int(count) for count in tokens],
        }


def _texts(query: queries.Query) -> list[str]:
    return query.info.get('choices') or [query.info['reference']]
