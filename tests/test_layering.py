"""The house rules on imports: two packages that are strangers, entrypoints apart, no cycles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import REPO

MODULES = sorted(
    [*REPO.glob("*.py"), *(REPO / "models").rglob("*.py"), *(REPO / "utils").rglob("*.py")]
)
HEAVY = {"torch", "torchvision", "tensorboard", "fiftyone", "scipy"}
# Imported before the flags are known to be good, so they must be quick to import; and what says of
# itself that it imports no torch.
LIGHT = [
    "train.py",
    "eval.py",
    "models/configs.py",
    "models/pretrained/profiles.py",
    "utils/config.py",
    "utils/flags.py",
    "utils/console.py",
    "utils/data_flags.py",
    "utils/data_utils.py",
    "utils/dataset.py",
    "utils/dependent_flags.py",
    "utils/errors.py",
    "utils/files.py",
    "utils/flag_types.py",
    "utils/images.py",
    "utils/parallel.py",
    "utils/presets.py",
    "utils/recipes.py",
    "utils/run_data.py",
    "utils/splits.py",
    "utils/training_state.py",
    *(path.relative_to(REPO).as_posix() for path in (REPO / "utils" / "readers").glob("*.py")),
]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that the file at `path` imports, dotted, outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_there_is_something_to_look_at():
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_packages_are_strangers_and_entrypoints_apart(path):
    imported = roots(imports(path))
    package = path.relative_to(REPO).parts[0]
    forbidden = {"models": {"utils"}, "utils": {"models"}}.get(package, set())
    assert not imported & (forbidden | {"train", "eval", "tests", "scripts"})


def test_imports_go_one_way():
    """No cycle among the modules of either package."""
    names = {".".join(path.relative_to(REPO).with_suffix("").parts): path for path in MODULES}
    graph = {name: imports(path) & names.keys() for name, path in names.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    assert not roots(imports(REPO / name, top_level_only=True)) & HEAVY


@pytest.mark.parametrize("package", ["models", "models/pretrained", "utils", "utils/readers"])
def test_package_inits_are_empty(package):
    assert (REPO / package / "__init__.py").read_bytes() == b""
