"""Which images of a folder are trained, and which validate."""

import logging
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import image_folder
from mmengine.logging import MMLogger
from PIL import Image

from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.datasets.folder import _warn_of_16_bits
from mldr_kd_mm.datasets.splits import find_split_folders, hold_out, skip_wrappers
from mldr_kd_mm.utils.errors import ConfigError


def touch(root: Path, *names: str) -> Path:
    """Write empty files, which stand for images that are not read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def split(root: Path, name: str = '.') -> None:
    touch(root, *(f'{name}/{c}/{i}.png' for c in 'ab' for i in range(2)))


def read(root: Path, part: str = 'train', **kwargs) -> ImageFolder:
    # mmengine runs the garbage collector for a serialised data set.
    kwargs |= dict(pipeline=[dict(type='LoadImageFromFile')], serialize_data=False)
    return ImageFolder(str(root), part, **kwargs)


@pytest.fixture
def warnings(caplog):
    """Return a function that gives the warnings so far."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: ' '.join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    logger.removeHandler(caplog.handler)


class TestNames:
    @pytest.mark.parametrize(
        ('folders', 'train', 'val'),
        [
            ('Training Testing', 'Training', 'Testing'),
            ('Train Val', 'Train', 'Val'),
            ('train valid test', 'train', 'valid'),
            ('train validation', 'train', 'validation'),
            ('TRAIN DEV TEST', 'TRAIN', 'DEV'),
            ('training eval testing', 'training', 'eval'),
            ('train test', 'train', 'test'),
            ('train', 'train', None),
        ],
    )
    def test_folders(self, tmp_path, folders, train, val):
        for name in folders.split():
            split(tmp_path, name)
        found = find_split_folders(tmp_path)
        assert (found.train, found.val) == (tmp_path / train, val and tmp_path / val)
        assert len(read(tmp_path).CLASSES) == 2

    def test_others_are_named(self, tmp_path, warnings):
        for name in ('train', 'valid', 'test', 'unlabelled'):
            split(tmp_path, name)
        read(tmp_path)
        assert 'not used: test/, unlabelled/' in warnings()

    def test_images_without_labels_are_not_used(self, tmp_path, warnings):
        split(tmp_path, 'train')
        touch(tmp_path, 'test/1.png')
        assert find_split_folders(tmp_path).val is None
        assert read(tmp_path).CLASSES == ('a', 'b')
        assert 'not used: test/' in warnings()

    def test_names_of_splits_are_classes_too(self, tmp_path):
        """CIFAR-100 has a class train."""
        touch(tmp_path, *(f'{name}/{i}.png' for name in ('bus', 'train', 'test') for i in (0, 1)))
        assert read(tmp_path).CLASSES == ('bus', 'test', 'train')

    @pytest.mark.parametrize(
        ('files', 'message'),
        [
            (('test/a/0.png', 'test/b/0.png', 'a/0.png'), "has 'test' but no train/"),
            (('Train/a/0.png', 'train/a/0.png', 'test/a/0.png'), "has 'Train' and 'train'; must"),
            (('train/a/0.png', 'val/a/0.png', 'dev/a/0.png'), "has 'dev' and 'val'; must have"),
            (('train/0.png', 'Test/0.png'), "'Test' and 'train' must hold a folder of images for"),
            (('train/a/0.png', 'train/b/0.png', 'val/0.png', 'test/a/0.png', 'test/b/0.png'),
             "'val' must hold a folder of images for each class"),
            (('train/steam/0.png', 'train/diesel/0.png', 'bus/0.png'), "'train' holds folders, .*"),
            (('a/train/0.png', 'a/val/1.png', 'b/train/0.png', 'b/val/1.png'), 'not CLASS/train/'),
            (('TrainSet/a/0.png', 'TrainSet/b/0.png', 'test_set/a/0.png', 'test_set/b/0.png'),
             'rename the folders of the splits to train and val'),
            (('birds/a/0.png', 'birds/b/1.png'), "one class, 'birds'; .* or give '.*/birds'"),
        ],
    )  # fmt: skip
    def test_mistakes(self, tmp_path, files, message):
        touch(tmp_path, *files)
        with pytest.raises(ConfigError, match=message):
            read(tmp_path)

    def test_the_same_folders_in_classes(self, tmp_path, warnings):
        touch(tmp_path, *(f'{c}/{t}/{i}.png' for c in 'ab' for t in ('day', 'night') for i in '01'))
        assert read(tmp_path).CLASSES == ('a', 'b')
        assert "'a', 'b' all hold 'day', 'night'; if these are the classes" in warnings()

    def test_wrappers(self, tmp_path):
        assert skip_wrappers(touch(tmp_path / '1', 'x/y/train/a/0.png')) == tmp_path / '1/x/y'
        assert skip_wrappers(touch(tmp_path / '2', 'x/a/0.png', 'x/b/0.png')) == tmp_path / '2/x'
        assert skip_wrappers(touch(tmp_path / '3', 'a/0.png')) == tmp_path / '3'


KNOWN = ['cat/013.jpg', 'cat/016.jpg', 'cat/018.jpg', 'cat/029.jpg', 'cat/034.jpg']


class TestHeldOut:
    NAMES = [f'cat/{number:03}.jpg' for number in range(400)]

    def test_known_choice(self):
        """A later version must choose the same images."""
        assert sorted(hold_out(self.NAMES[:40], 0.1, seed=0)) == KNOWN

    def test_fraction(self):
        for seed in range(3):
            assert 60 <= len(hold_out(self.NAMES, 0.2, seed)) <= 100
        assert hold_out(self.NAMES, 0.2, 0) != hold_out(self.NAMES, 0.2, 1)

    def test_more_images_move_none_to_validation(self):
        for first in range(0, 300, 7):
            for count in (2, 5, 18):
                names = self.NAMES[first : first + count]
                held_out = hold_out(names, 0.1, seed=0)
                for new in self.NAMES[300:340]:
                    assert hold_out([*names, new], 0.1, seed=0) <= held_out | {new}

    @pytest.mark.parametrize('fraction', [1e-9, 1 - 1e-9])
    def test_both_parts_have_an_image(self, fraction):
        for count in (2, 3, 30):
            assert 0 < len(hold_out(self.NAMES[:count], fraction, 0)) < count

    def test_a_new_file_in_the_folder(self, tmp_path):
        root = touch(tmp_path, *(f'{c}/{i}.png' for c in 'abc' for i in range(18)))
        before = set(read(root, 'val').names())
        touch(root, 'a/00.png', 'b/new/7.png', 'c/zz.png')
        assert set(read(root, 'val').names()) - {'a/00.png', 'b/new/7.png', 'c/zz.png'} <= before


class TestFiles:
    def test_other_types_are_counted(self, tmp_path, warnings):
        split(tmp_path)
        touch(tmp_path, 'a/1.jfif', 'a/2.JPE', 'b/3.webp', 'b/4.gif', 'b/5.avif', 'b/6.gif')
        touch(tmp_path, 'b/list', '7.png')
        os.symlink('nowhere.png', tmp_path / 'a/8.png')
        counts = len(read(tmp_path)) + len(read(tmp_path, 'val'))
        assert counts == 7
        text = warnings()
        assert 'not read: 5 files in' in text and '(2 .gif, 1 ' in text
        assert all(f'1 {kind}' in text for kind in ('.avif', 'broken links', 'without a suffix'))
        assert 'not read: 1 image in' in text and 'outside the folders of classes' in text

    def test_a_jpeg_with_another_suffix(self, tmp_path):
        split(tmp_path)
        Image.new('RGB', (5, 4)).save(tmp_path / 'a/0.jfif', 'jpeg')
        for part in ('train', 'val'):
            data = read(tmp_path, part)
            if 'a/0.jfif' in data.names():
                assert data[data.names().index('a/0.jfif')]['img'].shape == (4, 5, 3)
                return
        pytest.fail('the file is not read')

    def test_links_to_folders(self, tmp_path):
        root = touch(tmp_path / 'root', 'a/0.png', 'b/0.png', 'b/1.png')
        touch(tmp_path / 'more', '1.png', 'x/2.png')
        os.symlink(tmp_path / 'more', root / 'a/more')
        os.symlink(tmp_path / 'more', root / 'a/twice')
        os.symlink(tmp_path / 'more', tmp_path / 'more/x/up')
        names = read(root).names() + read(root, 'val').names()
        assert sorted(names) == ['a/0.png', 'a/more/1.png', 'a/more/x/2.png', 'b/0.png', 'b/1.png']

    @pytest.mark.parametrize('target', ['../b', '..', '../../val/a'])
    def test_links_to_other_images(self, tmp_path, target):
        split(tmp_path, 'train')
        split(tmp_path, 'val')
        os.symlink(target, tmp_path / 'train/a/link')
        with pytest.raises(ConfigError, match='are the same folder, through a link; remove'):
            read(tmp_path)

    def test_a_broken_link_to_a_class(self, tmp_path):
        split(tmp_path)
        os.symlink('nowhere', tmp_path / 'c')
        with pytest.raises(ConfigError, match="c' is a broken link"):
            read(tmp_path)

    def test_fingerprint(self, tmp_path):
        root = image_folder(tmp_path / 'here', {'train': 3, 'val': 1})
        shutil.copytree(root, tmp_path / 'there')
        here, there = read(root).fingerprint(), read(tmp_path / 'there').fingerprint()
        assert here == there != read(root, 'val').fingerprint()
        (root / 'train/a/0.png').write_bytes(b'other')
        assert read(root).fingerprint() != there

    def test_fingerprint_of_images_of_one_size(self, tmp_path):
        root = touch(tmp_path, *(f'{name}/{i}.BMP' for name in 'ab' for i in range(20)))
        before = read(root).fingerprint()
        for path in root.rglob('*.BMP'):
            path.write_text('')
        assert read(root).fingerprint() == before
        changed = Path(read(root).get_data_info(0)['img_path'])
        changed.write_text('a')
        one = read(root).fingerprint()
        changed.write_text('b')
        assert len({before, one, read(root).fingerprint()}) == 3


RANDOM = np.random.default_rng(0)
GREY = RANDOM.random((6, 5))
COLOUR = RANDOM.random((6, 5, 3))


class TestDepth:
    @pytest.fixture
    def root(self, tmp_path):
        return image_folder(tmp_path, {'train': 1, 'val': 1})

    @pytest.mark.parametrize('suffix', ['png', 'tiff', 'pgm'])
    @pytest.mark.parametrize('values', [GREY, COLOUR], ids=['grey', 'colour'])
    def test_camera_data(self, root, suffix, values):
        (root / 'train/a/0.png').unlink()
        if suffix == 'pgm' and values is COLOUR:
            suffix = 'ppm'
        path = root / f'train/a/0.{suffix}'
        cv2.imwrite(str(path), (values * (2**12 - 1)).astype(np.uint16))
        with pytest.raises(ConfigError, match=r'a/0.*16 bits per channel, but values up to \d+ on'):
            read(root)[0]

    def test_a_maximum_between_8_and_16_bits(self, root):
        (root / 'train/a/0.png').unlink()
        content = b'P6 2 1 4095\n' + np.array([9, 99, 999, 9, 99, 999], '>u2').tobytes()
        (root / 'train/a/0.ppm').write_bytes(content)
        with pytest.raises(ConfigError, match='a/0.ppm.* 16 bits per channel'):
            read(root)[0]

    def test_transparent_pixels_of_16_bits(self, root):
        (root / 'train/a/0.png').unlink()
        pixels = np.full((8, 8, 4), 2**15, np.uint16)
        cv2.imwrite(str(root / 'train/a/0.tif'), pixels)
        with pytest.raises(ConfigError, match='a/0.tif.* blend its transparent pixels into'):
            read(root)[0]

    @pytest.mark.parametrize(('suffix', 'opaque'), [('tif', False), ('tif', True), ('png', False)])
    def test_transparent_pixels(self, root, suffix, opaque):
        """OpenCV multiplies those of a TIFF by their opacity, and drops those of a PNG."""
        (root / 'train/a/0.png').unlink()
        pixels = np.full((8, 8, 4), 200, np.uint8)
        pixels[..., 3] = 255 if opaque else 128
        path = root / f'train/a/0.{suffix}'
        Image.fromarray(pixels).save(path)
        if suffix == 'tif' and not opaque:
            with pytest.raises(ConfigError, match='a/0.tif.* blend its transparent pixels into'):
                read(root)[0]
        else:
            assert (read(root)[0]['img'] == 200).all()

    @pytest.mark.parametrize(
        ('kind', 'message'),
        [(np.float32, 'its values are floating'), (np.int32, 'its values are 32-bit integers')],
    )
    def test_tiff(self, root, kind, message):
        (root / 'train/a/0.png').unlink()
        Image.fromarray((GREY * 9).astype(kind)).save(root / 'train/a/0.tiff')
        with pytest.raises(ConfigError, match=f'a/0.tiff.*{message}'):
            read(root)[0]

    @pytest.mark.parametrize('values', [GREY, COLOUR, np.zeros((6, 5))])
    def test_all_16_bits(self, root, values, warnings):
        _warn_of_16_bits.cache_clear()
        cv2.imwrite(str(root / 'train/a/0.png'), (values * (2**16 - 1)).astype(np.uint16))
        image = read(root)[0]['img'].astype(float)
        expected = values if values.ndim == 3 else values[..., None]
        assert np.abs(image - expected * 255).max() <= 1.01
        assert 'timm and Pillow clip such images' in warnings()
