"""Write the folders of images of docs/stability.md from CIFAR-100's official files.

python docs/stability/folders.py data/cifar100/cifar-100-python images
"""

import pickle
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = """wolf fox bear tiger leopard lion elephant camel cattle chimpanzee kangaroo beaver otter
    seal skunk raccoon possum rabbit squirrel hamster""".split()


def main(source: Path, out: Path) -> None:
    """Write OUT/2, OUT/3, ... with the first classes, and OUT/100 with all."""
    names = _read(source / 'meta')['fine_label_names']
    for count in (2, 3, 5, 10, 20, 100):
        classes = CLASSES[:count] if count <= len(CLASSES) else names
        for split, folder in (('train', 'train'), ('test', 'val')):
            data = _read(source / split)
            labels = np.array(data['fine_labels'])
            images = data['data'].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for name in classes:
                where = out / str(count) / folder / name
                where.mkdir(parents=True, exist_ok=True)
                for index in np.flatnonzero(labels == names.index(name)):
                    Image.fromarray(images[index]).save(where / f'{index:05}.png')


def _read(path: Path) -> dict:
    return pickle.loads(path.read_bytes(), encoding='latin1')


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))
