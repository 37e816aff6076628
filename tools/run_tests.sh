#!/usr/bin/env bash
# Lint and test in the environments that tools/setup_env.sh creates; PYTHON and PIP_CONSTRAINT are
# passed on to it.
#
#   tools/run_tests.sh [--all]
#
# --all also runs the tests marked slow: whole tutorials, benchmark scripts and runs of several
# processes that differ little from a faster test.
set -euo pipefail
case ${1-} in
    '') selected=(-m 'not slow') ;;
    --all) selected=() ;;
    *) echo "usage: $0 [--all]" >&2 && exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tests that depend on the OpenMMLab packages also run on the original ones: registries, configs,
# models, hooks of the Runner, checkpoints.
core=(
    tests/test_registry.py
    tests/test_architectures.py::test_any_family_teaches_any
    tests/apis/test_configs.py
    tests/engine/hooks/test_checkpoint.py
    tests/engine/hooks/test_teacher_accuracy.py
    tests/faults/test_exact_resume.py::test_goes_on_after_a_kill
    tests/faults/test_hostile_files.py::TestThroughMMEngine
    tests/models/distillers/test_distiller.py
    tests/models/taps/test_recorder.py
)

failed=()
# part NAME COMMAND...: run one part; a failure does not stop the parts after it.
part() {
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

tools/setup_env.sh .venv .venv-upstream
# Tests that render pages need a browser; without one they are skipped.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo 'installing Chromium'
    { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo 'Chromium could not be installed: its tests are skipped'
fi
# Two processes of one thread each: small tensor operations are slower on two threads. Each takes half
# of the files, so that the fixtures of almost all files are created once; whichever is first takes
# over what the other has left.
tests=(-n 2 --dist worksteal ${selected[@]+"${selected[@]}"})
export OMP_NUM_THREADS=1
part 'lint' .venv/bin/python -m ruff check .
part 'format' .venv/bin/python -m ruff format --check .
part 'imports' .venv/bin/lint-imports --no-cache
part 'core tests on the original OpenMMLab packages' \
    .venv-upstream/bin/python -m pytest "${tests[@]}" "${core[@]}"
part 'tests' .venv/bin/python -m pytest "${tests[@]}"

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo 'all parts passed'
