"""Compare what two commits compute in a dozen tiny runs on this machine, bit for bit.

    python tests/project/compare_commits.py A B

A and B are commits, or folders that hold the project's files. The runs are those of
`golden_runs.py` beside this file, for both. Compared are weights, optimizer, schedule, averaged
weights and random states, metrics, the digests of the predictions, and the values of TensorBoard's
scalars, but for times. Runs that are stopped and resumed are compared as they end.

Exit code 0: every run is equal. 1: at least one differs, or a command failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from golden_runs import RUNS, run_all
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPO = Path(__file__).resolve().parents[2]
TIMES = ("train/images_per_second", "data/wait_fraction")
LEARNER = {"model", "optimizer", "scheduler"}
SHOWN = 5  # differences of a run


# --- What a run computed, as a flat dict ----------------------------------------------------------


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor, number and text in nested dicts and lists, with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}/{number}")
    else:
        yield path, value


def items_of(value: object) -> list[object]:
    """What a dict, list or tuple holds; nothing of any other value."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def learners_in(value: object) -> Iterator[dict]:
    """The dicts at any depth that hold the state of model, optimizer and schedule."""
    if isinstance(value, dict) and value.keys() >= LEARNER:
        yield value
    else:
        for item in items_of(value):
            yield from learners_in(item)


def random_states_in(value: object) -> Iterator[tuple[str, object]]:
    """The random states at any depth: whose generator's, and what it is made of.

    They are told by their form: torch's is bytes, NumPy's 624 words beside a few numbers, Python's
    a list of 625.
    """
    items = items_of(value)
    if len(items) == 625:
        yield "python", list(items)
        return
    for item in items:
        if not isinstance(item, torch.Tensor):
            yield from random_states_in(item)
        elif item.dtype == torch.uint8:
            yield "torch", item
        elif item.shape == (624,):
            numbers = sorted(repr(n) for n in items if isinstance(n, int | float))
            yield "numpy", (item.tolist(), numbers)


def facts_of_state(path: Path) -> dict[str, object]:
    """Learner and random states of a `last.bin`, whatever the layout of its version.

    Raises:
        ValueError: there are not exactly one learner and as many states of each generator.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    learners = list(learners_in(state))
    random: dict[str, list[object]] = {"python": [], "numpy": [], "torch": []}
    for generator, found in random_states_in(state):
        random[generator].append(found)
    counts = {generator: len(found) for generator, found in random.items()}
    if len(learners) != 1 or len(set(counts.values())) != 1 or not counts["torch"]:
        raise ValueError(f"{path} holds {len(learners)} learners and random states {counts}")
    facts = dict(leaves({name: part for name, part in learners[0].items() if part}))
    for generator, found in random.items():
        facts |= {f"/random/{generator}/{rank}": item for rank, item in enumerate(found)}
    return facts


def facts_of_scalars(folder: Path) -> dict[str, object]:
    """Steps and values of every TensorBoard tag but times."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"]) - set(TIMES)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def facts_of(name: str, folder: Path) -> dict[str, object]:
    """All that is compared of a run."""
    output = folder / "out" / name
    facts: dict[str, object] = facts_of_scalars(output / "tb" / name)
    stamp = json.loads((output / name / "env_stamp.json").read_text("utf-8"))
    facts |= {key: value for key, value in stamp.items() if key.endswith("predictions_digest")}
    facts["config_hash"] = stamp["config_hash"]
    for path in sorted((output / name).iterdir()):
        if path.name.startswith(("metrics", "per_class")):
            facts[path.name] = path.read_text("utf-8")
    for path in sorted((output / name).glob("checkpoints/ckpt*.bin")):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        facts |= {f"{path.name}{key}": value for key, value in leaves(checkpoint)}
    state = output / name / "checkpoints" / "last.bin"
    if state.exists():
        facts |= {f"last.bin{key}": value for key, value in facts_of_state(state).items()}
    return facts


# --- The comparison -------------------------------------------------------------------------------


def is_equal(one: object, other: object) -> bool:
    """Whether two facts are the same to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        is_alike = one.dtype == other.dtype and one.shape == other.shape
        return is_alike and one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and one == other


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names of the facts that only one has, or that differ."""
    return sorted(
        key
        for key in one.keys() | other.keys()
        if key not in one or key not in other or not is_equal(one[key], other[key])
    )


@contextmanager
def tree_of(what: str, folder: Path) -> Iterator[Path]:
    """The folder `what`, or a checkout in `folder` of the commit `what`."""
    if (Path(what) / "train.py").is_file():
        yield Path(what).resolve()
        return
    git = ["git", "-C", str(REPO), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), what], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def compare(one: str, other: str, python: str) -> bool:
    """Run everything with both, and write a line for each run; whether all are equal."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        tree_of(one, Path(temporary) / "tree_1") as first,
        tree_of(other, Path(temporary) / "tree_2") as second,
        ThreadPoolExecutor() as pool,  # each commit's runs use one thread, one after another
    ):
        folders = [Path(temporary) / "runs_1", Path(temporary) / "runs_2"]
        list(pool.map(run_all, (first, second), folders, (python, python)))
        are_equal = True
        for name in RUNS:
            facts = [facts_of(name, folder) for folder in folders]
            found = differences(*facts)
            are_equal = are_equal and not found
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            said = f"differs in {', '.join(found[:SHOWN])}{more}" if found else "equal"
            sys.stdout.write(f"{name}: {said} ({len(facts[0])} facts)\n")
    return are_equal


def main() -> int:
    """Argv to an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("one", help="a commit, or a folder with the project's files")
    parser.add_argument("other", help="another")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the runs")
    try:
        return 0 if compare(**vars(parser.parse_args())) else 1
    except (RuntimeError, OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
