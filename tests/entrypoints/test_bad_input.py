"""Bad input: exit 2, one line on stderr that says what to do, nothing written (contracts, 6)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPO, TINY_EVAL, TINY_TRAIN, evaluate, sealed, train
from scipy.io import loadmat

TRAIN = f"--name run --dataset flower102 {TINY_TRAIN}"
TINY = "--tiny_train_subset flower102_tiny --tiny_infer_subset flower102_tiny"


@pytest.fixture
def data(drawn, tmp_path) -> Path:
    """A copy of the drawn flowers to be damaged."""
    return Path(shutil.copytree(drawn, tmp_path / "data"))


class TestFlags:
    """One case for each kind of error; what each flag takes is tested in tests/utils/cli."""

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ("--name ../x", "--name: '../x' is not a run name"),
            ("--model_type vit-b16", "invalid choice: 'vit-b16' (choose from "),
            ("--num_steps 4 --epochs 2", "not allowed with argument"),
            (
                "--momentum 0.5 --optimizer adamw",
                "--momentum means nothing without --optimizer sgd",
            ),
            ("--img_size 60", "--img_size 60 is not a multiple of the patch, 16; try 64"),
            ("--gradient_accumulation_steps 3", "3 does not divide --train_batch_size 4"),
            (
                "--train_split all",
                "--train_split all: flower102 has no split 'all'; it has train, val, test",
            ),
            ("--tiny_infer_subset synthetic_tiny", "is neither flower102_tiny nor a file"),
            ("--pretrained nowhere.bin", "--pretrained nowhere.bin does not exist"),
            (
                "--num_stepz 4",
                "arguments: --num_stepz 4, did you mean '--num_steps'? (see train.py --help)",
            ),
        ],
    )
    def test_train(self, refused, drawn, flags, said):
        assert said in refused(train, f"{TRAIN} {flags}", "--data_root", drawn)

    def test_a_device_that_is_not_there(self, refused, drawn):
        absent = "cuda" if not torch.cuda.is_available() else "mps"
        flags = f"{TRAIN} --device {absent}"
        error = refused(train, flags, "--data_root", drawn)
        assert f"--device {absent} is not available here" in error

    def test_output_folder_without_permission(self, refused, drawn, monkeypatch):
        monkeypatch.setattr("utils.data_utils.os.access", lambda *_: False)  # root has it anyway
        error = refused(train, TRAIN, "--data_root", drawn)
        assert "output: no permission to write in" in error


class TestData:
    def test_unset_data_root_gets_a_hint(self, refused):
        error = refused(train, TRAIN, "--data_root", "/flower102")
        assert "DATA_ROOT was empty when the shell read it" in error
        assert "export DATA_ROOT" in error

    # With tiny subsets too: the whole splits are looked at, not only what the run uses.
    @pytest.mark.parametrize(
        ("damage", "split", "subsets"),
        [
            ("missing", "trnid", TINY),
            ("truncated", "valid", TINY),
            ("folder", "trnid", ""),
        ],
    )
    def test_damaged_image(self, refused, data, damage, split, subsets):
        number = int(loadmat(data / "setid.mat")[split].ravel()[17])
        image = data / "jpg" / f"image_{number:05d}.jpg"
        content = image.read_bytes()
        image.unlink()
        if damage == "folder":
            image.mkdir()
        elif damage == "truncated":
            image.write_bytes(content[: len(content) // 2])
        error = refused(train, f"{TRAIN} {subsets}", "--data_root", data)
        assert "images of split " in error
        assert str(image.parent) in error
        assert image.name in error


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class TestCheckpoint:
    FLAGS = f"--name check {TINY_EVAL} --tiny_infer_subset synthetic_tiny"

    # Every cut and every bit of a checkpoint is tested in tests/utils/run/test_checkpoint.py.
    @pytest.mark.parametrize("damage", ["absent", "truncated", "bit flipped", "somebody else's"])
    def test_damaged(self, refused, drawn, finished_run, tmp_path, damage):
        path, content = tmp_path / "other.bin", finished_run.checkpoint.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "bit flipped":
            path.write_bytes(content[:1000] + bytes([content[1000] ^ 4]) + content[1001:])
        elif damage == "somebody else's":
            torch.save({"state_dict": {"head.bias": torch.zeros(3)}}, path)
        error = refused(evaluate, self.FLAGS, "--checkpoint", path, "--data_root", drawn)
        assert f"checkpoint {path} " in error
        assert ("does not exist" if damage == "absent" else "damaged") in error

    def test_a_pickle_that_would_run_code(self, refused, drawn, tmp_path):
        """In a torch archive that is sealed as ours are; test_checkpoint.py has other disguises."""
        target, path = tmp_path / "was_here", tmp_path / "evil.bin"
        torch.save({"state_dict": Bomb(target)}, path)
        path.write_bytes(sealed(path.read_bytes()))
        error = refused(evaluate, self.FLAGS, "--checkpoint", path, "--data_root", drawn)
        assert not target.exists()
        assert str(path) in error

    def test_pretrained_is_checked_as_well(self, refused, drawn, tmp_path):
        (tmp_path / "bad.bin").write_bytes(b"nothing")
        flags = f"{TRAIN} --pretrained {tmp_path / 'bad.bin'}"
        error = refused(train, flags, "--data_root", drawn)
        said = "it is neither .npz, safetensors nor a PyTorch file"
        assert error == f"error: --pretrained {tmp_path / 'bad.bin'}: {said}\n"


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("train.py", "--help"),
        ("eval.py", "--help"),
        ("train.py", "--name a --data_root /no/such/folder"),
        ("train.py", "--name a --dataset synthetic --tiny_train_subset /no/such/file"),
        ("eval.py", "--name a --checkpoint /no/such/file"),
    ],
)
def test_answers_before_torch_is_imported(script, flags):
    """`-X importtime` lists every import."""
    command = [sys.executable, "-X", "importtime", script, *flags.split()]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if flags == "--help" else 2)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "torchvision", "tensorboard", "scipy.io", "fiftyone"}
