"""The package's version; ``setup.py`` and the documentation read it from here."""

__version__ = '0.2.0'
