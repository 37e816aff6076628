"""Search for the best hyperparameters of methods: ``mldr-kd tune``.

python tools/tune.py --pair PAIR --methods scratch kd mldr ... --trials 20
"""

import sys

from mldr_kd_mm.cli import main

if __name__ == '__main__':
    main(['tune', *sys.argv[1:]])
