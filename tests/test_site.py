"""The documentation's site: it builds without a warning, and its pages need nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import mldr_kd_mm

pytest.importorskip('mkdocs', reason='needs requirements/docs.txt')
pytest.importorskip('latex2mathml', reason='needs requirements/docs.txt')

ROOT = Path(__file__).parents[1]
# What a browser fetches when it shows a page; <a href> is what a reader may follow.
LOADED = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'link': 'href'}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the built site."""
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
    """Collects what a page loads."""

    def __init__(self, text):
        super().__init__()
        self.urls = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in LOADED and attrs.get('rel') != 'canonical':
            self.urls.append(attrs.get(LOADED[tag]) or '')


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    for page in pages(site):
        urls = Loaded(page.read_text()).urls
        assert urls, page
        assert [url for url in urls if re.match(r'(https?:)?//', url)] == [], page
    for style in site.rglob('*.css'):
        assert re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', style.read_text()) == [], (
            style
        )


@pytest.mark.slow
def test_docstrings_are_rendered(site):
    """Nothing of Sphinx's markup is left, and formulas are MathML."""
    for page in pages(site):
        left = re.findall(
            r':(?:math|class|func|meth|mod):|\.\. math|\$\$|wzxhzdk', page.read_text()
        )
        assert left == [], page
    for page in ('method.html', 'api/losses.html'):
        assert (site / page).read_text().count('<math') > 3


@pytest.mark.slow
def test_reference_has_all_that_is_public(site):
    text = ''.join(page.read_text() for page in (site / 'api').glob('*.html'))
    documented = {name.rpartition('.')[2] for name in re.findall(r'id="(mldr_kd_mm[\w.]+)"', text)}
    public = {
        name
        for module in (
            mldr_kd_mm,
            mldr_kd_mm.backbones,
            mldr_kd_mm.datasets,
            mldr_kd_mm.hooks,
            mldr_kd_mm.losses,
            mldr_kd_mm.necks,
        )
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert len(public) > 20
    assert public - documented == set()


WIDTHS = """<!doctype html><body><script>
const found = {}, pages = %s;
(async () => {
  for (const page of pages) {
    const frame = document.createElement('iframe');
    frame.style = 'width: 360px; height: 800px';
    frame.src = page;
    document.body.append(frame);
    await new Promise(loaded => { frame.onload = loaded; });
    const root = frame.contentDocument.documentElement;
    const wide = [...root.querySelectorAll('article img')].filter(image => image.width > 360);
    found[page] = [root.scrollWidth, root.clientWidth, wide.length];
    frame.remove();
  }
  document.body.innerHTML = '<pre>' + JSON.stringify(found) + '</pre>';
})();
</script></body>
"""


@pytest.mark.slow
def test_pages_fit_a_phone(site, tmp_path):
    """No page is wider than a window of 360 pixels, so that none scrolls sideways."""
    names = (os.environ.get('BROWSER'), 'chromium', 'chromium-browser', 'google-chrome')
    browser = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if browser is None:
        pytest.skip('needs Chromium: apt-get install chromium, or BROWSER=its path')
    shown = tmp_path / 'pages.html'
    shown.write_text(WIDTHS % json.dumps([page.as_uri() for page in pages(site)]))
    dumped = subprocess.run(
        [
            *(browser, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom'),
            *('--allow-file-access-from-files', '--virtual-time-budget=60000'),
            '--host-resolver-rules=MAP * ~NOTFOUND',  # no network
            f'--user-data-dir={tmp_path / "profile"}',
            shown.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    found = json.loads(re.search(r'<pre>(.*)</pre>', dumped)[1])
    assert len(found) == len(pages(site))
    assert {name: widths for name, widths in found.items() if widths[0] > widths[1]} == {}
    assert {name for name, (*_, wide) in found.items() if wide} == set()


@pytest.mark.slow
def test_pictures_of_the_method_are_drawn(tmp_path):
    pytest.importorskip('matplotlib', reason='needs requirements/quickstart.txt')
    script = ROOT / 'docs/method/draw.py'
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=120)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in script.parent.glob('*.svg')}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())
