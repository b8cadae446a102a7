# Sourced from the repo root by the other scripts: leaves the environment's python in $PYTHON.
#
# An active venv or conda env is used as it is; otherwise .venv is made. What requirements.txt pins
# is installed where it is missing or of another version, so an interrupted set-up mends itself.
# Optional: REQUIREMENTS, the file to install (default requirements.txt).

REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install one (environment.yml has 3.11)" >&2
  return 1
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
  PYTHON=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
  # conda activates its base by itself in every shell, so base is nobody's choice
  PYTHON=$CONDA_PREFIX/bin/python
else
  PYTHON=$PWD/.venv/bin/python
  if ! "$PYTHON" -c '' 2>/dev/null; then
    echo "making the environment in .venv"
    base_python=$(find_python)
    "$base_python" -m venv --clear .venv
  fi
fi

if ! "$PYTHON" scripts/dev/check_pins.py "$REQUIREMENTS"; then
  echo "installing $REQUIREMENTS into $("$PYTHON" -c 'import sys; print(sys.prefix)')"
  # pip compiles to bytecode on one core (93 s of CPU for requirements-dev.txt); compileall takes all.
  # It fails where a package carries a file in another Python's syntax; so does pip, silently. Left
  # to the first import, bytecode would be made by every process anew where PYTHONDONTWRITEBYTECODE
  # is set: tests that start some took two to three times as long.
  "$PYTHON" -m pip install --quiet --no-compile --disable-pip-version-check -r "$REQUIREMENTS"
  "$PYTHON" -m compileall -qq -j 0 \
    "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
fi
