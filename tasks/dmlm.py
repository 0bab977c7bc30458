"""Tasks of DMLM: stretches of text, units of speech and tokens of images; slm_jax/data/modalities.py has their layout.

Their manifests are JSON lines, as the program that encodes recordings or images writes them; a line has what its task
reads:

    {"id": "…", "text": "…", "lang": "en", "units": [17, 4, 233], "codebook": "NAME@FINGERPRINT",
     "translation": {"de": "…"}, "target_units": [5, 91], "target_lang": "de"}
    {"id": "…", "caption": "a red circle", "tokens": [[40, 7], [3, 3]], "codebook": "NAME@FINGERPRINT"}
    {"id": "…", "turns": [{"text": "Who is it?"}, {"speech": [17, 4], "codebook": "…"}, {"text": "Ann.", "lang": "en"}]}

    dmlm_asr         speech → its transcript            dmlm_caption     image → text
    dmlm_t2s         text → speech                      dmlm_draw        text → image
    dmlm_s2tt        speech → its translation           dmlm_text_lm     text alone
    dmlm_s2st        speech → speech in another         dmlm_speech_lm   speech alone
                     language                           dmlm_image_lm    an image alone
    dmlm_turns       what the line's turns say, in their order; the last is written

In gin, `tasks.dmlm.manifests` says where each task's lines are, and a mixture has a line for each:

    dmlm.manifests.files = {'dmlm_asr': {'train': 'units/train.jsonl', 'validation': 'units/dev.jsonl'}, …}
    MIXTURE_OR_TASK_NAME = {
        'dmlm_asr': 2.0,
        'dmlm_speech_lm': 0.5,
    }
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

import gin
from slm_jax import paths
from slm_jax.codebooks import labels
from slm_jax.data import json_lines, modalities, output_features, preprocessors, sources
from slm_jax.data.tensorflow_cpu import tf

_SPLITS = ('train', 'validation', 'test')
Stretch = tuple[str, str]  # its modality, and the field of a line that has it
TASKS: dict[str, tuple[Stretch, ...]] = {
    'dmlm_asr': (('speech', 'units'), ('text', 'text')),
    'dmlm_t2s': (('text', 'text'), ('speech', 'units')),
    'dmlm_s2tt': (('speech', 'units'), ('text', 'translation')),
    'dmlm_s2st': (('speech', 'units'), ('speech', 'target_units')),
    'dmlm_caption': (('image', 'tokens'), ('text', 'caption')),
    'dmlm_draw': (('text', 'caption'), ('image', 'tokens')),
    'dmlm_text_lm': (('text', 'text'),),
    'dmlm_speech_lm': (('speech', 'units'),),
    'dmlm_image_lm': (('image', 'tokens'),),
    'dmlm_turns': (),
}
_OF_TARGET = ('translation', 'target_units')  # fields in the target's language


@gin.configurable
def manifests(
    files: Mapping[str, str | Mapping[str, str | Sequence[str]]] | None = None, learn_inputs: Sequence[str] = ()
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Where the lines of each task are, by split; and tasks whose inputs are learnt as well as their targets.

    Args:
        files: {task: a manifest for all splits, or {'train': …, 'validation': …}}; in shards as in `sources.expand`.
        learn_inputs: names of tasks.

    Raises:
        ValueError: there is no such task.
    """
    for name in (*(files or {}), *learn_inputs):
        if name not in TASKS:
            raise ValueError(f'dmlm.manifests: there is no task {name!r}; there are {", ".join(TASKS)}.')
    found = {
        name: dict(each) if isinstance(each, Mapping) else dict.fromkeys(_SPLITS, each)
        for name, each in (files or {}).items()
    }
    return found, tuple(learn_inputs)


@dataclasses.dataclass(frozen=True)
class _Lines:
    """The lines of a task as examples: `row` (JSON), `id`, `origin`, `lang`, `target_lang`."""

    name: str

    def _files(self, split: str) -> list[str]:
        files = manifests()[0].get(self.name, {})
        if split not in files:
            raise ValueError(
                f'task {self.name!r} has no manifest for the split {split!r}: name one in dmlm.manifests.files, or '
                'leave the task out.'
            )
        return sources.expand(files[split])

    def fingerprint(self, split: str) -> list[Any]:
        contents = (hashlib.sha256(paths.path(file).read_bytes()).hexdigest() for file in self._files(split))
        return ['dmlm', *contents]

    def __call__(self, split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        columns: dict[str, list[str]] = {name: [] for name in ('id', 'row', 'origin', 'lang', 'target_lang')}
        for file in self._files(split):
            for number, line in json_lines.lines(file):
                origin = f'{file}:{number}'
                try:
                    row = json_lines.parse(line)
                except json_lines.JsonLinesError as error:
                    row = {'error': str(error)}
                columns['id'].append(str(row.get('id', origin)))
                columns['row'].append(json.dumps(row, ensure_ascii=False))
                columns['origin'].append(origin)
                columns['lang'].append(str(row.get('lang') or ''))
                columns['target_lang'].append(str(row.get('target_lang') or ''))
        return tf.data.Dataset.from_tensor_slices(columns)


_label = functools.lru_cache(maxsize=8)(labels.of)


def _check_codebook(modality: str, said: str | None, known: modalities.Modalities) -> None:
    """Whether a line's units are of the model's codebook, where both are known."""
    directory = {'speech': known.codebook, 'image': known.image_codebook}.get(modality)
    if directory and said is not None and said != _label(directory):
        macro = 'SPEECH_CODEBOOK' if modality == 'speech' else 'IMAGE_CODEBOOK'
        raise ValueError(
            f'field "codebook": the tokens are of {said!r}, and the model has {_label(directory)!r} ({directory}). '
            f'Encode them anew with that one, or name the other in gin ({macro}).'
        )


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """What a line says in one modality: `said`, in its `field`; `codebook`, None where it does not say."""

    modality: str
    said: Any
    field: str
    lang: str = ''
    codebook: str | None = None

    @property
    def text(self) -> str:
        """For people."""
        return self.said if self.modality == 'text' else ' '.join(map(str, np.ravel(self.said)))


def stretches(name: str, row: Mapping[str, Any]) -> list[_Stretch]:
    """The stretches of a line.

    Raises:
        ValueError: a field is not there, or of another kind; names it.
    """
    if 'error' in row:
        raise ValueError(row['error'])
    if name == 'dmlm_turns':
        return _turns(row.get('turns'))
    lang, to, found = row.get('lang') or '', row.get('target_lang') or '', []
    for modality, field in TASKS[name]:
        said = row.get(field)
        if field == 'translation' and isinstance(said, Mapping):
            to = to or (next(iter(said)) if len(said) == 1 else '')
            if not to:
                raise ValueError('field "target_lang" is missing: it says which of the translations is meant.')
            said = said.get(to)
        of = to if field in _OF_TARGET else '' if modality == 'image' else lang
        found.append(_Stretch(modality, said, field, of, row.get('codebook')))
    return found


def _turns(turns: Any) -> list[_Stretch]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f'field "turns" is {turns!r:.80}; a list of objects was expected, {{"text": "…"}}.')
    found = []
    for number, turn in enumerate(turns):
        kinds = [kind for kind in modalities.MODALITIES if kind in turn]
        if len(kinds) != 1:
            raise ValueError(f'field "turns[{number}]" must have one of {", ".join(modalities.MODALITIES)}.')
        field = f'turns[{number}].{kinds[0]}'
        found.append(_Stretch(kinds[0], turn[kinds[0]], field, turn.get('lang') or '', turn.get('codebook')))
    return found


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """From a line to ids: the step after the store."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Of all that decides the tokens."""
        parts = [self.name, repr(modalities.Modalities()), self.name in manifests()[1]]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __call__(self, example, output_features, unused_sequence_length):
        known, vocabulary = modalities.Modalities(), output_features['inputs'].vocabulary
        vocabulary = getattr(vocabulary, 'vocabulary', vocabulary)
        inputs, targets, said, target_lang, error = [], [], ['', ''], '', b''
        try:
            row = json.loads(example['row'])
            found = stretches(self.name, row)
            ids = [(each.modality, known.ids(each.modality, each.said, vocabulary, each.field)) for each in found]
            for each in found:
                _check_codebook(each.modality, each.codebook, known)
            lang = found[-1].lang
            learnt = self.name in manifests()[1]
            inputs = known.prompt(ids[:-1], ids[-1][0], lang, learnt)
            targets = [*ids[-1][1], vocabulary.eos_id]
            target_lang = lang if found[-1].modality == 'text' else ''  # units are counted, not translated
            said = [' '.join(each.text for each in found[:-1]), found[-1].text]
        except ValueError as problem:
            error = f'{example["origin"].decode()}: {problem}'.encode()
        return {
            'inputs': np.array(inputs, np.int32),
            'targets': np.array(targets, np.int32),
            'inputs_pretokenized': said[0].encode(),
            'targets_pretokenized': said[1].encode(),
            'target_lang': target_lang.encode(),
            'error': error,
        }


for _name in TASKS:
    seqio.TaskRegistry.add(
        _name,
        source=seqio.FunctionDataSource(_Lines(_name), splits=_SPLITS),
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            preprocessors.ExampleStep(
                _Tokens(_name),
                reads=('row', 'origin'),
                adds={
                    **dict.fromkeys(('inputs', 'targets'), (tf.int32, 1)),
                    **dict.fromkeys(
                        ('inputs_pretokenized', 'targets_pretokenized', 'target_lang', 'error'), (tf.string, 0)
                    ),
                },
            ),
            preprocessors.check,
        ],
        output_features=output_features.output_features(),
    )
