"""Fixtures and settings of all tests."""

import faulthandler
import gc
import os
import shutil
import sys

import pytest
import torch
from hypothesis import settings
from mmengine.registry import DefaultScope, init_default_scope

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

import mldr_kd_mm  # noqa: E402, F401  registers everything
from mldr_kd_mm.utils.workers import kill_workers  # noqa: E402

# Small operations are slower on several threads.
torch.set_num_threads(1)
# With fixed examples a failure is due to a change of the code. Try new examples with
# --hypothesis-profile default.
settings.register_profile('same_examples', derandomize=True)
settings.load_profile('same_examples')


def pytest_configure(config):
    """Keep the real standard error, which pytest replaces."""
    config.stderr = os.dup(2)


def pytest_collection_finish():
    """Exclude what the imports created from garbage collection.

    mmengine collects garbage for each data set that it builds, which took a third of small runs.
    """
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Print all stacks and exit if this process does not end after its last test."""
    faulthandler.dump_traceback_later(120, file=session.config.stderr, exit=True)


@pytest.fixture(autouse=True)
def default_scope():
    """Start each test in the default scope of our configs and reset it afterwards."""
    init_default_scope('mldr_kd_mm')
    yield
    DefaultScope._instance_dict.clear()
    # Compilations in earlier tests count towards torch's limit of recompilations.
    if 'torch._dynamo' in sys.modules:
        torch.compiler.reset()


@pytest.fixture(scope='session')
def browser():
    """Start a headless Chromium: the one that BROWSER names, or an installed one."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    names = (os.environ.get('BROWSER'), 'chromium', 'chromium-browser', 'google-chrome')
    path = next(filter(None, map(shutil.which, filter(None, names))), None)
    if path is None:
        pytest.skip('needs Chromium: apt-get install chromium, or BROWSER=its path')
    with playwright.sync_playwright() as context:
        # Chromium's own sandbox does not run for root.
        options = ['--no-sandbox'] if os.geteuid() == 0 else []
        browser = context.chromium.launch(executable_path=path, args=options)
        yield browser
        # A data-loader worker of a Runner that still exists has a copy of the pipe to the browser's
        # driver, which ends when the last copy is closed.
        kill_workers()
        browser.close()
