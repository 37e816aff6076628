"""A process of test_progress.py, ``WORK_DIR [OPTION]...``: train a small model with a ProgressHook.

Options: ``off`` disables the hook, ``failing`` raises after some steps.
"""

import sys
from pathlib import Path

from helpers import mldr, resnet, runner_config, vit
from mmengine.config import Config
from mmengine.hooks import Hook

from mldr_kd_mm.engine.launch import start
from mldr_kd_mm.registry import HOOKS


@HOOKS.register_module()
class FailingHook(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 5:
            raise RuntimeError('on purpose')


def main():
    work_dir, *options = sys.argv[1:]
    # With drop path the student's weights depend on every random number drawn.
    model = mldr(teacher=resnet(), student=vit())
    cfg = runner_config(model, Path(work_dir), max_epochs=7)
    cfg['default_hooks']['progress'] = dict(type='ProgressHook', enabled='off' not in options)
    if 'failing' in options:
        cfg['custom_hooks'] = [dict(type='FailingHook', priority='LOWEST')]
    stdout = sys.stdout
    try:
        start(Config(cfg), 'train')
    finally:
        assert sys.stdout is stdout
        print('the end')


main()
