"""Count what the house promises of its structure: `python tests/project/figures.py`.

Production is every tracked Python or shell file outside tests/ and specs/.
"""

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FILE_LINES, FUNCTION_LINES, PARAMETERS, FILES_IN_FOLDER = 300, 50, 7, 18
CHAIN, TRAIN_IMPORTS, FMT_SKIPS = 12, 16, 15
PRODUCTION_LINES, TEST_LINES = 14_000, 23_000


def tracked() -> list[str]:
    """The paths of all tracked files that exist."""
    listed = subprocess.run(
        ["git", "-C", REPO, "ls-files"], check=True, capture_output=True, text=True
    )
    return [path for path in listed.stdout.splitlines() if (REPO / path).is_file()]


def production() -> list[str]:
    return [
        path
        for path in tracked()
        if path.endswith((".py", ".sh")) and not path.startswith(("tests/", "specs/"))
    ]


def tests() -> list[str]:
    return [path for path in tracked() if path.startswith("tests/") and path.endswith(".py")]


def text_of(path: str) -> str:
    return (REPO / path).read_text(encoding="utf-8")


def lines_of(path: str) -> int:
    return len(text_of(path).splitlines())


# --- Imports --------------------------------------------------------------------------------------


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node)


def imports(path: str, top_level_only: bool = False) -> set[str]:
    """The dotted names of the modules that a file imports, in functions too."""
    tree = ast.parse(text_of(path))
    found = set()
    for node in tree.body if top_level_only else _nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def import_graph() -> dict[str, set[str]]:
    """The production files that each production file imports; empty `__init__` files left out."""
    files = [path for path in production() if path.endswith(".py")]
    module = {path.removesuffix(".py").replace("/", "."): path for path in files}
    return {
        path: {module[name] for name in imports(path) if name in module} - {path}
        for path in files
        if not path.endswith("__init__.py")
    }


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of files in which each imports the next.

    Raises:
        CycleError: files import each other in a circle.
    """
    chains: dict[str, list[str]] = {}
    for path in TopologicalSorter(graph).static_order():
        below = [chains[other] for other in graph.get(path, ())]
        chains[path] = [path, *max(below, key=len, default=[])]
    return max(chains.values(), key=len)


# --- Wings ----------------------------------------------------------------------------------------

# What each wing of utils/ may import besides itself and the ground, which is every file directly
# in utils/ but dataset.py.
WINGS = {
    "ground": (),
    "utils/dataset.py": ("utils/data/",),
    "utils/cli/": ("utils/data/presets.py",),
    "utils/data/": (),
    "utils/training/": ("utils/data/batches.py",),
    "utils/evaluation/": ("utils/data/",),
    "utils/probe/": ("utils/evaluation/", "utils/data/"),
    "utils/run/": (
        "utils/training/",
        "utils/evaluation/",
        "utils/data/",
        "utils/cli/flags.py",
        "utils/dataset.py",
    ),
}


def wing_of(path: str) -> str:
    named = [wing for wing in WINGS if path.startswith(wing)]
    return max(named, key=len, default="ground")


def crossed_walls() -> dict[str, str]:
    """Imports in utils/ that the table of wings does not allow, as `file -> file`."""
    crossed = {}
    for path, imported in import_graph().items():
        if not path.startswith("utils/"):
            continue
        wing = wing_of(path)
        for other in sorted(imported):
            if not other.startswith("utils/") or wing_of(other) in (wing, "ground"):
                continue
            if not other.startswith(WINGS[wing] or ("nothing",)):
                crossed[f"{path} -> {other}"] = "no door"
    return crossed


# --- Sizes ----------------------------------------------------------------------------------------


def _functions(path: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
                if not isinstance(child, ast.ClassDef):
                    yield f"{path} {inner}", child
            yield from walk(child, inner)

    yield from walk(ast.parse(text_of(path)), "")


def code_lines(path: str, function: ast.FunctionDef) -> int:
    """The lines of a function that are neither blank nor a comment nor its docstring."""
    lines = text_of(path).splitlines()
    skipped: set[int] = set()
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        skipped = set(range(first.lineno, first.end_lineno + 1))
    return sum(
        number not in skipped and bool(line.strip()) and not line.strip().startswith("#")
        for number, line in enumerate(lines, 1)
        if function.lineno <= number <= function.end_lineno
    )


def parameters(function: ast.FunctionDef) -> int:
    taken = function.args
    named = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
    extra = sum(each is not None for each in (taken.vararg, taken.kwarg))
    return sum(each.arg not in ("self", "cls") for each in named) + extra


def long_files() -> dict[str, int]:
    sizes = {path: lines_of(path) for path in production()}
    return {path: size for path, size in sizes.items() if size > FILE_LINES}


def long_functions() -> dict[str, int]:
    python = [path for path in production() if path.endswith(".py")]
    sizes = {name: code_lines(path, f) for path in python for name, f in _functions(path)}
    return {name: size for name, size in sizes.items() if size > FUNCTION_LINES}


def many_parameters() -> dict[str, int]:
    python = [path for path in production() if path.endswith(".py")]
    counts = {name: parameters(f) for path in python for name, f in _functions(path)}
    return {name: count for name, count in counts.items() if count > PARAMETERS}


def files_by_folder() -> dict[str, int]:
    """The production files directly in each folder, empty `__init__` files left out."""
    counted = [path for path in production() if not path.endswith("__init__.py")]
    return dict(Counter(path.rpartition("/")[0] or "." for path in counted))


def full_folders() -> dict[str, int]:
    return {
        folder: count
        for folder, count in files_by_folder().items()
        if count > FILES_IN_FOLDER and not folder.endswith("/readers")
    }


def fmt_skips() -> int:
    mark = "# fmt: " + "skip"
    return sum(text_of(path).count(mark) for path in production())


def train_imports() -> set[str]:
    return import_graph()["train.py"]


# --- All of it ------------------------------------------------------------------------------------


def main() -> None:
    chain = longest_chain(import_graph())
    folder, most = max(files_by_folder().items(), key=lambda each: each[1])
    figures = {
        "lines of production": (sum(map(lines_of, production())), PRODUCTION_LINES),
        "lines of tests": (sum(map(lines_of, tests())), TEST_LINES),
        "longest chain of imports": (len(chain), CHAIN),
        f"most files in a folder ({folder})": (most, FILES_IN_FOLDER),
        f"files over {FILE_LINES} lines": (len(long_files()), 0),
        f"functions over {FUNCTION_LINES} lines": (len(long_functions()), 0),
        f"functions with over {PARAMETERS} parameters": (len(many_parameters()), 0),
        "fmt: skip": (fmt_skips(), FMT_SKIPS),
        "project modules that train.py imports": (len(train_imports()), TRAIN_IMPORTS),
        "imports through a wall": (len(crossed_walls()), 0),
    }
    for name, (value, bound) in figures.items():
        print(f"{value:7,} of at most {bound:6,}  {name}")  # noqa: T201 - a script
    print("chain: " + " > ".join(chain))  # noqa: T201
    for counted in (full_folders, long_files, long_functions, many_parameters, crossed_walls):
        for name, value in counted().items():
            print(f"{counted.__name__}: {name}: {value}")  # noqa: T201


if __name__ == "__main__":
    main()
