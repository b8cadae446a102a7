"""Every command that the documents show is run by CI or by a test, and parses as it stands."""

import argparse
import importlib
import re
import shlex

import pytest
from helpers import REPO

GUIDES = sorted(str(path.relative_to(REPO)) for path in REPO.glob("specs/*/guide.md"))
DOCS = [
    "README.md",
    "CONTRIBUTING.md",
    "specs/001-implement-base-pipeline/quickstart.md",
    "specs/004-durable-and-distributed/several-machines.md",
    *GUIDES,
]

PROBE_OF_THE_FLOWERS = (
    "python scripts/probe.py --name first_look --dataset flower102 --model_type ViT-S_14 "
    '--img_size 112 --pretrained "$DATA_ROOT"/weights/dinov2_vits14/model.safetensors '
    "--features class --few_shot 1,2,4,8",
    "python eval.py --name first_look_eval --checkpoint output/first_look/checkpoints/ckpt.bin",
    "python train.py --name continued --dataset flower102 --model_type ViT-S_14 --img_size 112 "
    "--pretrained output/first_look/checkpoints/ckpt.bin --recipe probe-then-finetune "
    "--num_steps 60",
)
# What CI cannot run as it stands, and where it is run instead.
ELSEWHERE = {
    "conda env create -f environment.yml": "needs conda; test_project_files reads the file",
    "conda activate fine-vit": "needs conda",
    "python scripts/get_flowers.py /path/to/data/flower102": "test_get_flowers, local server",
    "export DATA_ROOT=/path/to/data": ".ci/run exports the real place",
    'pytest -m "smoke_train or smoke" -q': "scripts/test.sh runs them all; test_project_files",
    'pytest -m "smoke_eval or smoke" -q': "scripts/test.sh runs them all; test_project_files",
    "python scripts/dev/benchmark.py model --json figures.json --check": (
        "12 minutes: by hand, and test_benchmark"
    ),
    "python scripts/dev/benchmark.py data --json data.json --check": ".ci/run takes fewer samples",
    "python scripts/dev/benchmark.py save --pairs 3 --check": "2 minutes; ViT-B_16",
    "python scripts/dev/soak.py kills --kills 40": "test_soak has a short version",
    "python scripts/dev/soak.py signals --starts 300 --saves 100": ".ci/run has 3 and 2",
    "python scripts/dev/soak.py damage --ways 200": "test_soak has a short version",
    "python scripts/dev/soak.py files": ".ci/run has 5 cases",
    "python scripts/dev/soak.py disk": "test_soak has a short version",
    "shasum -a 256 env_export.yml": "macOS's name of sha256sum",
    "python scripts/check_fiftyone.py --predictions output/flower_mps/fiftyone/predictions.jsonl": (
        ".ci/run checks the smoke run's rows"
    ),
    "python scripts/check_fiftyone.py --predictions output/flowers/fiftyone/predictions.jsonl": (
        ".ci/run checks the smoke run's rows"
    ),
    **dict.fromkeys(
        PROBE_OF_THE_FLOWERS, "minutes; .ci/run probes and continues with 250 of the flowers"
    ),
    **{
        f"torchrun --nnodes=2 {where} --nproc_per_node=1 --master_addr=10.0.0.1 --master_port=29500"
        " train.py --name birds --dataset CUB_200_2011": "needs two machines"
        for where in ("--node_rank=0", "--node_rank=1")
    },
}


def commands(name: str) -> list[str]:
    """Return the lines of a document's bash blocks, without comments."""
    text = (REPO / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


CI_LINES = [line.strip() for line in (REPO / ".ci/run").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", DOCS)
def test_every_command_is_run_somewhere(name):
    shown = commands(name)
    assert len(shown) >= 2
    assert [line for line in shown if line not in CI_LINES and line not in ELSEWHERE] == []


def test_ci_runs_the_commands_of_the_readme_in_their_order():
    *first, activate = (commands("README.md")[i] for i in range(3))
    assert [*first, activate] == [
        "scripts/smoke.sh",
        "scripts/test.sh",
        "source .venv/bin/activate",
    ]
    places = [CI_LINES.index(line) for line in commands("README.md")[3:]]
    assert places == sorted(places)
    assert CI_LINES.index("scripts/test.sh") < CI_LINES.index("scripts/smoke.sh") < places[0]


def test_the_list_of_exceptions_is_not_stale():
    shown = {line for name in DOCS for line in commands(name)}
    assert [line for line in ELSEWHERE if line not in shown] == []


class Parsed(BaseException):
    """The real parser took the arguments; nothing is run."""


def is_ours(command: str) -> bool:
    """Return whether a command gives a Python file of the repo arguments to parse."""
    if "--recipe list" in command:
        return False  # it is answered before anything is parsed
    return (
        re.match(r"(python|torchrun) .*?\b(train|eval|scripts/[\w/]+)\.py\b", command) is not None
    )


@pytest.mark.parametrize("name", DOCS)
def test_every_command_parses(name, monkeypatch):
    really = argparse.ArgumentParser.parse_args

    def parse_only(parser, args=None, namespace=None):
        really(parser, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for command in filter(is_ours, commands(name)):
        words = shlex.split(command)
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        script = importlib.import_module(words[at].removesuffix(".py").replace("/", "."))
        with pytest.raises(Parsed):
            assert script.main(words[at + 1 :]) == 0, command


@pytest.mark.parametrize(
    "name",
    [
        *DOCS,
        *(
            f"specs/001-implement-base-pipeline/{name}.md"
            for name in ("checklists/requirements", "data-model", "plan", "tasks")
        ),
    ],
)
def test_links_to_files_of_the_repo_are_right(name):
    text = (REPO / name).read_text(encoding="utf-8")
    paths = re.findall(r"[`(]((?:scripts|specs|tests|utils|models)/[\w./-]+\w)[`)]", text)
    assert [path for path in paths if not (REPO / path).exists()] == []


def test_the_readme_fits_three_screens():
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
