"""Data-loader workers after a run with signal handlers."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

LEAVES_WORKERS = """
import sys
from pathlib import Path
from helpers import resnet, runner_config
from mmengine.config import Config
from mmengine.runner import Runner

config = runner_config(resnet(data_preprocessor=dict(num_classes=10)), Path(sys.argv[1]))
config['train_dataloader'].update(num_workers=2, persistent_workers=True)
config['default_hooks']['stop_signal'] = dict(type='StopSignalHook')
runner = Runner.from_cfg(Config(config))
runner.train()
runner.itself = runner
"""


def test_workers_that_ignore_signals_end_with_their_process(tmp_path):
    """multiprocessing's SIGTERM at exit has no effect on them."""
    root = Path(__file__).parents[3]
    environment = os.environ | {'PYTHONPATH': f'{root}:{root / "tests"}', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', LEAVES_WORKERS, str(tmp_path / 'run')]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        stderr = process.communicate(timeout=120)[1]
        assert process.returncode == 0
        assert 'Traceback' not in stderr
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
