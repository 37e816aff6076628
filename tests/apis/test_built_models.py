"""distill() with a teacher and a student that the caller has built, and its help()."""

import inspect
import pydoc
import re

import pytest
import torch
from helpers import image_folder
from torch import nn
from torchvision.models import resnet18

from mldr_kd_mm import ConfigError, distill
from mldr_kd_mm.apis.distill import distill_config
from mldr_kd_mm.apis.models import find_model
from mldr_kd_mm.apis.options import parse_options
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.registry import MODELS


class Net(nn.Module):
    """A small CNN of the caller."""

    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in [(3, width), (width, 2 * width), (2 * width, 4 * width)]
            )
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images):
        return self.fc(self.layers(images).mean((2, 3)))


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """Forget the modules of other tests."""
    monkeypatch.setattr('mldr_kd_mm.models.backbones.modules._MODULES', {})


def test_distill(tmp_path):
    folder = str(image_folder(tmp_path / 'images', {'train': 8, 'val': 4}))
    torch.manual_seed(0)
    teacher, student = Net(width=8), Net()
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    result = distill(
        teacher, student, folder, image_size=32, workers=0, epochs=1, work_dir=str(tmp_path / 'run')
    )
    assert not (tmp_path / 'run/teacher').exists(), 'a module has its weights'
    weights = torch.load(result.student, weights_only=True)['state_dict']
    other = Net()
    other.load_state_dict(weights)
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, before[name]), "the caller's module is not changed"
    assert not torch.equal(weights['fc.weight'], before['fc.weight'])
    assert 0 <= result.accuracy <= 100 and result.teacher_accuracy is not None
    names = {path.name for path in (tmp_path / 'run/student').iterdir()}
    assert names == {'model.pth', 'README.md'}
    assert 'your Net' in (tmp_path / 'run/student/README.md').read_text()


def test_a_student_of_torchvision(tmp_path, monkeypatch):
    folder = str(image_folder(tmp_path / 'images', {'train': 8, 'val': 4}))
    result = distill(
        Net(width=8),
        'torchvision/shufflenet_v2_x0_5',
        folder,
        image_size=32,
        workers=0,
        epochs=1,
        method='kd',
        work_dir=str(tmp_path / 'run'),
    )
    (code,) = re.findall(
        '```python\n(.*?)```', (tmp_path / 'run/student/README.md').read_text(), re.S
    )
    monkeypatch.chdir(tmp_path / 'run/student')
    names: dict = {}
    exec(code, names)
    weights = torch.load(result.student, weights_only=True)['state_dict']
    assert {*names['model'].state_dict()} == {*weights}
    assert torch.equal(names['model'].fc.weight, weights['fc.weight'])


@pytest.mark.parametrize(('epochs', 'trains'), [(None, False), (0, False), (2, True)])
def test_whether_a_module_is_trained_as_the_teacher(epochs, trains):
    options = parse_options(Net(), 'resnet18', 'images', teacher_epochs=epochs)
    assert options.trains_teacher == trains


class TestModel:
    def test_starts_from_the_weights_of_the_module(self):
        net = Net()
        model = MODELS.build(find_model(net, 3, 32).config)
        model.init_weights()
        assert {*model.state_dict()} == {*net.state_dict()}
        assert torch.equal(model.model.fc.weight, net.fc.weight)
        assert model.model is not net

    def test_names(self):
        first, second = Net(), Net()
        names = [find_model(each, 3).name for each in (first, second, first)]
        assert names == ['Net', 'Net-2', 'Net']

    def test_stages(self):
        config = find_model(resnet18(num_classes=3), 3, 32).config
        tapped = TappedModel(MODELS.build(config), FeatureRecorder())
        stages = tapped.find_stages((3, 32, 32))
        probe = tapped.probe(['feature', *stages], (3, 32, 32))
        taps = [tapped.recorder.taps[stage] for stage in stages]
        assert taps == [f'model.layer{i}' for i in range(1, 5)]
        assert probe.width('feature') == 512 and probe.width('logits') == 3

    def test_in_another_process(self):
        config = find_model(Net(), 3).config
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('mldr_kd_mm.models.backbones.modules._MODULES', {})
            with pytest.raises(ConfigError, match="model_name='Net': the module was built in ano"):
                MODELS.build(config)


@pytest.mark.parametrize('function', [distill, distill_config])
def test_help(function):
    """Every option is in the signature and has a description; annotations are no strings."""
    text = pydoc.plain(pydoc.render_doc(function))
    assert '**options' not in text.splitlines()[2]
    for name, parameter in inspect.signature(function).parameters.items():
        assert name in text
        assert not isinstance(parameter.annotation, str)
    assert 'batch_size: int | None = None' in text and "method: str | dict = 'mldr_rsd'" in text
    assert 'Keyword Args:' in text or function is distill_config
