"""Puts queries to a model: what it answers, or how likely given texts are as answers, or recordings by themselves."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from slm_jax.inference import interleaved, queries


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
    candidates = _Candidates(asked, model.vocabulary, model.prompt.chat) if score else None
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

    As in EleutherAI's lm-evaluation-harness the end token is not scored, and a text that goes on with the last one of a
    prompt in turns has a space before it, unless a chat's tokens stand between them.
    """

    def __init__(self, asked: Iterable[queries.Query], vocabulary: Any, chat: str | None):
        self._asked, self._vocabulary, self._goes_on = asked, vocabulary, chat == '{user}'
        self._owners: list[tuple[int, int]] = []  # of each text: the number of its query, and its own
        self._found: dict[int, dict[int, tuple[float, int]]] = {}

    def __iter__(self) -> Iterator[queries.Query]:
        for number, query in enumerate(self._asked):
            if query.heard:
                self._owners += [(number, which) for which in range(len(query.heard))]
                yield from (dataclasses.replace(query, samples=samples) for samples in query.heard)
                continue
            for which, text in enumerate(_texts(query)):
                target = tuple(self._encoded(query, text))
                if not target:
                    raise ValueError(f'example {query.info.get("id")!r}: the tokenizer makes nothing of {text!r}.')
                self._owners.append((number, which))
                yield query.with_target(target)

    def _encoded(self, query: queries.Query, text: str) -> list[int]:
        encode, turns = self._vocabulary.encode, query.info.get(interleaved.FIELD)
        if self._goes_on and turns and isinstance(turns[-1], str) and not turns[-1][-1:].isspace():
            before, both = encode(turns[-1]), encode(f'{turns[-1]} {text}')
            if both[: len(before)] == before:
                return both[len(before) :]
        return encode(text)

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
