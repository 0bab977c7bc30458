"""The gin text of a model's card, as it is read today, and without what only training reads."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

# Modules that only training reads of; they take seconds to import, and TensorFlow.
_TRAINING_ONLY = re.compile(r'slm_jax\.(tasks|data\.(loader|packing|cache|preprocessors)|training\.optimizers)(\..+)?')
# How cards of before said where the speech stands.
_SPEECH_FIRST = re.compile(r'^.*\bSLM\.speech_first = (.+)\n', re.MULTILINE)


def current(card: Mapping[str, Any]) -> str:
    """The gin text of a card, without what is said elsewhere by now.

    Raises:
        ValueError: the model reads speech in a place that no template gives.
    """
    config = card.get('config', '')
    for said in _SPEECH_FIRST.findall(config):
        if said != 'True':
            raise ValueError(
                f'the configuration in the card of {card.get("name")!r} has SLM.speech_first = {said}: speech behind '
                "the instruction's end token, which no prompts.Prompt.template gives. Use the version of slm_jax that "
                f'wrote it ({(card.get("versions") or {}).get("slm_jax", "unknown")}), or train it again.'
            )
    return _SPEECH_FIRST.sub('', config)


def for_answering(config: str) -> str:
    """A card's gin text without the statements on modules that only training reads of, and those that refer to them."""
    from gin import config_parser

    class Named(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):
            named.add(scoped_configurable_name.rpartition('/')[2].split('.')[0])

        def macro(self, macro_name):
            named.add(macro_name)

    named: set[str] = set()  # by the statement that is being parsed
    left_out: set[str] = set()
    starts, names, macros = [], [], []
    for statement in config_parser.ConfigParser(config, Named()):
        macro = None
        if isinstance(statement, config_parser.ImportStatement):
            named = {statement.bound_name()}
            if _TRAINING_ONLY.fullmatch(statement.module):
                left_out |= named
        elif statement.arg_name:
            named.add(statement.selector.split('.')[0])
        else:
            macro = statement.selector
        starts.append(statement.location.line_num - 1)
        names.append(named)
        macros.append(macro)
        named = set()
    made_of = [(macro, each) for macro, each in zip(macros, names, strict=True) if macro]
    while more := {macro for macro, each in made_of if each & left_out} - left_out:
        left_out |= more  # a macro may name one that stands behind it
    kept = [not each & left_out for each in names]
    lines = config.splitlines(keepends=True)
    parts = zip(itertools.pairwise([*starts, len(lines)]), kept, strict=True)
    return ''.join(line for (start, end), keep in parts if keep for line in lines[start:end])
