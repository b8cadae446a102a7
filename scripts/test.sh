#!/usr/bin/env bash
# Make the environment if it is missing, then run the tests. Arguments go to pytest:
#   scripts/test.sh -m smoke -q
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-dev.txt
source scripts/env.sh
"$PYTHON" -m pytest "$@"
