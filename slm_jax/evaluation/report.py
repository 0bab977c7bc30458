"""Writes what an evaluation found: results.json, predictions.jsonl and report.html.

`results` is a JSON-able dictionary (schema 1):

    schema, created (ISO 8601, UTC), command
    model        {directory, system, step, trained_parameters, …}
    foundations  {part: {name, fingerprint: {structure, content, num_params}}}
    data         {task | manifest, split, instruction, phrases, examples, audio_seconds, shuffle_audio, skipped, oracle}
    decode       {method, beam_size, …, answers_with_ctc}
    truncated    how many answers reached a limit of their length
    normalizers, signatures, scores, by_task, oracle    as `metrics.score` returns them
    speed        {seconds, audio_seconds_per_second, rtfx, device}; rtfx is the same without loading and compiling
    versions     {package: version}
"""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax import paths
from slm_jax.data import json_lines
from slm_jax.evaluation import examples, metrics, normalizers, page, plots

SCHEMA = 1
_TITLES = {
    'transcription': 'Transcription',
    'translation': 'Translation',
    'slots': 'Slots',
    'answers': 'Answers',
    'choices': 'Choices',
    'likelihood': 'Likelihood',
}
_LIKELIHOOD = (('perplexity', 'perplexity', True), ('bits_per_byte', 'bits a byte', True))
# Per kind: the columns of its table, as (metric, heading, is a rate).
_COLUMNS = {
    'transcription': (
        ('examples', 'clips', False),
        ('wer', 'WER %', True),
        ('cer', 'CER %', True),
        ('accuracy', 'exact %', True),
        ('b_wer', 'B-WER %', True),
        ('u_wer', 'U-WER %', True),
        ('b_words', 'words in phrases', False),
        ('substitutions', 'subst.', False),
        ('deletions', 'del.', False),
        ('insertions', 'ins.', False),
        ('words', 'words', False),
    ),
    'translation': (('examples', 'clips', False), ('bleu', 'BLEU', True), ('chrf', 'chrF', True)),
    'slots': (
        ('examples', 'questions', False),
        ('f1', 'F1 %', True),
        ('accuracy', 'exact %', True),
        ('precision', 'precision %', True),
        ('recall', 'recall %', True),
    ),
    'answers': (
        ('examples', 'questions', False),
        ('contains', 'contained %', True),
        ('f1', 'F1 %', True),
        ('accuracy', 'exact %', True),
    ),
    'choices': (
        ('examples', 'questions', False),
        ('accuracy', 'right %', True),
        ('accuracy_norm', 'right by likelihood a byte %', True),
        *_LIKELIHOOD,
    ),
    'likelihood': (('examples', 'texts', False), *_LIKELIHOOD),
}
_FIRST_COLUMN = dict.fromkeys(_TITLES, 'language') | {'translation': 'direction', 'slots': 'slot'}
_NAMES = {
    'wer': 'WER',
    'b_wer': 'B-WER',
    'u_wer': 'U-WER',
    'cer': 'CER',
    'bleu': 'BLEU',
    'chrf': 'chrF',
    'contains': 'contains',
    'f1': 'F1',
    'accuracy': 'exact',
    'accuracy_norm': 'by the byte',
    'perplexity': 'perplexity',
    'bits_per_byte': 'bits a byte',
}


def write(
    directory: str | pathlib.Path,
    results: Mapping[str, Any],
    predictions: Sequence[metrics.Prediction],
    samples: Mapping[int, np.ndarray] | None = None,
    worst: int = 20,
    audio_bytes: int = 6_000_000,
    normalizer: str = normalizers.AUTO,
) -> pathlib.Path:
    """Writes the three files.

    Args:
        directory: made if absent; files of the same names in it are replaced.
        results: as the module's docstring says.
        predictions: as `metrics` says.
        samples: {position in predictions: int16 samples [n] at 16 kHz}, for those that can be
            listened to.
        worst: how many examples of each kind are shown; 0 shows none.
        audio_bytes: limit of all embedded audio together, before base64.
        normalizer: of transcripts and slots, as `metrics.score` was given it.

    Returns:
        Path of report.html.
    """
    directory = paths.path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    json_lines.write(directory / 'predictions.jsonl', predictions)
    text = json.dumps(results, ensure_ascii=False, indent=2)
    (directory / 'results.json').write_text(text + '\n', encoding='utf-8')
    path = directory / 'report.html'
    path.write_text(render(results, predictions, samples or {}, worst, audio_bytes, normalizer), encoding='utf-8')
    return path


def render(
    results: Mapping[str, Any],
    predictions: Sequence[metrics.Prediction],
    samples: Mapping[int, np.ndarray],
    worst: int = 20,
    audio_bytes: int = 6_000_000,
    normalizer: str = normalizers.AUTO,
) -> str:
    """Returns the report as one HTML page; arguments as `write`."""
    data = results['data']
    name = pathlib.Path(str(results['model'].get('directory') or 'model')).name
    what = ' · '.join(str(data[k]) for k in ('task', 'manifest', 'split') if data.get(k))
    title = f'{name} on {what}' if what else name
    errors = examples.errors(predictions, normalizer)
    budget = examples.AudioBudget(audio_bytes)
    shown = []
    for kind, (bad, spread) in examples.chosen(predictions, errors, worst).items():
        for heading, positions in (('the worst', bad), ('from best to worst', spread)):
            items = [examples.show(predictions[i], errors[i], samples.get(i), normalizer, budget) for i in positions]
            shown.append(page.section(f'{_TITLES[kind]}: {heading}', *examples.listing(items, kind == 'transcription')))
    parts = [
        '<header>',
        f'<h1>{page.escape(title)}</h1>',
        f'<p class="soft">{page.escape(_subtitle(results))}</p>',
        _warning(results),
        page.tiles(_headline(results)),
        '</header>\n<main>',
        *(_scores(kind, scores) for kind, scores in results['scores'].items()),
        _shares(results),
        _by_task(results.get('by_task') or {}),
        _by_length(predictions, errors),
        *shown,
        page.section('How this was measured', page.card(page.facts(_facts(results)))),
        page.section('Versions', page.card(page.facts(results.get('versions') or {}))),
        '</main>',
        '<footer class="soft small"><p>Written by slm-jax evaluate, '
        f'{page.escape(results.get("created", ""))}. This page is complete in itself and loads '
        'nothing.</p></footer>',
    ]
    return page.document(title, '\n'.join(part for part in parts if part))


def versions() -> dict[str, str]:
    """Versions of what decides the scores."""
    found = {'python': platform.python_version()}
    for package in ('slm_jax', 'jax', 'jaxlib', 'flax', 'seqio', 'jiwer', 'whisper_normalizer', 'sacrebleu'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _subtitle(results: Mapping[str, Any]) -> str:
    data, model = results['data'], results['model']
    seconds = data.get('audio_seconds') or 0
    parts = [
        f'step {model["step"]:,}' if model.get('step') is not None else '',
        f'{data["examples"]:,} examples',
        f'{seconds / 60:.1f} minutes of audio' if seconds else 'text input',
        f'instruction: “{data["instruction"]}”' if data.get('instruction') else '',
    ]
    return ' · '.join(part for part in parts if part)


def cut(results: Mapping[str, Any]) -> str:
    """How many answers were not ended by the model, and by what."""
    decode = results.get('decode') or {}
    limits = [f'{name} {decode[name]:g}' for name in ('max_decode_length', 'max_length_ratio') if decode.get(name)]
    which = f' ({" or ".join(limits)})' if limits else ''
    return f'{results["truncated"]:,} answers are cut, they reached a limit{which}: "truncated" in predictions.jsonl.'


def summary(results: Mapping[str, Any]) -> str:
    """The scores as a table for the terminal."""
    lines = []
    for kind, groups in results['scores'].items():
        lines.append(f'{kind} (normaliser {results["normalizers"][kind]})')
        lines += _lines(groups)
    for kind, groups in (results.get('oracle') or {}).get('shares', {}).items():
        lines.append(f'{kind}, in percent of {results["data"]["oracle"]}')
        lines += _lines(groups)
    if results.get('truncated'):  # entries of older cards lack it
        lines.append(cut(results))
    return '\n'.join(lines)


def _lines(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    width = max(map(len, groups))
    lines = []
    for group, scores in groups.items():
        rates = '  '.join(f'{name} {scores[n]:5.1f}{_interval(scores, n)}' for n, name in _NAMES.items() if n in scores)
        count = f'  ({scores["examples"]:,} examples)' if 'examples' in scores else ''
        lines.append(f'  {group:<{width}}  {rates}{count}')
    return lines


def _interval(scores: Mapping[str, Any], metric: str) -> str:
    """' [10.1, 14.5]'; '' where there is none, as in older results."""
    limits = (scores.get('intervals') or {}).get(metric)
    return f' [{limits[0]:.1f}, {limits[1]:.1f}]' if limits else ''


def _warning(results: Mapping[str, Any]) -> str:
    data, lines = results['data'], []
    if data.get('shuffle_audio'):
        lines.append('Control run: every example was given the audio of another clip. A model that listens fails here.')
    if data.get('skipped'):
        lines.append(f'{len(data["skipped"])} unreadable examples were left out; results.json lists them.')
    if results.get('truncated'):
        lines.append(cut(results))
    return ''.join(f'<p class="warn" role="note">{page.escape(line)}</p>' for line in lines)


def _headline(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures that a reader looks for first: overall, or those of the only group."""
    tiles = []
    for kind, scores in results['scores'].items():
        group = 'overall' if 'overall' in scores else next(iter(scores))
        for metric, heading in (
            ('wer', 'WER'),
            ('b_wer', 'B-WER: words of phrases'),
            ('u_wer', 'U-WER: all other words'),
            ('cer', 'CER'),
            ('bleu', 'BLEU'),
            ('chrf', 'chrF'),
            ('contains', 'answers right'),
            ('f1', 'slot F1' if kind == 'slots' else 'F1'),
            *([('accuracy', 'right one chosen')] if kind == 'choices' else []),
            ('perplexity', 'perplexity'),
        ):
            if metric in scores[group]:
                percent = '' if metric in ('bleu', 'chrf', 'perplexity') else '%'
                note = f'{group}{_interval(scores[group], metric)}'
                tiles.append((f'{scores[group][metric]:.1f}{percent}', heading, note))
            elif metric == 'bleu' and 'bleu' in scores.get('average', {}):
                tiles.append((f'{scores["average"]["bleu"]:.1f}', heading, 'average over directions'))
    rate = (results.get('speed') or {}).get('rtfx')
    if rate:
        tiles.append((f'{rate:.1f}×', 'RTFx: audio to time of generation', results['speed'].get('device', '')))
    return tiles


def _table(
    caption: str,
    first: str,
    columns: Sequence[tuple[str, str, bool]],
    scores: Mapping[str, Mapping[str, Any]],
) -> str:
    columns = [c for c in columns if any(c[0] in group for group in scores.values())]
    rows = []
    for group, values in scores.items():
        cells = [
            '–' if m not in values else f'{values[m]:.1f}{_interval(values, m)}' if rate else f'{values[m]:,}'
            for m, _, rate in columns
        ]
        rows.append([group, *cells])
    if any(values.get('intervals') for values in scores.values()):
        caption += ' [95% bootstrap interval]'
    return page.card(page.table(caption, [first, *(c[1] for c in columns)], rows, ('overall', 'average')))


def _scores(kind: str, scores: Mapping[str, Mapping[str, Any]]) -> str:
    title, first = _TITLES[kind], _FIRST_COLUMN[kind]
    if kind == 'transcription':
        caption = 'Word error rate by kind of error'
        svg = plots.error_composition(scores, caption)
        if not svg:
            svg = plots.bars(scores, 'cer', 'CER, %', caption := 'Character error rate')
    elif kind == 'translation':
        svg = plots.bars(scores, 'bleu', 'BLEU', caption := 'BLEU by direction')
    elif kind == 'answers':
        svg = plots.bars(
            scores, 'contains', 'answers that contain an accepted one, %', caption := 'Answers by language'
        )
    elif kind == 'choices':
        svg = plots.bars(scores, 'accuracy', 'right one chosen, %', caption := 'Choices by language')
    elif kind == 'likelihood':
        svg = plots.bars(scores, 'perplexity', 'perplexity of a token', caption := 'Perplexity by language')
    else:
        svg = plots.bars(scores, 'f1', 'F1, %', caption := 'F1 by slot')
    table = _table(f'{title} by {first}', first, _COLUMNS[kind], scores)
    return page.section(title, table, page.plot(svg, caption))


def _shares(results: Mapping[str, Any]) -> str:
    """How much of each score of the other run this one has."""
    other, blocks = results.get('oracle'), []
    if not other:
        return ''
    for kind, shares in other['shares'].items():
        columns = [(metric, heading.removesuffix(' %'), rate) for metric, heading, rate in _COLUMNS[kind] if rate]
        blocks.append(
            _table(f'{_TITLES[kind]}: its scores', _FIRST_COLUMN[kind], _COLUMNS[kind], other['scores'][kind])
        )
        blocks.append(_table(f'{_TITLES[kind]}: percent of them that is kept', _FIRST_COLUMN[kind], columns, shares))
    return page.section(f'Beside {results["data"]["oracle"]}', *blocks)


def _by_task(by_task: Mapping[str, Mapping[str, Any]]) -> str:
    blocks = [
        _table(f'{task}: {_TITLES[kind].lower()}', _FIRST_COLUMN[kind], _COLUMNS[kind][:4], scores)
        for task, kinds in by_task.items()
        for kind, scores in kinds.items()
    ]
    return page.section('By task', f'<div class="split">{"".join(blocks)}</div>') if blocks else ''


def _by_length(predictions: Sequence[metrics.Prediction], errors: Sequence[float]) -> str:
    timed = [(p['duration'], e) for p, e in zip(predictions, errors, strict=True) if p.get('duration')]
    if len(timed) < 20:
        return ''
    seconds, rates = zip(*timed, strict=True)
    title = 'Error rate by length of the clip'
    caption = 'A dot is an example, cut at 150%. Translation: 100 − chrF; slots: 0 right, 100 wrong; '
    caption += 'answers: 0 if an accepted one is contained, else 100 − F1; likelihood: 100 times bits a byte.'
    return page.section(title, page.plot(plots.error_by_length(seconds, rates, title), caption))


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    data, model = results['data'], results['model']
    facts = {
        'Command': results.get('command'),
        'Model': model.get('directory'),
        'Step': model.get('step'),
        'System': model.get('system'),
        'Data': ', '.join(str(data[k]) for k in ('task', 'manifest', 'split') if data.get(k)),
        'Instruction': data.get('instruction'),
        'Phrases listed': data.get('phrases'),
        'Decoding': ', '.join(f'{k}={v}' for k, v in (results.get('decode') or {}).items()),
    }
    for kind, name in results['normalizers'].items():
        facts[f'Normaliser, {kind}'] = name
    for metric, signature in results['signatures'].items():
        facts[f'Signature, {metric}'] = signature
    for part, foundation in (results.get('foundations') or {}).items():
        fingerprint = foundation.get('fingerprint') or {}
        facts[f'Foundation, {part}'] = (
            f'{foundation.get("name")}: {fingerprint.get("num_params") or 0:,} parameters, '
            f'structure {str(fingerprint.get("structure"))[:16]}, '
            f'content {str(fingerprint.get("content"))[:16]}'
        )
    speed = results.get('speed') or {}
    if speed.get('seconds'):
        facts['Time'] = f'{speed["seconds"]:.1f} s on {speed.get("device", "")}, compilation included'
    return facts
