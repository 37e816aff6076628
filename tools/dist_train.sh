#!/usr/bin/env bash
# Train in GPUS processes on this machine; where there is no GPU, on the CPU, over gloo.
#
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#
# NNODES, NODE_RANK, MASTER_ADDR and PORT describe a run over several machines. PORT is a free one
# by default, or 29500 where there are several machines. MAX_RESTARTS=3 starts all processes again,
# up to three times, when one has ended; they go on from the last checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo 'usage: dist_train.sh CONFIG GPUS [arguments of tools/train.py]' >&2
    exit 2
fi
# shellcheck source=tools/_python.sh
source "$(dirname "${BASH_SOURCE[0]}")/_python.sh"
exec "$PYTHON" "$tools/_launch.py" "$2" "$tools/train.py" "$1" --launcher pytorch "${@:3}"
