"""Packaging of the distribution ``mldr-kd-mm``, whose import name is ``mldr_kd_mm``."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent


def requirements(name):
    """Return the requirements in ``requirements/{name}.txt``."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


# Read instead of imported, because importing the package needs its dependencies.
version = re.search(r"__version__ = '(.+)'", (ROOT / 'mldr_kd_mm/version.py').read_text())[1]

setup(
    # `mim train mldr_kd_mm` looks for a distribution with the import name; - and _ are equal.
    name='mldr-kd-mm',
    version=version,
    description='Knowledge distillation between vision models of any two architectures',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mldr_kd_mm', 'mldr_kd_mm.*']),
    # .mim contains links in the repository and files in the wheel.
    package_data={
        'mldr_kd_mm': [
            'py.typed',
            'visualization/page.html.j2',
            '.mim/model-index.yml',
            '.mim/configs/*/metafile.yml',
            '.mim/configs/*/README.md',
            '.mim/configs/**/*.py',
            '.mim/tools/**/*.py',
            # Scripts that only work in the repository are left out.
            '.mim/tools/_python.sh',
            '.mim/tools/dist_*.sh',
            '.mim/tools/slurm_train.sh',
        ]
    },
    # Loaded by models/losses/relation.py, which works without it if there is no C compiler.
    ext_modules=[
        Extension(
            'mldr_kd_mm.models.losses._relation',
            ['mldr_kd_mm/models/losses/relation.c'],
            extra_compile_args=['-O3', '-Wno-psabi'],
            optional=True,
        )
    ],
    entry_points={'console_scripts': ['mldr-kd = mldr_kd_mm.cli:main']},
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require={
        name: requirements(name)
        for name in ('docs', 'huggingface', 'mamba', 'onnx', 'quickstart', 'search', 'test')
    },
)
