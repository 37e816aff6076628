"""CIFAR-100, read without trusting its files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.fileio import LocalBackend, exists, get_file_backend, join_path
from mmengine.logging import print_log
from mmpretrain.datasets import CIFAR100
from mmpretrain.datasets.utils import check_md5

from mldr_kd_mm.datasets.subset import take_subset
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.archive import download, extract
from mldr_kd_mm.utils.dist import run_on_main_process
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.safe_pickle import load_pickle

SHAPE = (32, 32, 3)
LARGEST = 1_000_000_000  # bytes; the archive has 169 million, unpacked it has 186 million
RECORD = 1 + 32 * 32 * 3  # bytes of an image in memory: its label and its pixels


# A bare 'CIFAR100' is ours under this package's default scope and mmpretrain's under its own.
@DATASETS.register_module(name=['VerifiedCIFAR100', 'CIFAR100'])
class VerifiedCIFAR100(CIFAR100):
    """`CIFAR-100 <https://www.cs.toronto.edu/~kriz/cifar.html>`_, 32 px RGB, 100 classes.

    mmpretrain's data set of the same name, with five differences: its files are read by an
    unpickler that runs no code, files that are there are never overwritten, a set with other
    checksums can be accepted, a subset can be taken, and an image is copied from the array that
    the workers share instead of unpickled from it.

    Every item that enters the pipeline is a dict with ``img``, uint8 (32, 32, 3), and ``gt_label``.

    Args:
        data_root: The directory that holds ``cifar-100-python/`` with its files ``train`` and
            ``test``. Missing files are downloaded into it, by the main process alone.
        split: ``'train'`` or ``'test'``.
        verify: Whether the files must have the official MD5 checksums. With False any set in the
            official layout is accepted; its layout is checked in both cases.
        subset: None for the whole split, or ``dict(labels=[...], per_class=N)``, see
            :func:`~mldr_kd_mm.datasets.subset.take_subset`.
        **kwargs: ``download`` (default True), ``pipeline`` and the other arguments of mmpretrain's
            CIFAR100.

    Raises:
        ConfigError: Unknown ``split``; files are missing and not to be had, have other checksums,
            do not follow the layout or hold more than arrays; or ``subset`` asks for what is not
            there. Where the main process fails to provide the files, every process raises its
            message.
    """

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        *,
        verify: bool = True,
        subset: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in ('train', 'test'):
            raise ConfigError(f"split={split!r}: should be 'train' or 'test'")
        if not data_root:
            raise ConfigError("data_root='': must be the directory that holds cifar-100-python/")
        self.verify = verify
        self.subset = subset
        super().__init__(data_root=os.path.expanduser(data_root), split=split, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return one ``{'img': uint8 (32, 32, 3), 'gt_label': int}`` an image."""
        run_on_main_process(self._provide_files)
        # The file of a split has the split's name.
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
        """Return a record of ``RECORD`` bytes an image, one after the other, and where each ends.

        mmengine keeps pickles, from which an image takes three times as long to get.
        """
        records = np.empty((len(self.data_list), RECORD), np.uint8)
        for record, info in zip(records, self.data_list, strict=True):
            record[0], record[1:] = info['gt_label'], info['img'].ravel()
        self.data_list.clear()
        return records.ravel(), RECORD * np.arange(1, len(records) + 1)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return ``img`` and ``gt_label`` of one image, and its index as ``sample_idx``."""
        if not self.serialize_data:
            return super().get_data_info(idx)
        # A copy, as steps of a pipeline may write into the image.
        record = self.data_bytes.reshape(-1, RECORD)[idx].copy()
        return {
            'img': record[1:].reshape(SHAPE),
            'gt_label': int(record[0]),
            'sample_idx': idx if idx >= 0 else len(self) + idx,
        }

    def _provide_files(self) -> None:
        """Check the files that are there, download those that are not."""
        root = self.data_prefix['root']
        missing = []
        for name, md5 in self.train_list + self.test_list:
            path = join_path(root, self.base_folder, name)
            if not exists(path):
                missing.append(name)
            elif self.verify and not check_md5(path, md5):
                raise ConfigError(
                    f'data_root={self.data_root!r}: {path} has another MD5 checksum than the '
                    'official file; replace it, or give verify=False to accept this set as it is'
                )
        if not missing:
            return

        lacking = f'data_root={self.data_root!r} lacks {self.base_folder}/{missing[0]}'
        advice = f'unpack {self.url} there, so that it holds {self.base_folder}/'
        if not self.download:
            raise ConfigError(f'{lacking}; {advice}, or give download=True')
        if not isinstance(get_file_backend(root), LocalBackend):
            raise ConfigError(
                f'{lacking}, and only a local directory can be downloaded to; {advice}'
            )
        if not self.verify and len(missing) < len(self.train_list + self.test_list):
            raise ConfigError(
                f'{lacking}, and with verify=False the official file is not put beside others that '
                'may not be; complete the set, or give verify=True'
            )
        try:
            self._download(root)
        except Exception as error:
            raise ConfigError(f'{lacking}, and its download failed ({error}); {advice}') from error

    def _download(self, root: str) -> None:
        """Download the official archive and unpack what is not there yet, each file whole."""
        archive, folder = Path(root, self.filename), Path(root, self.base_folder)
        if archive.exists() and not check_md5(archive, self.tgz_md5):
            raise ConfigError(f'{archive} is there with another MD5 checksum, remove it first')
        os.makedirs(root, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as unfinished:
            if not archive.exists():
                fetched = Path(unfinished, self.filename)
                print_log(f'Downloading {self.url} to {archive}', 'current')
                download(self.url, fetched, LARGEST)
                if not check_md5(fetched, self.tgz_md5):
                    raise ConfigError(f'{self.url} has another MD5 checksum than the official file')
                os.replace(fetched, archive)
            names = ('train', 'test', 'meta')
            extract(
                archive, [f'{self.base_folder}/{name}' for name in names], Path(unfinished), LARGEST
            )
            folder.mkdir(exist_ok=True)
            for name in names:
                if not (folder / name).exists():
                    os.rename(Path(unfinished, name), folder / name)


def _read(path: str, num_classes: int) -> tuple[np.ndarray, list[int]]:
    """Return the pixels, uint8 (N, 3072), and the N labels of one file in the official layout."""
    content = load_pickle(path)
    for key in ('data', 'fine_labels'):
        if key not in content:
            raise ConfigError(f'{path}: should hold {key!r}, holds {sorted(map(str, content))}')
    pixels, labels = content['data'], content['fine_labels']

    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ConfigError(f"{path}: 'data' should be a uint8 array (N, 3072)")
    if pixels.shape[1] != 3 * 32 * 32 or len(pixels) == 0:
        raise ConfigError(f"{path}: 'data' should be (N, 3072) with N > 0, not {pixels.shape}")
    if not isinstance(labels, (list, np.ndarray)) or len(labels) != len(pixels):
        raise ConfigError(f"{path}: 'fine_labels' should be a list of {len(pixels)}, one an image")
    for label in labels:
        if not isinstance(label, (int, np.integer)) or not 0 <= label < num_classes:
            raise ConfigError(
                f"{path}: 'fine_labels' holds {label!r}, should be 0 to {num_classes - 1}"
            )
    return pixels, list(labels)
