"""Draw the figures of docs/mldr_kd.md.

    python docs/mldr_kd/draw.py [FOLDER]

FOLDER defaults to the folder of this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mldr_kd_mm.visualization.style import COLORS, apply_style

TEACHER, STUDENT, NECK, LOSS, OTHER = '#dbe7f6', '#fde6cf', '#fdf3d0', '#dff0dc', '#eeeeee'
CLASSES = ('cat', 'dog', 'fox', 'car', 'bus', 'ship')
# Logits for one image of a cat; only the teacher knows that a cat looks more like a dog than a bus.
LOGITS = {
    'teacher': (3.2, 1.9, 1.3, -1.4, -1.8, -1.2),
    'student': (2.6, 0.2, -0.4, -0.6, 0.3, -1.1),
}


@apply_style()
def main(folder: Path) -> None:
    """Write the figures, byte for byte the same each time."""
    for name, draw in {'data': draw_data, 'relations': draw_relations}.items():
        draw().savefig(folder / f'{name}.svg', metadata={'Date': None})


def draw_data() -> Figure:
    """Draw the data flow from an image through the Distiller to the losses."""
    figure = Figure(figsize=(5, 5.4), layout='constrained')
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10.8))
    axes.axis('off')

    box(axes, 3.2, 9.8, 3.6, 0.9, 'augmented image', OTHER)
    box(axes, 0.2, 7.7, 4.2, 1.2, 'teacher\nfrozen, evaluation mode', TEACHER)
    box(axes, 5.6, 7.7, 4.2, 1.2, 'student\ntrained and exported', STUDENT)
    box(axes, 0.2, 5.7, 4.2, 1.0, 'logits   feature\nstage1 … stage4', TEACHER)
    box(axes, 5.6, 5.7, 4.2, 1.0, 'logits   feature\nstage1 … stage4', STUDENT)
    box(axes, 5.6, 3.6, 4.2, 1.2, 'MSDFNeck\nstage_logits   fused_logits', NECK)
    box(axes, 1.6, 1.7, 6.8, 1.0, 'losses, each compares two names', LOSS)
    box(axes, 1.6, 0.1, 6.8, 0.8, "sum, plus the student's own loss", OTHER)

    for start, end in (
        ((4.4, 9.8), (2.5, 8.9)),
        ((5.6, 9.8), (7.5, 8.9)),
        ((2.3, 7.7), (2.3, 6.7)),
        ((7.7, 7.7), (7.7, 6.7)),
        ((7.7, 5.7), (7.7, 4.8)),
        ((2.3, 5.7), (2.6, 2.7)),
        ((5.6, 6.0), (4.6, 2.7)),
        ((7.0, 3.6), (6.6, 2.7)),
        ((5.0, 1.7), (5.0, 0.9)),
    ):
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=11))
    axes.text(5, 7.2, 'FeatureRecorder', ha='center', va='center', style='italic')
    return figure


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """Draw a box with centred text."""
    style = 'round,pad=0,rounding_size=0.15'
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=color, ec='#444444'))
    axes.text(x + width / 2, y + height / 2, text, ha='center', va='center')


def draw_relations() -> Figure:
    """Draw one image's logits and class relation, for a teacher and for a student."""
    relations = {name: class_relation(np.array(logits)) for name, logits in LOGITS.items()}
    figure = Figure(figsize=(5, 5.4), layout='constrained')
    (top_left, top_right), (left, right) = figure.subplots(2, 2)
    top_left.bar(CLASSES, LOGITS['teacher'], color=COLORS[0])
    top_right.bar(CLASSES, LOGITS['student'], color=COLORS[1])
    for axes, (name, relation) in zip((left, right), relations.items(), strict=True):
        axes.imshow(relation, vmin=0, vmax=1, cmap='Blues')
        axes.set_yticks(range(len(CLASSES)), CLASSES)
        axes.set_title(f"{name}'s relation")
    for axes, name in ((top_left, 'teacher'), (top_right, 'student')):
        axes.set(ylim=(-2.2, 3.6), title=f"{name}'s logits")
    for axes in figure.axes:
        axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=90)
    return figure


def class_relation(logits: np.ndarray) -> np.ndarray:
    """Return the class relation (C, C) of one sample's logits (C,); each column sums to 1."""
    relation = np.exp(np.outer(logits, logits) / np.sqrt(len(logits)))
    return relation / relation.sum(axis=0)


if __name__ == '__main__':
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent)
