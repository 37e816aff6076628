#!/usr/bin/env bash
# Create the Python environments of this project, or do nothing if they are up to date.
#
#   tools/setup_env.sh [--cpu-wheels] [DIR [UPSTREAM_DIR]]
#
# DIR (default: .venv in the project) gets the packages of the runtime, the tests, the quickstart
# and the documentation, and this project in editable mode. UPSTREAM_DIR, if given, gets the
# original OpenMMLab packages on top of those of DIR. --cpu-wheels installs PyTorch without CUDA,
# if DIR does not exist yet. PYTHON selects the interpreter (default: python3) and PIP_CONSTRAINT, a
# variable of pip, a file of versions such as requirements/lowest.txt.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

size='6 GB'
if [ "${1-}" = --cpu-wheels ]; then
    shift
    size='2 GB'
    # Their versions end with +cpu, which pip prefers to the same versions with CUDA.
    export PIP_EXTRA_INDEX_URL="https://download.pytorch.org/whl/cpu ${PIP_EXTRA_INDEX_URL:-}"
fi

fail() {
    echo "error: $*" >&2
    exit 1
}

# pip_install ARGS...: write pip's output to the log, and large downloads to the screen, too.
pip_install() {
    "$env/bin/python" -m pip install --progress-bar off "$@" 2>&1 | tee -a "$env/setup.log" |
        sed -nuE 's/^ *Downloading ([^ ]+)-[0-9][^ ]* \(([0-9]{3,}\.[0-9] MB)\)$/  \1 (\2)/p
                  s/^Installing collected packages.*/  unpacking/p' || {
        tail -n 15 "$env/setup.log" >&2
        fail "pip failed: run this again, or see $env/setup.log"
    }
}

install_default() {
    echo "installing the packages into $env ($size, a few minutes):"
    # setuptools builds the project itself below.
    pip_install 'setuptools>=77.0.3' -r requirements/runtime.txt -r requirements/test.txt \
        -r requirements/quickstart.txt -r requirements/onnx.txt -r requirements/search.txt \
        -r requirements/docs.txt
    # mmcv requires opencv-python, which needs the system's libGL and glib. The headless build is the
    # same module without the parts that need them.
    local opencv
    opencv=$("$env/bin/python" -m pip show opencv-python | sed -n 's/^Version: //p')
    "$env/bin/python" -m pip uninstall --yes opencv-python >>"$env/setup.log"
    pip_install --no-deps "opencv-python-headless==$opencv"
    pip_install --no-deps --no-build-isolation --editable .
}

install_upstream() {
    echo "installing the original OpenMMLab packages into $env:"
    pip_install --no-deps -r requirements/upstream.txt
    pip_install --no-deps --no-build-isolation --editable .
    # Everything else comes from the default environment. Paths in a .pth file are searched after
    # the site-packages that hold the file, so the packages installed above take precedence.
    site_packages "$default" >"$(site_packages "$env")/default_env.pth"
}

site_packages() {
    "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

need_venv_module() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    local package
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$python cannot create environments; on Debian: sudo apt-get install $package"
    fi
    echo "installing $package"
    { apt-get update && apt-get install --yes "$package"; } >>"$env/setup.log" 2>&1 ||
        fail "$package could not be installed: see $env/setup.log"
}

# make_env INSTALL DIR: create an environment in DIR and fill it with the function INSTALL.
make_env() {
    mkdir -p "$2"
    env=$(cd "$2" && pwd)
    local stamp
    stamp=$({
        echo "$root $env ${PIP_CONSTRAINT:-}"
        "$python" -VV
        cat requirements/*.txt setup.py pyproject.toml tools/setup_env.sh
        cat mldr_kd_mm/models/losses/relation.c
    } | sha256sum)
    if [ "$(cat "$env/setup.stamp" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    if [ -n "$(ls -A "$env")" ] && [ ! -e "$env/setup.log" ]; then
        fail "$env was not created by tools/setup_env.sh: remove it or choose another directory"
    fi
    # The log stays: it marks the directory as ours, so that an interrupted setup can start over.
    touch "$env/setup.log"
    find "$env" -mindepth 1 -maxdepth 1 ! -name setup.log -exec rm -rf {} +
    : >"$env/setup.log"
    need_venv_module
    "$python" -m venv "$env" >>"$env/setup.log" 2>&1 ||
        fail "$python could not create an environment: see $env/setup.log"
    "$1"
    echo "$stamp" >"$env/setup.stamp"
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "Python 3.10 or newer is required, but '$python' is older: set PYTHON"

# Relative directories refer to the caller's current directory, so resolve them before cd.
default=$(realpath -m "${1:-$root/.venv}")
upstream=${2:+$(realpath -m "$2")}
cd "$root"
make_env install_default "$default"
if [ -n "$upstream" ]; then
    make_env install_upstream "$upstream"
fi
