"""Sealed files of a run whose fields were changed: refused in one line, never a traceback.

A checksum says that a file is what once was written, not by whom: anybody can seal one.
"""

import contextlib
import copy
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SUBSETS, TINY_EVAL, TINY_TRAIN, evaluate, read_json, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.build import rebuild_model
from models.configs import get_config
from models.pretrained.formats import WeightsError
from models.pretrained.weights import adapt_config, own_pretrained
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.run.checkpoint import checkpoint_id, load_checkpoint
from utils.run.tensor_file import load_archive, save_archive

FLAGS = f"--name run --dataset synthetic {TINY_TRAIN} {SUBSETS} --optimizer adamw --ema_decay 0.9"
GONE = object()
ODD = (
    *(GONE, None, True, -1, 0, 1, 10**6, 2**63, 10**70, 1e-320, 1e308, math.nan, math.inf),
    *("", "x", "../x", "\ud800", "a\nb", [], [[]], {}, {1: 2}, {"x": math.nan}),
    *(torch.zeros(()), torch.zeros(0), torch.zeros(2, 2), torch.full((3,), torch.nan)),
    *(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bfloat16)),
    *(torch.zeros(2, dtype=torch.complex64), torch.zeros(3, dtype=torch.uint8)),
)


def at_a_place(data: st.DataObject, value: object) -> tuple[object, object]:
    """Return a container somewhere in `value`, and one of its keys."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(min(len(value), 8)))
        key = data.draw(st.sampled_from(keys))
        inner = value[key]
        is_deeper = isinstance(inner, dict | list) and len(inner) > 0
        if not is_deeper or data.draw(st.integers(0, 7)) == 0:
            return value, key
        value = inner


def with_odd_field(data: st.DataObject, path: Path) -> None:
    """Change a field of a sealed file, or two, and seal it again."""
    payload = load_archive(path)
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = at_a_place(data, payload)
        value = ODD[data.draw(st.integers(0, len(ODD) - 1))]
        if value is GONE:
            container.pop(key) if isinstance(container, dict) else container.clear()
            continue
        value = copy.deepcopy(value)  # the second change may be within the first one's value
        if data.draw(st.integers(0, 5)) == 0 and isinstance(container, dict):
            container[data.draw(st.sampled_from((7, "new", "")))] = value
        else:
            container[key] = value
    save_archive(path, payload)


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory) -> RunPaths:
    """A run that has done 2 of its 4 steps. Read only."""
    output = tmp_path_factory.mktemp("run")
    where = "--data_root", drawn, "--output_dir", output
    assert train(FLAGS, "--save_every", 2, "--keep", 3, *where) == 0
    paths = RunPaths(output, "run")
    two = next(p for p in paths.last.parent.glob("last~*.bin") if load_archive(p)["step"] == 2)
    shutil.copy(two, paths.last)
    return paths


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_a_checkpoint_with_odd_fields_is_refused_or_used(run, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "odd.bin"
    shutil.copy(run.checkpoint, path)
    with_odd_field(data, path)
    with contextlib.suppress(InputError, WeightsError):
        own = load_checkpoint(path)
        model = rebuild_model(own.model_config, own.classes, own.state_dict)
        checkpoint_id(model.state_dict())
        weights = own_pretrained(own.state_dict, own.model_config, own.normalization, own.classes)
        adapt_config(get_config("testing"), weights)


def resume(paths: RunPaths, drawn: Path) -> int:
    where = "--output_dir", paths.output_dir, "--data_root", drawn
    return train(FLAGS, "--resume", "--save_every", 2, "--keep", 3, *where)


@given(data=st.data())
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_a_snapshot_with_odd_fields_is_refused_before_a_write_or_resumed(
    run, drawn, tmp_path_factory, data, capfd
):
    output = tmp_path_factory.mktemp("odd") / "output"
    shutil.copytree(run.output_dir, output)
    paths = RunPaths(output, "run")
    for older in paths.last.parent.glob("last~*.bin"):
        older.unlink()
    with_odd_field(data, paths.last)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    code = resume(paths, drawn)
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert code in (0, 2), error
    if code == 2:
        last = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(last) == 1
        after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
        assert {path: time for path, time in after.items() if path.name != "run.lock"} == before
    shutil.rmtree(output.parent)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "odd", [{"depth": 10**6}, {"depth": 1000, "embed_dim": 2**16}, {7: math.nan}], ids=str
)
def test_a_model_config_of_absurd_size_is_refused_at_once(
    run, refused, drawn, tmp_path, odd, is_training
):
    path = tmp_path / "odd.bin"
    payload = load_archive(run.checkpoint)
    payload["model_config"].update(odd)
    save_archive(path, payload)
    if is_training:
        refused(train, FLAGS, "--pretrained", path, "--data_root", drawn)
    else:
        refused(evaluate, f"--name a {TINY_EVAL} --checkpoint {path}", "--data_root", drawn)


@pytest.mark.parametrize(
    "stamp",
    [
        *("[]", '"x"', "null", "{", "[" * 10**5, '{"a":' * 990 + "1" + "}" * 990),
        *('{"sessions": 5}', '{"sessions": [5]}', '{"sessions": [{"device": [[]]}]}'),
        *('{"run_id": []}', '{"run_id": null, "status": {}}', '{"timestamp": 7}'),
        *('{"predictions_digest": {"a": 1}}', '{"config": 5}', '{"seed": %s}' % ("9" * 5000)),
        '{"sessions": [%s]}' % ('{"device":' * 30 + "1" + "}" * 30),
        '{"status": "unfinished", "sessions": {}}',
    ],
    ids=lambda stamp: stamp[:30],
)
def test_an_env_stamp_of_wrong_types_ends_no_run(run, drawn, tmp_path, capfd, stamp):
    shutil.copytree(run.output_dir, tmp_path / "output")
    paths = RunPaths(tmp_path / "output", "run")
    paths.env_stamp.write_text(stamp)
    assert resume(paths, drawn) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert read_json(paths.env_stamp)["status"] == "finished"
