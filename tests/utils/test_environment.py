"""Whoever lacks the environment is told in one line how to get it, from Python and from a shell."""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO, SUBSETS, TINY_TRAIN, read_json

from utils import environment
from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint

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
        f"error: {sys.executable} has no torch, torchvision, numpy and 11 more; "
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
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    assert {modules.get(name, name).replace("-", "_") for name in pinned} == set(
        environment.PACKAGES
    )


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


# --- Variables and streams ------------------------------------------------------------------------

TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', not a whole number from 1 to 1000000; unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not"),
        ({"RANK": "0"}, "RANK is set without WORLD_SIZE; unset it, or start with torchrun"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set without RANK, MASTER_ADDR, MASTER_PORT; unset"),
        ({**TWO, "RANK": "2"}, "RANK is 2, not below WORLD_SIZE, 2"),
        ({**TWO, "RANK": "-1"}, "RANK is '-1', not"),
        ({**TWO, "MASTER_ADDR": ""}, "RANK is set without MASTER_ADDR"),
        ({**TWO, "MASTER_PORT": "http"}, "MASTER_PORT is 'http', not"),
        ({"OMP_NUM_THREADS": "abc"}, "OMP_NUM_THREADS is 'abc', not a number of threads"),
        ({"OMP_NUM_THREADS": ""}, "OMP_NUM_THREADS is '', not"),
        ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS is '0', not"),
        ({}, ""),
        (TWO, ""),
        ({"WORLD_SIZE": "1"}, ""),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ""),
        ({"OMP_NUM_THREADS": " 4,2 "}, ""),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(monkeypatch, variables, said):
    for name in (*TWO, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = environment.find_wrong_variable()
    assert found.startswith(said)
    assert bool(found) is bool(said)


@pytest.mark.parametrize("script", ["train.py", "eval.py", "scripts/check_data.py"])
def test_such_a_variable_ends_every_program_in_one_line(script):
    code, out, error = run([sys.executable, script, "--help"], WORLD_SIZE="")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: WORLD_SIZE is '', not a whole number.*\n", error)


def test_closed_streams_and_warnings_as_errors_change_nothing(drawn, tmp_path):
    """Neither is a file written into in the place of a closed stream."""
    output = tmp_path / "output"
    flags = f"--name run --dataset synthetic {TINY_TRAIN} {SUBSETS} --num_workers 1"
    line = f"{sys.executable} train.py {flags} --data_root {drawn} --output_dir {output}"
    for again, streams in (("", "<&- >&- 2>&-"), ("--resume", "2>&-"), ("--img_size x", "2>&-")):
        shell = ["sh", "-c", f"{line} {again} {streams}"]
        code, _, error = run(shell, PYTHONWARNINGS="error", OMP_NUM_THREADS="1")
        assert (code, error) == (2 if "x" in again else 0, "")
    paths = RunPaths(output, "run")
    assert read_json(paths.env_stamp)["status"] == "finished"
    assert load_checkpoint(paths.checkpoint).step
    assert not paths.lock.exists()


@pytest.mark.parametrize(
    ("hard", "most", "given"),
    [(4_096, 1 << 40, 4_096), (1 << 20, 1 << 40, 65_536), (-1, 61_440, 10_240), (-1, 999, 256)],
)
def test_more_files_may_be_open_as_far_as_the_system_lets_them(monkeypatch, hard, most, given):
    """macOS names no hard limit, and refuses more than one that it does not say."""
    limits = [256, resource.RLIM_INFINITY if hard < 0 else hard]

    def change(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > most:
            raise ValueError("current limit exceeds maximum limit")
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", change)
    environment.allow_more_open_files()
    assert limits[0] == given
