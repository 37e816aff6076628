"""Figures; their texts are never read as formulas or markup."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mldr_kd_mm.evaluation.measures import reliability
from mldr_kd_mm.visualization import figures
from mldr_kd_mm.visualization.model_figures import class_names
from mldr_kd_mm.visualization.style import INK

NAMES = ['<b>&"\'', '$x', '$\\frac{', '鳥' * 40]


def drawn():
    """Draw one figure of each kind, with unusual names."""
    bins = reliability(np.eye(3), np.arange(3))
    values = np.linspace(-1, 1, 16).reshape(4, 4)
    parts = {name: dict(right=0.75, wrong=0.25) for name in NAMES}
    return dict(
        curves=figures.draw_curves({name: {1: 1.0, 2: np.nan} for name in NAMES}, NAMES[0], 'y'),
        matrix=figures.draw_relation(values, NAMES[1], NAMES, 1, signed=True),
        fusion=figures.draw_fusion_by_class(np.full((4, 4), 0.25), NAMES[2], NAMES),
        cka=figures.draw_cka(values, NAMES[3], NAMES, NAMES),
        reliability=figures.draw_reliability(dict.fromkeys(NAMES, bins), NAMES[0]),
        outcomes=figures.draw_outcomes(parts, NAMES[0]),
        changes=figures.draw_changes(
            {figures.shorten(name, 12): (3, 1) for name in NAMES},
            NAMES[0],
            NAMES[1],
            (NAMES[2], INK),
            (NAMES[3], INK),
            3,
        ),
        map=figures.draw_map(values[:, :2], np.arange(4), NAMES[0], NAMES),
        losses=figures.draw_curves(
            {NAMES[0]: {1: 1.0, 2: 0.0}}, NAMES[1], 'y', colors=[INK], ylim=(0.5, 2), log=True
        ),
    )


@pytest.mark.parametrize('kind', drawn())
def test_svg_is_one_element_in_the_ink_of_the_page(kind):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        svg = figures.to_svg(drawn()[kind])
    assert svg.startswith('<svg ') and svg.rstrip().endswith('</svg>')
    assert INK not in svg and 'currentColor' in svg
    assert '<b>' not in svg and '<metadata>' not in svg
    # All referenced ids exist, and figures on a page share no other ids.
    ids = set(re.findall(r' id="([^"]+)"', svg))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= ids
    assert not [name for name in ids if re.search(r'_\d+$', name)]
    assert svg == figures.to_svg(drawn()[kind]), 'drawing must be deterministic'


def test_names_are_drawn_as_they_are():
    figure = figures.draw_curves({'$x': {1: 1.0}, '$\\frac{': {1: 2.0}}, 'a $b$ c', 'y')
    svg = figures.to_svg(figure)
    assert '>$x<' in svg and '>$\\frac{<' in svg and '>a $b$ c<' in svg


def test_names_of_classes_are_printable():
    """Matplotlib refuses the surrogates of a folder's name that is not UTF-8."""
    data = SimpleNamespace(metainfo=dict(classes=('x\udcff\udcfe', 'a\nb')))
    assert class_names(data, 2) == ['x', 'ab']
    assert class_names(data, 3) == ['0', '1', '2']


def test_titles_fit_their_figures():
    for width in (3.4, 4.0):
        name = 'Fused head − teacher · w_vit_32px_100_10/baseline_and_more'
        figure = figures.draw_matrix(np.eye(2), name, 'ab', 'cd', '', '', 1, width=width)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1


def test_pixels_and_png_are_on_white():
    figure = figures.draw_cka(np.eye(2), 'CKA', ['a', 'b'], ['c', 'd'])
    pixels = figures.to_pixels(figure)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert pixels[0, 0].tolist() == [255] * 3
    assert (pixels < 100).any()
    assert figures.to_png(figure).startswith(b'\x89PNG')


def test_zero_has_no_colour():
    rgba = figures._SIGNED([0.0, 0.45, 0.5, 0.55, 1.0])
    assert rgba[2, 3] < 0.02
    assert 0.05 < rgba[1, 3] < rgba[0, 3] == 1
    assert 0.05 < rgba[3, 3] < rgba[4, 3] == 1
    assert np.allclose(rgba[0, :3], rgba[1, :3], atol=0.01), 'one colour per sign'


def test_long_text_loses_its_middle():
    assert figures.shorten('a' * 26) == 'a' * 26
    assert figures.shorten('start' + 'x' * 50 + 'end', 9) == 'star…xend'
