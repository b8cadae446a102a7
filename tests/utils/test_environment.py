"""Whoever lacks the environment is told in one line how to get it, from Python and from a shell."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO

from utils import environment

# `-S` leaves site-packages out: a Python into which nothing is installed.
BARE_PYTHON = [sys.executable, "-S"]
GUARDED = [
    path
    for path in (*REPO.glob("*.py"), *REPO.glob("scripts/*.py"), *REPO.glob("scripts/dev/*.py"))
    if "import utils.environment" in path.read_text(encoding="utf-8")
]


def run(command, cwd=REPO, **variables):
    shell = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT_VARIABLES}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**shell, **{key: str(value) for key, value in variables.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


ENVIRONMENT_VARIABLES = {
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "REQUIREMENTS",
}


def test_every_file_that_a_user_runs_is_guarded():
    names = {path.name for path in GUARDED}
    assert {"train.py", "eval.py", "get_flowers.py", "check_data.py"} <= names
    assert {"check_fiftyone.py", "draw_parts.py"} <= names
    assert {"benchmark.py", "soak.py", "make_openapi.py"} <= names


@pytest.mark.parametrize("path", GUARDED, ids=lambda path: path.name)
def test_a_missing_environment_is_one_line(path):
    code, out, error = run([*BARE_PYTHON, path.relative_to(REPO)])
    assert (code, out) == (2, "")
    assert error.startswith(
        f"error: {sys.executable} has no torch, torchvision, numpy and 7 more; "
    )
    assert error.count("\n") == 1
    assert error.endswith(": source .venv/bin/activate\n")


@pytest.mark.parametrize("path", [*GUARDED, REPO / "utils/environment.py"], ids=lambda p: p.name)
def test_an_old_python_can_parse_what_it_runs_first(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("is_made", [False, True])
def test_the_remedy_is_the_next_step_as_seen_from_the_current_folder(tmp_path, is_made):
    (tmp_path / "utils").mkdir()
    shutil.copy(REPO / "utils/environment.py", tmp_path / "utils")
    if is_made:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/activate").touch()
    code, _, error = run([*BARE_PYTHON, "environment.py"], cwd=tmp_path / "utils")
    assert code == 2
    activate = "source ../.venv/bin/activate\n"
    if is_made:
        assert error.endswith(f"; activate the environment: {activate}")
    else:
        expected = f"; make the environment with ../scripts/smoke.sh, then activate it: {activate}"
        assert error.endswith(expected)


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13), (3, 14, 0)])
def test_another_version_is_named(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    number = ".".join(map(str, version))
    expected = f"Python 3.11, 3.12 or 3.13 is needed, but {sys.executable} is {number}"
    assert environment.find_problem() == expected


def test_the_packages_are_those_of_requirements_txt():
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line} - {"pytest"}
    modules = {"ml-collections": "ml_collections", "pillow": "PIL", "pyyaml": "yaml"}
    assert {modules.get(name, name) for name in pinned} == set(environment.PACKAGES)


# --- The set-up of the shell scripts ------------------------------------------------------------


def fake_python(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


OLD = 'test "$1" = --version && echo Python 3.9.6; test "$1" = --version'
# Says that it is supported and has all pins, and prints what else it is asked to run.
READY = 'case "$1" in -c|*check_pins.py) ;; *) echo "$OMP_NUM_THREADS $*" ;; esac'


def test_an_active_environment_of_another_version_is_named_before_pip_runs(tmp_path):
    python = fake_python(tmp_path / "bin/python", OLD)
    code, out, error = run(["bash", "scripts/smoke.sh"], VIRTUAL_ENV=tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(
        f"error: Python 3.11, 3.12 or 3.13 is needed, but {python} is Python 3.9.6; "
    )


def test_a_machine_without_a_supported_python_is_told_before_anything_is_made(tmp_path):
    shutil.copytree(REPO / "scripts", tmp_path / "scripts")
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        fake_python(tmp_path / "bin" / name, OLD)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    code, out, error = run(["bash", "scripts/smoke.sh"], cwd=tmp_path, PATH=path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "is needed, but there is Python 3.9.6; install one" in error
    assert not (tmp_path / ".venv").exists()


def test_a_folder_that_is_not_an_environment_is_not_emptied(tmp_path):
    shutil.copytree(REPO / "scripts", tmp_path / "scripts")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "notes.txt").write_text("precious")
    code, out, error = run(["bash", "scripts/smoke.sh"], cwd=tmp_path)
    assert (code, out) == (2, "")
    assert error == (
        "error: .venv is not an environment of Python (it has no pyvenv.cfg); move it away\n"
    )
    assert (tmp_path / ".venv" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        (["-m", "smoke"], "1 -m pytest -n {cores} --dist worksteal -m smoke"),
        ([], "1 -m pytest -n {cores} --dist worksteal"),
        (["-n", "3", "-x"], " -m pytest -n 3 -x"),
        (["-n0"], " -m pytest -n0"),
        (["--pdb"], " -m pytest --pdb"),
    ],
)
def test_the_tests_run_on_all_cores_unless_told_otherwise(tmp_path, arguments, ran):
    fake_python(tmp_path / "bin/python", READY)
    code, out, error = run(["bash", "scripts/test.sh", *arguments], VIRTUAL_ENV=tmp_path)
    assert (code, error) == (0, "")
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    assert out == ran.format(cores=cores) + "\n"
