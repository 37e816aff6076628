"""Train a config of this project.

python train.py CONFIG [--cfg-options KEY=VALUE ...]
"""

from argparse import ArgumentParser
from pathlib import Path

import shapes_kd  # noqa: F401  imports mldr_kd_mm, which must come before reading a config
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

parser = ArgumentParser()
parser.add_argument('config')
parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
args = parser.parse_args()

cfg = Config.fromfile(args.config)
cfg.merge_from_dict(args.cfg_options)
cfg.setdefault('work_dir', f'work_dirs/{Path(args.config).stem}')
Runner.from_cfg(cfg).train()
