"""JSONL manifests, one recording a line, as a source of examples.

    {"audio": "a.wav", "text": "…", "lang": "en", "translation": {"de": "…"}}
    {"audio": "a.wav", "instruction": "Which size was ordered?", "target": "small"}
    {"audio_filepath": "a.wav", "duration": 1.5, "text": "…"}           NeMo
    {"key": "utt1", "source": "a.wav", "target": "…"}                   SLAM-LLM

A relative path is relative to the manifest. `lang` may be absent where no task names it;
`translation` may be a string if `target_lang` is on the line or given to the task. Fields that are
not known here (`duration`, `speaker`, …) are left alone.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

from slm_jax.data import languages

FIELDS = (
    'id',
    'origin',
    'audio',
    'text',
    'lang',
    'translations',
    'target_lang',
    'instruction',
    'target',
    'error',
)
# field of ours <- names it goes by, best first (ours, NeMo's, SLAM-LLM's)
_NAMES = {
    'audio': ('audio', 'audio_filepath', 'source'),
    'id': ('id', 'key'),
    'text': ('text',),
    'lang': ('lang', 'source_lang'),
    'translation': ('translation',),
    'target_lang': ('target_lang',),
    'instruction': ('instruction', 'prompt'),
    'target': ('target',),
}


class ManifestError(ValueError):
    """A line that cannot be used: `str()` names the file, the line, the field and the remedy."""


def read(path: str | os.PathLike) -> Iterator[dict[str, str]]:
    """Yields the lines of a manifest as dictionaries of `FIELDS`, '' for what a line lacks.

    `translations` is a JSON object {language: text}; `origin` is 'FILE:LINE'. A line that cannot be
    understood is yielded with the reason in `error`: whoever reads decides whether to stop.

    Raises:
        ManifestError: the file itself cannot be read, or holds no line.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(
            f'{path}: cannot be read ({error}). Give the path of a JSONL file in UTF-8 that you may read.'
        ) from error
    if not any(line.strip() for line in lines):
        raise ManifestError(f'{path}: the manifest is empty. Write one JSON object a line.')
    for number, line in enumerate(lines, 1):
        if line.strip():
            example = dict.fromkeys(FIELDS, '') | {'origin': f'{path}:{number}'}
            try:
                example |= _parse(line, path)
            except ManifestError as error:
                example['error'] = f'{path}:{number}: {error}'
            example['id'] = example['id'] or example['origin']
            yield example


def _parse(line: str, path: pathlib.Path) -> dict[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f'not JSON ({error}). Write one JSON object a line.') from None
    if not isinstance(row, dict):
        raise ManifestError(f'a JSON object was expected, this is {line[:40]!r}.')
    if row.get('offset'):
        raise ManifestError(
            'field "offset": segments of a recording are not read. Cut the segment into a file of its own.'
        )
    fields = {}
    for field, names in _NAMES.items():
        value = next((row[name] for name in names if row.get(name) is not None), '')
        if isinstance(value, (int, float)) and field in ('text', 'target', 'id'):
            value = str(value)
        if not isinstance(value, str) and not (field == 'translation' and isinstance(value, dict)):
            raise ManifestError(f'field "{field}" is {value!r}; a string was expected.')
        fields[field] = value
    if row.get('source') and row.get('key') and not fields['text']:
        fields['text'] = fields['target']  # SLAM-LLM's transcript
    if fields['audio']:
        fields['audio'] = str(path.parent / fields['audio'])
    translation = fields.pop('translation')
    if isinstance(translation, str):
        translation = {fields['target_lang']: translation} if translation else {}
    for code in (fields['lang'], fields['target_lang'], *translation):
        if code and languages.name(code) is None:
            raise ManifestError(
                f'unknown language {code!r}. Use an ISO 639 code such as "en", or '
                'add its name to slm_jax/data/languages.py.'
            )
    fields['translations'] = json.dumps({k: v for k, v in translation.items() if v})
    return fields


class Source:
    """A `dataset_fn` for `seqio.FunctionDataSource`, over a text file for each split.

    A subclass has `path(split)`, the file, and `examples(split)`, its lines as `FIELDS`.
    """

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
        """Changes when the file does (what its recordings hold is not looked at)."""
        path = self.path(split)
        try:
            content = path.read_bytes()
        except OSError:
            content = b''  # `examples` says what is wrong with it
        return hashlib.sha256(repr((os.path.abspath(path), self)).encode() + content).hexdigest()


@dataclasses.dataclass(frozen=True)
class ManifestSource(Source):
    """{split: manifest}, optionally some languages of them.

    Attributes:
        paths: the manifest of each split.
        langs: keep lines of these languages only; empty keeps all.
    """

    paths: Mapping[str, str]
    langs: tuple[str, ...] = ()

    def path(self, split: str) -> pathlib.Path:
        return pathlib.Path(self.paths[split])

    def examples(self, split: str) -> Iterator[dict[str, str]]:
        for example in read(self.path(split)):
            if not self.langs or example['lang'] in self.langs or example['error']:
                yield example
