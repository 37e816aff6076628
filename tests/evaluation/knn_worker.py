"""One of the processes of test_knn.py: ``knn_worker.py RANK PROCESSES FOLDER``."""

import json
import sys
from pathlib import Path

from helpers import leave_group, read_run
from mmengine.runner import Runner

rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
runner = Runner.from_cfg(read_run(folder, rank, processes))
metrics = runner.val()
(folder / f'found{rank}.json').write_text(json.dumps(metrics))
leave_group()
