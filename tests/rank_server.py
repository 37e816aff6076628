"""Fork a process per command, with the imports that take seconds already done.

:func:`helpers.run_ranks` starts one server per rank, each with a hash seed of its own. It receives
commands as dicts; the exit code of a command's process is the answer, -9 if it took too long. No
process outlives the one that started it.
"""

import ctypes
import gc
import importlib
import os
import runpy
import select
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

TIMEOUT = 120  # seconds that a command may take
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(
    arguments: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str
) -> int:
    """Do in this process what ``python ARGUMENTS`` does; return the exit code."""
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if arguments[0] == '-c':
            sys.argv = ['-c', *arguments[2:]]
            exec(arguments[1], {'__name__': '__main__'})
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(arguments[0]))
            runpy.run_path(arguments[0], run_name='__main__')
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def execute(request: dict) -> int:
    """Run a command in a process group of its own; return the exit code of its process."""
    child = os.fork()
    if child == 0:
        die_with_parent()
        os.setpgid(0, 0)
        code = run(**request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    select.select([os.pidfd_open(child)], [], [], TIMEOUT)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # data-loader workers that it left, or all after TIMEOUT
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def serve(channel: Connection) -> None:
    """Run the commands that arrive, until the other end is closed."""
    die_with_parent()
    gc.freeze()  # as in conftest.py
    with suppress(EOFError):
        while True:
            channel.send(execute(channel.recv()))


if __name__ == '__main__':
    import helpers

    for module in helpers.PRELOADED:
        importlib.import_module(module)
    serve(Connection(int(sys.argv[1])))
