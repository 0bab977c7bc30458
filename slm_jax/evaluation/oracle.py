"""What share of another run's scores is kept, on the same examples.

The other run is most often the oracle: the true transcript in the place of the speech, before the same language model.
"""

import os
from collections.abc import Mapping
from typing import Any

from slm_jax.data import json_lines
from slm_jax.evaluation import metrics

Key = tuple[str, ...]


def read(path: str | os.PathLike) -> dict[Key, str]:
    """The predictions of a predictions.jsonl, by what they answer.

    Raises:
        ValueError: it cannot be read, a line has no prediction, or those of two lines of one example differ.
    """
    found: dict[Key, str] = {}
    for row in json_lines.read(path):
        text = row.get('prediction')
        if not isinstance(text, str):
            raise ValueError(f'{path}: example {row.get("id")!r} has no text in its field "prediction".')
        if found.setdefault(_key(row), text) != text:
            raise ValueError(f'{path}: two lines of id {row.get("id")!r} have different predictions.')
    return found


def answered(path: str | os.PathLike, predictions: Mapping[Key, str], example: metrics.Prediction) -> dict[str, Any]:
    """The example with the prediction that the other run has for it.

    Raises:
        ValueError: it has none.
    """
    if _key(example) not in predictions:
        raise ValueError(
            f'{path}: no line for example {example.get("id")!r} with the reference {example.get("reference")!r}. '
            'Evaluate both runs on the same data, and ask the same.'
        )
    return {**example, 'prediction': predictions[_key(example)]}


def _key(row: metrics.Prediction) -> Key:
    return tuple(str(row.get(field)) for field in ('id', 'slot', 'target_lang', 'reference'))
