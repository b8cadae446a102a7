"""Share what several tests use: the CLI, readers of artifacts, where the real flowers are."""

import hashlib
import json
import os
import resource
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ml_collections import FrozenConfigDict

import eval as eval_entrypoint
import train as train_entrypoint
from models.build import build_model
from models.configs import get_config, model_names
from models.pretrained.zoo import ZOO
from models.vit import Backbone
from utils.cli.flags import FLAGS
from utils.data.batches import Batch, BatchShare
from utils.data.catalog import dataset_names
from utils.data.presets import PRESETS
from utils.data.readers.flowers import is_layout
from utils.data_utils import RunPaths
from utils.run.checkpoint import Checkpoint, save_checkpoint
from utils.training.meter import TrainMeter
from utils.training.step_loader import StepBatches

REPO = Path(__file__).resolve().parent.parent
# What the entrypoints hand to the parser.
CHOICES = {
    "dataset": dataset_names(),
    "model_type": {name: get_config(name) for name in model_names()},
    "pretrained": ZOO,
}

# As small as a run can be while everything happens: two evaluations, warm-up, several batches.
TINY_TRAIN = (
    "--model_type testing --img_size 32 --num_steps 4 --eval_every 2 --train_batch_size 4 "
    "--eval_batch_size 2 --num_workers 0 --device cpu"
)
SUBSETS = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
TINY_EVAL = "--eval_batch_size 2 --num_workers 0 --device cpu"


def _real_flowers() -> Path | None:
    parents = [os.environ.get("DATA_ROOT"), REPO.parent / "shared" / "data"]
    for parent in filter(None, parents):
        for root in (Path(parent), Path(parent) / "flower102"):
            if is_layout(root):
                return root
    return None


REAL_FLOWERS = _real_flowers()


def train_config(**values: object) -> FrozenConfigDict:
    """Return a value for every flag of train.py: its default, unless told."""
    defaults = {flag.name: flag.default for flag in FLAGS.values() if "train" in flag.programs}
    assert values.keys() <= defaults.keys()
    return FrozenConfigDict({**defaults, **values})


def loader_config(**values: object) -> FrozenConfigDict:
    """Return a config for loaders: 4 steps of 4 images at 32 px without workers, unless told."""
    sizes = {"img_size": 32, "num_steps": 4, "train_batch_size": 4, "eval_batch_size": 4}
    augmentation = PRESETS["vit"].augmentation._asdict()
    config = train_config(**{**sizes, **augmentation, "num_workers": 0, **values})
    return FrozenConfigDict({**config, "model": get_config("testing", config.img_size)})


def train(flags: str, *more: str) -> int:
    """Run train.py's main on a line of flags; return the exit code."""
    return train_entrypoint.main([*shlex.split(flags), *map(str, more)])


def evaluate(flags: str, *more: str) -> int:
    """Run eval.py's main on a line of flags; return the exit code."""
    return eval_entrypoint.main([*shlex.split(flags), *map(str, more)])


def rows_of(paths: RunPaths) -> list[dict]:
    """Return the prediction rows of a run."""
    return [json.loads(line) for line in paths.predictions.read_text("utf-8").splitlines()]


def read_json(path: Path) -> dict:
    """Return the JSON object in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def assert_no_nulls(value: object, where: str = "stamp") -> None:
    """Fail if a null or an empty string stands anywhere in a JSON value."""
    assert value is not None, where
    assert value != "", where
    if isinstance(value, dict):
        for key, child in value.items():
            assert_no_nulls(child, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for child in value:
            assert_no_nulls(child, where)


def files_below(folder: Path) -> set[Path]:
    """Return the paths below a folder, relative to it; none if the folder does not exist."""
    return {path.relative_to(folder) for path in folder.rglob("*")} if folder.exists() else set()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return, by tag, the (step, value) pairs of the TensorBoard events in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Save all fields of a checkpoint, changed ones too."""
    about = checkpoint._asdict()
    metrics = {**about.pop("metrics"), "step": about.pop("step")}
    save_checkpoint(path, metrics=metrics, weights=about.pop("state_dict"), about=about)


def sealed(archive: bytes) -> bytes:
    """Return `archive` with its SHA-256 as zip comment, as anybody can who reads our code."""
    archive = archive[:-2] + (64).to_bytes(2, "little")
    return archive + hashlib.sha256(archive).hexdigest().encode()


def whole_part(samples: list[tuple[int, int]]) -> BatchShare:
    """Return these (epoch, position) pairs as the share of the only process."""
    return BatchShare(samples, 0, len(samples))


def random_model(img_size: int, num_classes: int, **fields: object) -> Backbone:
    """Return the `testing` model, every weight away from where it starts (the head from zero)."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(get_config("testing", img_size, **fields), num_classes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def step_of(micro_batches: list[Batch]) -> StepBatches:
    """Return an optimizer step of one process."""
    return StepBatches(micro_batches, [[len(batch.labels)] for batch in micro_batches])


def meter_of(step: int = 0) -> TrainMeter:
    """Return a meter of one process, whose samples are named by their step."""
    return TrainMeter(step, lambda number: [f"sample_{number}"])


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Have writing past `size` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
