#!/usr/bin/env bash
# Make the environment if it is missing, then run the tests on all cores. Arguments go to pytest:
#   scripts/test.sh -m smoke
#   scripts/test.sh -n 0 -x tests/models    # in one process
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-dev.txt
source scripts/env.sh

case " $* " in
  *" -n"* | *" --numprocesses"* | *" --pdb "*) ;;
  *)
    # A process for each core. With more threads than one each, they would wait for one another.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    set -- -n "$(getconf _NPROCESSORS_ONLN)" --dist worksteal "$@"
    ;;
esac
"$PYTHON" -m pytest "$@"
