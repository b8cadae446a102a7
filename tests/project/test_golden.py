"""Pin what a dozen tiny runs leave behind, as far as it is the same on every machine.

`golden_runs.py` holds the runs, `golden.json` the pinned values: a line for each fact. They change
only where the project's contracts do. What depends on the machine's arithmetic (weights, metrics,
values of scalars) is compared between two commits by `compare_commits.py`.

After a change of a contract, write the pinned values anew and read what changed in the diff:

    python tests/project/test_golden.py --write
"""

import csv
import hashlib
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from golden_runs import RUNS, run_all
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli.flags import FLAGS

REPO = Path(__file__).resolve().parents[2]
PINNED = Path(__file__).with_name("golden.json")
# Flags that leave the config hash as it is, at their defaults. A stamp may have more of these than
# the pinned values, which are older; what they must not change is pinned beside.
UNHASHED = {flag.name for flag in FLAGS.values() if flag.hashed in ("never", "if_not_default")}


# --- Facts of one run -----------------------------------------------------------------------------


def keys_of(value: object, prefix: str = "") -> set[str]:
    """The keys in a JSON value, nested ones with dots, those in lists after `[]`."""
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item, f"{prefix}[]")}
    if not isinstance(value, dict):
        return set()
    keys = set()
    for key, item in value.items():
        path = f"{prefix}.{key}" if prefix else key
        keys |= {path} | keys_of(item, path)
    return keys


def files_of(folder: Path) -> list[str]:
    """The files below a folder; host, time and hashes in their names are `*`."""
    names = []
    for path in folder.rglob("*"):
        if not path.is_dir():
            name = path.relative_to(folder).as_posix()
            name = re.sub(r"(events\.out\.tfevents\.).*", r"\1*", name)
            names.append(re.sub(r"[0-9a-f]{12,}", "*", name))
    counted = sorted(Counter(names).items())
    return [name if count == 1 else f"{name} x {count}" for name, count in counted]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hash_of(experiment: dict) -> str:
    """The config hash of an experiment: SHA-256 of its compact JSON with sorted keys."""
    text = json.dumps(experiment, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode())


def hash_without_checkpoint(stamp: dict, folder: Path) -> str:
    """An evaluation's config hash as it would be without a checkpoint.

    The bytes of a checkpoint depend on the machine's arithmetic, and with them the stamped hash;
    that it is made of nothing else is asserted.

    Args:
        stamp: of the evaluation.
        folder: to which paths in its config are relative.
    """
    # A stamp says "none" for null; of what is hashed here, only --tta has a value of that name.
    experiment = {
        key: None if value == "none" and key != "tta" else value
        for key, value in stamp["config"].items()
        if key not in UNHASHED
    }
    for key in ("checkpoint", "tiny_infer_subset"):
        if experiment[key] is not None:
            experiment[key] = sha256((folder / experiment[key]).read_bytes())
    # In the model's config too.
    model = experiment["model"].items()
    experiment["model"] = {key: None if value == "none" else value for key, value in model}
    assert stamp["config_hash"] == hash_of(experiment)
    del experiment["checkpoint"]
    return hash_of(experiment)


def facts_of_stamp(stamp: dict) -> dict[str, object]:
    names = (
        "carving",
        "dataset",
        "micro_batches",
        "normalization",
        "processes",
        "seed",
        "selected_on",
        "skipped_images",
        "status",
        "tiny_infer_subset",
        "tiny_train_subset",
    )
    return {
        "stamp_keys": sorted(keys_of(stamp)),
        "stamp_values": {name: stamp[name] for name in names if name in stamp},
        "sessions": [session["from_step"] for session in stamp.get("sessions", [])],
    }


def facts_of_rows(path: Path) -> dict[str, object]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert all(keys_of(row) == keys_of(rows[0]) for row in rows)
    return {
        "ids": [row["sample_id"] for row in rows],
        "labels": Counter(row["ground_truth"]["label"] for row in rows),
        "keys": sorted(keys_of(rows[0])),
    }


def facts_of_checkpoint(path: Path) -> dict[str, object]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    weights = checkpoint.pop("state_dict")
    return {
        "keys": sorted(keys_of(checkpoint)),
        "version": checkpoint["version"],
        "weights": [f"{name} {tuple(value.shape)}" for name, value in sorted(weights.items())],
    }


def scalars_of(folder: Path) -> dict[str, list[int]]:
    """The steps at which a run wrote each TensorBoard tag."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def facts_of(name: str, folder: Path) -> dict[str, object]:
    """What is pinned of the run `name`.

    Args:
        name: of a run.
        folder: in which `run_all` ran all of them.
    """
    output = folder / "out" / name
    run = output / name
    facts = {"files": files_of(output)}
    stamp = json.loads((run / "env_stamp.json").read_text("utf-8"))
    scalars = scalars_of(output / "tb" / name)
    if RUNS[name][-1].script == "train":
        facts |= {"config_hash": stamp["config_hash"], "scalars": scalars}
    else:  # which step the best checkpoint is of depends on arithmetic
        facts |= {"config_hash": hash_without_checkpoint(stamp, folder), "scalars": list(scalars)}
    facts |= facts_of_stamp(stamp)
    labelmap = json.loads((run / "labelmap.json").read_text("utf-8"))
    compact = json.dumps(labelmap["classes"], separators=(",", ":"), ensure_ascii=False)
    assert labelmap["checksum"] == sha256(compact.encode())
    facts["labelmap"] = {**labelmap, "classes": len(labelmap["classes"])}
    for path in run.glob("metrics*.json"):
        facts[path.name] = sorted(keys_of(json.loads(path.read_text("utf-8"))))
    for path in run.glob("per_class*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            facts[path.name] = next(csv.reader(file))
    for path in run.glob("fiftyone/*.jsonl"):
        facts |= {f"{path.name} {key}": value for key, value in facts_of_rows(path).items()}
    for path in run.glob("checkpoints/ckpt*.bin"):
        facts |= {f"{path.name} {key}": value for key, value in facts_of_checkpoint(path).items()}
    # Without tuples and counters, as the pinned values are read.
    return json.loads(json.dumps(facts))


# --- The test -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all the runs have left their files."""
    folder = tmp_path_factory.mktemp("golden") / "runs"
    run_all(REPO, folder)
    return folder


@pytest.fixture(scope="module")
def pinned() -> dict[str, dict]:
    return json.loads(PINNED.read_text("utf-8"))


def test_every_run_is_pinned(pinned):
    assert sorted(pinned) == sorted(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_what_is_pinned(folder, pinned, name):
    found = facts_of(name, folder)
    assert sorted(found) == sorted(pinned[name])
    newer = {f"config.{flag}" for flag in UNHASHED} - {*pinned[name]["stamp_keys"]}
    found["stamp_keys"] = [key for key in found["stamp_keys"] if key not in newer]
    for fact, value in found.items():
        assert value == pinned[name][fact], fact


def write() -> None:
    """Pin what the runs leave behind now."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "runs"
        run_all(REPO, folder)
        runs = []
        for name in sorted(RUNS):
            facts = facts_of(name, folder)
            lines = [f"  {json.dumps(key)}: {json.dumps(facts[key])}" for key in sorted(facts)]
            runs.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    PINNED.write_text("{\n" + ",\n".join(runs) + "\n}\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("error: --write pins the values anew; the test itself is run by pytest")
    write()
