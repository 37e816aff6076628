# shellcheck shell=bash
# Sourced by the launch scripts, which work from any directory: sets $tools and $PYTHON.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -x "$tools/../.venv/bin/python" ]; then
        PYTHON=$tools/../.venv/bin/python
    fi
fi
export tools PYTHON
