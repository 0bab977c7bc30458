"""Metrics of SeqIO tasks on spoken questions, dialogs and continuations: `metric_fns` and what they are given.

SeqIO gives a metric function `targets`, which a task's `postprocess_fn` (here `reference`) makes of each example, and
the texts that a model writes (`predictions`), or how likely it holds each target to be, to base e (`scores`). The
results are those of `slm_jax.evaluation.statistics`, in percent but for perplexity.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from slm_jax.evaluation import normalizers, statistics


class Reference(NamedTuple):
    """What is right of an example.

    Attributes:
        text: the target.
        answers: all that are accepted.
        tokens: of the target, its end included, as likelihoods have it.
        line: whose choice the target is; '' where there is nothing to choose.
        right: whether it is the right one.
    """

    text: str
    answers: tuple[str, ...]
    tokens: int
    line: str = ''
    right: bool = True


def reference(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> str | Reference:
    """A `postprocess_fn`: the text of a prediction as it is, and of a target what is right of its example."""
    if not is_target:
        return text
    assert example is not None, 'SeqIO gives the example of a target'
    known = {name: example[name].decode() for name in ('id', 'answers', 'choices') if name in example}
    target, tokens = example['targets_pretokenized'].decode(), len(example['targets'])
    if known.get('choices') and '#' in known['id']:
        choices = json.loads(known['choices'])
        right = target == choices['texts'][choices['right']]
        return Reference(target, (target,), tokens, known['id'].rpartition('#')[0], right)
    return Reference(target, tuple(json.loads(known.get('answers') or '[]')) or (target,), tokens)


def squad(targets: Sequence[Reference], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 with the best of the accepted answers, as SQuAD's own program has them."""
    right = [[normalizers.squad(answer) for answer in target.answers] for target in targets]
    found = statistics.answers(right, [normalizers.squad(text) for text in predictions]).scores()
    return {'exact_match': found['accuracy'], 'f1': found['f1']}


def overlap(targets: Sequence[Reference], predictions: Sequence[str]) -> dict[str, float]:
    """F1 of words, as for an answer, of a text that may be said in many ways."""
    return {'f1': squad(targets, predictions)['f1']}


def perplexity(targets: Sequence[Reference], scores: Any) -> dict[str, float]:
    """Of a token of the right texts, their ends included."""
    right = [(value, target) for value, target in zip(_values(scores), targets, strict=True) if target.right]
    values, kept = zip(*right, strict=True)
    found = statistics.likelihood(values, [target.tokens for target in kept], [target.text for target in kept])
    return {'perplexity': found.scores()['perplexity']}


def choices(targets: Sequence[Reference], scores: Any) -> dict[str, float]:
    """How often the right one of a line's choices is the likeliest, and by the likelihood per byte."""
    lines: dict[str, list[tuple[Reference, float]]] = {}
    for target, value in zip(targets, _values(scores), strict=True):
        lines.setdefault(target.line, []).append((target, value))
    chosen = [list(zip(*line, strict=True)) for line in lines.values()]
    right = [[target.right for target in texts].index(True) for texts, _ in chosen]
    texts = [[target.text for target in texts] for texts, _ in chosen]
    return statistics.choices(right, [values for _, values in chosen], texts).scores()


def _values(scores: Any) -> Sequence[float]:
    """The scores alone; some models give other things beside them."""
    return [float(value) for value in (scores[0] if isinstance(scores, tuple) else scores)]


# What a task is scored by: 'answers' to questions, the next 'turn' of a dialog, or which of some 'choices' goes on.
METRICS: dict[str, tuple[Callable[..., dict[str, float]], ...]] = {
    'answers': (squad,),
    'turn': (overlap, perplexity),
    'choices': (choices, perplexity),
}
