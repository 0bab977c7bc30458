"""Plots of an evaluation as inline SVG, drawn once and legible on a light and on a dark page.

Matplotlib draws in the placeholder colours below; each is then replaced by a CSS variable of the
page, so the page's colour scheme recolours the plot. Text stays text: it can be searched, scaled
and read aloud.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

_COLOURS = {
    '#010101': 'var(--ink)',
    '#020202': 'var(--ink-soft)',
    '#030303': 'var(--rule)',
    '#040404': 'var(--series-1)',
    '#050505': 'var(--series-2)',
    '#060606': 'var(--series-3)',
}
_INK, _SOFT, _RULE, *_SERIES = _COLOURS
_WIDTH = 9.4  # inches; at 72 units an inch, about the width in pixels that the page gives it


def error_composition(scores: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Horizontal bars of the word error rate per language, parted into its three kinds of error.

    Args:
        scores: {language: {wer, words, substitutions, deletions, insertions, …}}; those without
            words (and the average) are left out.
        title: what a screen reader is told.

    Returns:
        An `<svg>` element; '' if no language has words.
    """
    rows = {group: s for group, s in scores.items() if s.get('words') and group != 'average'}
    if not rows:
        return ''
    kinds = ('substitutions', 'deletions', 'insertions')
    intervals = [s.get('intervals', {}).get('wer') for s in rows.values()]
    parts = [[100 * s[kind] / s['words'] for s in rows.values()] for kind in kinds]
    return _bars(list(rows), parts, kinds, 'word error rate, %', title, intervals)


def bars(scores: Mapping[str, Mapping[str, Any]], metric: str, label: str, title: str) -> str:
    """Horizontal bars of one metric per group; '' if no group has it. As `error_composition`."""
    rows = {group: s for group, s in scores.items() if metric in s and group != 'average'}
    if not rows:
        return ''
    intervals = [s.get('intervals', {}).get(metric) for s in rows.values()]
    return _bars(list(rows), [[s[metric] for s in rows.values()]], (label,), label, title, intervals)


def error_by_length(seconds: Sequence[float], errors: Sequence[float], title: str) -> str:
    """A dot per example: length of the clip (s) against its error rate (%), cut at 150%."""
    if not seconds:
        return ''
    figure, axes = _figure(2.8)
    step = max(1, len(seconds) // 1500)  # More dots than this say nothing new and weigh megabytes.
    clipped = [min(error, 150.0) for error in errors]
    axes.scatter(seconds[::step], clipped[::step], s=18, color=_SERIES[0], alpha=0.45, linewidths=0)
    axes.set_xlabel('length of the clip, s', color=_SOFT, fontsize=9)
    axes.set_ylabel('error rate, %', color=_SOFT, fontsize=9)
    axes.set_ylim(-4, max(100.0, *clipped) * 1.04)
    axes.set_xlim(left=0)
    axes.grid(color=_RULE, linewidth=0.6)
    return _svg(figure, title)


def _bars(
    groups: Sequence[str],
    parts: Sequence[Sequence[float]],
    names: Sequence[str],
    label: str,
    title: str,
    intervals: Sequence[Sequence[float] | None],
) -> str:
    """A bar of pieces side by side for each group; the interval of its total is a line, and its value stands behind."""
    figure, axes = _figure(0.55 + 0.27 * len(groups) + (0.25 if len(parts) > 1 else 0))
    left = [0.0] * len(groups)
    for values, name, colour in zip(parts, names, _SERIES, strict=False):
        # The edge in the page's own colour is the gap that parts neighbouring pieces.
        axes.barh(range(len(groups)), values, left=left, height=0.58, color=colour, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    ends = [max(total, *limits) if limits else total for total, limits in zip(left, intervals, strict=True)]
    reach = max([*ends, 1e-9])
    for row, limits in enumerate(intervals):
        if limits:
            axes.plot(limits, (row, row), color=_INK, linewidth=1.4, marker='|', markersize=6)
    for row, (total, end) in enumerate(zip(left, ends, strict=True)):
        axes.text(end + 0.012 * reach, row, f'{total:.1f}', va='center', color=_INK, fontsize=9)
    axes.set_yticks(range(len(groups)), groups)
    axes.tick_params(axis='y', labelcolor=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, reach * 1.1)
    axes.set_xlabel(label, color=_SOFT, fontsize=9)
    axes.grid(axis='x', color=_RULE, linewidth=0.6)
    if len(parts) > 1:
        axes.legend(
            loc='lower left',
            bbox_to_anchor=(0, 1),
            ncols=len(parts),
            frameon=False,
            labelcolor=_SOFT,
            fontsize=9,
            handlelength=1.0,
            borderpad=0.2,
        )
    return _svg(figure, title)


def _figure(height: float) -> tuple[Any, Any]:
    # A bare Figure, not pyplot: nothing global is set, and no window system is looked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout='constrained')
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == 'left')
        spine.set_color(_RULE)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an `<svg>` element with the page's colours and a title."""
    import matplotlib

    stream = io.StringIO()
    # A fixed salt and no date: the same scores give the same bytes. The salt parts the plots' clip
    # paths.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': title}):
        figure.savefig(stream, format='svg', metadata={'Date': None, 'Creator': None})
    text = stream.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<style.*?</style>|<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    # Ids such as axes_1 would stand on the page once a plot; no one refers to those of groups.
    text = re.sub(r'<g id="[^"]*"', '<g', text)
    text = re.sub(r'font-family: [^;\"]*;? ?', '', text)
    for placeholder, variable in _COLOURS.items():
        text = text.replace(placeholder, variable)
    name = html.escape(title)
    opening = re.sub(r' (width|height)="[^"]*"', '', text[: text.index('>')])
    return f'{opening} role="img" aria-label="{name}">{text[text.index(">") + 1 :]}'
