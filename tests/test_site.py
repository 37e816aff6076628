"""The documentation site builds without a warning and loads nothing from elsewhere."""

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import mldr_kd_mm

pytest.importorskip('mkdocs', reason='needs requirements/docs.txt')
pytest.importorskip('latex2mathml', reason='needs requirements/docs.txt')
from mkdocs.config import load_config  # noqa: E402

ROOT = Path(__file__).parents[1]
# Attributes whose target a browser loads with the page, unlike <a href>.
LOADED = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'link': 'href'}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Build the site; return its folder."""
    folder = tmp_path_factory.mktemp('site')
    built = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder],
        cwd=ROOT,
        env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def pages(site):
    return sorted(site.rglob('*.html'))


class Loaded(HTMLParser):
    """Collect the URLs that a page loads."""

    def __init__(self, text):
        super().__init__()
        self.urls = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in LOADED and attrs.get('rel') != 'canonical':
            self.urls.append(attrs.get(LOADED[tag]) or '')


def test_pages_load_nothing_from_elsewhere(site):
    for page in pages(site):
        urls = Loaded(page.read_text()).urls
        assert urls, page
        assert [url for url in urls if re.match(r'(https?:)?//', url)] == [], page
    for style in site.rglob('*.css'):
        assert re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', style.read_text()) == [], (
            style
        )


def test_docstrings_are_rendered(site):
    """No Sphinx markup is left, and formulas are MathML."""
    for page in pages(site):
        left = re.findall(
            r':(?:math|class|func|meth|mod):|\.\. math|\$\$|wzxhzdk', page.read_text()
        )
        assert left == [], page
    for page in ('mldr_kd.html', 'api/losses.html'):
        assert (site / page).read_text().count('<math') > 3


def test_reference_has_all_that_is_public(site):
    text = ''.join(page.read_text() for page in (site / 'api').glob('*.html'))
    documented = {name.rpartition('.')[2] for name in re.findall(r'id="(mldr_kd_mm[\w.]+)"', text)}
    public = {
        name
        for module in (
            mldr_kd_mm,
            mldr_kd_mm.models.backbones,
            mldr_kd_mm.datasets,
            mldr_kd_mm.engine.hooks,
            mldr_kd_mm.models.losses,
            mldr_kd_mm.models.necks,
        )
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert len(public) > 20
    assert public - documented == set()


def test_pages_fit_a_phone_and_a_desktop(site, browser):
    """At 360 pixels, no page scrolls sideways and no code in a table breaks within a word.

    At 1280 pixels, no table or line of code scrolls.
    """
    context = browser.new_context(offline=True)
    page = context.new_page()
    wide = []
    for path in pages(site):
        page.set_viewport_size(dict(width=360, height=800))
        page.goto(path.as_uri())
        width, images, broken = page.evaluate(
            """() => [document.documentElement.scrollWidth,
                      [...document.querySelectorAll('article img')].map(image => image.width),
                      [...document.querySelectorAll('article td code')].filter(code =>
                          code.getClientRects().length > code.innerText.split(/[\\s/-]/).length
                      ).map(code => code.innerText)]"""
        )
        if max(width, *images, 0) > 360 or broken:
            wide.append((path.name, width, images, broken))
        page.set_viewport_size(dict(width=1280, height=800))
        cut = page.evaluate(
            """() => [...document.querySelectorAll('article .md-typeset__scrollwrap, pre > code')]
                .filter(part => part.scrollWidth > part.clientWidth + 1)
                .map(part => part.innerText.slice(0, 60))"""
        )
        wide += [(path.name, text) for text in cut]
    context.close()
    assert wide == []


def test_screenshots(site, browser, tmp_path):
    module = runpy.run_path(str(ROOT / 'docs/take_screenshots.py'))
    assert '[bold] ' in module['console_page']('epoch 1/2 [bold] ' + 'x' * 100)
    readme = tmp_path / 'readme.html'
    readme.write_text(module['readme_page']())
    taken = module['take'](browser, {'readme': readme.as_uri()}, tmp_path)
    assert {*tmp_path.glob('*.png')} == {*taken} and len(taken) == 4
    with Image.open(tmp_path / 'readme_390_dark.png') as image:
        assert image.width == 390 and image.height > 2000


def test_address_of_the_repository(monkeypatch):
    """The environment sets it; a build without it has no link."""
    assert load_config(str(ROOT / 'mkdocs.yml')).repo_url == ''
    monkeypatch.setenv('MLDR_KD_REPO_URL', 'https://host.example/a/b')
    assert load_config(str(ROOT / 'mkdocs.yml')).repo_url == 'https://host.example/a/b'


def test_search_from_a_folder(site, browser):
    """A word that is typed on the home page, opened from a folder without a network, is found."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    errors = []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.goto((site / 'index.html').as_uri())
    query = page.locator('input[name=query]')
    query.click(force=True)
    query.press_sequentially('gloo')
    result = page.locator('.md-search-result__link').first
    result.wait_for(state='attached', timeout=30_000)
    links = page.locator('.md-search-result__link')
    targets = [link.get_attribute('href') for link in links.all()]
    assert any('distributed.html' in target for target in targets), targets
    query.fill('')
    query.press_sequentially('xylophone')
    page.locator('.md-search-result__meta', has_text='No matching').wait_for(state='attached')
    assert errors == []
    context.close()


@pytest.mark.slow
def test_pictures_of_the_method_are_drawn(tmp_path):
    pytest.importorskip('matplotlib', reason='needs requirements/quickstart.txt')
    script = ROOT / 'docs/mldr_kd/draw.py'
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=120)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in script.parent.glob('*.svg')}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())
