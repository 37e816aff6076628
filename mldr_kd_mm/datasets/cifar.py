"""CIFAR-100, read without executing code in its files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.fileio import LocalBackend, exists, get_file_backend, join_path
from mmpretrain.datasets import CIFAR100
from mmpretrain.datasets.utils import check_md5

from mldr_kd_mm.datasets.subset import ACCEPT, take_subset
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.archive import extract
from mldr_kd_mm.utils.dist import run_on_main_process
from mldr_kd_mm.utils.download import download
from mldr_kd_mm.utils.errors import ConfigError, check_choice, printable
from mldr_kd_mm.utils.logging import tell
from mldr_kd_mm.utils.safe_pickle import load_pickle

SHAPE = (32, 32, 3)
MAX_BYTES = 1_000_000_000  # the archive has 169 MB, 186 MB uncompressed
CIFAR_LICENCE = (
    'none stated; the authors publish the images for research and ask to cite their report '
    '(Krizhevsky, 2009: Learning Multiple Layers of Features from Tiny Images)'
)
RECORD = 1 + 32 * 32 * 3  # bytes per image in memory: its label and its pixels


# 'mldr_kd_mm.CIFAR100' is the old name. mmpretrain keeps its own class of that name.
@DATASETS.register_module(name=['VerifiedCIFAR100', 'CIFAR100'])
class VerifiedCIFAR100(CIFAR100):
    """`CIFAR-100 <https://www.cs.toronto.edu/~kriz/cifar.html>`_, 32 px RGB, 100 classes.

    Differences from mmpretrain's CIFAR100: the files are read by an unpickler that executes no
    code, existing files are never overwritten, data with other checksums can be accepted, a subset
    can be selected, and images are copied from an array that the workers share instead of being
    unpickled.

    The pipeline receives a dict with ``img``, uint8 (32, 32, 3), and ``gt_label``.

    Args:
        data_root: Directory that holds ``cifar-100-python/`` with the files ``train`` and ``test``.
            The main process downloads missing files into it.
        split: ``'train'`` or ``'test'``.
        verify: Whether to require the official MD5 checksums. False accepts any data in the
            official layout, which is checked in both cases.
        subset: None for the whole split, or ``dict(labels=[...], per_class=N)``, see
            :func:`~mldr_kd_mm.datasets.subset.take_subset`.
        **kwargs: ``download`` (default True), ``pipeline`` and other arguments of mmpretrain's
            CIFAR100.

    Raises:
        ConfigError: Unknown ``split``; files are missing and cannot be downloaded, have other
            checksums, do not follow the layout or hold more than arrays; or ``subset`` asks for
            images that do not exist. If the main process cannot provide the files, every rank
            raises its error.
    """

    METAINFO = {**CIFAR100.METAINFO, 'name': 'CIFAR-100', 'licence': CIFAR_LICENCE}

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        *,
        verify: bool = True,
        subset: dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice(('train', 'test'), split=split)
        if not data_root:
            raise ConfigError("data_root='': must be the directory that holds cifar-100-python/")
        self.verify = verify
        self.subset = subset
        super().__init__(data_root=os.path.expanduser(data_root), split=split, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``{'img': uint8 (32, 32, 3), 'gt_label': int}`` for each image."""
        run_on_main_process(self._provide_files)
        # Each split has a file of its name.
        path = join_path(self.data_prefix['root'], self.base_folder, self.split)
        pixels, labels = _read(path, num_classes=len(self.METAINFO['classes']))
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        data_list = [
            {'img': image, 'gt_label': int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
        data_list, self._metainfo['classes'] = take_subset(data_list, self.CLASSES, self.subset)
        return data_list

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return one record of ``RECORD`` bytes per image, concatenated, and where each ends.

        mmengine stores pickles, which take three times as long to read.
        """
        records = np.empty((len(self.data_list), RECORD), np.uint8)
        for record, info in zip(records, self.data_list, strict=True):
            record[0], record[1:] = info['gt_label'], info['img'].ravel()
        self.data_list.clear()
        return records.ravel(), RECORD * np.arange(1, len(records) + 1)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return ``img``, ``gt_label`` and ``sample_idx`` of one image."""
        if not self.serialize_data:
            return super().get_data_info(idx)
        # Transforms may write into the image, so they get a copy.
        record = self.data_bytes.reshape(-1, RECORD)[idx].copy()
        return {
            'img': record[1:].reshape(SHAPE),
            'gt_label': int(record[0]),
            'sample_idx': idx if idx >= 0 else len(self) + idx,
        }

    def _provide_files(self) -> None:
        """Verify the existing files and download the missing ones."""
        root = self.data_prefix['root']
        missing = []
        for name, md5 in self.train_list + self.test_list:
            path = join_path(root, self.base_folder, name)
            if not exists(path):
                missing.append(name)
            elif self.verify and not check_md5(path, md5):
                raise ConfigError(
                    f'data_root={self.data_root!r}: {path} does not have the official MD5 '
                    f'checksum; replace it, or {ACCEPT}'
                )
        if not missing:
            return

        problem = f'data_root={self.data_root!r} lacks {self.base_folder}/{missing[0]}'
        remedy = f'unpack {self.url} there, so that it holds {self.base_folder}/'
        if not self.download:
            raise ConfigError(f'{problem}; {remedy}, or set download=True')
        if not isinstance(get_file_backend(root), LocalBackend):
            raise ConfigError(f'{problem}, and only local directories support download; {remedy}')
        if not self.verify and len(missing) < len(self.train_list + self.test_list):
            raise ConfigError(
                f'{problem}, and verify=False does not mix official files with others; add the '
                'missing file, or set verify=True'
            )
        try:
            self._download(root)
        except Exception as error:
            raise ConfigError(f'{problem}, and its download failed ({error}); {remedy}') from error

    def _download(self, root: str) -> None:
        """Download the official archive and add the missing files, each of them atomically."""
        archive, folder = Path(root, self.filename), Path(root, self.base_folder)
        if archive.exists() and not check_md5(archive, self.tgz_md5):
            raise ConfigError(f'{archive} does not have the official MD5 checksum; remove it first')
        os.makedirs(root, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as unfinished:
            if not archive.exists():
                fetched = Path(unfinished, self.filename)
                tell(f'Downloading {self.url} to {archive}')
                download(self.url, fetched, MAX_BYTES)
                if not check_md5(fetched, self.tgz_md5):
                    raise ConfigError(f'{self.url} does not have the official MD5 checksum')
                os.replace(fetched, archive)
            extract(archive, Path(unfinished), MAX_BYTES)
            folder.mkdir(exist_ok=True)
            for name in ('train', 'test', 'meta'):
                if not (folder / name).exists():
                    os.rename(Path(unfinished, self.base_folder, name), folder / name)


def _read(path: str, num_classes: int) -> tuple[np.ndarray, list[int]]:
    """Return the pixels, uint8 (N, 3072), and the N labels in a file of the official layout."""
    content = load_pickle(path)
    for key in ('data', 'fine_labels'):
        if key not in content:
            names = ', '.join(sorted(printable(repr(name)) for name in content)[:20]) or 'nothing'
            raise ConfigError(f'{path}: must hold {key!r}, holds {names}')
    pixels, labels = content['data'], content['fine_labels']

    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ConfigError(f"{path}: 'data' must be a uint8 array (N, 3072)")
    if pixels.shape[1] != 3 * 32 * 32 or len(pixels) == 0:
        raise ConfigError(f"{path}: 'data' must be (N, 3072) with N > 0, not {pixels.shape}")
    if not isinstance(labels, (list, np.ndarray)) or len(labels) != len(pixels):
        raise ConfigError(f"{path}: 'fine_labels' must be a list of {len(pixels)} labels")
    for label in labels:
        if not isinstance(label, (int, np.integer)) or not 0 <= label < num_classes:
            raise ConfigError(
                f"{path}: 'fine_labels' holds {printable(repr(label))}, must be 0 to "
                f'{num_classes - 1}'
            )
    return pixels, list(labels)
