"""Run the commands of docs/unlabeled.md with tiny models and one epoch each."""

from __future__ import annotations

import re
from pathlib import Path

import timm
from helpers import image_folder
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mldr_kd_mm import cli
from mldr_kd_mm.apis.info import describe
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.registry import DATA_SAMPLERS, DATASETS

ROOT = Path(__file__).parents[1]
SMALL = ['--image-size', '32', '--workers', '0', '--no-teacher-pretrained', '--method', 'kd']
NAMES = dict(vit_small_patch16_224='test_vit', mobilenetv2_100='test_resnet', epoch_50='epoch_1')


def blocks(kind):
    page = (ROOT / 'docs/unlabeled.md').read_text()
    return re.findall(f'```{kind}\n(.*?)```', page, re.DOTALL)


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / 'birds', {'train': 6, 'val': 2})
    image_folder(tmp_path / 'few_birds', {'val': 2})
    image_folder(tmp_path / 'more_birds', {'a/b': 4})
    told = []
    monkeypatch.setattr('mldr_kd_mm.apis.training_images.tell', told.append)
    pages = [block for block in blocks('bash') if '--unlabeled more_birds' in block]
    assert len(pages) == 3

    def run(command, *options):
        command = re.sub(r'--epochs \d+', '--epochs 1', command.replace('\\\n', ' '))
        for name, small in NAMES.items():
            command = command.replace(name, small)
        told.clear()
        cli.main([*command.split()[1:], *SMALL, *options])
        return capsys.readouterr().out

    mixed = run(pages[0])
    assert "unlabeled='more_birds': 12 images, 40 % of each batch" in told
    assert re.search(r'student:    [\d.]+ %', mixed)
    alone = run(pages[1])
    assert any(line.startswith('no validation images: the accuracy is not meas') for line in told)
    assert 'student:    accuracy not measured' in alone and 'mldr-kd report' not in alone
    (log,) = tmp_path.glob('alone/2*/*.log')
    assert re.search('validation +none: the accuracy is not measured', log.read_text())
    # The third command only adds a validation to the second.
    measured = Config.fromstring(run(pages[2], '--print-config'), '.py')
    assert measured.val_dataloader.dataset.data_root == 'few_birds'
    assert measured.train_dataloader.dataset.type == 'mldr_kd_mm.UnlabeledFolder'
    preflight(measured, 'model', 'train_cfg', 'train_dataloader', 'val_dataloader')
    # The exported student knows the teacher's classes, and how its images are prepared.
    model = timm.create_model('local-dir:alone/student', pretrained=True)
    assert [*model.pretrained_cfg['label_names']] == ['a', 'b', 'c']
    assert model.pretrained_cfg['crop_mode'] == 'center'
    card = (tmp_path / 'alone/student/README.md').read_text()
    assert 'Accuracy: not measured' in card and 'Trained on: `UnlabeledFolder`\n' in card
    assert '0.4 of each batch' in (tmp_path / 'mixed/student.md').read_text()
    facts = dict(describe('alone'))
    assert not any('accuracy' in name for name in facts)


def test_config(tmp_path, monkeypatch):
    """The data set and the sampler of the page can be built."""
    init_default_scope('mldr_kd_mm')
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / 'birds', {'train': 2, 'val': 1})
    image_folder(tmp_path / 'more_birds', {'': 1})
    (text,) = (block for block in blocks('python') if 'MixedDataset' in block)
    path = ROOT / 'configs/pairs/swin-tiny_to_resnet18_c100.py'
    config = tmp_path / 'mine.py'
    config.write_text(text.replace("'../pairs/swin-tiny_to_resnet18_c100.py'", repr(str(path))))
    loader = Config.fromfile(config).train_dataloader
    dataset = DATASETS.build(loader.dataset)
    sampler = DATA_SAMPLERS.build(loader.sampler, default_args=dict(dataset=dataset, seed=0))
    assert len(dataset) == 9 and len(sampler) == 12
