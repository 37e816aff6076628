"""Figures during training, with mmengine's real Runner and visualizer backends."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import mldr, resnet, run_ranks, runner_config, train, vit
from mmengine.config import Config
from mmengine.runner import Runner

from mldr_kd_mm.engine.hooks import FigureHook
from mldr_kd_mm.evaluation.observer import Observer
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError

WORKER = Path(__file__).parent / 'figures_worker.py'
IMAGES = {
    'fusion_by_class',
    'relation_teacher',
    'relation_student',
    'relation_student_minus_teacher',
    'relation_fused_head_minus_teacher',
    'calibration',
    'cka',
}


def hooks(**kwargs):
    """Return the hooks of a run that draws at each validation."""
    return dict(
        logger=dict(type='LoggerHook', interval=1),
        figures=dict(type='FigureHook', **dict(dict(interval=1), **kwargs)),
    )


def logged(work_dir):
    """Return the records that a run logged."""
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def drawn(work_dir):
    """Return the names of the images that the local backend wrote."""
    return {path.stem for path in work_dir.glob('*/vis_data/vis_image/*.png')}


def visualizer(backend, **kwargs):
    return dict(
        type='UniversalVisualizer',
        vis_backends=[dict(type='LocalVisBackend'), dict(type=backend, **kwargs)],
    )


def test_trains_the_same_weights(tmp_path):
    # The student's stochastic depth draws random numbers in each step.
    model = mldr(student=vit())
    ema = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)], max_epochs=2)
    plain = train(model, tmp_path / 'off', **ema)
    observed = train(model, tmp_path / 'on', default_hooks=hooks(batches=2), **ema)
    assert drawn(tmp_path / 'on') == {f'{name}_{epoch}' for name in IMAGES for epoch in (1, 2)}
    for (name, a), b in zip(
        observed.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name

    def values(work_dir):
        keys = ('loss', 'loss_dfra_fused', 'fusion_stage1', 'accuracy/top1')
        return [record[key] for record in logged(work_dir) for key in keys if key in record]

    assert values(tmp_path / 'on') == values(tmp_path / 'off')


def test_scalars_are_those_of_the_validated_weights(tmp_path):
    """With EMA these are the averaged weights, which the checkpoint contains."""
    ema = [dict(type='EMAHook', momentum=0.5)]
    runner = train(mldr(), tmp_path, custom_hooks=ema, default_hooks=hooks(batches=10))
    (scalars,) = [line for line in logged(tmp_path) if 'observed/agreement' in line]
    assert scalars['step'] == 1

    model = MODELS.build(mldr()).to(next(runner.model.parameters()).device).eval()
    model.load_state_dict(torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict'])
    model.teacher = runner.model.teacher
    observer = Observer(model)
    for data in runner.val_dataloader:
        observer.add(**model.data_preprocessor(data, False))
    seen = observer.observations()
    same = (seen.student.argmax(1) == seen.teacher.argmax(1)).mean()
    assert scalars['observed/agreement'] == pytest.approx(same)
    for stage, weights in enumerate(seen.fusion_weights, start=1):
        lowest, highest = (
            scalars[f'observed/fusion_stage{stage}_{end}'] for end in ('lowest', 'highest')
        )
        assert (lowest, highest) == pytest.approx((weights.min(), weights.max()), abs=1e-5)
    assert 0 <= scalars['observed/student_ece'] <= 1 and 0 <= scalars['observed/teacher_ece'] <= 1


@pytest.mark.parametrize(
    ('options', 'epochs'), [(dict(interval=3), {1, 4, 5}), (dict(enabled=False), set())]
)
def test_interval(tmp_path, options, epochs):
    train(mldr(), tmp_path, max_epochs=5, default_hooks=hooks(**options, batches=1))
    assert {int(name.split('_')[-1]) for name in drawn(tmp_path)} == epochs


def test_batches_are_spread(tmp_path):
    hook = FigureHook(batches=2)
    runner = train(mldr(), tmp_path)
    runner._hooks = [hook]
    seen = []
    hook.after_val_iter = lambda runner, batch_idx, **_: seen.append(batch_idx in hook._chosen)
    runner.val_loop.run()
    assert seen == [True, False, True]


@pytest.mark.parametrize('neck', [None, dict(type='MSDFNeck', gate_dim=0)], ids=['none', 'no gate'])
def test_other_necks(tmp_path, neck):
    losses = [dict(loss=dict(type='KDLoss'))]
    train(mldr(neck=neck, losses=losses), tmp_path, default_hooks=hooks())
    names = {name.rsplit('_', 1)[0] for name in drawn(tmp_path)}
    fused = {'fusion_by_class', 'relation_fused_head_minus_teacher'}
    assert names == (IMAGES if neck else IMAGES - fused)


def test_loop_over_iterations(tmp_path):
    loop = dict(by_epoch=False, max_iters=4, val_interval=2)
    processor = dict(by_epoch=False)
    train(mldr(), tmp_path, train_cfg=loop, log_processor=processor, default_hooks=hooks())
    assert drawn(tmp_path) == {f'{name}_{step}' for name in IMAGES for step in (2, 4)}
    # The images are figures: a white margin, dark text and coloured content.
    for path in tmp_path.glob('*/vis_data/vis_image/*.png'):
        image = cv2.imread(str(path))
        assert image[0, 0].tolist() == [255] * 3 and (image < 100).any()
        saturation = image.max(2).astype(int) - image.min(2)
        assert (saturation > 80).any() or 'fusion' in path.name or 'cka' in path.name, path


def test_other_models_are_left_alone(tmp_path):
    train(resnet(data_preprocessor=dict(num_classes=10)), tmp_path, default_hooks=hooks())
    assert not drawn(tmp_path)


def test_validation_alone_builds_no_training(tmp_path):
    config = runner_config(mldr(), tmp_path, default_hooks=hooks())
    config['train_dataloader']['dataset'] = dict(type='lost')
    runner = Runner.from_cfg(Config(config))
    assert 'accuracy/top1' in runner.val()
    assert not drawn(tmp_path)
    assert 'FigureHook' not in next(tmp_path.glob('*/*.log')).read_text().split('Epoch(val)')[-1]


def test_what_cannot_be_drawn_is_a_warning(tmp_path):
    diverging = dict(optimizer=dict(type='SGD', lr=1e20))
    train(mldr(), tmp_path, optim_wrapper=diverging, default_hooks=hooks())
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'FigureHook: no figures: ConfigError: student: 30 of 30 samples are not finite' in text
    assert 'Epoch(val) [1][3/3]' in text


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The first process draws, and figures do not change the weights of either."""
    weights = {}
    for name, used in (('on', hooks(batches=1)), ('off', dict())):
        folder = tmp_path / name
        folder.mkdir()
        config = runner_config(mldr(), folder / 'run', default_hooks=used)
        (folder / 'config.json').write_text(json.dumps(config))
        run_ranks(*([WORKER, rank, 2, folder] for rank in range(2)))
        weights[name] = [torch.load(folder / f'weights{rank}.pt') for rank in range(2)]
    assert drawn(tmp_path / 'on/run') == {f'{name}_1' for name in IMAGES}
    for on, off in zip(weights['on'], weights['off'], strict=True):
        for key, value in off.items():
            assert torch.equal(on[key], value), key


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(interval=0), 'interval=0: must be a positive integer'),
        (dict(batches='2'), "batches='2': must be a positive integer"),
        (dict(enabled=1), 'enabled=1: must be True or False'),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        FigureHook(**kwargs)


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backend = visualizer('TensorboardVisBackend')
    train(mldr(), tmp_path, max_epochs=2, visualizer=backend, default_hooks=hooks())
    (folder,) = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()['images']) == IMAGES
    for name in IMAGES:
        images = events.Images(name)
        assert [image.step for image in images] == [1, 2]
        pixels = cv2.imdecode(np.frombuffer(images[1].encoded_image_string, np.uint8), 1)
        local = cv2.imread(str(folder / f'vis_image/{name}_2.png'))
        assert np.array_equal(pixels, local), name
    agreements = [event.value for event in events.Scalars('observed/agreement')]
    lines = [line for line in logged(tmp_path) if 'observed/agreement' in line]
    assert agreements == pytest.approx([line['observed/agreement'] for line in lines])
    assert 'accuracy/top1' in events.Tags()['scalars']


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    store = (tmp_path / 'mlruns').as_uri()
    # Newer versions use a database by default, which needs more packages.
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.chdir(tmp_path)
    backend = visualizer('MLflowVisBackend', tracking_uri=store, exp_name='test')
    train(mldr(), tmp_path / 'run', visualizer=backend, default_hooks=hooks())
    (run,) = mlflow.search_runs(experiment_names=['test'], output_format='list')
    mlflow.end_run()
    paths = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {f'{name}_1.png' for name in IMAGES} <= paths
    (line,) = [line for line in logged(tmp_path / 'run') if 'observed/agreement' in line]
    assert run.data.metrics['observed/agreement'] == pytest.approx(line['observed/agreement'])


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    backend = visualizer('WandbVisBackend', init_kwargs=dict(project='test'))
    train(mldr(), tmp_path, visualizer=backend, default_hooks=hooks())
    wandb.finish()
    (folder,) = tmp_path.glob('*/vis_data/wandb/offline-run-*')
    images = {path.name.rsplit('_', 2)[0] for path in folder.glob('files/media/images/*.png')}
    assert images == IMAGES
    assert next(folder.glob('*.wandb')).stat().st_size > 0
