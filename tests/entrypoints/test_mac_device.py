"""What a machine without MPS can prove about training and evaluating on MPS.

`pretended_mps.py` plays the GPU. Not provable here: that the Metal kernels compute the right
numbers, and how fast.
"""

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchgen
import yaml
from helpers import (
    TINY_TRAIN,
    evaluate,
    loader_config,
    meter_of,
    read_json,
    step_of,
    train,
    train_config,
)
from pretended_mps import CPU, MPS, MpsTensor, PretendedMps, attention_as_on_mps, pretended_mps

from models import activation_checkpointing
from models.build import build_model, freeze
from models.configs import get_config
from models.losses import Objective
from models.pretrained.profiles import GOOGLE
from utils.data import batches
from utils.data.catalog import get_spec
from utils.data.loaders import eval_loader, train_loader
from utils.data.presets import PRESETS
from utils.data_utils import RunPaths
from utils.dataset import open_split
from utils.evaluation import evaluate as evaluate_module
from utils.training import meter as meter_module
from utils.training import train_step
from utils.training.learner import Learner
from utils.training.optimizer import build_optimizer

IMG_SIZE = 32


class Kind(NamedTuple):
    """A model, and how it is trained."""

    fields: dict[str, Any]  # of the `testing` config
    optimizer: str = "sgd"
    is_joint: bool = False  # the loss is over all micro-batches together
    grad_checkpointing: bool = False
    class_weights: bool = False
    layer_decay: float | None = None
    frozen: str = "none"


PARTS, OVERLAP = {"head": "parts"}, {"head": "parts", "patch_stride": 8}
RANDOM = {"dropout": 0.2, "drop_path": 0.4}
KINDS = {
    "token": Kind({}),
    "avg": Kind({"pool": "avg"}, "adamw"),
    "map": Kind({"pool": "map", "class_token": False, "activation": "gelu_tanh"}),
    "clip": Kind({"pre_norm": True, "activation": "quick_gelu"}, class_weights=True),
    "dinov2": Kind({"num_registers": 2, "layer_scale": 0.5}, "adamw", layer_decay=0.7, frozen="1"),
    "random": Kind(RANDOM, grad_checkpointing=True),
    "parts": Kind(PARTS, class_weights=True),
    "parts, frozen": Kind(PARTS, "adamw", frozen="backbone", layer_decay=0.7),
    "overlap": Kind(OVERLAP, is_joint=True),
    "everything": Kind(
        {
            **OVERLAP,
            **RANDOM,
            "num_registers": 2,
            "layer_scale": 0.5,
            "pre_norm": True,
            "activation": "quick_gelu",
        },
        "adamw",
        is_joint=True,
        grad_checkpointing=True,
        class_weights=True,
        layer_decay=0.7,
    ),
}


@pytest.fixture(scope="module")
def split(drawn):
    return open_split(get_spec("synthetic"), drawn, "train")


# --- Training and evaluating ----------------------------------------------------------------------


class Trained:
    """The model, two batches of data and all that training needs, on one device."""

    def __init__(self, split, device: torch.device, kind: Kind) -> None:
        torch.manual_seed(0)
        config = get_config("testing", IMG_SIZE, **kind.fields)
        self.model = build_model(config, len(split.classes))
        self.model.grad_checkpointing = kind.grad_checkpointing
        freeze(self.model, kind.frozen)
        self.model.to(device).train()
        torch.manual_seed(1)  # what is drawn from here on, is drawn on the device
        flags = train_config(
            optimizer=kind.optimizer,
            learning_rate=0.05,
            weight_decay=0.1,
            layer_decay=kind.layer_decay,
        )
        self.optimizer = build_optimizer(
            self.model, flags, self.model.no_weight_decay(), self.model.layer_of
        )
        weights = torch.linspace(0.5, 1.5, len(split.classes)).to(device)
        self.objective = Objective(
            0.1,
            weights if kind.class_weights else None,
            1.0 if config.head == "parts" else 0.0,
        )
        self.learner = Learner(self.model, self.model, self.optimizer, None, None, kind.is_joint)
        self.normalize = batches.Normalizer(GOOGLE.normalization, device)
        self.micro_batches = list(train_loader(loader_config(num_steps=2), split, 1, device))
        self.eval_loader = eval_loader(loader_config(), split.select(range(10)), device)

    def step(self) -> meter_module.StepResult:
        return train_step.train_step(
            self.learner, self.objective, step_of(self.micro_batches), self.normalize, 1.0
        )

    def evaluate(self) -> evaluate_module.Evaluation:
        return evaluate_module.evaluate(
            self.model, self.eval_loader, self.normalize, PRESETS["vit"]
        )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_on_the_device_gives_the_bits_of_the_cpu(split, kind):
    with attention_as_on_mps():
        here = Trained(split, CPU, kind)
        expected = [here.step() for _ in range(2)], here.evaluate()
    with pretended_mps() as mps:
        there = Trained(split, torch.device("mps"), kind)
        meter = meter_of()
        results = [there.step() for _ in range(2)]
        for result in results:
            meter.add(result, 0.0)
        assert mps.reads == {}  # the program waits for the device when it reads
        assert meter.read()["loss"] > 0
        assert mps.reads == {"tolist": 1}  # for both steps, not each
        given = results, there.evaluate()
        assert all(isinstance(p, MpsTensor) for p in there.model.parameters())
        assert all(isinstance(value, MpsTensor) for result in given[0] for value in result[:2])
        weights = {key: value.cpu() for key, value in there.model.state_dict().items()}
        results = [[value.cpu() for value in result[:2]] for result in given[0]]
    check_operators(mps, kind)
    assert all(torch.equal(weights[k], v) for k, v in here.model.state_dict().items())
    assert results == [list(result[:2]) for result in expected[0]]
    assert np.array_equal(given[1].logits, expected[1].logits)
    assert np.array_equal(given[1].labels, expected[1].labels)
    assert given[1].logits.std() > 0
    if kind.fields.get("head") == "parts":
        assert np.array_equal(given[1].parts, expected[1].parts)
        assert given[1].parts.shape == (10, 4, 2)
    else:
        assert given[1].parts is expected[1].parts is None


@pytest.mark.parametrize(
    ("head", "is_joint"), [({}, False), (OVERLAP, True)], ids=["token, micro", "overlap, joint"]
)
def test_recomputing_on_the_device_draws_again_what_it_drew(split, head, is_joint, monkeypatch):
    """The generator is the device's own: torch alone would not put it back."""

    def weights(grad_checkpointing: bool, is_joint: bool, forward: str = "checkpointed"):
        with pretended_mps():
            kind = Kind({**head, **RANDOM}, "sgd", is_joint, grad_checkpointing)
            trained = Trained(split, torch.device("mps"), kind)
            if forward == "remembered":
                trained.model.checkpointed_forward = trained.model.forward
            for _ in range(2):
                trained.step()
            return torch.cat([p.detach().cpu().flatten() for p in trained.model.parameters()])

    expected = weights(False, is_joint, "remembered" if is_joint else "checkpointed")
    kinds = [(True, is_joint)] + ([(False, True)] if is_joint else [])
    for grad_checkpointing, joint in kinds:
        assert torch.equal(weights(grad_checkpointing, joint), expected)
    monkeypatch.setattr(
        activation_checkpointing, "_replay_mps", lambda: (nullcontext(), nullcontext())
    )
    assert not torch.equal(weights(True, is_joint), expected)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--head parts --split overlap --contrastive_scope effective --grad_checkpointing "
        "--optimizer adamw --layer_decay 0.7 --class_weights balanced --freeze 1",
    ],
    ids=["token", "parts"],
)
def test_both_entrypoints_on_the_device_give_the_files_of_the_cpu(drawn, tmp_path, more):
    cpu, mps, again = (RunPaths(tmp_path, name) for name in ("cpu", "mps", "again"))
    data = "--data_root", drawn, "--output_dir", tmp_path, "--tiny_infer_subset", "synthetic_tiny"
    flags = f"--dataset synthetic {TINY_TRAIN} --gradient_accumulation_steps 2 {more}"
    with attention_as_on_mps():
        assert train(f"--name cpu {flags}", *data) == 0
    with pretended_mps() as device:
        assert train(f"--name mps {flags} --device auto", *data) == 0
        trained = device.operators.total()
        flags = "--name again --eval_batch_size 2 --num_workers 0 --checkpoint"
        assert evaluate(flags, mps.checkpoint, *data) == 0
        assert 0 < trained < device.operators.total()
    assert without_mps_route(device.operators) == set()
    assert mps.checkpoint.read_bytes() == cpu.checkpoint.read_bytes()
    assert mps.metrics.read_bytes() == cpu.metrics.read_bytes() == again.metrics.read_bytes()
    stamps = [read_json(run.env_stamp) for run in (cpu, mps, again)]
    assert [stamp["device"] for stamp in stamps] == ["cpu", "mps", "mps"]
    assert [stamp["gpu_count"] for stamp in stamps] == [0, 1, 1]
    assert len({stamp["predictions_digest"] for stamp in stamps}) == 1
    assert [stamp["micro_batches"] for stamp in stamps[:2]] == [2, 2]
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]


# --- The pretended device itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: x.double(), TypeError, "MPS doesn't support torch.float64"),
        (lambda x: x + torch.ones(3), RuntimeError, "expected all tensors on mps:0"),
        (np.asarray, TypeError, "can't convert mps:0 device type tensor to numpy"),
        (lambda x: torch.ones(3).to("mps", non_blocking=True), RuntimeError, "can corrupt data"),
    ],
)
def test_the_device_refuses_what_mps_refuses(wrong, error, message):
    with pretended_mps():
        x = torch.ones(3).to("mps")
        assert (x + 1.5).cpu().tolist() == [2.5, 2.5, 2.5]
        with pytest.raises(error, match=message):
            wrong(x)


# --- Operators ------------------------------------------------------------------------------------


@functools.cache
def native_functions() -> dict[str, dict]:
    """Torch's own table of operators by name; the wheel for macOS has the same file."""
    packaged = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(packaged.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def has_mps_route(name: str) -> bool:
    """Whether an operator has an MPS kernel, is composed of others, or delegates to one that is."""
    entry = native_functions().get(name)
    if entry is None:
        return False
    if "structured_delegate" in entry and has_mps_route(entry["structured_delegate"]):
        return True
    if "dispatch" not in entry:  # composed of others by default
        return "structured_delegate" not in entry
    keys = {key.strip() for keys in entry["dispatch"] for key in keys.split(",")}
    return any(key == "MPS" or key.startswith("Composite") for key in keys)


def without_mps_route(operators) -> set[str]:
    """Names of the recorded operators that MPS cannot run."""
    names = {operator.name().removeprefix("aten::") for operator in operators}
    return {name for name in names if not has_mps_route(name)}


def check_operators(mps: PretendedMps, kind: Kind) -> None:
    """Every operator of training and evaluation that was recorded runs on MPS."""
    names = {operator.name() for operator in mps.operators}
    expected = {f"aten::_fused_{kind.optimizer}_", "aten::bmm"}
    if kind.frozen == "none":
        expected |= {"aten::convolution_backward"}
    if kind.fields.get("head") == "parts":
        expected |= {"aten::bmm.out", "aten::softmax.int_out", "aten::baddbmm_"}
    if kind.fields.get("dropout"):
        expected |= {"aten::bernoulli_.float"}
    assert expected <= names
    assert without_mps_route(mps.operators) == set()
    assert mps.dtypes == {torch.float32, torch.int64, torch.uint8, torch.bool}


def test_what_runs_there_in_the_place_of_the_recorded_has_a_route():
    """Where C++ takes another way on MPS than for the pretended device."""
    assert has_mps_route("_scaled_dot_product_attention_math_for_mps")
    for name in ("native_dropout", "native_dropout_backward", "_softmax.out"):
        assert has_mps_route(name)


def test_an_operator_that_mps_lacks_and_a_complex_tensor_are_found():
    with pretended_mps() as mps:
        torch.mode(torch.eye(3).to("mps"))
    assert without_mps_route(mps.operators) == {"mode"}
    assert not has_mps_route("no_such_operator")
    with pretended_mps() as mps:
        torch.fft.fft(torch.ones(4).to("mps"))
    assert mps.dtypes == {torch.float32, torch.complex64}


# --- Reads: the program waits for the device ------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "head", "reads"),
    [(3, "token", 1), (10, "parts", 2)],  # logits, and parts
)
def test_an_evaluation_reads_the_device_once(split, samples, head, reads):
    with pretended_mps() as mps:
        trained = Trained(split, torch.device("mps"), KINDS[head])
        loader = eval_loader(loader_config(eval_batch_size=2), split.select(range(samples)), MPS)
        result = evaluate_module.evaluate(trained.model, loader, trained.normalize, PRESETS["vit"])
        assert mps.reads == {"cpu": reads}
    assert len(result.logits) == samples


@pytest.mark.parametrize(
    ("read", "counted"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: torch.zeros(3).copy_(x), "copy_"),
        (lambda x: x[x > 0], "index"),
        (lambda x: torch.equal(x, x), "equal"),
    ],
)
def test_every_way_of_reading_is_counted(read, counted):
    with pretended_mps() as mps:
        x = torch.arange(3.0).to("mps")
        y = x[torch.tensor([0, 2]).to("mps")] * 2 + 1  # reads nothing
        assert (y.shape, mps.reads) == ((2,), {})
        read(x)
    assert counted in mps.reads
