"""The commands of docs/own_images.md, as they stand but for the number of epochs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(kind):
    page = (ROOT / 'docs/own_images.md').read_text()
    return re.findall(f'```{kind}\n(.*?)```', page, re.DOTALL)


@pytest.mark.slow
def test_from_two_names_to_a_student(tmp_path):
    def run(*args):
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    write_images, _, use = blocks('python')
    run('-c', write_images)
    # Fewer images are enough to see that the commands fit each other.
    for path in tmp_path.glob('digits/*/*.png'):
        if int(path.stem) >= 200:
            path.unlink()
    for command in blocks('bash'):
        command = re.sub(r'--epochs \d+', '--epochs 1', command).replace('epoch_20', 'epoch_1')
        name, *args = command.replace('\\\n', ' ').split()
        if name != 'pip':
            assert name == 'mldr-kd'
            run('-m', 'mldr_kd_mm', *args)
    assert run('-c', use) == 'torch.Size([1, 10])\n'
    assert (tmp_path / 'digits.safetensors').is_file()
