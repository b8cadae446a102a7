"""Every command that the README, the quickstart or CONTRIBUTING shows is run by CI or by a test."""

import re

import pytest
from helpers import REPO

DOCS = [
    "README.md",
    "CONTRIBUTING.md",
    "specs/001-implement-base-pipeline/quickstart.md",
]

# What CI cannot run as it stands, and where it is run instead.
ELSEWHERE = {
    "conda env create -f environment.yml": "needs conda; test_project_files reads the file",
    "conda activate fine-vit": "needs conda",
    "python scripts/get_flowers.py /path/to/data/flower102": "test_get_flowers, local server",
    "export DATA_ROOT=/path/to/data": ".ci/run exports the real place",
    "scripts/test.sh": "the first line of .ci/run, with flags",
    'pytest -m "smoke_train or smoke" -q': "scripts/test.sh runs them all; test_project_files",
    'pytest -m "smoke_eval or smoke" -q': "scripts/test.sh runs them all; test_project_files",
    "python scripts/dev/benchmark.py model --json figures.json --plot growth.png --check": (
        "12 minutes: by hand, and test_benchmark"
    ),
    "python scripts/dev/benchmark.py data --json data.json --check": ".ci/run takes fewer samples",
    "python scripts/dev/benchmark.py save --pairs 3 --check": "2 minutes; ViT-B_16",
    "python scripts/dev/soak.py kills --kills 40": "half an hour; test_soak has a short version",
    "python scripts/dev/soak.py damage --ways 200": "test_soak has a short version",
    "python scripts/dev/soak.py disk": "test_soak has a short version",
    "shasum -a 256 env_export.yml": "macOS's name of sha256sum",
    "python scripts/check_fiftyone.py --predictions output/flower_mps/fiftyone/predictions.jsonl": (
        ".ci/run checks the smoke run's rows"
    ),
    "python scripts/check_fiftyone.py --predictions output/flowers/fiftyone/predictions.jsonl": (
        ".ci/run checks the smoke run's rows"
    ),
}


def commands(name: str) -> list[str]:
    """The lines of a document's bash blocks, without comments."""
    text = (REPO / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


CI_LINES = {line.strip() for line in (REPO / ".ci/run").read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("name", DOCS)
def test_every_command_is_run_somewhere(name):
    shown = commands(name)
    assert len(shown) >= 3
    assert [line for line in shown if line not in CI_LINES and line not in ELSEWHERE] == []


def test_the_list_of_exceptions_is_not_stale():
    shown = {line for name in DOCS for line in commands(name)}
    assert [line for line in ELSEWHERE if line not in shown] == []


@pytest.mark.parametrize("name", DOCS)
def test_links_to_files_of_the_repo_are_right(name):
    text = (REPO / name).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:scripts|specs|tests|utils|models)/[\w./-]+\w)`", text)
    assert [path for path in paths if not (REPO / path).exists()] == []
