"""What a quiet console shows of the log, and that the log file has everything."""

import logging
import sys
import warnings

import pytest
from mmengine.logging import MMLogger, print_log

import mldr_kd_mm.registry
from mldr_kd_mm.utils.logging import quiet_console, tell


@pytest.fixture
def log(tmp_path, request):
    """Return a function that makes a new logger the current one, and returns its file."""

    def start(name):
        file = tmp_path / f'{name}.log'
        MMLogger.get_instance(f'{request.node.name}_{name}', log_file=str(file))
        return file

    return start


def mmengine_warns():
    """Warn from a module of mmengine."""
    code = compile("print_log('of mmengine', 'current', 30)", 'hook.py', 'exec')
    exec(code, {'__name__': 'mmengine.hooks.some', 'print_log': print_log})


def test_what_it_shows(log, capsys):
    with quiet_console():
        file = log('one')
        print_log('System environment:', 'current')
        tell('[epoch] 1')
        tell('[epoch] 1')
        mmengine_warns()
        print_log('too few images', 'current', logging.WARNING)
        print_log('broken', 'current', logging.ERROR)
        warnings.showwarning('deprecated', FutureWarning, 'torch.py', 1)
        warnings.showwarning('a slow kernel', UserWarning, mldr_kd_mm.registry.__file__, 1)
        # Another run of the same command repeats neither.
        other = log('two')
        print_log('too few images', 'current', logging.WARNING)
    shown = '[epoch] 1\n[epoch] 1\nwarning: too few images\nerror: broken\n'
    shown += 'warning: a slow kernel\n'
    assert capsys.readouterr() == (shown, '')
    text = file.read_text()
    for line in ('System environment:', '[epoch] 1', 'of mmengine', 'too few images', 'broken'):
        assert line in text
    assert 'FutureWarning: deprecated' in text
    assert 'too few images' in other.read_text()


def test_the_console_is_given_back(log, capsys):
    before = MMLogger.callHandlers, warnings.showwarning
    with pytest.raises(KeyError), quiet_console():
        raise KeyError
    assert before == (MMLogger.callHandlers, warnings.showwarning)
    with quiet_console(False):
        log('loud')
        print_log('System environment:', 'current')
        tell('line')
    shown = capsys.readouterr().out
    assert shown.count(' - mmengine - ') == 2
    assert 'System environment:' in shown and shown.endswith(' - line\n')


def test_other_ranks_stay_silent(log, capsys, monkeypatch):
    with quiet_console():
        log('rank')
        (console,) = (h for h in MMLogger.get_current_instance().handlers if h.stream is sys.stdout)
        console.setLevel(logging.ERROR)  # as mmengine does on other ranks than 0
        tell('line')
        print_log('careful', 'current', logging.WARNING)
    assert capsys.readouterr().out == ''
