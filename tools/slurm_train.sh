#!/usr/bin/env bash
# Train as a Slurm job.
#
#   tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [arguments of tools/train.py]
#
# Environment variables: GPUS (8), GPUS_PER_NODE (8, or GPUS if that is less), CPUS_PER_TASK (5),
# SRUN_ARGS (further arguments of srun), PORT (29500, over which the processes connect).
set -euo pipefail
if [ $# -lt 4 ]; then
    echo 'usage: slurm_train.sh PARTITION JOB CONFIG WORK_DIR [arguments of tools/train.py]' >&2
    exit 2
fi
# shellcheck source=tools/_python.sh
source "$(dirname "${BASH_SOURCE[0]}")/_python.sh"
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
export MASTER_PORT=${PORT:-29500}
# srun starts the processes itself, so torchrun is not needed.
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words.
exec srun --partition="$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} "$PYTHON" -u "$tools/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
