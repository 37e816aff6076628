"""Compare runs on one HTML page.

    python tools/analysis_tools/report.py WORK_DIR... [--out DIR] [--samples N]

This is the command ``mldr-kd report``; ``--help`` lists its options.
"""

import sys

from mldr_kd_mm.cli import main

if __name__ == '__main__':
    main(['report', *sys.argv[1:]])
