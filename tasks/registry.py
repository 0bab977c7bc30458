"""How tasks and mixtures of speech are registered: one call each, harmless when repeated."""

import slm_jax.data.tensorflow_cpu  # isort: skip  before others load TensorFlow  # noqa: F401

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

import seqio

import gin
from slm_jax.data import instructions, languages, output_features, preprocessors, sources
from slm_jax.data.phrases import PhraseList
from slm_jax.evaluation import seqio_metrics

TEMPLATES = {
    'asr': instructions.TEMPLATES['asr_language'] + instructions.TEMPLATES['asr'],
    'ast': instructions.TEMPLATES['ast'] + instructions.TEMPLATES['ast_language'],
    'mt': instructions.TEMPLATES['ast'] + instructions.TEMPLATES['ast_language'],
    'instruct': (),
    'text': (),
    'ctc': (),
    'phrase': (),
}
_VOCABULARIES = {'ctc': 'speech_encoder', 'phrase': 'letters'}  # all other kinds: a language model's
_LISTING = instructions.TEMPLATES['asr_phrases'] + instructions.TEMPLATES['asr']
_SPLITS = ('train', 'validation', 'test')


def speech_task(
    name: str,
    source: seqio.DataSource,
    kind: str,
    before_cache: Sequence[Callable] = (preprocessors.decode_file,),
    after_cache: Sequence[preprocessors.ExampleStep] = (),
    target_lang: str = '',
    translated_only: bool = False,
    templates: Sequence[str] | None = None,
    phrases: PhraseList | None = None,
    metric: str = '',
) -> seqio.Task:
    """Registers a task on speech, or returns it where it is registered already.

    Args:
        name: of the task.
        source: a SeqIO source.
        kind: 'asr', 'ast', 'mt', 'instruct', 'text', 'ctc' or 'phrase'; see `preprocessors.to_text`.
        before_cache: steps from what the source gives to canonical examples with `speech`.
        after_cache: further steps, run each time.
        target_lang, translated_only: of 'ast' and 'mt'; see `preprocessors.to_text`.
        templates: wordings instead of `TEMPLATES[kind]`, at most 8; the first is used in evaluation.
        phrases: of 'asr': what draws the phrases that an instruction lists.
        metric: of 'instruct': what SeqIO scores it by, one of `seqio_metrics.METRICS`; '': nothing.
    """
    if kind not in preprocessors.KINDS:
        raise ValueError(f'task {name!r}: kind {kind!r} is none of {preprocessors.KINDS}')
    if metric and (kind != 'instruct' or metric not in seqio_metrics.METRICS):
        raise ValueError(
            f'task {name!r}: metric {metric!r} is of no task = {kind!r}; {", ".join(seqio_metrics.METRICS)} are of '
            "task = 'instruct'."
        )
    if phrases:
        phrases.check()
    if phrases and kind != 'asr':
        raise ValueError(
            f"task {name!r}: phrases are listed where a transcript is asked for, task = 'asr', not {kind!r}."
        )
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    wordings = _LISTING if phrases else TEMPLATES[kind]
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *before_cache,
            seqio.CacheDatasetPlaceholder(),
            *after_cache,
            preprocessors.to_answer(tuple(templates or ()))
            if metric
            else preprocessors.to_text(
                kind,
                tuple(wordings if templates is None else templates),
                target_lang,
                translated_only,
                phrases,
            ),
            preprocessors.tokenize,
            preprocessors.check,
        ],
        output_features=output_features.output_features(_VOCABULARIES.get(kind, 'llm')),
        postprocess_fn=seqio_metrics.reference if metric else None,
        metric_fns=list(seqio_metrics.METRICS[metric]) if metric else [],
    )


@gin.configurable
def manifest(
    name: str = gin.REQUIRED,
    path: str | Sequence[str] | Mapping[str, str | Sequence[str]] = gin.REQUIRED,
    task: str = 'asr',
    target_lang: str = '',
    langs: Sequence[str] = (),
    templates: Sequence[str] | None = None,
    phrases: PhraseList | None = None,
    metric: str = '',
) -> str:
    """Registers a task over JSONL manifests (slm_jax/data/manifests.py) and returns its name.

    In gin, `MIXTURE_OR_TASK_NAME = @tasks.manifest()` with `tasks.manifest.name`, `….path`.

    Args:
        name: of the task.
        path: a manifest, used for every split, or {'train': path, 'validation': path, …}. It may be in shards:
            'clips-*.jsonl', 'clips@64.jsonl' (clips-00000-of-00064.jsonl …), or a list; see `sources.expand`.
        task: 'asr', 'ast', 'mt', 'instruct', 'text', 'ctc' or 'phrase'; 'mt' and 'text' leave recordings unheard.
        target_lang: for 'ast' and 'mt', which of the translations; '' takes each line's `target_lang`.
        langs: take lines of these languages only.
        templates: wordings instead of those of slm_jax/data/instructions.py; with `metric`, of lines that have no
            instruction.
        phrases: of 'asr': what draws the phrases that an instruction lists, slm_jax/data/phrases.py.
        metric: of 'instruct': 'answers' (SQuAD's exact match and F1 with a line's `answers`), 'turn' (F1 of what is
            written, and the perplexity of the target), or 'choices' (how often the right one of a line's `choices` is
            the likeliest, and its perplexity; each choice is an example, so this is to evaluate and not to train on).

    Raises:
        ValueError: the name is taken by something else, or a language is not known.
    """
    named = _by_split(path)
    source = sources.ManifestSource(named, tuple(langs))
    return _files_task(name, source, named, task, target_lang, templates, langs, phrases=phrases, metric=metric)


@gin.configurable
def tars(
    name: str = gin.REQUIRED,
    path: str | Sequence[str] | Mapping[str, str | Sequence[str]] = gin.REQUIRED,
    task: str = 'asr',
    lang: str = '',
    target_lang: str = '',
    templates: Sequence[str] | None = None,
) -> str:
    """Registers a task over tars in WebDataset's layout (slm_jax/data/sources.py) and returns its name.

    Args:
        name: of the task.
        path: tars as `sources.expand` takes them, used for every split, or {'train': tars, 'validation': tars, …}.
        task, target_lang, templates: see `manifest`.
        lang: of the speech, where no JSON says it.

    Raises:
        ValueError: see `manifest`.
    """
    named, langs = _by_split(path), [lang] if lang else []
    source = sources.TarSource(named, lang)
    return _files_task(name, source, named, task, target_lang, templates, langs, preprocessors.decode_content)


@gin.configurable
def hugging_face(
    name: str = gin.REQUIRED,
    path: str = gin.REQUIRED,
    columns: Mapping[str, str] = gin.REQUIRED,
    splits: Mapping[str, str] | None = None,
    config: str | None = None,
    task: str = 'asr',
    lang: str = '',
    target_lang: str = '',
    templates: Sequence[str] | None = None,
) -> str:
    """Registers a task over a data set of Hugging Face (slm_jax/data/sources.py) and returns its name.

    Args:
        name: of the task.
        path: a directory of `save_to_disk` or of Parquet files, or the name of a data set on the hub.
        columns: which column is what, {'audio': 'audio', 'text': 'sentence'}; fields as in a manifest.
        splits: {split of the task: split of the data set}; None: train, validation and test, each of its own name.
        config: of the data set, on the hub.
        task, target_lang, templates: see `manifest`.
        lang: of the speech, where no column says it.

    Raises:
        ValueError: see `manifest`; also where `columns` names no recording.
    """
    if 'audio' not in columns:
        raise ValueError(f"task {name!r}: columns={dict(columns)!r} must say which column is the recording: 'audio'.")
    named = dict(splits or {split: split for split in _SPLITS})
    source = sources.HuggingFaceSource(path, named, dict(columns), lang, config)
    langs = [lang] if lang else []
    return _files_task(name, source, named, task, target_lang, templates, langs, preprocessors.decode_content)


def _by_split(path: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> dict[str, str | Sequence[str]]:
    named = path if isinstance(path, Mapping) else dict.fromkeys(_SPLITS, path)
    return {split: os.fspath(each) if isinstance(each, os.PathLike) else each for split, each in named.items()}


def _files_task(
    name: str,
    source: sources.Shards,
    splits: Mapping[str, object],
    task: str,
    target_lang: str,
    templates: Sequence[str] | None,
    langs: Sequence[str],
    decode: Callable = preprocessors.decode_file,
    phrases: PhraseList | None = None,
    metric: str = '',
) -> str:
    for code in (*langs, *([target_lang] if target_lang else [])):
        if languages.name(code) is None:
            raise ValueError(
                f'task {name!r}: unknown language {code!r}; use an ISO 639 code such as "en", or '
                'add its name to slm_jax/data/languages.py'
            )
    if task == 'mt' and decode is not preprocessors.decode_file:
        raise ValueError(f"task {name!r}: task = 'mt' reads text alone, from a manifest (@tasks.manifest()).")
    known = seqio.TaskRegistry._REGISTRY.get(name)
    definition = (source, task, target_lang, templates, phrases, metric)
    if known is not None and getattr(known, 'files_definition', None) != definition:
        raise ValueError(f'a task {name!r} is registered already; choose another name')
    read = preprocessors.leave_unheard if task in ('text', 'mt') else decode
    before = (preprocessors.each_choice, read) if metric == 'choices' else (read,)
    registered = speech_task(
        name,
        seqio.FunctionDataSource(source, splits=list(splits)),
        task,
        before_cache=before,
        target_lang=target_lang,
        templates=templates,
        phrases=phrases,
        metric=metric,
    )
    registered.files_definition = definition
    return name


@gin.configurable
def mixture(rates: Mapping[str, float] | Sequence[tuple[str, float]] = gin.REQUIRED, name: str = '') -> str:
    """Registers a mixture of tasks and mixtures by rate and returns its name.

    In gin, one line: `MIXTURE_OR_TASK_NAME = {'voice_prompts_asr': 1.0, 'my_manifest': 2.0}` (the
    loader takes rates as they are), or `@tasks.mixture()` where a name is wanted.

    Args:
        rates: {name: rate} or pairs of these; a mixture's rate is shared by its tasks in proportion to theirs. In gin,
            pairs are for parts that are themselves made, [(@tasks.manifest(), 1.0)]: cards can hold these.
        name: of the mixture; '' makes one from the rates.
    """
    rates = {part: float(rate) for part, rate in dict(rates).items()}
    digest = hashlib.sha256(json.dumps(rates).encode()).hexdigest()[:12]
    name = name or f'mixture_{digest}'
    if name in seqio.MixtureRegistry.names():
        known = seqio.MixtureRegistry.get(name)
        if known.rate_per_task_name != rates:
            raise ValueError(f'a mixture {name!r} with other rates is registered already')
        return name
    seqio.MixtureRegistry.add(name, list(rates.items()))
    return name
