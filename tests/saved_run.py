"""Checkpoints like those of a run, and what the validation of the run computes."""

import numpy
import torch
from helpers import mldr
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from PIL import Image
from torch import nn

from mldr_kd_mm.registry import MODELS

STATISTICS = dict(mean=[120.0, 110.0, 99.0], std=[58.0, 57.0, 61.0], to_rgb=True)
ON_LOGITS = [dict(loss=dict(type='KDLoss'), student='logits', teacher='logits')]
LOGITS_ALONE = dict(neck=None, losses=ON_LOGITS)


def save_run(folder, student, pixels=32, **config):
    """Write a checkpoint like that of a run; return its path and the Distiller."""
    torch.manual_seed(0)
    model = mldr(student=student, input_size=(3, pixels, pixels), **LOGITS_ALONE)
    text = Config(dict(model=model, **config)).pretty_text
    distiller = MODELS.build(model)
    with torch.no_grad():
        for parameter in distiller.student.parameters():  # some layers start at zero
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in distiller.student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics become plain averages
        distiller.student(torch.randn(8, 3, pixels, pixels))
    path = folder / 'run.pth'
    torch.save({'state_dict': distiller.state_dict(), 'meta': {'cfg': text}}, path)
    return str(path), distiller.eval()


def validation(*steps):
    """Return the fields of a config whose validation images go through these steps."""
    pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
    dataset = dict(type='ImageFolder', pipeline=pipeline)
    return dict(val_dataloader=dict(dataset=dataset), data_preprocessor=STATISTICS)


def write_image(path, width, height):
    pixels = numpy.random.default_rng(width).integers(0, 255, (5, 7, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return str(path)


def of_the_run(distiller, config, path):
    """Return an image as the run's validation prepares it, and the student's logits."""
    pipeline = Compose(config['val_dataloader']['dataset']['pipeline'])
    batch = pseudo_collate([pipeline(dict(img_path=path))])
    images = distiller.student.data_preprocessor(batch)['inputs']
    with torch.no_grad():
        return images, distiller.student(images)


def set_classes(checkpoint, *names):
    content = torch.load(checkpoint)
    content['meta']['dataset_meta'] = dict(classes=names)
    torch.save(content, checkpoint)
