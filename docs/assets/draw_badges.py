"""Draw the README's badges from setup.py and the requirements, without a network.

python docs/assets/draw_badges.py
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PACKAGES = {'torch': 'torch', 'timm': 'timm', 'mmpretrain': 'onedl-mmpretrain'}
_SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img"
  aria-label="{name}: {value}"><rect width="{width}" height="20" rx="3" fill="#555"/>
<path d="M{left} 0h{right}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right}z" fill="#0b5cad"/>
<g fill="#fff" font-family="Verdana,sans-serif" font-size="11">
<text x="6" y="14">{name}</text><text x="{start}" y="14">{value}</text></g></svg>
"""


def badges() -> dict[str, str]:
    """Return the name of each badge and its SVG."""
    setup = (ROOT / 'setup.py').read_text()
    values = {
        'python': re.search(r"python_requires='>=([\d.]+)'", setup)[1] + ' or newer',
        'license': re.search(r"license='(.+?)'", setup)[1],
    }
    lines = (ROOT / 'requirements/runtime.txt').read_text().splitlines()
    for name, distribution in _PACKAGES.items():
        bounds = next(
            re.match(rf'{distribution}>=([\d.]+),<([\d.]+)$', x)
            for x in lines
            if x.startswith(f'{distribution}>=')
        )
        values[name] = f'≥ {bounds[1]}, &lt; {bounds[2]}'
    return {name: _draw(name, value) for name, value in values.items()}


def _draw(name: str, value: str) -> str:
    left, right = 12 + 7 * len(name), 9 + 7 * len(unescape(value))
    return _SVG.format(
        name=name, value=value, width=left + right + 3, left=left, right=right, start=left + 6
    )


if __name__ == '__main__':
    for badge, svg in badges().items():
        Path(__file__).with_name('badges').joinpath(f'{badge}.svg').write_text(svg)
