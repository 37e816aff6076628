#!/usr/bin/env bash
# Lint, and run all tests, in the environments that tools/setup_env.sh makes, which PYTHON and
# PIP_CONSTRAINT are for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The tests that also run on the original OpenMMLab packages.
core=(
    tests/test_registry.py
    tests/models/taps/test_recorder.py
    tests/models/taps/test_layout.py
    tests/models/taps/test_stages.py
    tests/test_architectures.py
    tests/models/distillers/test_distiller.py
    tests/utils/test_checkpoint.py
    tests/utils/test_atomic_files.py
    tests/faults/test_exact_resume.py
    tests/apis/test_configs.py
    tests/test_packaging.py
    tests/faults/test_hostile_files.py
    tests/engine/hooks/test_checkpoint.py
    tests/engine/hooks/test_teacher_accuracy.py
    tests/models/backbones
    tests/models/losses
    tests/models/necks
)

failed=()
# part NAME COMMAND...: one part of the run; the others follow whatever comes of it.
part() {
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

tools/setup_env.sh .venv .venv-upstream
# For the tests that look at the report; where it cannot be had they are skipped.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo 'installing Chromium'
    { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo 'Chromium could not be installed'
fi
# Two processes with one thread each: small tensor operations are slower on two threads.
export OMP_NUM_THREADS=1
part 'lint' .venv/bin/python -m ruff check .
part 'format' .venv/bin/python -m ruff format --check .
part 'imports' .venv/bin/lint-imports --no-cache
part 'core tests on the original OpenMMLab packages' \
    .venv-upstream/bin/python -m pytest -n 2 "${core[@]}"
part 'tests' .venv/bin/python -m pytest -n 2

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo 'all parts passed'
