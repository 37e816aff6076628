"""Take screenshots of README, site, a report and a console, to look at before a release.

    python docs/take_screenshots.py OUT [--report report.html] [--console console.txt]

Writes PNG files of whole pages, 1280 and 390 px wide, in light and dark mode. ``console.txt`` has
the output of a run, which is shown 100 columns wide. Needs the extras ``docs`` and ``test``, and
Chromium: the one that BROWSER names, or an installed one.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from markdown import markdown
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
PAGES = ('index', 'results', 'benchmarks', 'architectures', 'changelog')
WIDTHS, SCHEMES = (1280, 390), ('light', 'dark')
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
# The plain style of a page that shows a README.
README_STYLE = """:root { color-scheme: light dark; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif; }
img { max-width: 100%; } pre { overflow-x: auto; } table { border-collapse: collapse; }
td, th { border: 1px solid #888; padding: 0.3rem 0.6rem; vertical-align: top; }"""


def readme_page() -> str:
    """Return the README as HTML."""
    text = (ROOT / 'README.md').read_text()
    body = markdown(text, extensions=['tables', 'fenced_code'])
    head = f'<base href="{ROOT.as_uri()}/"><style>{README_STYLE}</style>'
    return f'<!DOCTYPE html><meta charset="utf-8">{head}{body}'


def console_page(text: str) -> str:
    """Return the output of a run as HTML, 100 columns wide."""
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(text, markup=False, highlight=False)
    return console.export_html()


def take(browser: Browser, pages: Mapping[str, str], out: Path) -> list[Path]:
    """Write the screenshots of pages.

    Args:
        browser: The browser.
        pages: Name of the files -> address of the page.
        out: Folder of the screenshots.

    Returns:
        Paths of the screenshots.
    """
    paths = []
    for width, scheme in product(WIDTHS, SCHEMES):
        viewport = dict(width=width, height=900)
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        page = context.new_page()
        for name, address in pages.items():
            page.goto(address)
            paths.append(out / f'{name}_{width}_{scheme}.png')
            page.screenshot(path=paths[-1], full_page=True)
        context.close()
    return paths


def main() -> None:
    """Build the pages and take the screenshots."""
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('out', type=Path, help='folder of the screenshots')
    parser.add_argument('--report', type=Path, help='page of mldr-kd report')
    parser.add_argument('--console', type=Path, help='text file with the output of a run')
    args = parser.parse_args()
    site = args.out / 'site'
    build = [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--site-dir', site.resolve()]
    subprocess.run(build, cwd=ROOT, check=True)
    pages = {name: (site / f'{name}.html').resolve().as_uri() for name in PAGES}
    written = {'readme': readme_page()}
    if args.console:
        written['console'] = console_page(args.console.read_text())
    for name, html in written.items():
        path = args.out.resolve() / f'{name}.html'
        path.write_text(html)
        pages[name] = path.as_uri()
    if args.report:
        pages['report'] = args.report.resolve().as_uri()
    names = filter(None, (os.environ.get('BROWSER'), *BROWSERS))
    chromium = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as context:
        # Chromium's own sandbox does not run for root.
        options = ['--no-sandbox'] if os.geteuid() == 0 else []
        browser = context.chromium.launch(executable_path=chromium, args=options)
        for path in take(browser, pages, args.out):
            print(path)
        browser.close()


if __name__ == '__main__':
    main()
