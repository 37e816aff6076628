#!/usr/bin/env bash
# Test in GPUS processes on this machine. The environment variables are those of dist_train.sh.
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
set -euo pipefail
if [ $# -lt 3 ]; then
    echo 'usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]' >&2
    exit 2
fi
# shellcheck source=tools/_python.sh
source "$(dirname "${BASH_SOURCE[0]}")/_python.sh"
exec "$PYTHON" "$tools/_launch.py" "$3" "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
