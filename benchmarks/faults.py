"""Attempt many times to break a run, its files or their readers.

    python benchmarks/faults.py [--seed 0] [--count 1000] [--kind KIND] [--log faults.txt]

Each attempt has a seed, which decides its kind and its random choices: a run on one or two
processes is killed, signalled, loses its disk space or its launcher, and must then end bit for bit
like an undisturbed run; a damaged, foreign or hostile file is read, and must be refused in one line
or give the right content. No attempt may run code of a file, change a file elsewhere, hang or take
more than 1 GB. The log has one line for each attempt; a second call continues it. The last lines
are a table of the results. The moments of interruptions also depend on the machine.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

# Replace this folder on the path, because this file would hide the tests' package `faults`.
sys.path[0] = str(Path(__file__).parents[1] / 'tests')

from faults.attempts import KINDS, make_attempts, read, summarize  # noqa: E402


def main() -> None:
    """Make the attempts that the log lacks, and summarize all in it."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0, help='seed of the first attempt')
    parser.add_argument('--count', type=int, default=1000, help='number of attempts')
    parser.add_argument('--kind', choices=KINDS, help='kind of all attempts; default: by the seed')
    parser.add_argument('--log', type=Path, default='faults.txt')
    args = parser.parse_args()
    print(f'seeds {args.seed} to {args.seed + args.count - 1}', flush=True)
    make_attempts(range(args.seed, args.seed + args.count), args.kind, args.log, print)
    outcomes = read(args.log)
    print(summarize(outcomes))
    if any(outcome.result == 'failed' for outcome in outcomes):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
