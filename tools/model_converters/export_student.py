"""Export the student of a run to files that load without mldr-kd.

    python tools/model_converters/export_student.py work_dirs/RUN/epoch_300.pth student.pth

This is the command ``mldr-kd export``; ``--help`` lists its options.
"""

import sys

from mldr_kd_mm.cli import main

if __name__ == '__main__':
    main(['export', *sys.argv[1:]])
