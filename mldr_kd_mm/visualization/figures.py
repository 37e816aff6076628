"""The figures of a run, each a single panel.

Figures have no background and use colours that are legible on white and on black; matrices are
transparent where they are 0. A page can therefore choose its own background.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mldr_kd_mm.evaluation.measures import Array, Labels, Reliability
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style, style_of

_MARKERS = 'o^'
MOST_MAPPED = len(_MARKERS) * len(COLORS)
"""Largest number of classes on a map."""

# Matrices of more classes than this have no tick labels.
_NAMED = 20

Curve = Mapping[int, float]


def draw_curves(
    curves: Mapping[str, Curve],
    title: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    legend: bool = True,
    bands: Mapping[str, tuple[Curve, Curve]] | None = None,
    xlabel: str = 'epoch',
    colors: Sequence[str] | None = None,
    ylim: tuple[float, float] | None = None,
    log: bool = False,
) -> Figure:
    """Draw curves over epochs or iterations.

    Args:
        curves: Label -> curve. An empty curve is not drawn but keeps its colour.
        title: Title of the figure.
        ylabel: Quantity on the y axis, with its unit.
        levels: Label -> value of a dashed horizontal line.
        legend: Whether to draw a legend.
        bands: Label of a curve -> lower and upper edge of a band around it.
        xlabel: Unit of the x axis, ``epoch`` or ``iteration``.
        colors: Colour of each curve, with a full line. None: those of the style.
        ylim: Limits of the y axis, such as those of another figure.
        log: Whether the y axis is logarithmic; values of 0 or less are then left out.

    Returns:
        The figure.
    """
    with apply_style():
        figure, axes = _panel(title, xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid()
        if log:
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter('{x:g}')
            axes.yaxis.set_minor_formatter('')
        if ylim:
            axes.set_ylim(*ylim)
        for number, (label, values) in enumerate(curves.items()):
            style = style_of(number) if colors is None else dict(color=colors[number])
            if log:
                values = {x: y for x, y in values.items() if y > 0}
            if values:
                marker = 'o' if len(values) <= 25 else ''
                line = style | dict(label=label, marker=marker)
                axes.plot(list(values), list(values.values()), **line)
            if bands and bands.get(label):
                low, high = bands[label]
                color = style['color']
                edges = (list(low.values()), list(high.values()))
                axes.fill_between(list(low), *edges, color=color, alpha=0.15, linewidth=0)
        for label, value in (levels or {}).items():
            axes.axhline(value, color=INK, linestyle=(0, (6, 3)), linewidth=1.2, label=label)
        if legend and axes.get_legend_handles_labels()[0]:
            _legend_below(figure)
        return figure


def draw_matrix(
    values: Array,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    ylabel: str,
    xlabel: str,
    limit: float,
    signed: bool = False,
    with_numbers: bool = False,
    width: float = 4.0,
) -> Figure:
    """Draw a matrix as a heat map.

    Args:
        values: Matrix (R, C).
        title: Title of the figure.
        rows: Names of the rows.
        columns: Names of the columns.
        ylabel: Label of the rows.
        xlabel: Label of the columns.
        limit: Value with the full colour.
        signed: Whether negative values have a second colour.
        with_numbers: Whether to print each value in its cell.
        width: Width of the figure in inches.

    Returns:
        The figure.
    """
    with apply_style():
        figure, axes = _panel(title, width, xlabel=xlabel, ylabel=ylabel)
        # Numbers are printed on at most half the colour, to be legible.
        limit = 2 * limit if with_numbers else limit
        colors, lowest = (_SIGNED, -limit) if signed else (_FADE, 0)
        image = axes.imshow(values, colors, aspect='auto', vmin=lowest, vmax=limit)
        axes.spines[:].set_visible(True)
        _name_ticks(axes, rows, columns)
        if with_numbers:
            for (row, column), value in np.ndenumerate(values):
                axes.text(column, row, f'{value:.2f}', ha='center', va='center')
        else:
            figure.colorbar(image, ax=axes, fraction=0.05).outline.set_edgecolor(INK)
        return figure


def draw_relation(
    values: Array, title: str, classes: Sequence[str], limit: float, signed: bool = False
) -> Figure:
    """Draw a class relation or a difference of two, see :func:`draw_matrix`."""
    labels = ('of class', 'to class')
    return draw_matrix(values, title, classes, classes, *labels, limit, signed, width=3.4)


def draw_fusion_by_class(
    weights: Array, title: str, classes: Sequence[str], limit: float | None = None
) -> Figure:
    """Draw how far a neck's fusion weights are above or below equal weights.

    Args:
        weights: Fusion weights (S, C); each column sums to 1.
        title: Title of the figure.
        classes: Names of the classes.
        limit: Difference with the full colour. None: the largest.

    Returns:
        The figure.
    """
    stages = [f'stage{number + 1}' for number in range(len(weights))]
    above = weights - 1 / len(weights)
    limit = limit or max(float(np.abs(above).max()), 0.01)
    return draw_matrix(above, title, stages, classes, '', 'class', limit, signed=True)


def draw_cka(values: Array, title: str, teacher: Sequence[str], student: Sequence[str]) -> Figure:
    """Draw the CKA of the teacher's stages (rows) and the student's stages (columns)."""
    return draw_matrix(values, title, teacher, student, 'teacher', 'student', 1, with_numbers=True)


def draw_reliability(
    bins: Mapping[str, Reliability], title: str, styles: Sequence[dict[str, str]] | None = None
) -> Figure:
    """Draw a reliability diagram; the points of a calibrated model lie on the diagonal.

    Args:
        bins: Label -> bins of a model. The area of a point shows the number of samples.
        title: Title of the figure.
        styles: Colour and line style of each model. None: those of the style.

    Returns:
        The figure.
    """
    with apply_style():
        figure, axes = _panel(title, xlabel='confidence', ylabel='accuracy')
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.04))
        axes.grid()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (6, 3)), label='calibrated')
        for number, (label, of_model) in enumerate(bins.items()):
            some = of_model.count > 0
            x, y = of_model.confidence[some], of_model.accuracy[some]
            style = styles[number] if styles else style_of(number)
            axes.plot(x, y, **style, label=label)
            sizes = 120 * of_model.count[some] / of_model.count.sum() + 4
            axes.scatter(x, y, sizes, color=style['color'], alpha=0.7)
        _legend_below(figure)
        return figure


def draw_outcomes(parts: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw the shares of outcomes, such as "both right", as one stacked bar per run.

    Args:
        parts: Run -> outcome -> share of the samples. All runs have the same outcomes.
        title: Title of the figure.

    Returns:
        The figure.
    """
    with apply_style():
        figure, axes = _panel(title, height=1.8 + 0.4 * len(parts), xlabel='% of the samples')
        axes.set(xlim=(0, 100))
        left = np.zeros(len(parts))
        for number, outcome in enumerate(next(iter(parts.values()))):
            width = np.array([100 * outcomes[outcome] for outcomes in parts.values()])
            axes.barh(range(len(parts)), width, left=left, label=outcome, color=COLORS[number])
            left += width
        axes.set_yticks(range(len(parts)), [shorten(name, 16) for name in parts])
        axes.invert_yaxis()
        _legend_below(figure)
        return figure


def draw_changes(
    rows: Mapping[str, tuple[float, float]],
    title: str,
    xlabel: str,
    before: tuple[str, str],
    after: tuple[str, str],
    limit: float,
) -> Figure:
    """Draw two values of each row as dots on a line.

    Args:
        rows: Name of a row -> value before and after, from top to bottom.
        title: Title of the figure.
        xlabel: Quantity on the x axis, with its unit.
        before: Label and colour of the first values.
        after: Label and colour of the second values.
        limit: Largest value on the x axis.

    Returns:
        The figure.
    """
    with apply_style():
        figure, axes = _panel(title, height=1.4 + 0.24 * len(rows), xlabel=xlabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis='x')
        places = range(len(rows))
        values = np.array([*rows.values()], float)
        axes.hlines(places, values.min(1), values.max(1), color=INK, alpha=0.4)
        for number, (label, color) in enumerate((before, after)):
            axes.scatter(values[:, number], places, 28, color=color, label=label)
        axes.set_yticks(places, [*rows])
        axes.set_xlim(-0.02 * limit, 1.04 * limit)
        axes.invert_yaxis()
        _legend_below(figure)
        return figure


def draw_map(places: Array, labels: Labels, title: str, classes: Sequence[str]) -> Figure:
    """Draw samples on a plane, in the colours of their classes.

    Args:
        places: Positions (N, 2).
        labels: Classes (N,), from 0.
        title: Title of the figure.
        classes: Names of the classes, at most as many as there are markers.

    Returns:
        The figure.
    """
    with apply_style():
        figure, axes = _panel(title)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for number, name in enumerate(classes):
            chosen = labels == number
            marker = _MARKERS[number // len(COLORS)]
            color = COLORS[number % len(COLORS)]
            axes.scatter(*places[chosen].T, 10, color=color, marker=marker, label=name)
        figure.legend(*_short_labels(axes), loc='outside lower left', ncols=5, handletextpad=0.1)
        return figure


def shorten(text: str, length: int = 26) -> str:
    """Replace the middle of a text that is too long with an ellipsis.

    Args:
        text: The text.
        length: Maximum number of characters.
    """
    half = (length - 1) // 2
    return text if len(text) <= length else f'{text[:half]}…{text[-half:]}'


def to_svg(figure: Figure) -> str:
    """Return a figure as an inline SVG element without background, in the page's text colour."""
    with apply_style(), warnings.catch_warnings():
        _ignore_missing_glyphs()
        file = io.StringIO()
        nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(file, format='svg', transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :].replace(INK, 'currentColor')
    # These ids repeat in every figure of a page. The referenced ids have other names and stay.
    svg = re.sub(r' id="[\w.]+_\d+"', '', svg)
    return re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG on white."""
    with apply_style(), warnings.catch_warnings():
        _ignore_missing_glyphs()
        file = io.BytesIO()
        figure.savefig(file, format='png', dpi=150, facecolor='white')
    return file.getvalue()


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as an RGB image on white, uint8 (H, W, 3)."""
    with apply_style(), warnings.catch_warnings():
        _ignore_missing_glyphs()
        figure.set(facecolor='white', dpi=100)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _panel(
    title: str, width: float = 4.0, height: float = 3.0, **labels: str
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots()
    axes.set(**labels)
    # The axes' own title would be limited to their width.
    figure.suptitle(
        shorten(title, int(9.5 * width)), x=0.02, ha='left', fontsize=11, fontweight='bold'
    )
    return figure, axes


def _short_labels(axes: Axes) -> tuple[list, list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles, [shorten(label, 10) for label in labels]


def _legend_below(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) < 24 else 1
    figure.legend(handles, map(shorten, labels), loc='outside lower left', ncols=columns)


def _name_ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        if len(names) <= _NAMED:
            axis.set_ticks(range(len(names)), [shorten(name, 12) for name in names])
    if len(columns) <= _NAMED and max(map(len, columns)) > 3:
        axes.tick_params(axis='x', rotation=90 if len(columns) > 6 else 0)


def _fade(name: str, stops: Mapping[float, Sequence[tuple[str, float]]]) -> Colormap:
    """Build a colour map from (colour, opacity) stops; two stops at one position make a jump."""
    return LinearSegmentedColormap.from_list(
        name,
        [
            (place, (*to_rgb(color), alpha))
            for place, colors in stops.items()
            for color, alpha in colors
        ],
    )


# Transparent at 0, to fit any background.
_FADE = _fade('fade', {0: [(COLORS[0], 0)], 1: [(COLORS[0], 1)]})
_SIGNED = _fade(
    'signed',
    {0: [(COLORS[1], 1)], 0.5: [(COLORS[1], 0), (COLORS[0], 0)], 1: [(COLORS[0], 1)]},
)


def _ignore_missing_glyphs() -> None:
    # The browser has fonts for glyphs that matplotlib's font lacks.
    warnings.filterwarnings('ignore', message=r'Glyph \d+ .* missing from')
