"""Result files replace those of an earlier command, and keep those of the user."""

import io

import pytest
from rich.console import Console

from mldr_kd_mm.utils.outputs import show_markdown, write_output


def test_files_of_the_user_are_kept(tmp_path):
    path, said = tmp_path / 'best/kd.py', []

    def names():
        return sorted(each.name for each in path.parent.glob('kd.py*'))

    write_output(path, 'one', said.append)
    write_output(path, b'two', said.append)
    assert names() == ['kd.py'] and not said
    for number in (1, 2):
        path.write_text(f'changed {number}')
        write_output(path, 'three', said.append)
        assert path.with_name(f'kd.py.{number}').read_text() == f'changed {number}'
    assert said[1] == (
        f'{path}: was not written by this command, or was changed since; kept as {path}.2'
    )
    path.unlink()
    write_output(path, 'four', said.append)
    assert path.read_text() == 'four' and len(said) == 2
    for damaged in ('', '[]', '[' * 100_000):
        path.with_name('.written.json').write_text(damaged)
        path.write_text('mine')
        write_output(path, 'five', said.append)
    assert len(said) == 5 and len(names()) == 6


@pytest.mark.parametrize('terminal', [True, False])
def test_markdown_is_rendered_on_a_terminal(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=60, soft_wrap=True, markup=False)
    text = '# Results\n\n| method | best |\n|:--|--:|\n| [kd] | 51.00 |\n'
    show_markdown(text, console)
    shown = file.getvalue()
    assert '[kd]' in shown and '51.00' in shown
    assert ('|:--' in shown) != terminal
