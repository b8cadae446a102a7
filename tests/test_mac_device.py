"""What a machine without MPS can prove about training and evaluating on MPS.

`pretended_mps.py` plays the GPU. Not provable here: that the Metal kernels compute the right
numbers, and how fast.
"""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchgen
import yaml
from helpers import TINY_TRAIN, evaluate, read_json, train
from ml_collections import FrozenConfigDict
from pretended_mps import CPU, MPS, MpsTensor, attention_as_on_mps, pretended_mps

from models.build import build_model
from models.configs import get_config
from models.losses import classification_loss
from utils import engine
from utils.data_utils import RunPaths
from utils.dataset import get_spec, open_split
from utils.pipeline import NORMALIZATION, eval_loader, train_loader
from utils.scheduler import build_optimizer

IMG_SIZE = 32
OPTIMIZERS = ("sgd", "adamw")


@pytest.fixture(scope="module")
def split(drawn):
    return open_split(get_spec("synthetic"), drawn, "train")


# --- Training and evaluating ----------------------------------------------------------------------


class Trained:
    """The model, two batches of data and all that training needs, on one device."""

    def __init__(self, split, device: torch.device, optimizer: str, pool: str = "token") -> None:
        torch.manual_seed(0)
        config = get_config("testing", IMG_SIZE)
        config.pool = pool
        self.model = build_model(config, len(split.classes)).to(device)
        flags = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.1}
        self.optimizer = build_optimizer(
            self.model,
            FrozenConfigDict({"optimizer": optimizer, **flags}),
            self.model.no_weight_decay(),
        )
        self.normalize = engine.Normalizer(NORMALIZATION, device)
        self.micro_batches = list(train_loader(split, IMG_SIZE, 4, 2, 0, 0, device))
        self.eval_loader = eval_loader(split.select(range(10)), IMG_SIZE, 4, 0, device)

    def step(self) -> engine.StepResult:
        loss_fn = functools.partial(classification_loss, smoothing=0.1)
        return engine.train_step(
            self.model, loss_fn, self.optimizer, self.micro_batches, self.normalize, 1.0
        )

    def evaluate(self) -> engine.Evaluation:
        return engine.evaluate(self.model, self.eval_loader, self.normalize)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_on_the_device_gives_the_bits_of_the_cpu(split, optimizer, pool):
    with attention_as_on_mps():
        here = Trained(split, CPU, optimizer, pool)
        expected = [here.step() for _ in range(3)], here.evaluate()
    with pretended_mps() as mps:
        there = Trained(split, torch.device("mps"), optimizer, pool)
        given = [there.step() for _ in range(3)], there.evaluate()
        assert all(isinstance(p, MpsTensor) for p in there.model.parameters())
        assert all(isinstance(value, MpsTensor) for result in given[0] for value in result)
        weights = {key: value.cpu() for key, value in there.model.state_dict().items()}
        results = [[value.cpu() for value in result] for result in given[0]]
    assert mps.operators
    assert all(torch.equal(weights[k], v) for k, v in here.model.state_dict().items())
    assert results == [list(result) for result in expected[0]]
    assert np.array_equal(given[1].logits, expected[1].logits)
    assert np.array_equal(given[1].labels, expected[1].labels)
    assert given[1].logits.std() > 0


def test_both_entrypoints_on_the_device_give_the_files_of_the_cpu(drawn, tmp_path):
    cpu, mps, again = (RunPaths(tmp_path, name) for name in ("cpu", "mps", "again"))
    data = "--data_root", drawn, "--output_dir", tmp_path, "--tiny_infer_subset", "synthetic_tiny"
    flags = f"--dataset synthetic {TINY_TRAIN} --gradient_accumulation_steps 2"
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
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]


# --- The pretended device itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: x.double(), TypeError, "MPS doesn't support torch.float64"),
        (lambda x: torch.zeros(3, dtype=torch.float64).to(MPS), TypeError, "support torch.float64"),
        (lambda x: torch.zeros(3, dtype=torch.float64, device="mps"), TypeError, "torch.float64"),
        (lambda x: x + torch.ones(3), RuntimeError, "expected all tensors on mps:0"),
        (lambda x: torch.cat([x, torch.ones(3)]), RuntimeError, "expected all tensors on mps:0"),
        (lambda x: x.numpy(), TypeError, "can't convert mps:0 device type tensor to numpy"),
        (np.asarray, TypeError, "can't convert mps:0 device type tensor to numpy"),
        (lambda x: torch.ones(3).to("mps", non_blocking=True), RuntimeError, "can corrupt data"),
        (lambda x: x.to("cpu", non_blocking=True), RuntimeError, "can corrupt data"),
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


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_operator_of_training_and_evaluation_runs_on_mps(split, optimizer, pool):
    with pretended_mps() as mps:
        trained = Trained(split, torch.device("mps"), optimizer, pool)
        meter = engine.TrainMeter(0, batch_size=8)
        meter.add(trained.step())
        meter.add(trained.step())
        meter.read()
        trained.evaluate()
    names = {operator.name() for operator in mps.operators}
    assert {f"aten::_fused_{optimizer}_", "aten::convolution_backward", "aten::bmm"} <= names
    assert without_mps_route(mps.operators) == set()
    assert mps.dtypes == {torch.float32, torch.int64, torch.uint8, torch.bool}


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("linalg_eig", torch.linalg.eig),
        ("mode", torch.mode),
        ("take", lambda x: torch.take(x, torch.zeros(1, dtype=torch.int64, device="mps"))),
        ("heaviside", lambda x: torch.heaviside(x, x)),
    ],
)
def test_an_operator_that_mps_lacks_is_found(missing, call):
    with pretended_mps() as mps:
        call(torch.eye(3).to("mps"))
    assert without_mps_route(mps.operators) == {missing}


def test_a_complex_tensor_is_found():
    with pretended_mps() as mps:
        torch.fft.fft(torch.ones(4).to("mps"))
    assert mps.dtypes == {torch.float32, torch.complex64}


def test_an_operator_that_is_not_in_the_table_has_no_route():
    assert not has_mps_route("no_such_operator")


# --- Reads: the program waits for the device ------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_reads_the_device_only_when_the_meter_is_read(split, optimizer):
    with pretended_mps() as mps:
        trained = Trained(split, torch.device("mps"), optimizer)
        meter = engine.TrainMeter(0, batch_size=8)
        for _ in range(3):
            meter.add(trained.step())
        assert mps.reads == {}
        scalars = meter.read()
        assert mps.reads == {"tolist": 1}  # for three steps, not each
    assert scalars["loss"] > 0


@pytest.mark.parametrize("samples", [3, 10])
def test_an_evaluation_reads_the_device_once(split, samples):
    with pretended_mps() as mps:
        trained = Trained(split, torch.device("mps"), "sgd")
        loader = eval_loader(split.select(range(samples)), IMG_SIZE, 2, 0, MPS)
        result = engine.evaluate(trained.model, loader, trained.normalize)
        assert mps.reads == {"cpu": 1}
    assert len(result.logits) == samples


@pytest.mark.parametrize(
    ("read", "counted"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: float(x[0]), "_local_scalar_dense"),
        (lambda x: bool(x[0] > 0), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.to("cpu"), "cpu"),
        (lambda x: torch.zeros(3).copy_(x), "copy_"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_every_way_of_reading_is_counted(read, counted):
    with pretended_mps() as mps:
        x = torch.arange(3.0).to("mps")
        y = x[torch.tensor([0, 2]).to("mps")] * 2 + 1  # reads nothing
        assert (y.shape, mps.reads) == ((2,), {})
        read(x)
    assert counted in mps.reads
