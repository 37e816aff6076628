"""Wheel and sdist are complete, and a project outside the repository can build on them."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SOURCES = [
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'configs',
    'mldr_kd_mm',
    'model-index.yml',
    'pyproject.toml',
    'requirements',
    'setup.py',
    'tools',
]
# These scripts work only in the repository.
NOT_PACKED = {'tools/setup_env.sh', 'tools/quickstart.sh', 'tools/run_tests.sh'}
ONE_STEP = [
    '--cfg-options',
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.num_images=8',
    'val_dataloader.dataset.num_images=8',
]


def run(*command, cwd):
    """Run a program without the repository on its path; return its output, fail on an error."""
    # The path of a constraint may be relative to the repository.
    dropped = ('PYTHONPATH', 'PIP_CONSTRAINT')
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_image_is_built_from_the_same_sources():
    lines = (ROOT / '.dockerignore').read_text().splitlines()
    assert sorted(line[1:] for line in lines if line.startswith('!')) == SOURCES


# Stands for Python in tools/setup_env.sh, and ends it where pip would begin.
STUB = """#!/bin/sh
case "$*" in '-m venv'*) echo "$PIP_EXTRA_INDEX_URL" >"$OUTPUT"; exit 1;; esac
"""


@pytest.mark.parametrize('arguments', [[], ['--cpu-wheels']])
def test_cpu_wheels(tmp_path, arguments):
    stub, output = tmp_path / 'python', tmp_path / 'output'
    stub.write_text(STUB)
    stub.chmod(0o755)
    variables = os.environ | dict(PYTHON=str(stub), OUTPUT=str(output), PIP_EXTRA_INDEX_URL='mine')
    setup = ['bash', ROOT / 'tools/setup_env.sh', *arguments, tmp_path / 'env']
    done = subprocess.run(setup, env=variables, capture_output=True, text=True)
    assert 'could not create an environment' in done.stderr
    assert output.read_text().split() == [
        *(['https://download.pytorch.org/whl/cpu'] if arguments else []),
        'mine',
    ]


def files(folder):
    """Return the files in a folder of the repository, as paths relative to its root."""
    paths = [path for path in (ROOT / folder).rglob('*') if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix != '.pyc'}
    return names - NOT_PACKED


def build_wheel(source, folder):
    """Build a wheel from a folder with the setuptools of this environment; return its path."""
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
    run(*pip, '--wheel-dir', folder, source, cwd=folder)
    (wheel,) = folder.glob('*.whl')
    return wheel


def install(folder, *what):
    """Create an environment with only these parts of the project; return its Python."""
    venv.create(folder)
    (site_packages,) = folder.glob('lib/python*/site-packages')
    # The other packages are those of this environment. A .pth file in a folder that is itself named
    # by a .pth file is not read, so the repository's editable install stays out.
    others = [path for path in sys.path if Path(path).name == 'site-packages']
    (site_packages / 'others.pth').write_text('\n'.join(others))
    # Nor is that of setuptools, which provides mmengine's distutils since Python 3.12.
    for path in Path(others[0]).glob('distutils-precedence.pth'):
        shutil.copy(path, site_packages / 'setuptools.pth')
    python = folder / 'bin/python'
    # Do not try to replace packages of the other environment.
    pip = [python, '-m', 'pip', 'install', '--no-deps', '--no-build-isolation']
    run(*pip, '--ignore-installed', *what, cwd=folder)
    return python


def test_lowest_versions_are_the_lower_bounds():
    """requirements/lowest.txt pins the lower bounds of the other files."""

    def read(name):
        lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
        return [Requirement(line) for line in lines if line and not line.startswith('#')]

    lowest = {pin.name: pin.specifier for pin in read('lowest') if pin.name != 'protobuf'}
    wanted = [*read('runtime'), *read('onnx'), *read('quickstart'), *read('search')]
    assert lowest.keys() == {requirement.name for requirement in wanted}
    for requirement in wanted:
        (bound,) = (str(part)[2:] for part in requirement.specifier if part.operator == '>=')
        (pinned,) = lowest[requirement.name]
        assert pinned.operator == '==' and Version(pinned.version) == Version(bound)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Copy the files that a build reads, since it writes beside them. Links stay links."""
    folder = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '*.so')
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope='module')
def sdist(source, tmp_path_factory):
    """Return the folder of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp('sdist')
    script = f"import setuptools.build_meta as backend; backend.build_sdist('{folder}')"
    run(sys.executable, '-c', script, cwd=source)
    (packed,) = folder.glob('*.tar.gz')
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter='data')
    return folder / packed.name.removesuffix('.tar.gz')


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """Build a wheel from the source distribution, so that a file missing there is noticed."""
    return build_wheel(sdist, tmp_path_factory.mktemp('wheel'))


@pytest.fixture
def project(tmp_path):
    """Return a copy of the downstream project."""
    return shutil.copytree(ROOT / 'examples/downstream_project', tmp_path / 'project')


def test_wheel_has_all_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = [info for info in archive.infolist() if info.filename.endswith('_train.sh')]
    mim = {name.partition('/.mim/')[2] for name in names if '/.mim/' in name}
    assert mim == files('configs') | files('tools') | {'model-index.yml'}
    package = {name for name in files('mldr_kd_mm') if name.endswith(('.py', 'py.typed'))}
    assert package <= names
    assert any(name.endswith('/LICENSE') for name in names)
    assert all(info.external_attr >> 16 & 0o111 for info in scripts)
    assert len(scripts) == 2
    # It may hold the C kernel, so its tag must name the platform.
    assert not wheel.name.endswith('-any.whl')


def test_sdist_has_the_sources(sdist):
    for name in ('LICENSE', 'README.md', 'mldr_kd_mm/models/losses/relation.c'):
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
    assert not any(path.is_symlink() for path in sdist.rglob('*'))


def locate(python, folder):
    """Return where an environment imports the package from, and where its metadata is."""
    script = (
        'from importlib import metadata, util\n'
        "print(util.find_spec('mldr_kd_mm').origin)\n"
        "print(metadata.distribution('mldr_kd_mm').locate_file(''))"
    )
    origin, site_packages = run(python, '-c', script, cwd=folder).split()
    return Path(origin).parent, Path(site_packages)


def test_editable_install(source, tmp_path):
    python = install(tmp_path / 'environment', '--editable', source)
    package, site_packages = locate(python, tmp_path)
    assert source in package.parents
    # `mim train mldr_kd_mm` looks for a distribution of this name.
    assert tmp_path in site_packages.parents


@pytest.mark.slow
def test_project_outside_the_repository(wheel, project, tmp_path):
    python = install(tmp_path / 'environment', wheel, project)
    package, site_packages = locate(python, tmp_path)
    assert tmp_path in package.parents and tmp_path in site_packages.parents
    # By name with the shipped tools, as `mim train` runs them; by path with the project's script.
    by_name = ['configs/mldr_resnet.py', '--launcher', 'none', *ONE_STEP]
    run(python, package / '.mim/tools/train.py', *by_name, cwd=project)
    run(python, 'train.py', 'configs/mldr_mobilenet.py', *ONE_STEP, cwd=project)
    run(python, 'train.py', 'configs/dist_resnet.py', *ONE_STEP, cwd=project)
    for name, loss in (
        ('mldr_resnet', 'loss_dfra_fused'),
        ('mldr_mobilenet', 'loss_dfra_fused'),
        ('dist_resnet', 'loss_dist_logits'),
    ):
        work_dir = project / 'work_dirs' / name
        (scalars,) = work_dir.glob('*/vis_data/scalars.json')
        assert loss in scalars.read_text()
        assert (work_dir / 'epoch_1.pth').is_file()
