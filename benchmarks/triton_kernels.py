"""Compile the Triton kernels for a GPU and print their resources. No GPU is needed.

python benchmarks/triton_kernels.py [--capability 90]

For each kernel: registers and spilled bytes per thread, and shared memory per program.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mldr_kd_mm.models.backbones import selective_scan_triton as scan
from mldr_kd_mm.models.losses import relation_triton as relation

# Six heads, B=128, C=1000.
_RELATION = dict(
    SCALE=1000**-0.5,
    LIMIT=2000.0,
    COVERED=100.0,
    HEADS=8,
    ROWS=relation.ROWS,
    COLUMNS=relation.COLUMNS,
    ELEMENTS=relation._ELEMENTS,
    gate=None,
)
_SCAN = dict(CHANNELS=scan.CHANNELS, STATES=16)
_POINTERS = (
    'x norms columns gate gradients partial products u delta z y grad of_u of_delta of_z B C A D '
    'bias starts states of_times of_channels'
).split()
KERNELS = {
    relation._normalizers: (_RELATION, 4),
    relation._divergences: (_RELATION, 4),
    relation._through_the_limit: (_RELATION, 4),
    scan._forward: (_SCAN, 1),
    scan._backward: (_SCAN, 1),
}


def requirements(kernel: triton.JITFunction, constants: dict, warps: int, capability: int) -> str:
    """Compile a kernel for float32 tensors; return its registers, spills and shared memory."""
    types = {name: '*fp32' if name in _POINTERS else 'i32' for name in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in types}
    types |= dict.fromkeys(constants, 'constexpr')
    compiled = triton.compile(
        ASTSource(kernel, types, constants),
        target=GPUTarget('cuda', capability, 32),
        options=dict(num_warps=warps),
    )
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, 'kernel.ptx')
        ptx.write_text(compiled.asm['ptx'])
        architecture = re.search(r'^\.target (\S+)', ptx.read_text(), re.MULTILINE)[1].rstrip(',')
        command = [triton.knobs.nvidia.ptxas.path, '-v', f'--gpu-name={architecture}', ptx]
        log = subprocess.run(
            [*map(str, command), '-o', '/dev/null'], capture_output=True, text=True, check=True
        ).stderr
    registers = re.search(r'Used (\d+) registers', log)[1]
    spills = re.search(r'(\d+) bytes spill stores', log)[1]
    return (
        f'{registers} registers and {spills} spilled bytes per thread, {compiled.metadata.shared} '
        f'bytes of shared memory, {32 * warps} threads'
    )


def main() -> None:
    """Print the requirements of all kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--capability', type=int, default=90, help='90 is an H100, 80 an A100')
    capability = parser.parse_args().capability
    print(f'torch {torch.__version__}, triton {triton.__version__}, sm_{capability}')
    for kernel, (constants, warps) in KERNELS.items():
        module = kernel.__module__.rpartition('.')[2]
        needed = requirements(kernel, constants, warps, capability)
        print(f'{module}.{kernel.__name__}: {needed}')


if __name__ == '__main__':
    main()
