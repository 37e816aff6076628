"""Measure the confidence of the teachers in docs/benchmarks.md on the students' images.

    python docs/benchmarks/teacher_confidence.py > docs/benchmarks/teacher_confidence.txt

Needs the teachers' checkpoints in work_dirs/, where the benchmark writes them.
"""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from torch import Tensor

from mldr_kd_mm.registry import DATASETS, MODELS


@torch.no_grad()
def predictions(model: torch.nn.Module, dataset, batch_size: int = 100) -> tuple[Tensor, Tensor]:
    """Return the teacher's probabilities (N, C) for all images, and their labels (N,)."""
    probabilities, labels = [], []
    for start in range(0, len(dataset), batch_size):
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = model.data_preprocessor(default_collate(items), False)
        samples = model.predict_teacher(batch['inputs'], batch['data_samples'])
        probabilities += [sample.pred_score for sample in samples]
        labels += [sample.gt_label for sample in samples]
    return torch.stack(probabilities), torch.cat(labels)


def describe(pair: str, loader: str) -> str:
    """Return a line on the teacher of a pair, for the images of one of its data loaders."""
    cfg = Config.fromfile(f'configs/pairs/{pair}.py')
    cfg[loader].dataset.verify = False
    cfg.model.update(losses=[dict(loss=dict(type='KDLoss'))])
    cfg.model.data_preprocessor = cfg.data_preprocessor
    # Every teacher sees the same crops and flips of the training images.
    np.random.seed(0)
    dataset = DATASETS.build(cfg[loader].dataset)
    p, labels = predictions(MODELS.build(cfg.model), dataset)
    accuracy = 100 * (p.argmax(-1) == labels).float().mean()
    entropy = torch.special.entr(p).sum(-1).mean()
    return (
        f'{pair} {loader}: {len(p)} images, accuracy {accuracy:.2f} %, '
        f'mean highest probability {p.max(-1).values.mean():.3f}, mean entropy {entropy:.3f}'
    )


if __name__ == '__main__':
    init_default_scope('mldr_kd_mm')
    torch.set_num_threads(1)
    for pair in ('resnet18_to_vit_cifar100-20cls', 'vit_to_resnet18_cifar100-20cls'):
        for loader in ('train_dataloader', 'val_dataloader'):
            print(describe(pair, loader))
