"""What share of another run's scores is kept, on the same examples.

The other run is most often the oracle: the true transcript in the place of the speech, before the same language model.
"""

import os
from collections.abc import Mapping
from typing import Any

from slm_jax.data import json_lines
from slm_jax.evaluation import metrics

Key = tuple[str, ...]
_ANSWER = ('prediction', 'log_likelihoods', 'tokens')


def read(path: str | os.PathLike) -> dict[Key, dict[str, Any]]:
    """The answers of a predictions.jsonl, by what they answer.

    Raises:
        ValueError: it cannot be read, a line has no prediction, or those of two lines of one example differ.
    """
    found: dict[Key, dict[str, Any]] = {}
    for row in json_lines.read(path):
        if not isinstance(row.get('prediction'), str):
            raise ValueError(f'{path}: example {row.get("id")!r} has no text in its field "prediction".')
        answer = {field: row[field] for field in _ANSWER if field in row}
        if found.setdefault(_key(row), answer) != answer:
            raise ValueError(f'{path}: two lines of id {row.get("id")!r} have different predictions.')
    return found


def answered(
    path: str | os.PathLike, predictions: Mapping[Key, Mapping[str, Any]], example: metrics.Prediction
) -> dict[str, Any]:
    """The example with the answer that the other run has to it.

    Raises:
        ValueError: it has none.
    """
    if _key(example) not in predictions:
        raise ValueError(
            f'{path}: no line for example {example.get("id")!r} with the reference {example.get("reference")!r}. '
            'Evaluate both runs on the same data, and ask the same.'
        )
    return {**example, **predictions[_key(example)]}


def _key(row: metrics.Prediction) -> Key:
    return tuple(str(row.get(field)) for field in ('id', 'slot', 'target_lang', 'reference'))
