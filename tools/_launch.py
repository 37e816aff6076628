"""Start torchrun for dist_train.sh and dist_test.sh: ``_launch.py GPUS SCRIPT ARGS...``."""

import os
import secrets
import signal
import socket
import sys

import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Run SCRIPT in GPUS processes on this machine, one of NNODES machines."""
    processes, *command = sys.argv[1:]
    if not processes.isdigit() or int(processes) < 1:
        sys.exit(f"error: GPUS must be a number of processes, 1 or more, got '{processes}'")
    if 0 < torch.cuda.device_count() < int(processes):
        sys.exit(f'error: GPUS is {processes}, but torch finds {torch.cuda.device_count()}')

    nodes = os.environ.get('NNODES', '1')
    # Concurrent runs need different ports; several machines must agree on one.
    port = os.environ.get('PORT') or (free_port() if nodes == '1' else '29500')
    # torchrun and mmengine also default to one thread, but with a warning.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('MKL_NUM_THREADS', '1')
    # Grace period in which stopped processes finish their step and save, in seconds.
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '120')
    # By this, processes that are started again recognise what this launch has saved.
    os.environ['MLDR_KD_LAUNCH'] = secrets.token_hex(8)
    # torchrun forwards SIGTERM, but SIGUSR1, Slurm's warning, would end it.
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run.main(
            [
                f'--nnodes={nodes}',
                f'--node-rank={os.environ.get("NODE_RANK", "0")}',
                f'--nproc-per-node={processes}',
                f'--master-addr={os.environ.get("MASTER_ADDR", "127.0.0.1")}',
                f'--master-port={port}',
                f'--max-restarts={os.environ.get("MAX_RESTARTS", "0")}',
                *command,
            ]
        )
    except ChildFailedError as error:
        # The processes have printed the error; torchrun's own traceback adds nothing.
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f'error: the process of rank {rank} was killed by {name}', file=sys.stderr)
        sys.exit(exit_code(failure.exitcode))
    except SignalException as error:
        sys.exit(exit_code(-error.sigval))


def exit_code(code: int) -> int:
    """Return the exit code of a process as a shell reports it: 128 plus the signal."""
    return code if code >= 0 else 128 - code


def free_port() -> str:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


if __name__ == '__main__':
    main()
