"""Small models, data sets and runs that many tests share."""

from __future__ import annotations

import atexit
import copy
import functools
import json
import multiprocessing
import os
import pickle
import pty
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.distributed
import yapf.yapflib.yapf_api
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from rank_server import serve

from mldr_kd_mm.datasets import VerifiedCIFAR100

# Modules that a run imports when it needs them, which takes seconds: a process that forks others
# imports them first.
PRELOADED = [
    'matplotlib.pyplot',
    'mldr_kd_mm.apis',
    'mmengine.runner',
    'mmpretrain.engine',
    'mmpretrain.visualization',
    'timm',
    'torch.utils.cpp_extension',
    'torch.utils.tensorboard',
    'torchvision.models',
    'yapf.yapflib.yapf_api',
]
# mmengine formats a config whenever it logs or saves one, which takes almost half of the time of a
# small run. No test needs that layout.
yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)

NUM_CLASSES = 10
NORMALIZATION = dict(mean=[127.0] * 3, std=[64.0] * 3, num_classes=NUM_CLASSES)


def vit(num_classes=NUM_CLASSES, img_size=32, depth=4, **kwargs):
    """Config of a ViT with 17 tokens and width 32."""
    return dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=32, num_layers=depth, num_heads=2, feedforward_channels=64),
            img_size=img_size,
            patch_size=img_size // 4,
            drop_path_rate=0.5,
        ),
        head=dict(type='VisionTransformerClsHead', num_classes=num_classes, in_channels=32),
        **kwargs,
    )


def resnet(num_classes=NUM_CLASSES, **kwargs):
    """Config of a ResNet18 with widths 8, 16, 32 and 64."""
    return dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=64),
        **kwargs,
    )


def timm_resnet(num_classes=NUM_CLASSES, **kwargs):
    """Config of timm's ResNet10-T, with widths 64, 128, 256 and 512."""
    return dict(type='TimmClassifier', model_name='resnet10t', num_classes=num_classes, **kwargs)


def mldr(teacher=None, student=None, **kwargs):
    """Config of MLDR-KD between two small models."""
    config = dict(
        type='Distiller',
        teacher=teacher or vit(),
        student=student or resnet(),
        neck=dict(type='MSDFNeck'),
        losses=[
            dict(
                loss=dict(type='DFRALoss'),
                student=['logits', 'stage_logits', 'fused_logits'],
                teacher='logits',
                name='dfra',
            )
        ],
        input_size=(3, 32, 32),
        data_preprocessor=dict(NORMALIZATION),
    )
    config.update(kwargs)
    return copy.deepcopy(config)


def batch(size=8, num_classes=NUM_CLASSES, pixels=32, seed=0):
    """Return random images and labels in the form of a data loader's batch."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, pixels, pixels), generator=generator)
    labels = torch.randint(0, num_classes, (size,), generator=generator)
    samples = [DataSample().set_gt_label(label.reshape(1)) for label in labels]
    return dict(inputs=images.to(torch.uint8), data_samples=samples)


def image_folder(root: Path, splits: dict[str, int], classes: str = 'abc') -> Path:
    """Write PNG images whose colour depends on their class.

    Args:
        root: The folder.
        splits: Images per class by subfolder; '' stands for the folder itself.
        classes: Names of the classes, one letter each.
    """
    random = np.random.default_rng(0)
    for split, count in splits.items():
        for channel, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 80, (36, 44, 3), dtype=np.uint8)
                pixels[..., channel % 3] += 120
                Image.fromarray(pixels).save(folder / f'{number}.png')
    return root


def make_split(per_class: int, seed: int) -> dict:
    """Return random images in the layout of a CIFAR-100 file."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(100), per_class)).tolist()
    data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return {'data': data, 'fine_labels': labels, 'filenames': [f'{i}.png' for i in labels]}


def write_file(path: Path, content: object) -> None:
    """Pickle an object the way the official files are pickled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def make_cifar100(root: Path) -> Path:
    """Write CIFAR-100 with 2 training images and 1 test image per class; return its root."""
    folder = root / 'cifar-100-python'
    write_file(folder / 'train', make_split(per_class=2, seed=0))
    write_file(folder / 'test', make_split(per_class=1, seed=1))
    write_file(folder / 'meta', {'fine_label_names': list(VerifiedCIFAR100.METAINFO['classes'])})
    return root


def runner_config(model, work_dir, max_epochs=1, **kwargs):
    """Config of a run on 40 handwritten digits, validated on 30 others."""

    def loader(split, per_class, shuffle):
        return dict(
            batch_size=10,
            num_workers=0,
            dataset=dict(
                type='mldr_kd_mm.Digits',
                split=split,
                subset=dict(per_class=per_class),
                pipeline=[dict(type='PackInputs')],
            ),
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            collate_fn=dict(type='default_collate'),
        )

    config = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader('train', per_class=4, shuffle=True),
        val_dataloader=loader('test', per_class=3, shuffle=False),
        val_evaluator=dict(type='Accuracy', topk=1),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            teacher_accuracy=dict(type='TeacherAccuracyHook'),
        ),
        default_scope='mldr_kd_mm',
        randomness=dict(seed=0),
        # mmengine reuses a logger of the same name, which has the time in seconds by default.
        experiment_name='-'.join(work_dir.parts[-3:]),
    )
    config.update(kwargs)
    return config


def train(model, work_dir, **kwargs) -> Runner:
    """Train a small model with mmengine's Runner."""
    runner = Runner.from_cfg(Config(copy.deepcopy(runner_config(model, work_dir, **kwargs))))
    runner.train()
    return runner


def read_run(folder: Path, rank: int = 0, processes: int = 1) -> Config:
    """Join the process group of a run and read its FOLDER/config.json."""
    torch.set_num_threads(1)
    config = Config(json.loads((folder / 'config.json').read_text()))
    if processes > 1:
        os.environ['LOCAL_RANK'] = str(rank)
        # No launcher ends the others if a process is stopped before all have met here.
        torch.distributed.init_process_group(
            'gloo',
            init_method=f'file://{folder / "store"}',
            timeout=timedelta(seconds=90),
            rank=rank,
            world_size=processes,
        )
        config.launcher = 'pytorch'
        config.env_cfg = dict(dist_cfg=dict(backend='gloo'))
        config.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        )
    return config


def environment(path: Path | None = None) -> dict[str, str]:
    """Return the environment of a process that imports this project and from ``path``."""
    paths = ':'.join(str(each) for each in (Path(__file__).parents[1], path) if each)
    wanted = dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', PYTHONIOENCODING='utf-8')
    return os.environ | wanted | dict(TERM='xterm', COLUMNS='160')


def on_terminal(*arguments, stdout: Path | None = None) -> tuple[int, str]:
    """Run Python on a pseudo-terminal; return its exit code and what the terminal received.

    Args:
        arguments: The script and its arguments.
        stdout: File for the standard output instead of the terminal.
    """
    ours, theirs = pty.openpty()
    terminal = os.ttyname(theirs)
    _request(0, arguments, environment(), stdout or terminal, terminal)
    answer = rank_server(0)
    chunks = []
    while True:
        ready, _, _ = select.select([ours, answer], [], [], 180)
        if ours in ready:
            chunks.append(os.read(ours, 65536))
        else:
            break
    code = _answer(0)
    os.close(theirs)
    os.close(ours)
    return code, b''.join(chunks).decode()


def run_python(*arguments, code: int = 0) -> str:
    """Run Python with its output in a file; return the output.

    Args:
        arguments: The script and its arguments.
        code: The expected exit code.
    """
    with tempfile.NamedTemporaryFile() as output:
        _request(0, arguments, environment(), output.name, output.name)
        found = _answer(0)
        text = Path(output.name).read_text()
    assert found == code, text
    return text


def leave_group() -> NoReturn:
    """Exit a process of a gloo group without Python's shutdown.

    During shutdown a gloo thread that releases a tensor can deadlock (torch 2.6).
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


def fork_server() -> BaseContext:
    """Return the context of processes that are forked from one that has imported everything."""
    context = multiprocessing.get_context('forkserver')
    # The fork server cannot find the modules of the tests.
    context.set_forkserver_preload(PRELOADED)
    return context


@functools.cache
def rank_server(rank: int) -> Connection:
    """Return a connection to the process that forks the processes of a rank; see rank_server.py."""
    ours, theirs = multiprocessing.Pipe()
    if rank == 0:
        # It saves the imports, which take seconds, if the fork server runs already.
        fork_server().Process(target=serve, args=(theirs,)).start()
        atexit.register(ours.close)  # multiprocessing then waits for the end of the process
    else:
        # Hashes of strings differ between the processes of a launcher, too.
        variables = environment(Path(__file__).parent) | {'PYTHONHASHSEED': str(rank)}
        program, channel = Path(__file__).with_name('rank_server.py'), theirs.fileno()
        subprocess.Popen([sys.executable, program, str(channel)], env=variables, pass_fds=[channel])
    theirs.close()
    return ours


def run_ranks(*commands: Sequence, code: int = 0) -> list[str]:
    """Run one Python process per rank; each must end with the exit code. Return their outputs.

    Args:
        commands: Arguments of ``python`` for rank 0, 1, ... The rank is in ``LOCAL_RANK``.
        code: The expected exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(rank)) for rank in range(len(commands))]
        for rank, command in enumerate(commands):
            variables = os.environ | {'GLOO_SOCKET_IFNAME': 'lo', 'LOCAL_RANK': str(rank)}
            _request(rank, command, variables, outputs[rank], outputs[rank])
        codes = [_answer(rank) for rank in range(len(commands))]
        texts = [output.read_text(errors='replace') for output in outputs]
    for found, text in zip(codes, texts, strict=True):
        assert found == code, text
    return texts


def _request(
    rank: int, arguments: Sequence, environment: Mapping[str, str], stdout: Path, stderr: Path
) -> None:
    """Let the server of a rank run ``python ARGUMENTS`` with its output in these files."""
    request = dict(
        arguments=list(map(str, arguments)),
        folder=os.getcwd(),
        environment=dict(environment),
        stdout=str(stdout),
        stderr=str(stderr),
    )
    rank_server(rank).send(request)


def _answer(rank: int) -> int:
    """Return the exit code of a rank's process; the server ends one that takes too long."""
    server = rank_server(rank)
    try:
        if server.poll(180):
            return server.recv()
    except EOFError:
        pass
    rank_server.cache_clear()
    raise RuntimeError(f'the server of rank {rank} does not answer')
