#!/usr/bin/env bash
# Train in GPUS processes on this machine. Without a GPU the processes run on the CPU, over gloo.
#
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#   tools/dist_train.sh configs/pairs/PAIR.py GPUS --method mldr
#
# NNODES, NODE_RANK, MASTER_ADDR and PORT configure a run on several machines. PORT defaults to a
# free port, or to 29500 for several machines. MAX_RESTARTS=3 restarts all processes up to three
# times if one ends; they resume from the last checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo 'usage: dist_train.sh CONFIG GPUS [arguments of tools/train.py]' >&2
    exit 2
fi
# shellcheck source=tools/_python.sh
source "$(dirname "${BASH_SOURCE[0]}")/_python.sh"
exec "$PYTHON" "$tools/_launch.py" "$2" "$tools/train.py" "$1" --launcher pytorch "${@:3}"
