"""The house rules on structure: who may import whom, and how large anything may be."""

from graphlib import TopologicalSorter

import figures
import pytest
from figures import import_graph, imports, production
from helpers import REPO

MODULES = [
    path for path in production() if path.endswith(".py") and not path.startswith("scripts/")
]
HEAVY = {"torch", "torchvision", "tensorboard", "fiftyone", "scipy"}
# Imported before the flags are known to be good, so they must be quick to import; and what says of
# itself that it imports no torch.
LIGHT = [
    "train.py",
    "eval.py",
    "models/configs.py",
    "models/pretrained/profiles.py",
    "utils/console.py",
    "utils/data_utils.py",
    "utils/dataset.py",
    "utils/entrypoint.py",
    "utils/environment.py",
    "utils/errors.py",
    "utils/files.py",
    "utils/signals.py",
    "utils/data/catalog.py",
    "utils/data/image_checks.py",
    "utils/data/image_files.py",
    "utils/data/presets.py",
    "utils/data/splits.py",
    "utils/data/subsets.py",
    "utils/data/threads.py",
    "utils/run/folder.py",
    "utils/run/lock.py",
    "utils/training/progress.py",
    *(path for path in MODULES if path.startswith(("utils/cli/", "utils/data/readers/"))),
]
# A table may be longer than other files: one topic, a row for each thing.
TABLES = {
    "models/pretrained/layouts.py",
    "utils/cli/flags.py",
    "utils/cli/recipes.py",
    "utils/data/catalog.py",
}


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_there_is_something_to_look_at():
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES)
def test_packages_are_strangers_and_entrypoints_apart(path):
    forbidden = {"models": {"utils"}, "utils": {"models"}}.get(path.partition("/")[0], set())
    assert not roots(imports(path)) & (forbidden | {"train", "eval", "tests", "scripts"})


def test_imports_go_one_way():
    assert list(TopologicalSorter(import_graph()).static_order())  # raises CycleError


def test_the_longest_chain_of_imports_is_bounded():
    chain = figures.longest_chain(import_graph())
    assert len(chain) <= figures.CHAIN, " > ".join(chain)


def test_train_imports_few_project_modules():
    imported = figures.train_imports()
    assert len(imported) <= figures.TRAIN_IMPORTS, sorted(imported)


@pytest.mark.parametrize("path", LIGHT)
def test_light_modules_import_nothing_heavy(path):
    assert not roots(imports(path, top_level_only=True)) & HEAVY


@pytest.mark.parametrize(
    "rule", ["crossed_walls", "full_folders", "long_files", "long_functions", "many_parameters"]
)
def test_nothing_but_the_length_of_a_table_breaks_a_rule(rule):
    found = set(getattr(figures, rule)())
    assert found - (TABLES if rule == "long_files" else set()) == set()


def test_the_formatter_is_rarely_overruled():
    assert figures.fmt_skips() <= figures.FMT_SKIPS


@pytest.mark.parametrize("path", [path for path in MODULES if path.endswith("__init__.py")])
def test_package_inits_are_empty(path):
    assert (REPO / path).read_bytes() == b""
