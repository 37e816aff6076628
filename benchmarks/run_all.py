"""Run all benchmarks and print every target next to the measured value.

python benchmarks/run_all.py

Takes about fifteen minutes on two cores. data.py needs CIFAR-100 in data/cifar100.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Run the benchmarks one after the other; exit with code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('scripts', nargs='*', help='names, such as dfra; default: all')
    args = parser.parse_args()
    paths = [FOLDER / f'{name}.py' for name in args.scripts] or sorted(FOLDER.glob('*.py'))
    targets, failed = [], []
    for path in paths:
        if path == Path(__file__).resolve():
            continue
        print(f'== {path.name}', flush=True)
        lines = []
        command = [sys.executable, '-u', str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                print(line, end='', flush=True)
                lines.append(line.strip())
        targets += [line for line in lines if ', target ' in line]
        failed += [path.name] if process.returncode else []
    print('== all targets')
    print('\n'.join(targets))
    if failed:
        sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
