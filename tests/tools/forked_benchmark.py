"""Run the benchmark with its runs in forks of this process, which has imported everything.

    python forked_benchmark.py ARGUMENTS

The process must not have computed a gradient: autograd does not work in the fork of one that has.
"""

import os
import runpy
import signal
import sys
import traceback
from argparse import Namespace
from pathlib import Path

from mmengine.logging import MMLogger

from mldr_kd_mm.engine import processes

TOOL = Path(__file__).parents[2] / 'tools/benchmark.py'


class Forked:
    """Stands for subprocess.Popen: runs a script in a fork."""

    def __init__(self, command, stdout, stderr, env, preexec_fn):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            MMLogger._instance_dict.clear()
            try:
                preexec_fn()
                os.environ.update(env)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                sys.stdout, sys.stderr = (open(n, 'w', buffering=1, closefd=False) for n in (1, 2))
                sys.argv = command[1:]
                runpy.run_path(command[1], run_name='__main__')
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

    def wait(self):
        os.waitpid(self.pid, 0)


if __name__ == '__main__':
    processes.subprocess = Namespace(Popen=Forked, STDOUT=None)
    sys.path.insert(0, str(TOOL.parent))
    runpy.run_path(str(TOOL))['main'](sys.argv[1:])
