"""``python -m mldr_kd_mm`` is the command ``mldr-kd``."""

from mldr_kd_mm.cli import main

main()
