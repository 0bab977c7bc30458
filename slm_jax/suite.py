"""Several sets put to one model, each beside its controls: `slm-jax evaluate MODEL --suite zero_shot --suite_data DIR`.

A suite is a gin file that lists its parts:

    from slm_jax import suite
    questions/suite.Part:
      name = 'questions'
      manifest = 'questions.jsonl'
      instruction = 'Answer the question briefly.'
      reference_field = 'answers'
    SUITE = [@questions/suite.Part()]
    suite.Suite.parts = %SUITE

Each part is asked four times, and so are its other wordings, the controls of which are left out:

    speech         the recordings
    oracle         the true transcripts (field `text`) in their place: what the language model alone can do
    cascade        the model's own transcripts in their place, or those of --text_from
    wrong_audio    another clip's recordings: what can be guessed

DIR/PART.jsonl are manifests with `text`; OUT gets PART/CONTROL/ with what `evaluate` writes, results.json (schema 1:
model, command, parts {name: {metric, controls {control: scores}, kept, seen, follows, wordings, written}}) and
report.html. `seen` says how much of a part the training of the model met, by the hashes that it left
(`slm_jax.data.seen`); `written` is there where choices are scored and answers are written as well.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import gin
from slm_jax import configuration, evaluate, model_arguments, paths

CONTROLS = ('oracle', 'speech', 'cascade', 'wrong_audio')


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Part:
    """One set of a suite.

    Attributes:
        name: of its folder and row.
        manifest: file in --suite_data.
        instruction: what is asked; '' takes each line's own.
        reference_field, target_lang, score_choices: as the options of `evaluate`.
        written: whether, where choices are scored, what the model itself writes is scored too, by its F1.
        wordings: other instructions that ask the same, by a name for what differs.
    """

    name: str
    manifest: str
    instruction: str = ''
    reference_field: str = ''
    target_lang: str = ''
    score_choices: bool = False
    written: bool = False
    wordings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Suite:
    """The parts of a suite."""

    parts: Sequence[Part]


def run(args: argparse.Namespace, command: str = '') -> dict[str, Any]:
    """Evaluates a suite; returns its results.

    Raises:
        ValueError: wrong arguments, no such suite, a manifest without transcripts, a model that cannot be loaded.
    """
    from slm_jax.evaluation import suite_report

    own = ('task', 'manifest', 'predictions', 'instruction', 'target_lang', 'reference_field', 'slots', 'text_field')
    given = [name for name in (*own, 'answers', 'score_choices', 'shuffle_audio', 'oracle') if getattr(args, name)]
    if given:
        raise ValueError(f'--suite: its parts say what is asked; leave out {", ".join("--" + name for name in given)}.')
    parts = _parts(args.suite)
    folder = paths.path(args.suite_data or '.')
    for part in parts:
        _check(folder / part.manifest, part)
    model = model_arguments.load(args.model, args)
    out = paths.path(args.out or evaluate.place(model, pathlib.Path(args.suite).stem))
    results: dict[str, Any] = {
        'schema': 1,
        'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': command,
        'model': {'name': model.card.get('name'), 'directory': str(model.directory), 'step': model.step},
        'suite': args.suite,
        'parts': {part.name: _part(args, model, part, folder / part.manifest, out / part.name) for part in parts},
    }
    paths.write(out / 'results.json', json.dumps(results, ensure_ascii=False, indent=2) + '\n')
    paths.write(out / 'report.html', suite_report.render(results))
    print(suite_report.summary(results))
    print(f'report: {out / "report.html"}')
    return results


def _parts(name: str) -> Sequence[Part]:
    file = name if name.endswith('.gin') else f'tasks/{name}.gin'
    configuration.parse_gin([file])
    parts = configuration.configured(Suite)().parts
    if len({part.name for part in parts}) != len(parts):
        raise ValueError(f'{file}: two parts of one name.')
    return parts


def _check(manifest: pathlib.Path, part: Part) -> None:
    """Refuses a manifest that has no transcripts, without which there is no oracle."""
    from slm_jax.data import json_lines

    if not manifest.is_file():
        raise ValueError(f'{manifest}: the recordings of {part.name!r} are not there. --suite_data names their folder.')
    for number, line in json_lines.lines(manifest):
        row = json_lines.parse(line)
        if not isinstance(row.get('text'), str) or not row.get('id'):
            raise ValueError(f'{manifest}:{number}: a line of a suite needs "id" and "text", what is said.')


def _part(
    args: argparse.Namespace, model: Any, part: Part, manifest: pathlib.Path, out: pathlib.Path
) -> dict[str, Any]:
    """Scores of a part under all its controls."""

    def scores(control, name, instruction, **options):
        asked = argparse.Namespace(**vars(args))
        asked.manifest, asked.instruction, asked.out = str(manifest), instruction, str(out / name)
        asked.reference_field, asked.target_lang = part.reference_field, part.target_lang
        asked.score_choices, asked.answers, asked.text_from = part.score_choices, False, None
        vars(asked).update(_CONTROLLED[control], **options)
        print(f'\n== {part.name}, {name}')
        return evaluate.evaluate(asked, model=model)

    transcripts = args.text_from
    if transcripts is None:
        asked = {'reference_field': 'text', 'target_lang': '', 'score_choices': False}
        scores('speech', 'transcripts', _TRANSCRIBE, **asked)
        transcripts = str(out / 'transcripts' / 'predictions.jsonl')

    def controlled(suffix: str, metric: str | None, **more: Any) -> dict[str, Any]:
        runs = {}
        for control in CONTROLS:
            options = {'text_from': transcripts} if control == 'cascade' else {}
            if control != 'oracle':
                options['oracle'] = str(out / f'oracle{suffix}' / 'predictions.jsonl')
            runs[control] = scores(control, f'{control}{suffix}', part.instruction, **options, **more)
        follows = {control: _follows(out / f'{control}{suffix}', manifest) for control in CONTROLS}
        return _summed(runs, metric) | {'follows': follows}

    result = controlled('', None)
    result['instruction'] = part.instruction
    result['seen'] = _seen(model, out / 'speech', manifest)
    result['written'] = controlled('-written', 'f1', score_choices=False, answers=True) if part.written else None
    result['wordings'] = {}
    for name, instruction in part.wordings.items():
        controls = {c: scores(c, f'{c}-{name}', instruction) for c in ('oracle', 'speech')}
        result['wordings'][name] = {
            'instruction': instruction,
            **{c: _headline(found)[2] for c, found in controls.items()},
            'follows': {c: _follows(out / f'{c}-{name}', manifest) for c in controls},
        }
    return result


_TRANSCRIBE = 'Transcribe the speech.'
_CONTROLLED: dict[str, dict[str, Any]] = {
    'speech': {},
    'oracle': {'text_field': 'text'},
    'cascade': {},
    'wrong_audio': {'shuffle_audio': True},
}
# What a part is first of all judged by, and whether more of it is better.
_METRICS = {
    'answers': ('contains', True),
    'slots': ('f1', True),
    'translation': ('bleu', True),
    'choices': ('accuracy', True),
    'likelihood': ('perplexity', False),
    'transcription': ('wer', False),
}


def _headline(results: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Kind, metric, and the scores of all examples."""
    (kind, groups), *others = results['scores'].items()
    if others:
        raise ValueError(f'a part of a suite has examples of one kind; {list(results["scores"])} are several.')
    group = next((name for name in ('overall', 'average') if _METRICS[kind][0] in groups.get(name, {})), None)
    return kind, _METRICS[kind][0], groups[group or next(iter(groups))]


def _summed(runs: Mapping[str, Mapping[str, Any]], metric: str | None) -> dict[str, Any]:
    """Scores of all controls; by this metric, or by the one that their kind is first of all judged by."""
    kind, first, _ = _headline(runs['speech'])
    metric, better = metric or first, _METRICS[kind][1]
    result: dict[str, Any] = {'kind': kind, 'metric': metric, 'controls': {}, 'kept': {}}
    for control, found in runs.items():
        result['controls'][control] = _headline(found)[2]
        if better and control != 'oracle':
            shares = found['oracle']['shares'][kind]
            share = shares.get('overall') or next(iter(shares.values()))
            if metric in share:
                limits = share['intervals'].get(metric)
                result['kept'][control] = {'share': share[metric], 'interval': limits}
    return result


def _seen(model: Any, run: pathlib.Path, manifest: pathlib.Path) -> dict[str, float] | None:
    """Percent of the instructions, answers and spoken sentences that training met; None where that is not known."""
    from slm_jax.data import json_lines, seen

    met = seen.read(model.directory)
    if met is None:
        return None

    def percent(texts, kind):
        return 100.0 * float(np.isin(np.unique(seen.hashes(texts)), met[kind]).mean())

    rows = json_lines.read(run / 'predictions.jsonl')
    return {
        'instructions': percent([row['instruction'] for row in rows], 'instructions'),
        'answers': percent([row['reference'] for row in rows], 'targets'),
        'sentences': percent([row['text'] for row in json_lines.read(manifest)], 'targets'),
    }


def _follows(run: pathlib.Path, manifest: pathlib.Path) -> float | None:
    """How often something was answered that is not what was said, in percent; None of texts that were scored.

    An answer counts as a copy if less than half of the transcript's characters would have to change.
    """
    import jiwer

    from slm_jax.data import json_lines
    from slm_jax.evaluation import normalizers

    rows = json_lines.read(run / 'predictions.jsonl')
    if any('log_likelihoods' in row for row in rows):
        return None
    said = {str(row['id']): normalizers.basic(row['text']) for row in json_lines.read(manifest)}
    answers = [(said[str(row['id'])], normalizers.basic(row['prediction'])) for row in rows]
    follows = [bool(answer) and (not text or jiwer.cer(text, answer) >= 0.5) for text, answer in answers]
    return 100.0 * sum(follows) / len(follows)
