r"""Lines of a manifest with several recordings: prompts of texts and recordings in turn, and choices that are heard.

    {"interleaved": ["Question: ", {"audio": "a.wav", "text": "…"}, "\nAnswer: A\n\nQuestion: ", {"audio": "b.wav"},
     "\nAnswer:"], "target": "B", "choices": ["A", "B"]}

The texts are put to the model as they stand, the recordings between them. What --text_field names (`text`) may be read
in the place of a recording.

A recording may have `offset` and `duration`, as a line of its own may.

    {"choices": [{"audio": "a.wav", "text": "wagon"}, {"audio": "b.wav", "text": "magon"}], "target": "wagon"}

Scored is how likely each of these recordings is (`--score_choices`), or each text (--text_field text).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Int16
from numpy import ndarray

from slm_jax import paths
from slm_jax.data import prompts

FIELD = 'interleaved'


class Turns(NamedTuple):
    """What a prompt consists of.

    Attributes:
        parts: texts, and `prompts.SPEECH` in the place of each recording.
        samples: of the recordings; none where texts are read in their place, or nothing is to be read yet.
        given: the field, with absolute paths.
    """

    parts: Sequence[str | int]
    samples: Sequence[Int16[ndarray, ' n']]
    given: Sequence[Any]


def turns(
    raw: Mapping[str, Any],
    line: Mapping[str, str],
    folder: pathlib.Path,
    text_field: str,
    instruction: str,
    check: Callable[[str, Any], None] | None,
) -> Turns:
    """The turns of a line.

    Args:
        raw, line: as `manifests.rows` gives them.
        folder: of the manifest.
        text_field: whose text stands in the place of each recording; '': they are listened to.
        instruction: asked of all lines, which cannot be.
        check: refuses a recording by its name and samples; None: none is read.

    Raises:
        ValueError: it is not laid out so; names the line and what was expected.
    """
    from slm_jax.data import segments

    def wrong(what: str) -> ValueError:
        return _wrong(line, FIELD, what, 'a list of texts and {"audio": FILE, "text": …}')

    given, parts, samples, absolute = raw[FIELD], list[str | int](), [], list[Any]()
    if not isinstance(given, list) or not given:
        raise wrong(f'is {given!r}')
    if instruction:
        raise ValueError(f'{line["origin"]}: has "{FIELD}", which is all that is asked; leave out --instruction.')
    for part in given:
        if isinstance(part, str):
            parts.append(part)
            absolute.append(part)
            continue
        if not isinstance(part, Mapping) or not isinstance(part.get('audio'), str):
            raise wrong(f'has {part!r}')
        name, *times = _recording(part, line, folder)
        absolute.append({**part, 'audio': paths.absolute(name)})
        if text_field:
            if not isinstance(part.get(text_field), str):
                raise wrong(f'{part["audio"]} has no text in {text_field!r} (text_field)')
            parts.append(part[text_field])
            continue
        parts.append(prompts.SPEECH)
        if check is not None:
            samples.append(segments.read(name, *times))
            check(name, samples[-1])
    return Turns(parts, samples, absolute)


def several(raw: Mapping[str, Any], scored: bool) -> bool:
    """Whether a line has more recordings than one; `scored`: its choices count, too."""
    choices = raw.get('choices') if scored else None
    return FIELD in raw or (isinstance(choices, list) and any(isinstance(each, Mapping) for each in choices))


def choices(
    raw: Mapping[str, Any],
    line: Mapping[str, str],
    folder: pathlib.Path,
    text_field: str,
    check: Callable[[str, Any], None] | None,
) -> tuple[list[str], list[Int16[ndarray, ' n']]]:
    """The texts of choices that are recordings, and their samples; arguments as of `turns`.

    Raises:
        ValueError: they are not laid out so; names the line and what was expected.
    """
    from slm_jax.data import segments

    texts, samples = [], []
    for each in raw['choices']:
        text = each.get(text_field or 'text') if isinstance(each, Mapping) else None
        if not isinstance(text, str) or not isinstance(each.get('audio'), str):
            raise _wrong(line, 'choices', f'has {each!r}', f'{{"audio": FILE, "{text_field or "text"}": …}}')
        texts.append(text)
        if check is not None and not text_field:
            name, *times = _recording(each, line, folder)
            samples.append(segments.read(name, *times))
            check(name, samples[-1])
    return texts, samples


def _recording(part: Mapping[str, Any], line: Mapping[str, str], folder: pathlib.Path) -> tuple[str, str, str]:
    """A file, and offset and duration as `segments.read` takes them."""
    from slm_jax.data import manifests

    try:
        found = manifests.fields({name: part.get(name) for name in ('audio', 'offset', 'duration')}, folder)
    except manifests.ManifestError as error:
        raise ValueError(f'{line["origin"]}: {error}') from None
    return found['audio'], found['offset'], found['duration']


def _wrong(line: Mapping[str, str], field: str, what: str, expected: str) -> ValueError:
    return ValueError(f'{line["origin"]}: field "{field}": {what}; {expected} was expected.')
