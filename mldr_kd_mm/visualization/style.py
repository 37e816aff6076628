"""The style of every plot: colours, fonts and lines."""

from __future__ import annotations

from contextlib import AbstractContextManager

import matplotlib as mpl

INK = '#1b1f23'
"""Colour of text and axes. In SVG it is replaced by the colour of the surrounding text."""
COLORS = (
    '#2f7fc1',
    '#d2601a',
    '#1f9254',
    '#a064c0',
    '#a67c00',
    '#d1508a',
    '#14919b',
    '#7f7f7f',
)
STYLE = {
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'axes.prop_cycle': mpl.cycler(color=COLORS),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.formatter.useoffset': False,
    'axes.axisbelow': True,
    'font.family': ['sans-serif'],
    'font.size': 10,
    'grid.alpha': 0.2,
    'grid.color': INK,
    'image.interpolation': 'nearest',
    'legend.fontsize': 9,
    'legend.frameon': False,
    'legend.labelcolor': INK,
    'lines.linewidth': 1.6,
    'lines.markersize': 3,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mldr-kd',
    'text.color': INK,
    # A $ in a run's or class's name does not start a formula.
    'text.parse_math': False,
    'xtick.color': INK,
    'ytick.color': INK,
}
_LINES = ('-', '--', ':', '-.')


def apply_style() -> AbstractContextManager:
    """Apply the style to the figures that are created and saved inside the ``with`` block."""
    return mpl.rc_context(STYLE)


def style_of(number: int) -> dict[str, str]:
    """Return colour and line style of a curve.

    Args:
        number: Number of the curve, from 0. The first 32 curves differ.
    """
    color, line = number % len(COLORS), number // len(COLORS) % len(_LINES)
    return dict(color=COLORS[color], linestyle=_LINES[line])
