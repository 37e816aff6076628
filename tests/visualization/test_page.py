"""A page with hostile and very long texts, in a real browser."""

import pytest

from mldr_kd_mm.visualization.figures import draw_curves
from mldr_kd_mm.visualization.page import (
    Gallery,
    Picture,
    Row,
    Section,
    Table,
    Thumbnail,
    render,
)

HOSTILE = '</title><script>alert(1)</script><img src="https://localhost/x" onerror="alert(1)">'
PIXEL = 'data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=='
LONG = 'a_name_without_any_space_' * 12


@pytest.fixture
def page_file(tmp_path):
    """Write a page on which all texts are hostile or long."""
    figure = draw_curves({HOSTILE: {1: 1.0, 2: 2.0}, LONG: {1: 3.0}}, HOSTILE + LONG, LONG)
    rows = [Row(color, [LONG, HOSTILE]) for color in ('#123456', '#654321', '')]
    table = Table([LONG, HOSTILE], rows)
    html = render(
        HOSTILE,
        [HOSTILE, LONG],
        LONG,
        table,
        [HOSTILE + LONG],
        [
            Section(HOSTILE, LONG, [[Picture('a', HOSTILE + '"', figure)]], [table]),
            Section('left out', '', [[]]),
            Section(LONG, LONG, galleries=[Gallery(HOSTILE, [Thumbnail(PIXEL, [HOSTILE, LONG])])]),
        ],
    )
    path = tmp_path / 'page.html'
    path.write_text(html)
    return path


@pytest.mark.parametrize('width', [360, 1280])
def test_is_shown_as_it_is(page_file, browser, width):
    page = browser.new_page(viewport=dict(width=width, height=800))
    events = []
    page.on('dialog', lambda dialog: events.append(dialog.message))
    page.on('console', lambda message: events.append(message.text))
    page.on('request', lambda request: events.append(request.url))
    page.goto(page_file.as_uri())
    assert events == [page_file.as_uri()]
    assert page.title() == HOSTILE
    assert page.locator('script').count() == 0
    assert page.locator('img').get_attribute('alt') == HOSTILE
    assert page.locator('h2').all_inner_texts() == [HOSTILE, LONG]
    assert page.locator('nav a').all_inner_texts() == [HOSTILE, LONG]
    assert page.locator('svg').get_attribute('aria-label') == HOSTILE + '"'
    assert page.locator('tbody th').all_text_contents() == [LONG] * 6
    # The dot of a run is beside its name, at any width; the third row is not of a run.
    assert page.locator('tbody tr[style]').count() == 4
    dots = page.evaluate(
        """() => [...document.querySelectorAll('tbody th')].map(cell => {
            const dot = getComputedStyle(cell, '::before'), text = document.createRange();
            text.selectNodeContents(cell);
            const left = text.getBoundingClientRect().left - cell.getBoundingClientRect().left;
            return [dot.content, left - (parseFloat(dot.left) + parseFloat(dot.width) || 0)];
        })"""
    )
    assert [content for content, _ in dots] == ['""', '""', 'none'] * 2
    assert all(0 <= gap < 20 for _, gap in dots)
    assert page.locator('.verdict p').all_text_contents() == [HOSTILE, LONG]
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.close()


def test_loads_nothing_whatever_it_holds(page_file, browser):
    """The page's policy prevents loading even if escaping fails."""
    page_file.write_text(page_file.read_text().replace('<h1>', f'<h1>{HOSTILE}', 1))
    page = browser.new_page()
    events = []
    page.on('dialog', lambda dialog: events.append(dialog.message))
    page.on('response', lambda response: events.append(response.url))
    page.goto(page_file.as_uri())
    assert page.locator('script, img').count() == 3  # with the thumbnail
    assert events == [page_file.as_uri()]
    page.close()
