"""Kill, stop and damage a run many times, and compare its end with an undisturbed one.

    python benchmarks/faults.py [--faults 50] [--processes 1 2] [--seed 0]

The run is small (a ViT student, MLDR-KD and CRD, EMA, mixup, dropout; 40 images) and real: new
processes, mmengine's Runner, checkpoints on a disk of 20 MB where that can be mounted. Whenever it
is at its end its weights, banks, optimizer and best score must be those of the run that nothing
befell, bit for bit; then it begins anew, until there were that many faults. The last line counts
them. With another seed faults come at other moments, and so they do on another machine.
"""

import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

# In the place of this folder, in which this file is named as the package there.
sys.path[0] = str(Path(__file__).parents[1] / 'tests')

from faults.campaign import Campaign, small_disk  # noqa: E402


def main() -> None:
    """Run the campaign for each number of processes."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--faults', type=int, default=50, help='for each number of processes')
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
