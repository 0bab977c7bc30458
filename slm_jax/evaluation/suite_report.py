"""What a suite found (`slm_jax.suite`), as a table for the terminal and as a page."""

from collections.abc import Iterator, Mapping
from typing import Any

from slm_jax.evaluation import page, plots

_CONTROLS = {
    'speech': 'speech',
    'oracle': 'true transcript',
    'cascade': "model's transcript",
    'wrong_audio': 'wrong audio',
}
_METRICS = {
    'contains': 'right, %',
    'f1': 'F1, %',
    'bleu': 'BLEU',
    'accuracy': 'right, %',
    'perplexity': 'perplexity',
    'wer': 'WER, %',
}
_HEADING = (
    'part',
    'metric',
    *_CONTROLS.values(),
    'kept of the oracle, %',
    'with wrong audio, %',
    'does what is asked, %',
)


def summary(results: Mapping[str, Any]) -> str:
    """All parts, a row each, in columns of one width."""
    rows = [_HEADING, *(_row(name, part) for name, part in _scored(results['parts']))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def render(results: Mapping[str, Any]) -> str:
    """One HTML page, complete in itself."""
    parts = results['parts']
    title = f'{results["model"]["name"] or "model"}: {results["suite"]}'
    table = page.table('Each part beside its controls [95% bootstrap interval]', _HEADING, [
        _row(name, part) for name, part in _scored(parts)
    ])  # fmt: skip
    percent = {name: part for name, part in _scored(parts) if part['metric'] not in ('perplexity', 'wer')}
    scores = {
        f'{name}, {said}': part['controls'][control]
        | {'score': part['controls'][control][part['metric']]}
        | {'intervals': {'score': (part['controls'][control].get('intervals') or {}).get(part['metric'])}}
        for name, part in percent.items()
        for control, said in _CONTROLS.items()
    }
    caption = 'Scores by part and control (percent, or BLEU)'
    wordings = [
        [
            name,
            wording,
            said['instruction'],
            *(_score(said[c], part['metric']) for c in ('speech', 'oracle')),
            _rate(said),
        ]
        for name, part in parts.items()
        for wording, said in {'as asked': _as_asked(part), **part['wordings']}.items()
        if part['wordings']
    ]
    heading = ('part', 'wording', 'instruction', 'speech', 'true transcript', 'does what is asked, %')
    body = [
        f'<header><h1>{page.escape(title)}</h1>'
        '<p class="soft">What is asked of speech, beside what the language model makes of the true transcript, of the '
        "model's own transcript, and of another clip's audio.</p></header>\n<main>",
        page.section('Scores', page.card(table), page.plot(plots.bars(scores, 'score', 'score', caption), caption)),
        page.section(
            'Wordings', page.card(page.table('The same asked in other words', heading, wordings)) if wordings else ''
        ),
        page.section('What training met', page.card(_seen(parts))),
        page.section(
            'How this was measured', page.card(page.facts({'Command': results['command'], **results['model']}))
        ),
        '</main>\n<footer class="soft small"><p>Written by slm-jax evaluate, '
        f'{page.escape(results["created"])}. Each part has a report of its own beside this page.</p></footer>',
    ]
    return page.document(title, '\n'.join(body))


def _scored(parts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What has a row of its own: each part, how likely the right one of its choices is, and what is written there."""
    for name, part in parts.items():
        yield name, part
        if part['kind'] == 'choices':
            yield f'{name}, of the right one', {**part, 'metric': 'perplexity', 'kept': {}}
        if part['written']:
            yield f'{name}, as written', part['written']


def _seen(parts: Mapping[str, Any]) -> str:
    kinds = ('instructions', 'answers', 'sentences')
    rows = [[name, *(f'{part["seen"][kind]:.0f}' for kind in kinds)] for name, part in parts.items() if part['seen']]
    if not rows:
        return (
            '<p>It is not known which texts this model was trained on: its directory has no <code>seen.npz</code>, '
            'which training leaves.</p>'
        )
    caption = 'Percent of the instructions, answers (as whole targets) and spoken sentences that training met'
    return page.table(caption, ('part', *kinds), rows)


def _row(name: str, part: Mapping[str, Any]) -> list[str]:
    kept = [_share(part['kept'].get(control)) for control in ('speech', 'wrong_audio')]
    scores = [_score(part['controls'][control], part['metric']) for control in _CONTROLS]
    return [name, _METRICS[part['metric']], *scores, *kept, _rate(part)]


def _as_asked(part: Mapping[str, Any]) -> dict[str, Any]:
    return {'instruction': part['instruction'], 'follows': part['follows'], **part['controls']}


def _score(scores: Mapping[str, Any], metric: str) -> str:
    limits = (scores.get('intervals') or {}).get(metric)
    return f'{scores[metric]:.1f}' + (f' [{limits[0]:.1f}, {limits[1]:.1f}]' if limits else '')


def _share(kept: Mapping[str, Any] | None) -> str:
    if kept is None:
        return '–'
    limits = kept['interval']
    return f'{kept["share"]:.0f}' + (f' [{limits[0]:.0f}, {limits[1]:.0f}]' if limits else '')


def _rate(said: Mapping[str, Any]) -> str:
    rate = said['follows']['speech']
    return '–' if rate is None else f'{rate:.0f}'
