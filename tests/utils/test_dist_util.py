"""Check the hash and check of the environment, and the env stamp.

The choice of the device is tested in `tests/entrypoints/test_mac.py`.
"""

import hashlib
import importlib.metadata
import re
import sys

import pytest
import torch
from helpers import CHOICES, assert_no_nulls, read_json
from hypothesis import given, settings
from hypothesis import strategies as st

from models.configs import get_config
from models.pretrained.profiles import GOOGLE
from utils.cli.flags import experiment_of
from utils.cli.length import resolve_length
from utils.cli.resolve import parse_train, resolve_config
from utils.dist_util import (
    build_env_stamp,
    check_env,
    config_hash,
    env_hash,
    installed_versions,
    new_run_id,
)
from utils.errors import InputError
from utils.files import write_json

CPU = torch.device("cpu")

ARGV = "--name a --dataset synthetic --model_type testing --img_size 64"
FLAGS = parse_train(ARGV.split(), CHOICES)
MODEL = {"model": get_config("testing", 64).to_dict(), "normalization": GOOGLE.normalization}
TRAIN = resolve_config(FLAGS, resolve_length(FLAGS, 200), MODEL)
EXPERIMENT = experiment_of(TRAIN)


class TestRunId:
    def test_is_unique_and_sortable(self):
        ids = [new_run_id() for _ in range(100)]
        assert len(set(ids)) == 100
        assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", run_id) for run_id in ids)


class TestEnvHash:
    @settings(max_examples=50)
    @given(
        versions=st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True), st.text())
    )
    def test_is_over_the_sorted_list(self, versions):
        text = "".join(f"{line}\n" for line in sorted(f"{n}=={v}" for n, v in versions.items()))
        expected = hashlib.sha256((text or "\n").encode()).hexdigest()
        assert env_hash(versions) == expected
        assert env_hash(dict(reversed(versions.items()))) == expected

    def test_of_what_is_installed(self):
        versions = installed_versions()
        assert versions["torch"] == importlib.metadata.version("torch")
        assert versions["ml-collections"] == importlib.metadata.version("ml_collections")
        assert all(name == re.sub(r"[-_.]+", "-", name).lower() for name in versions)
        assert env_hash(versions) == env_hash(installed_versions())

    def test_takes_the_package_that_python_would_import(self, tmp_path, monkeypatch):
        """A second copy further down the path (user site, system packages) is not what runs."""
        shadowed = tmp_path / "numpy-0.0.1.dist-info"
        shadowed.mkdir()
        (shadowed / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
        before = installed_versions()
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        assert importlib.metadata.version("numpy") == before["numpy"]
        assert installed_versions() == before

    def test_survives_a_package_that_is_half_removed(self, tmp_path, monkeypatch):
        (tmp_path / "gone-1.0.dist-info").mkdir()
        before = installed_versions()
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        assert installed_versions() == before


CONDA = """\
name: fine-vit
channels:
  - conda-forge
dependencies:
  - bzip2=1.0.8=h99b78c6_7
  - python=3.11.9=h932a869_0_cpython
  - pip=24.0=pyhd8ed1ab_0
  - numpy={numpy}=py311h7125741_0
  - pip:
      - torch=={torch}
      - ml-collections=={ml}
      - not-installed-here==9.9
prefix: /opt/miniconda3/envs/fine-vit
"""
FREEZE = """\
absl-py==2.5.1
# Editable install with no version control (somebody==1.0)
-e /home/somebody/project
-e git+https://github.com/somebody/project@0123abc#egg=project
local @ file:///home/somebody/local-1.0-py3-none-any.whl
numpy=={numpy}
torch=={torch} ; python_version >= "3.8"
ML_Collections=={ml}
not-installed-here==9.9
"""
RUNNING = {"numpy": "2.4.6", "torch": "2.14.1", "ml-collections": "1.1.0", "absl-py": "2.5.1"}
SAME = {"numpy": "2.4.6", "torch": "2.14.1", "ml": "1.1.0"}


class TestCheckEnv:
    @pytest.fixture
    def check(self, tmp_path):
        def run(text: str | bytes):
            path = tmp_path / "env_export.yml"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            return check_env(RUNNING, path)

        return run

    def test_a_missing_export_is_absent(self, tmp_path):
        assert check_env(RUNNING, tmp_path / "env_export.yml") == {
            "source": "none",
            "status": "absent",
            "differences": [],
        }

    @pytest.mark.parametrize("export", [CONDA, FREEZE], ids=["conda", "freeze"])
    def test_the_same_versions_match(self, check, tmp_path, export):
        assert check(export.format(**SAME)) == {
            "source": str(tmp_path / "env_export.yml"),
            "status": "match",
            "differences": [],
        }

    @pytest.mark.parametrize("export", [CONDA, FREEZE], ids=["conda", "freeze"])
    def test_another_version_differs_and_is_named(self, check, export):
        found = check(export.format(**{**SAME, "numpy": "1.26.4", "ml": "0.1.1"}))
        assert found["status"] == "differs"
        assert found["differences"] == [
            "ml-collections: running 1.1.0, exported 0.1.1",
            "numpy: running 2.4.6, exported 1.26.4",
        ]

    def test_a_plain_freeze_and_conda_without_pip_are_read(self, check):
        assert check("numpy==2.4.6\r\ntorch==2.14.1\r\n")["status"] == "match"
        assert check("dependencies:\n  - numpy=2.4.6\n")["status"] == "match"
        assert check("dependencies:\n  - numpy==2.4.7\n")["status"] == "differs"
        assert check("dependencies:\n  - numpy\n  - torch=2.14.1\n")["status"] == "match"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\n",
            "hello",
            "name: fine-vit\n",
            "dependencies:\n",
            "dependencies: 7\n",
            "dependencies:\n  - pip: [1, {}]\n",
            "- numpy=2.4.6\n- [",
            "a: b: c",
            "!!python/object/apply:os.mkdir [x]",
            b"\xff\xfen\x00",
            "[1, 2]",
            "unknown==1.0\n",
            "dependencies:\n  - unknown=1.0\n",
            "a: &a [*a]\n",
        ],
    )
    def test_a_malformed_export_is_refused(self, check, tmp_path, text):
        with pytest.raises(InputError, match=r"env_export.yml .*export it again") as caught:
            check(text)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "x").exists()

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot be read"):
            check_env(RUNNING, tmp_path)

    @settings(max_examples=100)
    @given(text=st.text(alphabet="ab:-=#'\"[]{}&*!|>%@ \n1", max_size=60))
    def test_any_text_is_refused_or_checked(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "any.yml"
        path.write_text(text, encoding="utf-8")
        try:
            assert check_env(RUNNING, path)["status"] in ("match", "differs")
        except InputError as error:
            assert "any.yml" in str(error)  # noqa: PT017 - both endings are well


FACTS = {
    "dataset": {"name": "synthetic", "split": "train", "samples": 200, "checksum": "0" * 64},
    "tiny_train_subset": "none",
    "tiny_infer_subset": {"name": "synthetic_tiny", "sha256": "0" * 64, "count": 4, "classes": 3},
    "normalization": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


@pytest.fixture(scope="module")
def stamp():
    return build_env_stamp(TRAIN, EXPERIMENT, "train.py --name a", CPU, FACTS)


class TestEnvStamp:
    def test_has_no_null_and_no_empty_string(self, stamp):
        assert TRAIN.pretrained is None
        assert stamp["config"]["pretrained"] == "none"
        odd = build_env_stamp(
            TRAIN,
            EXPERIMENT,
            "",
            CPU,
            {**FACTS, "dataset": {"name": "", "deep": [None, ["", {"a": None}]]}},
        )
        assert_no_nulls(odd)
        assert odd["dataset"] == {"name": "none", "deep": ["none", ["none", {"a": "none"}]]}

    def test_is_json_as_it_stands(self, stamp, tmp_path):
        write_json(tmp_path / "stamp.json", stamp)
        read = read_json(tmp_path / "stamp.json")
        assert read["normalization"]["mean"] == [0.5, 0.5, 0.5]
        assert_no_nulls(read)

    def test_says_what_runs(self, stamp):
        assert stamp["command"] == "train.py --name a"
        assert (stamp["name"], stamp["seed"], stamp["device"]) == ("a", 42, "cpu")
        assert stamp["fp16"] is False
        assert stamp["config_hash"] == config_hash(EXPERIMENT)
        assert stamp["torch_version"] == torch.__version__
        assert stamp["num_threads"] == torch.get_num_threads()
        assert stamp["python_version"] == ".".join(map(str, sys.version_info[:3]))
        assert stamp["env_hash"] == env_hash(installed_versions())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", stamp["timestamp"])
        assert re.fullmatch(r"[0-9a-f]{40}|none", stamp["git_commit"])
        assert type(stamp["git_dirty"]) is bool
        assert stamp["env_check"].keys() == {"source", "status", "differences"}
        for name in ("torchvision", "ml_collections", "numpy"):
            assert stamp[f"{name}_version"] == importlib.metadata.version(name)

    def test_says_what_is_missing(self, stamp):
        for key in ("gpu_name", "driver_version", "cudnn_version"):
            assert stamp[key] == "none"  # on the CPU
        assert stamp["gpu_count"] == 0
        try:
            expected = importlib.metadata.version("fiftyone")
        except importlib.metadata.PackageNotFoundError:
            expected = "missing"
        assert stamp["fiftyone_version"] == expected

    def test_holds_the_resolved_config(self, stamp):
        assert stamp["config"].keys() == TRAIN.to_dict().keys()
        assert stamp["config"]["num_steps"] == 1000
        assert (stamp["tiny_train_subset_path"], stamp["tiny_infer_subset_path"]) == ("none",) * 2

    def test_holds_the_subsets(self, tmp_path):
        ids = tmp_path / "ids.txt"
        ids.write_text("image_00001")
        subsets = {"tiny_train_subset": "synthetic_tiny", "tiny_infer_subset": str(ids)}
        config = resolve_config(TRAIN, subsets)
        stamp = build_env_stamp(config, EXPERIMENT, "train.py", CPU, FACTS)
        assert stamp["tiny_train_subset_path"] == "synthetic_tiny"
        assert stamp["tiny_infer_subset_path"] == str(ids)
        assert stamp["tiny_infer_subset"] == FACTS["tiny_infer_subset"]

    def test_of_two_runs_differs_in_run_id(self, stamp, monkeypatch):
        # Another test of this process may have imported it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "fiftyone"]:
            monkeypatch.delitem(sys.modules, name)
        again = build_env_stamp(TRAIN, EXPERIMENT, "train.py --name a", CPU, FACTS)
        assert "fiftyone" not in sys.modules  # its version is looked up, not imported
        assert again["run_id"] != stamp["run_id"]
        same = stamp.keys() - {"run_id", "timestamp", "git_dirty"}
        assert {key: again[key] for key in same} == {key: stamp[key] for key in same}
