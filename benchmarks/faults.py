"""Kill, stop and damage a run many times and compare its result with an undisturbed run.

    python benchmarks/faults.py [--faults 50] [--processes 1 2] [--seed 0]

The run is small (a ViT student, MLDR-KD and CRD, EMA, mixup, dropout; 40 images) but real: new
processes, mmengine's Runner, checkpoints on a 20 MB disk if one can be mounted. When the run ends,
its weights, memory banks, optimizer state and best score must equal those of an undisturbed run bit
for bit. It restarts until the given number of faults has occurred; the last line counts them. The
moments of the faults depend on the seed and on the machine.
"""

import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

# Replace this folder on the path, because this file would hide the tests' package `faults`.
sys.path[0] = str(Path(__file__).parents[1] / 'tests')

from faults.campaign import Campaign, small_disk  # noqa: E402


def main() -> None:
    """Run the campaign for each number of processes."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        '--faults', type=int, default=50, help='faults for each number of processes'
    )
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    everything = Counter()
    for processes in args.processes:
        print(f'== {processes} process(es), seed {args.seed}')
        with (
            tempfile.TemporaryDirectory() as folder,
            small_disk(Path(folder, 'disk'), 20_000) as disk,
        ):
            campaign = Campaign(Path(folder), args.seed, processes, args.epochs, disk)
            campaign.run(args.faults)
        everything += campaign.faults
    kinds = ', '.join(f'{kind} {count}' for kind, count in sorted(everything.items()))
    print(f'{sum(everything.values())} faults ({kinds}): 0 runs lost')


if __name__ == '__main__':
    main()
