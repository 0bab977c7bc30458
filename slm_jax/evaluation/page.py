"""The look of the report: its style sheet and the few HTML pieces that it is put together from.

A page refers to nothing outside itself, and its content security policy holds it to that.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1a1a19; --ink-soft: #5c5b57; --rule: #dfded9;
  --link: #1c5cab; --series-1: #2a78d6; --series-2: #1baf7a; --series-3: #e0940a;
  --sub: #fbe7c2; --sub-ink: #6b4300; --del: #fadbd8; --del-ink: #8c1d18;
  --ins: #d5f0e0; --ins-ink: #0b5a34; --warn: #fff3d6; --warn-ink: #6b4300; }
@media (prefers-color-scheme: dark) { :root {
  --page: #141413; --card: #1e1e1c; --ink: #f1f0ec; --ink-soft: #b4b2aa; --rule: #3a3935;
  --link: #86b6ef; --series-1: #3987e5; --series-2: #199e70; --series-3: #d08a1c;
  --sub: #4d3708; --sub-ink: #ffdf9e; --del: #55211d; --del-ink: #ffc9c3;
  --ins: #12432b; --ins-ink: #b4efcf; --warn: #3d2f0d; --warn-ink: #ffdf9e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
main, header, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .4rem 0; } a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 4px; }
.soft { color: var(--ink-soft); } .small { font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1rem 1.25rem; }
.card + .card { margin-top: .75rem; } :is(.split, .tiles, .examples) > .card { margin: 0; }
.warn { background: var(--warn); color: var(--warn-ink); border-radius: 10px;
  padding: .75rem 1.25rem;
  margin: 1rem 0; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 0; padding: 0;
  list-style: none; }
.tiles li { flex: 1 1 8rem; } .tiles b { display: block; font-size: 1.9rem; line-height: 1.2;
  font-weight: 600; }
.tiles span { display: block; }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr));
  gap: .75rem;
  align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--ink-soft); font-size: .875rem; padding-bottom: .5rem; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--ink-soft); font-weight: 500; font-size: .875rem; }
tbody th { font-weight: 500; } tbody tr:last-child > * { border-bottom: 0; }
tr.sum > * { border-top: 2px solid var(--rule); border-bottom: 0; font-weight: 600; }
tr.sum + tr.sum > * { border-top: 0; }
figure { margin: 0; overflow-x: auto; } figcaption { color: var(--ink-soft); font-size: .875rem;
  margin-bottom: .5rem; }
svg { display: block; width: 100%; min-width: 36rem; height: auto; }
.examples { list-style: none; padding: 0; margin: 0; display: grid; gap: .75rem; }
.examples header { padding: 0; max-width: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem;
  align-items: baseline; justify-content: space-between; }
audio { width: 100%; height: 2.25rem; margin: .6rem 0 .2rem; }
.pairs { display: flex; flex-wrap: wrap; gap: .3rem .15rem; margin: .6rem 0 0; }
.pairs > span { display: grid; grid-template-rows: 1fr 1fr; padding: .05rem .35rem;
  border-radius: 5px;
  text-align: center; }
.pairs > .same { color: var(--ink-soft); }
.pairs > .sub { background: var(--sub); color: var(--sub-ink); }
.pairs > .del { background: var(--del); color: var(--del-ink); }
.pairs > .del > :first-child { text-decoration: line-through; }
.pairs > .ins { background: var(--ins); color: var(--ins-ink); }
.pairs > .ins > :last-child { text-decoration: underline; }
.key { display: flex; flex-wrap: wrap; gap: .4rem .75rem; margin: 0 0 .75rem; align-items: center; }
.texts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .75rem;
  margin: .6rem 0 0; }
.texts dt { color: var(--ink-soft); font-size: .875rem; } .texts dd { margin: 0;
  overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .3rem 1.25rem;
  margin: 0; }
.facts dt { color: var(--ink-soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
footer { padding: 2rem 1.25rem 3rem; }
@media (max-width: 34rem) { .facts { grid-template-columns: 1fr; gap: 0;
  } .facts dd { margin-bottom: .6rem; } }
@media print { body { background: none; } audio { display: none;
  } .examples > li { break-inside: avoid; } }
"""

# Nothing may be fetched; only what stands in the page is shown, played and applied.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def escape(value: Any) -> str:
    """The value as text safe in HTML and in its attributes."""
    return html.escape(str(value))


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A headed part of the page; '' if every part is empty."""
    inner = '\n'.join(part for part in parts if part)
    return f'<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>' if inner else ''


def card(inner: str, tag: str = 'div') -> str:
    """A framed piece of HTML."""
    return f'<{tag} class="card">{inner}</{tag}>' if inner else ''


def plot(svg: str, caption: str) -> str:
    """A framed plot with its caption; '' where there is no plot."""
    return card(f'<figcaption>{escape(caption)}</figcaption>{svg}', 'figure') if svg else ''


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Headline figures, each (value, name, note)."""
    items = ''.join(
        f'<li class="card"><span class="soft small">{escape(name)}</span><b>{escape(value)}</b>'
        f'<span class="soft small">{escape(note)}</span></li>'
        for value, name, note in figures
    )
    return f'<ul class="tiles">{items}</ul>'


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    sums: Sequence[str] = (),
) -> str:
    """A table whose first column names the rows; rows named in `sums` are set off at the end."""
    head = ''.join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for name, *cells in rows:
        mark = ' class="sum"' if name in sums else ''
        data = ''.join(f'<td>{_unbroken(escape(cell))}</td>' for cell in cells)
        broken = escape(name).replace('_', '_<wbr>')
        lines.append(f'<tr{mark}><th scope="row">{broken}</th>{data}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f'<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div>'
    )


def _unbroken(cell: str) -> str:
    """A cell whose interval, [a, b], is on one line; it may stand below its score."""
    return re.sub(r'\[(\S+), (\S+)\]', r'[\1,&nbsp;\2]', cell)


def facts(pairs: Mapping[str, Any]) -> str:
    """A list of names and values; what is None or '' is left out. Values are text, not HTML."""
    return '<dl class="facts">{}</dl>'.format(
        ''.join(
            f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
            for name, value in pairs.items()
            if value not in (None, '')
        )
    )
