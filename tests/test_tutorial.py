"""Run the commands of docs/own_images.md with one epoch each."""

import re
from pathlib import Path

import pytest

from mldr_kd_mm import cli

ROOT = Path(__file__).parents[1]


def blocks(kind):
    page = (ROOT / 'docs/own_images.md').read_text()
    return re.findall(f'```{kind}\n(.*?)```', page, re.DOTALL)


@pytest.mark.slow
def test_from_two_names_to_a_student(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images, _, use = blocks('python')
    exec(write_images, {})
    # Fewer images are enough to see that the commands fit each other.
    for path in tmp_path.glob('digits/*/*.png'):
        if int(path.stem) >= 100:
            path.unlink()
    for command in blocks('bash'):
        command = re.sub(r'--epochs \d+', '--epochs 1', command).replace('epoch_20', 'epoch_1')
        name, *args = command.replace('\\\n', ' ').split()
        if name != 'pip':
            assert name == 'mldr-kd'
            cli.main(args)
    capsys.readouterr()
    exec(use, {})
    assert capsys.readouterr().out == f'torch.Size([1, 10]) {[*"0123456789"]}\n'
    assert (tmp_path / 'digits.safetensors').is_file()
