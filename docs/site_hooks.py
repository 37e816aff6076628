"""MkDocs hooks: add pages from the repository root, and render Sphinx markup and formulas.

``mkdocs.yml`` loads this file.
"""

from __future__ import annotations

import re
from pathlib import Path

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Page -> file in the repository root.
TOP_PAGES = {'changelog.md': 'CHANGELOG.md', 'contributing.md': 'CONTRIBUTING.md'}

_FENCED = re.compile(r'^```math\n(.*?)\n```$', re.MULTILINE | re.DOTALL)
_DISPLAYED = re.compile(r'^\.\. math::\s*(.*?)(?=\n\s*\n|\Z)', re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r':math:`(.*?)`', re.DOTALL)
_ROLE = re.compile(r':(?:class|func|meth|mod):`~?(.*?)`')
_LINK = re.compile(r'`([^`<]+) <(https?://[^`>]+)>`_')
_LITERAL_BLOCK = re.compile(r'^::$|(?<=\w):(?=:$)', re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the version, and enable Sphinx roles and math directives in pages and docstrings."""
    version = Path(config.config_file_path).with_name('mldr_kd_mm') / 'version.py'
    number = re.search(r"__version__ = '(.+)'", version.read_text())[1]
    config.site_name = f'{config.site_name} {number}'
    config.markdown_extensions.append(_Docstrings())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside docs/, with their links made relative to docs/."""
    for page, name in TOP_PAGES.items():
        text = (Path(config.config_file_path).parent / name).read_text()
        files.append(File.generated(config, page, content=text.replace('](docs/', '](')))
    return files


class _Docstrings(Extension):
    """Registers the preprocessor with Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        # After 'normalize_whitespace' (30), which drops the stash, and before the fences (25).
        md.preprocessors.register(_Markup(md), 'docstring_markup', 28)


class _Markup(Preprocessor):
    """Replaces Sphinx markup with Markdown, and formulas with MathML."""

    def run(self, lines: list[str]) -> list[str]:
        text = '\n'.join(lines)
        for pattern in (_FENCED, _DISPLAYED):
            text = pattern.sub(lambda m: self._formula(m[1], 'block'), text)
        text = _INLINE.sub(lambda m: self._formula(m[1], 'inline'), text)
        text = _ROLE.sub(r'`\1`', text)
        text = _LINK.sub(r'[\1](\2)', text)
        return _LITERAL_BLOCK.sub('', text).split('\n')

    def _formula(self, latex: str, display: str) -> str:
        """Return a placeholder for the formula as MathML, which Markdown leaves unchanged."""
        return self.md.htmlStash.store(convert(' '.join(latex.split()), display=display))
