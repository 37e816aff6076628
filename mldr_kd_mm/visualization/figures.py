"""The figures of a run. Each is one panel, so that a page can set them beside or below each other.

All of it is drawn in :data:`INK` and in colours that stand out on white and on black alike, on no
background; matrices fade into the background where they are 0. So a page can choose its own.
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

from mldr_kd_mm.evaluation.measures import Array, ConfusedPair, Reliability
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style, style_of

# A matrix of more classes than this has no room for their names.
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
) -> Figure:
    """Draw curves over the epochs.

    Args:
        curves: Label -> curve. A curve may be empty, so that others keep their colours.
        title: Of the figure.
        ylabel: What is drawn, with its unit.
        levels: Label -> value, drawn as dashed lines over all epochs.
        legend: Whether to say which is which.
        bands: Label of a curve -> the lower and the upper edge of a band around it.
        xlabel: What is counted.
    """
    with apply_style():
        figure, axes = _panel(title, xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid()
        for number, (label, values) in enumerate(curves.items()):
            if values:
                marker = 'o' if len(values) <= 25 else ''
                line = style_of(number) | dict(label=label, marker=marker)
                axes.plot(list(values), list(values.values()), **line)
            if bands and label in bands:
                low, high = bands[label]
                color = style_of(number)['color']
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
    """Draw a matrix as a picture.

    Args:
        values: (R, C).
        title: Of the figure.
        rows: The names of the rows.
        columns: The names of the columns.
        ylabel: What the rows are.
        xlabel: What the columns are.
        limit: The value that has the full colour.
        signed: Whether values below 0 have a colour of their own.
        with_numbers: Whether to write each value into its cell.
        width: Of the figure, in inches.
    """
    with apply_style():
        figure, axes = _panel(title, width, xlabel=xlabel, ylabel=ylabel)
        # Numbers are read on half the colour.
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
    """Draw a class relation, or the difference of two; see :func:`draw_matrix`."""
    labels = ('of class', 'to class')
    return draw_matrix(values, title, classes, classes, *labels, limit, signed, width=3.4)


def draw_fusion_by_class(weights: Array, title: str, classes: Sequence[str]) -> Figure:
    """Draw the weights (S, C) of a neck's fusion: how far each is above or below the mean.

    Args:
        weights: (S, C), which sum to 1 over the stages.
        title: Of the figure.
        classes: Their names.
    """
    stages = [f'stage{number + 1}' for number in range(len(weights))]
    above = weights - 1 / len(weights)
    limit = max(float(np.abs(above).max()), 0.01)
    return draw_matrix(above, title, stages, classes, '', 'class', limit, signed=True)


def draw_cka(values: Array, title: str, teacher: Sequence[str], student: Sequence[str]) -> Figure:
    """Draw the CKA of each stage of the teacher (rows) with each of the student (columns)."""
    return draw_matrix(values, title, teacher, student, 'teacher', 'student', 1, with_numbers=True)


def draw_reliability(bins: Mapping[str, Reliability], title: str) -> Figure:
    """Draw accuracy over confidence; a calibrated model is on the diagonal.

    Args:
        bins: Label -> the bins of a model; a point is the larger, the more samples it stands for.
        title: Of the figure.
    """
    with apply_style():
        figure, axes = _panel(title, xlabel='confidence', ylabel='accuracy')
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.04))
        axes.grid()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (6, 3)), label='calibrated')
        for number, (label, of_model) in enumerate(bins.items()):
            some = of_model.count > 0
            x, y = of_model.confidence[some], of_model.accuracy[some]
            axes.plot(x, y, **style_of(number), label=label)
            sizes = 120 * of_model.count[some] / of_model.count.sum() + 4
            axes.scatter(x, y, sizes, color=style_of(number)['color'], alpha=0.7)
        _legend_below(figure)
        return figure


def draw_outcomes(parts: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw of each run which part of the samples who is right about, as bars.

    Args:
        parts: Run -> outcome -> part of the samples; of all runs the same outcomes.
        title: Of the figure.
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


def draw_pairs(
    pairs: Sequence[ConfusedPair], title: str, classes: Sequence[str], before: str, after: str
) -> Figure:
    """Draw pairs of classes, and how often two models confuse each.

    Args:
        pairs: Of which the first is drawn at the top.
        title: Of the figure.
        classes: The names of all classes.
        before: The first model.
        after: The second.
    """
    with apply_style():
        figure, axes = _panel(title, height=1.4 + 0.24 * len(pairs), xlabel='samples')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis='x')
        places = range(len(pairs))
        counts = np.array([(pair.before, pair.after) for pair in pairs])
        axes.hlines(places, counts.min(1), counts.max(1), color=INK, alpha=0.4)
        for number, label in enumerate((before, after)):
            axes.scatter(counts[:, number], places, 28, color=COLORS[1 - number], label=label)
        names = [shorten(name, 12) for name in classes]
        axes.set_yticks(places, [f'{names[pair.true]} → {names[pair.named]}' for pair in pairs])
        axes.set_xlim(left=-0.5)
        axes.invert_yaxis()
        _legend_below(figure)
        return figure


def shorten(text: str, length: int = 26) -> str:
    """Leave out the middle of a text that is too long for a figure."""
    half = (length - 1) // 2
    return text if len(text) <= length else f'{text[:half]}…{text[-half:]}'


def to_svg(figure: Figure) -> str:
    """A figure as SVG for inside of a page: without a background, its ink the page's."""
    with apply_style(), warnings.catch_warnings():
        _ignore_missing_glyphs()
        file = io.StringIO()
        nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(file, format='svg', transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :].replace(INK, 'currentColor')
    # Each figure of a page has these; what is referred to has other names.
    svg = re.sub(r' id="[\w.]+_\d+"', '', svg)
    return re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, on white."""
    with apply_style(), warnings.catch_warnings():
        _ignore_missing_glyphs()
        file = io.BytesIO()
        figure.savefig(file, format='png', dpi=150, facecolor='white')
    return file.getvalue()


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as an image (H, W, 3), RGB on white."""
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
    # Not the axes' own title, which is as narrow as they are.
    figure.suptitle(
        shorten(title, int(12 * width)), x=0.02, ha='left', fontsize=11, fontweight='bold'
    )
    return figure, axes


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
    """A colour map of (colour, opacity) at each place, of which two make a jump."""
    return LinearSegmentedColormap.from_list(
        name,
        [
            (place, (*to_rgb(color), alpha))
            for place, colors in stops.items()
            for color, alpha in colors
        ],
    )


# Transparent at 0, so that they fit any background.
_FADE = _fade('fade', {0: [(COLORS[0], 0)], 1: [(COLORS[0], 1)]})
_SIGNED = _fade(
    'signed',
    {0: [(COLORS[1], 1)], 0.5: [(COLORS[1], 0), (COLORS[0], 0)], 1: [(COLORS[0], 1)]},
)


def _ignore_missing_glyphs() -> None:
    # A page has other fonts than matplotlib.
    warnings.filterwarnings('ignore', message=r'Glyph \d+ .* missing from')
