# Make the environment if it is missing. The other scripts source this file from the repo's top.
# It sets $PYTHON to the Python of the environment.
#
# It uses an active venv or conda environment, and makes .venv otherwise. It installs the packages
# of $REQUIREMENTS (default requirements.txt) that are missing or of another version, so an
# interrupted set-up mends itself.

REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

fail() {
  echo "error: $*" >&2
  exit 2
}

# Succeed if the Python named in $1 runs and has one of the versions of utils/environment.py.
is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3; do
    if is_supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
  PYTHON=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
  # Every shell of a conda user activates base, so base is not a choice.
  PYTHON=$CONDA_PREFIX/bin/python
else
  PYTHON=$PWD/.venv/bin/python
  if ! "$PYTHON" -c '' 2> /dev/null; then
    base_python=$(find_python)
    # --clear empties the folder.
    [ ! -e .venv ] || [ -f .venv/pyvenv.cfg ] || fail ".venv is not an environment of Python (it" \
      "has no pyvenv.cfg); move it away"
    [ -n "$base_python" ] || fail "Python 3.11, 3.12 or 3.13 is needed, but there is" \
      "$(python3 --version 2>&1 || true); install one from python.org or Homebrew, or use conda" \
      "(environment.yml)"
    echo "making the environment in .venv with $("$base_python" --version)"
    "$base_python" -m venv --clear .venv
  fi
fi
is_supported "$PYTHON" || fail "Python 3.11, 3.12 or 3.13 is needed, but $PYTHON is" \
  "$("$PYTHON" --version 2>&1 || true); deactivate that environment, or delete .venv if it is this one"

if ! "$PYTHON" scripts/dev/check_pins.py "$REQUIREMENTS"; then
  echo "installing the missing packages of $REQUIREMENTS; pip says nothing meanwhile"
  if ! "$PYTHON" -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("torch"))'; then
    echo "PyTorch is most of it: about 1 GB of disk on macOS, 6 GB on Linux, where it brings CUDA;"
    echo "it takes 2 minutes or more, depending on your network"
  fi
  "$PYTHON" -m pip install --quiet --no-compile --disable-pip-version-check -r "$REQUIREMENTS"
  echo "compiling the packages to bytecode on all cores (about half a minute)"
  # pip compiles on one core (93 s of CPU for requirements-dev.txt), compileall on all of them. It
  # fails where a package carries a file in another Python's syntax; pip ignores that silently. If
  # the first import had to compile, every process would do so again where PYTHONDONTWRITEBYTECODE
  # is set: tests that start processes took two to three times as long.
  "$PYTHON" -m compileall -qq -j 0 \
    "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
fi
