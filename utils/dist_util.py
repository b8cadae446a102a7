"""Choose the device, and stamp a run: config hash, run id, environment."""

import importlib.metadata
import platform
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data_utils import seed_everything
from utils.errors import InputError
from utils.files import canonical_json, read_regular, sha256_text
from utils.processes import hosts, world_size

REPO = Path(__file__).resolve().parent.parent
ENV_EXPORT = REPO / "env_export.yml"
NONE, MISSING = "none", "missing"


# --- Device ---------------------------------------------------------------------------------------


def choose_device(requested: str, prefer_mps: bool, processes: int = 1) -> tuple[torch.device, str]:
    """Return the device to run on, and the reason for the log.

    Args:
        requested: `auto`, `mps`, `cpu` or `cuda`. `auto` is MPS if preferred and available, else
            the CPU; it never takes CUDA.
        prefer_mps: `--prefer_mps`.
        processes: number of processes of the run; several use the CPU.

    Raises:
        InputError: a device was named that is not available.
    """
    if processes > 1:
        if requested not in ("auto", "cpu"):
            raise InputError(
                f"--device {requested}: {processes} processes train on the CPU; use "
                "--device cpu, or one process"
            )
        return torch.device("cpu"), f"{processes} processes"
    has_mps = torch.backends.mps.is_available()
    available = {"cpu": True, "mps": has_mps, "cuda": torch.cuda.is_available()}
    if requested != "auto":
        if not available[requested]:
            there = ", ".join(name for name, is_there in available.items() if is_there)
            raise InputError(f"--device {requested} is not available here; available: {there}")
        return torch.device(requested), "as asked"
    if prefer_mps and has_mps:
        return torch.device("mps"), "preferred and available"
    reason = "MPS is not available" if prefer_mps else "MPS is not preferred"
    return torch.device("cpu"), reason


def open_device(config: FrozenConfigDict) -> torch.device:
    """Choose and log the device of a run, and seed everything.

    Raises:
        InputError: a device was named that is not available.
    """
    device, reason = choose_device(config.device, config.prefer_mps, world_size())
    log.info("device %s (%s)", device, reason)
    seed_everything(config.seed)
    return device


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return name, count and driver of the accelerator in use."""
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        return {
            "gpu_name": torch.cuda.get_device_name(device),
            "gpu_count": torch.cuda.device_count(),
            "driver_version": _output_of(query),
            "cudnn_version": str(torch.backends.cudnn.version()),
        }
    if device.type == "mps":
        return {
            "gpu_name": torch.backends.mps.get_name(),
            "gpu_count": 1,
            "driver_version": f"macOS {platform.mac_ver()[0]}",  # Metal comes with the system
            "cudnn_version": NONE,
        }
    return {"gpu_name": NONE, "gpu_count": 0, "driver_version": NONE, "cudnn_version": NONE}


# --- Identity of a run ----------------------------------------------------------------------------


def config_hash(experiment: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an experiment, as `utils.cli.flags.experiment_of` gives it, in hex."""
    return sha256_text(canonical_json(experiment))


def new_run_id() -> str:
    """Return an id that no other run has: UTC time and 8 random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


# --- Environment ----------------------------------------------------------------------------------


def _output_of(command: list[str]) -> str:
    """Return the first output line of a command; "none" if it fails, is silent or not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return NONE
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else NONE


def _git_facts() -> dict[str, Any]:
    """Return the commit of this repo, and whether the work tree differs from it."""
    commit = _output_of(["git", "-C", str(REPO), "rev-parse", "HEAD"])
    changes = _output_of(["git", "-C", str(REPO), "status", "--porcelain"])
    return {"git_commit": commit, "git_dirty": changes != NONE}


def _normalized(name: str) -> str:
    """Return a package name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages by normalised name."""
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        if found.metadata["Name"]:  # a half-removed package has none
            # The first on the path is the one that is imported.
            versions.setdefault(_normalized(found.metadata["Name"]), found.version)
    return versions


def env_hash(versions: Mapping[str, str]) -> str:
    """Return the SHA-256 over the sorted `name==version` lines, in hex."""
    return sha256_text("\n".join(sorted(f"{name}=={v}" for name, v in versions.items())) + "\n")


def _exported_versions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and version of each pinned package in a conda export or a `pip freeze`."""
    import yaml

    try:
        text = read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{path} cannot be read ({reason}); export it again") from error
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        parsed = None  # a `pip freeze` need not be YAML
    pip: list[Any] = text.splitlines()
    if isinstance(parsed, dict):
        listed = parsed.get("dependencies")
        listed = listed if isinstance(listed, list) else []
        sections = [entry.get("pip") for entry in listed if isinstance(entry, dict)]
        pip = [line for section in sections if isinstance(section, list) for line in section]
        conda = [entry.replace("==", "=").split("=") for entry in listed if isinstance(entry, str)]
        yield from ((parts[0], parts[1]) for parts in conda if len(parts) > 1)
    for line in pip:
        match = re.match(r"\s*([A-Za-z0-9._-]+)==([^\s;]+)", str(line))
        if match:
            yield match[1], match[2]


def check_env(versions: Mapping[str, str], path: Path = ENV_EXPORT) -> dict[str, Any]:
    """Compare the installed packages with an exported list, over the packages in both.

    Args:
        versions: installed versions by normalised name.
        path: output of `conda env export` or `pip freeze`.

    Raises:
        InputError: the file exists but is neither.
    """
    if not path.exists():
        return {"source": NONE, "status": "absent", "differences": []}
    exported = {_normalized(name): version for name, version in _exported_versions(path)}
    if not exported.keys() & versions.keys():
        raise InputError(f"{path} names no package that is installed here; export it again")
    differences = [
        f"{name}: running {versions[name]}, exported {version}"
        for name, version in sorted(exported.items())
        if name in versions and versions[name] != version
    ]
    status = "differs" if differences else "match"
    return {"source": str(path), "status": status, "differences": differences}


def _stampable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return `value` with "none" in place of null and empty strings."""
    if isinstance(value, Mapping):
        return {key: _stampable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stampable(item) for item in value]
    return NONE if value is None or value == "" else value


def build_env_stamp(
    config: FrozenConfigDict,
    experiment: Mapping[str, Any],
    command: str,
    device: torch.device,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything needed to say later what was run (contracts, section 5).

    Args:
        config: resolved config.
        experiment: what of the config enters its hash.
        command: command as typed.
        device: device of the run.
        facts: dataset, subsets, normalisation and checkpoint, which the caller knows.

    Raises:
        InputError: an `env_export.yml` exists but cannot be read.
    """
    versions = installed_versions()
    values = config.to_dict()
    stamp = {
        "run_id": new_run_id(),
        "name": config.name,
        "command": command,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "config_hash": config_hash(experiment),
        "config": values,
        **_git_facts(),
        "os_version": platform.platform(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "torch_build": torch.version.git_version,
        # Looked up, not imported: FiftyOne alone takes seconds.
        **{
            f"{name}_version": versions.get(_normalized(name), MISSING)
            for name in ("torchvision", "ml_collections", "numpy", "fiftyone")
        },
        "device": str(device),
        **_gpu_facts(device),
        "num_threads": torch.get_num_threads(),
        "cuda_version": torch.version.cuda,
        "fp16": False,
        "processes": world_size(),
        "hosts": hosts(),
        "env_hash": env_hash(versions),
        "env_check": check_env(versions),
        "tiny_train_subset_path": values.get("tiny_train_subset"),
        "tiny_infer_subset_path": values.get("tiny_infer_subset"),
        **facts,
    }
    return _stampable(stamp)


# What the stamp says of each start of a run.
_SESSION_KEYS = (
    "command",
    "timestamp",
    "config_hash",
    "git_commit",
    "git_dirty",
    "env_hash",
    "torch_version",
    "device",
    "num_threads",
    "processes",
    "hosts",
)


def with_session(
    stamp: Mapping[str, Any], step: int, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return `stamp` with all starts of its run, this one being the last.

    Args:
        stamp: stamp of this start, from `build_env_stamp`.
        step: optimizer steps done before it.
        earlier: stamp of the run that is resumed; its id, begin and results stay.
    """
    session = {"from_step": step, **{key: stamp[key] for key in _SESSION_KEYS}}
    if earlier is None:
        return {**stamp, "sessions": [session]}
    kept = {
        key: value
        for key, value in earlier.items()
        if key in ("run_id", "timestamp", "artifacts")
        or (isinstance(value, str) and key.endswith("predictions_digest"))
    }
    return {**stamp, **kept, "sessions": [*earlier.get("sessions", []), session]}
