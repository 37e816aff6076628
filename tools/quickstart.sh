#!/usr/bin/env bash
# Create the environment, then distil on the handwritten digits; see tools/quickstart.py.
#
#   tools/quickstart.sh [arguments of tools/quickstart.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup_env.sh .venv
exec .venv/bin/python tools/quickstart.py "$@"
