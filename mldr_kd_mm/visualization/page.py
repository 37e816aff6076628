"""A self-contained HTML page of figures, for light and dark mode and any screen width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
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

    def svg(self) -> Markup:
        """Return the figure as an SVG element with its alternative text."""
        start = Markup('<svg role="img" aria-label="{}" ').format(self.alt)
        return start + Markup(to_svg(self.figure).removeprefix('<svg '))


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        color: The run's colour in the figures; empty if the row is not a run.
        cells: One text per column.
    """

    color: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Column heads.
        rows: Its rows.
    """

    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Thumbnail:
    """A small image with text.

    Attributes:
        source: Data URI of the image.
        lines: Lines below it; the first is also its alternative text.
    """

    source: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Thumbnails under a heading.

    Attributes:
        title: Heading.
        thumbnails: The images.
    """

    title: str
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Section:
    """A section of a page. A section without content is left out.

    Attributes:
        title: Heading.
        caption: How to read the figures.
        groups: Figures; those of one group are side by side.
        tables: Tables above the figures.
        galleries: Images above the figures.
    """

    title: str
    caption: str
    groups: Sequence[Sequence[Picture]] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()

    @property
    def pictures(self) -> list[Picture]:
        """Figures of all groups."""
        return [picture for group in self.groups for picture in group]


def render(
    title: str,
    verdict: Sequence[str],
    intro: str,
    table: Table,
    notes: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """Render a page. All texts are escaped.

    Args:
        title: Heading.
        verdict: What the page shows, one sentence per line.
        intro: Sentence below it.
        table: Table of the runs.
        notes: Notes below the table, such as reasons for missing figures.
        sections: Sections with figures.

    Returns:
        HTML that loads no other file; its content security policy forbids it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template('page.html.j2').render(
        title=title,
        verdict=verdict,
        intro=intro,
        table=table,
        notes=notes,
        sections=[s for s in sections if s.pictures or s.tables or s.galleries],
    )
