"""A self-contained HTML page of figures, for light and dark mode and any screen width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from mldr_kd_mm.visualization.figures import to_svg


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        name: Name of its file, without suffix.
        alt: Alternative text for screen readers.
        figure: The figure.
    """

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A section of a page. A section without figures is left out.

    Attributes:
        title: Heading.
        caption: How to read the figures.
        groups: Figures; those of one group are side by side.
    """

    title: str
    caption: str
    groups: Sequence[Sequence[Picture]]

    @property
    def pictures(self) -> list[Picture]:
        """Figures of all groups."""
        return [picture for group in self.groups for picture in group]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        color: The run's colour in the figures.
        cells: One text per column.
    """

    color: str
    cells: Sequence[str]


def render(
    title: str,
    intro: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    notes: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """Render a page. All texts are escaped.

    Args:
        title: Heading.
        intro: Sentence below the heading.
        columns: Column heads of the table.
        rows: Rows of the table.
        notes: Notes below the table, such as reasons for missing figures.
        sections: Sections with figures.

    Returns:
        HTML that loads no other file; its content security policy forbids it.
    """
    body = [
        f'<h1>{escape(title)}</h1>',
        f'<p>{escape(intro)}</p>',
        _table(columns, rows),
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        *(_section(section) for section in sections if section.pictures),
    ]
    return _PAGE.format(title=escape(title), style=_STYLE, body='\n'.join(body))


def _table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    head = ''.join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for row in rows:
        first, *others = (
            f'data-label="{escape(column)}">{escape(cell)}'
            for column, cell in zip(columns, row.cells, strict=True)
        )
        swatch = f'style="--color: {escape(row.color)}"'
        cells = ''.join(f'<td {cell}</td>' for cell in others)
        lines.append(f'<tr {swatch}><th scope="row" {first}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + '\n'.join(lines)
        + '\n</tbody></table></div>'
    )


def _section(section: Section) -> str:
    groups = '\n'.join(map(_group, filter(None, section.groups)))
    return (
        f'<section><h2>{escape(section.title)}</h2>\n<p>{escape(section.caption)}</p>\n'
        f'{groups}\n</section>'
    )


def _group(pictures: Sequence[Picture]) -> str:
    # If figures would shrink below 85 %, their text gets too small and they wrap to the next row.
    width = 0.85 * pictures[0].figure.get_figwidth()
    inside = '\n'.join(map(_figure, pictures))
    return f'<div class="figures" style="--width: {width:.2f}in">\n{inside}\n</div>'


def _figure(picture: Picture) -> str:
    described = f'<svg role="img" aria-label="{escape(picture.alt)}" '
    return f'<figure>{to_svg(picture.figure).replace("<svg ", described, 1)}</figure>'


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f23; --back: #ffffff; --panel: #f6f8fa;
  --line: #d0d7de; --quiet: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --back: #15181c; --panel: #1c2026; --line: #3a4149; --quiet: #a2abb4; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; color: var(--ink);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0; }
p { max-width: 75ch; margin: 0.5rem 0 1rem; color: var(--quiet); }
.note { border-left: 3px solid var(--quiet); padding-left: 0.75rem; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--width)), 1fr)); }
.figures + .figures { margin-top: 1rem; }
figure { margin: 0; padding: 0.5rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 0.5rem; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg text { font-family: system-ui, sans-serif !important; }
table { border-collapse: collapse; width: 100%; margin: 1.5rem 0; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.4rem 0.6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; }
thead th { font-weight: 500; color: var(--quiet); vertical-align: bottom; }
tbody th::before { content: ""; display: inline-block; width: 0.7em; height: 0.7em;
  margin-right: 0.5em; border-radius: 50%; background: var(--color); }
tbody th { min-width: 11rem; }
tbody th, tbody td { overflow-wrap: break-word; }
.wide { overflow-x: auto; }
@media (max-width: 60rem) {
  thead { display: none; }
  tbody tr { display: block; margin-bottom: 1rem; padding: 0.5rem 0.75rem;
    background: var(--panel); border: 1px solid var(--line); border-radius: 0.5rem; }
  tbody th, tbody td { display: flex; justify-content: space-between; gap: 1rem;
    padding: 0.15rem 0; border: 0; text-align: right; overflow-wrap: anywhere; }
  tbody th { justify-content: start; align-items: baseline; text-align: left; }
  tbody td::before { content: attr(data-label); color: var(--quiet); text-align: left;
    overflow-wrap: normal; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
