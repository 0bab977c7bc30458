"""JSONL manifests, one recording a line, as a source of examples.

    {"audio": "a.wav", "text": "…", "lang": "en", "translation": {"de": "…"}}
    {"audio": "a.wav", "instruction": "Which size was ordered?", "target": "small"}
    {"audio": "a.wav", "text": "What is one plus one?", "answers": ["two", "2"]}    (evaluate --reference_field answers)
    {"audio_filepath": "a.wav", "duration": 1.5, "text": "…"}           NeMo
    {"audio": "a.wav", "text": "call Siobhan", "phrases": ["Siobhan"]}        (phrases.py)
    {"audio": "a.wav", "text": "hello you", "alignment": "a.TextGrid"}        (alignments.py)
    {"key": "utt1", "source": "a.wav", "target": "…"}                   SLAM-LLM

A relative path is relative to the manifest, `~/` is the home directory. `lang` may be absent where no task names it;
`translation` may be a string if `target_lang` is on the line or given to the task. With `offset`, and in NeMo's lines,
`offset` and `duration` (seconds) name a segment of the recording (segments.py); else a `duration` must be the
recording's own. Fields that are not known here (`speaker`, …) are left alone.
"""

import hashlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slm_jax import paths
from slm_jax.data import json_lines, languages, phrases

FIELDS = (
    'id',
    'origin',
    'audio',
    'offset',
    'duration',
    'text',
    'lang',
    'translations',
    'target_lang',
    'instruction',
    'target',
    'phrases',
    'answers',
    'choices',
    'alignment',
    'error',
)
_LATER = ('phrases', 'answers', 'choices', 'alignment')  # than the stores of some manifests without them
AUDIO = ('audio', 'audio_filepath', 'source')
# field of ours <- names it goes by, best first (ours, NeMo's, SLAM-LLM's)
_NAMES = {
    'audio': AUDIO,
    'id': ('id', 'key'),
    'text': ('text',),
    'lang': ('lang', 'source_lang'),
    'translation': ('translation',),
    'target_lang': ('target_lang',),
    'instruction': ('instruction', 'prompt'),
    'target': ('target',),
}
# Names of fields that are known here.
KNOWN = frozenset({*itertools.chain(*_NAMES.values()), 'offset', 'duration', 'phrases', 'alignment'})


class ManifestError(ValueError):
    """A line that cannot be used: `str()` names the file, the line, the field and the remedy."""


def read(path: str | os.PathLike) -> Iterator[dict[str, str]]:
    """Yields the lines of a manifest as dictionaries of `FIELDS`, '' for what a line lacks.

    `translations` is a JSON object {language: text}, `phrases` and `answers` are JSON lists of texts, `choices` is
    {'texts': …, 'right': which}, '' where there are none to choose from, `alignment` is a file or a JSON list;
    `origin` is 'FILE:LINE'. A line that cannot be understood is yielded with the reason in `error`: whoever reads
    decides whether to stop.

    Raises:
        JsonLinesError: the file itself cannot be read, or holds no line.
    """
    return (example for _, example in rows(path))


def rows(
    path: str | os.PathLike, start: int = 0, stop: int | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """As `read`, each with the line's own object before it; {} where it has none. Those from `start` to `stop`."""
    path = paths.path(path)
    for number, line in itertools.islice(json_lines.lines(path), start, stop):
        row, example = {}, dict.fromkeys(FIELDS, '') | {'origin': f'{path}:{number}'}
        try:
            row = json_lines.parse(line)
            example |= fields(row, path.parent)
        except ValueError as error:
            example['error'] = f'{path}:{number}: {error}'
        example['id'] = example['id'] or example['origin']
        yield row, example


def resolve(path: str, folder: pathlib.Path) -> str:
    """A path as it stands in a manifest in `folder`, for everybody."""
    if paths.is_url(path):
        return path
    return str(folder / (os.path.expanduser(path) if path.startswith('~/') else path))


def moved(path: str, folder: pathlib.Path, to: pathlib.Path) -> str:
    """A path as it stands in a manifest in `folder`, as it has to stand in one in the folder `to`."""
    resolved = resolve(path, folder)
    if paths.is_url(resolved) or path.startswith('~/') or os.path.isabs(path):
        return path if path.startswith('~/') else resolved
    return os.path.relpath(resolved, to)


def seconds(row: Mapping[str, Any], field: str) -> float | None:
    """A time that a line states, as a number or as text.

    Raises:
        ManifestError: it is neither, or no time.
    """
    value = row.get(field)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ManifestError(f'field "{field}" is {value!r}; seconds were expected, a number that is not negative.')
    return number


def _text(value: Any, field: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ManifestError(f'field "{field}" is {value!r}; a string was expected.')
    return value


def _segment(row: Mapping[str, Any], nemo: bool) -> dict[str, str]:
    """`offset` and `duration` as text. NeMo's duration is a segment's; 0 is written where it is not known."""
    offset, duration = seconds(row, 'offset'), seconds(row, 'duration') or None
    if nemo and duration:
        offset = offset or 0.0
    return {name: '' if value is None else repr(value) for name, value in (('offset', offset), ('duration', duration))}


def _alignment(value: Any, folder: pathlib.Path) -> str:
    """A file, or what stands there as JSON; see `slm_jax.data.alignments`."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (str, type(None))):
        raise ManifestError(f'field "alignment" is {value!r}; a file or a list of [text, start, end] was expected.')
    found = resolve(value, folder) if value else ''
    return f'./{found}' if found.startswith('[') else found  # no list


def fields(row: Mapping[str, Any], folder: pathlib.Path) -> dict[str, str]:
    """What a line, or what stands in its place, says of an example.

    Raises:
        ManifestError: a field of another kind, or a language that is not known.
    """
    fields: dict[str, Any] = {}
    for field, names in _NAMES.items():
        name = next((name for name in names if row.get(name) is not None), field)
        value = '' if row.get(name) is None else row[name]
        if field in ('audio', 'lang', 'target_lang') and not isinstance(value, str):
            raise ManifestError(f'field "{name}" is {value!r}; a string was expected.')
        fields[field] = value if isinstance(value, dict) and field == 'translation' else _text(value, name)
        if field == 'audio' and value:
            fields |= {'audio': resolve(value, folder)} | _segment(row, name == 'audio_filepath')
    if row.get('source') and row.get('key') and not fields['text']:
        fields['text'] = fields['target']  # SLAM-LLM's transcript
    translation = fields.pop('translation')
    if isinstance(translation, str):
        translation = {fields['target_lang']: translation} if translation else {}
    for code in (fields['lang'], fields['target_lang'], *translation):
        if code and languages.name(code) is None:
            raise ManifestError(
                f'unknown language {code!r}. Use an ISO 639 code such as "en", or '
                'add its name to slm_jax/data/languages.py.'
            )
    texts = {code: _text(text, 'translation') for code, text in translation.items() if text not in (None, '')}
    fields['translations'] = json.dumps(texts)
    fields |= _chosen(row)
    fields['phrases'] = '' if (listed := phrases.of_row(row)) is None else json.dumps(listed, ensure_ascii=False)
    fields['alignment'] = _alignment(row.get('alignment'), folder)
    return fields


def _chosen(row: Mapping[str, Any]) -> dict[str, str]:
    """`answers` and `choices` of a line as JSON, '' for what is no such thing: it is the business of few tasks."""
    answers: Any = row.get('answers')
    texts: Any = row.get('choices')
    answers = answers.get('text') if isinstance(answers, Mapping) else answers  # as in SQuAD of Hugging Face
    right = row.get('answer', row.get('target'))
    result = {'answers': '', 'choices': ''}
    if _texts(answers):
        result['answers'] = json.dumps(answers, ensure_ascii=False)
    if _texts(texts) and right in texts and len({*texts}) == len(texts) > 1:
        result['choices'] = json.dumps({'texts': texts, 'right': texts.index(right)}, ensure_ascii=False)
    return result


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


class Source:
    """A `dataset_fn` for `seqio.FunctionDataSource`, over a text file for each split.

    A subclass has `path(split)`, the file, and `examples(split)`, its lines as `FIELDS`.
    """

    path: Callable[[str], pathlib.Path]
    examples: Callable[[str], Iterator[dict[str, str]]]

    def __call__(self, split: str, shuffle_files: bool, seed: int | None = None):
        from slm_jax.data.tensorflow_cpu import tf

        signature = {field: tf.TensorSpec((), tf.string) for field in FIELDS}
        dataset = tf.data.Dataset.from_generator(lambda: self.examples(split), output_signature=signature)
        return dataset.shuffle(10_000, seed=seed) if shuffle_files else dataset

    def label(self, split: str) -> str:
        """A name for people: the file's and its folder's."""
        path = self.path(split)
        return f'{path.absolute().parent.name}_{path.stem}'

    def fingerprint(self, split: str) -> str:
        """Which file is read, and how."""
        return hashlib.sha256(repr((paths.absolute(self.path(split)), self)).encode()).hexdigest()

    def state(self, split: str) -> str:
        """Changes when the file does, or a recording that it names: in size or time, also when one is gone or back.

        Raises:
            ValueError, OSError: the file cannot be read.
        """
        digest = hashlib.sha256()
        remote = paths.states({each['audio'] for each in self.examples(split) if paths.is_url(each['audio'])})
        for example in self.examples(split):
            found: Any = None
            try:
                if example['audio'] in remote:
                    found = remote[example['audio']] or 'missing'
                elif example['audio']:
                    status = os.stat(example['audio'])
                    found = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):  # ValueError: no possible path
                found = 'missing'
            given = {name: text for name, text in example.items() if text or name not in _LATER}
            if example['alignment'] and not example['alignment'].startswith('['):
                given['alignment'] = str(paths.state(example['alignment']))
            digest.update(repr((given, found)).encode())
        return digest.hexdigest()
