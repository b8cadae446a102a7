"""The files at the top agree with each other and with what the docs say."""

import re
import subprocess
import sys

import pytest
import yaml
from figures import production
from helpers import REPO

from scripts.dev.check_pins import main as check_pins
from scripts.dev.check_pins import read_pins
from utils.data_utils import RunPaths
from utils.run.folder import retention_note


def test_environment_yml_takes_its_pins_from_requirements_txt():
    environment = yaml.safe_load((REPO / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.txt"]}


def test_pins_are_those_checked_for_the_mac():
    pins = read_pins(REPO / "requirements.txt")
    assert pins.pop("pyyaml")
    assert pins == {
        "torch": "2.14.1",
        "torchvision": "0.29.1",
        "numpy": "2.4.6",
        "scipy": "1.17.1",
        "ml-collections": "1.1.0",
        "tensorboard": "2.21.0",
        "tqdm": "4.70.1",
        "pillow": "13.0.0",
        "pi-heif": "1.4.0",
        "safetensors": "0.8.0",
        "huggingface_hub": "2.4.0",
        "scikit-learn": "1.9.1",
        "matplotlib": "3.11.2",
        "pytest": "9.2.0",
    }


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-fiftyone.txt"])
def test_other_lists_build_on_the_one(name):
    assert read_pins(REPO / "requirements.txt").items() <= read_pins(REPO / name).items()


def test_this_environment_has_the_pins():
    assert check_pins([str(REPO / "requirements.txt")]) == 0


def test_check_pins_notices_another_version_and_an_absent_package(tmp_path):
    for line in ("numpy==0.0.1", "no-such-package-here==1.0"):
        (tmp_path / "requirements.txt").write_text(line + "\n", encoding="utf-8")
        assert check_pins([str(tmp_path / "requirements.txt")]) == 1


def test_smoke_markers_select_what_the_tasks_say():
    """Every smoke test carries `smoke` and one of the two others."""

    class Collector:
        def pytest_collection_modifyitems(self, items):
            self.marks = {
                item.nodeid: {mark.name for mark in item.iter_markers() if "smoke" in mark.name}
                for item in items
            }

    collector = Collector()
    smoke_file = str(REPO / "tests" / "test_smoke.py")
    assert pytest.main(["--collect-only", "-qq", smoke_file], plugins=[collector]) == 0
    kinds = [frozenset(marks) for marks in collector.marks.values()]
    assert set(kinds) == {frozenset({"smoke", kind}) for kind in ("smoke_train", "smoke_eval")}


def test_gitignore_keeps_outputs_and_checkpoints_out():
    lines = (REPO / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"output/*", "output/*/checkpoints"} <= set(lines)


def test_openapi_is_what_the_table_of_flags_says():
    done = subprocess.run(
        [sys.executable, "scripts/dev/make_openapi.py", "--check"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tasks_keep_their_ids():
    text = (REPO / "specs/001-implement-base-pipeline/tasks.md").read_text(encoding="utf-8")
    ids = re.findall(r"^- \[x\] (T\d{3})", text, flags=re.MULTILINE)
    assert ids == [f"T{number:03d}" for number in range(1, 35)]


def test_retention_template_is_what_runs_write():
    checklist = REPO / "specs/001-implement-base-pipeline/checklists/requirements.md"
    template = re.search(r"```text\n(.*?)```", checklist.read_text("utf-8"), re.DOTALL)[1]
    paths = RunPaths(REPO / "output", "demo")
    filled = (
        template.replace("<name>", "demo")
        .replace("<absolute path of the run's folder>", str(paths.run))
        .replace("<date of the run + 90 days, UTC, YYYY-MM-DD>", "2027-01-31")
    )
    assert filled == retention_note(paths, "2027-01-31", (paths.checkpoint, paths.last))


def annotated_tree() -> dict[str, str]:
    """Return what the tree of CONTRIBUTING.md says of each file, by its path."""
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    described: dict[str, str] = {}
    folders: list[str] = []
    for line in re.search(r"```text\n(.*?)```", text, re.DOTALL)[1].splitlines():
        indent, name, said = re.fullmatch(r"((?:  )*)(\S+) *(.*)", line).groups()
        del folders[len(indent) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            path = "".join([*folders, name])
            assert path not in described
            described[path] = said
    return described


def test_the_tree_lists_every_file_with_production_code_and_no_other():
    files = {path for path in production() if (REPO / path).stat().st_size}
    listed = set(annotated_tree())
    assert (files - listed, listed - files) == (set(), set())


def test_the_tree_describes_each_file_in_one_to_twelve_words():
    tree = annotated_tree()
    assert [path for path, said in tree.items() if not 1 <= len(said.split()) <= 12] == []
