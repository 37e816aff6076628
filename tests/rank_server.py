"""Fork a process per command, with the imports that take seconds already done.

:func:`helpers.run_ranks` starts one server per rank, each with a hash seed of its own. A line of
standard input is a command in JSON; the exit code of its process is the answer.
"""

import json
import os
import runpy
import signal
import sys
import traceback

import helpers  # noqa: F401

import mldr_kd_mm  # noqa: F401

TIMEOUT = 300  # seconds


def run(arguments: list[str], folder: str, environment: dict[str, str], output: str) -> int:
    """Do in this process what ``python ARGUMENTS`` does; return the exit code."""
    signal.alarm(TIMEOUT)
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target in (1, 2):
        os.dup2(stream, target)
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


if __name__ == '__main__':
    answers = os.fdopen(os.dup(1), 'w')
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = run(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
