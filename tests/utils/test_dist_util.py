"""utils/dist_util.py: config hash, environment hash and check, the env stamp.

Device choice is tested with the other Mac matters, in tests/test_mac*.py; here, how a batch is cut
to what MPS computes right.
"""

import hashlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from models.configs import get_config, model_names, num_tokens, patch_sizes
from models.pretrained.profiles import GOOGLE
from utils.config import (
    parse_eval_args,
    parse_train_args,
    resolve_from_checkpoint,
    resolve_length,
    resolve_model,
)
from utils.dist_util import (
    CONTENT_KEYS,
    build_env_stamp,
    check_env,
    config_hash,
    env_hash,
    installed_versions,
    new_run_id,
)
from utils.errors import InputError
from utils.files import sha256_file, write_json
from utils.training.micro_batches import fit_micro_batches

CPU, MPS = torch.device("cpu"), torch.device("mps")

# What says only where things live, how fast they load, how often they are printed, and what memory
# they take.
NOT_HASHED = (
    "name",
    "output_dir",
    "data_root",
    "num_workers",
    "device",
    "prefer_mps",
    "log_every",
    "grad_checkpointing",
    "cache",
    "cache_dir",
    "recipe",
    "save_every",
    "keep",
    "resume",
    "allow_change",
)
CHECKPOINT = {
    "dataset": "synthetic",
    "model_type": "testing",
    "img_size": 64,
    "preset": "vit",
    "carving": {},
}

TRAIN = parse_train_args(
    ["--name", "a", "--dataset", "synthetic", "--model_type", "testing", "--img_size", "64"],
    patch_sizes(),
)
TRAIN = resolve_length(TRAIN, 200)
TRAIN = resolve_model(TRAIN, get_config("testing", 64).to_dict(), GOOGLE.normalization)


def changed(config: FrozenConfigDict, **changes) -> FrozenConfigDict:
    return FrozenConfigDict({**config.to_dict(), **changes})


def another(value: object) -> object:
    """A value of the same kind that is not `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


class TestConfigHash:
    @pytest.mark.parametrize("key", sorted(TRAIN))
    def test_changes_with_every_field_of_the_experiment_alone(self, key):
        other = changed(TRAIN, **{key: another(TRAIN[key])})
        assert (config_hash(other) == config_hash(TRAIN)) is (key in NOT_HASHED)

    @pytest.mark.parametrize("key", sorted(TRAIN.model))
    def test_changes_with_every_field_of_the_model(self, key):
        model = TRAIN.model.to_dict()
        other = changed(TRAIN, model={**model, key: another(model[key])})
        assert config_hash(other) != config_hash(TRAIN)

    @pytest.mark.parametrize("key", ["mean", "std"])
    def test_changes_with_the_normalisation(self, key):
        normalization = {**GOOGLE.normalization, key: (0.5, 0.5, 0.51)}
        assert config_hash(changed(TRAIN, normalization=normalization)) != config_hash(TRAIN)

    def test_is_a_sha256_that_knows_no_order(self):
        assert re.fullmatch(r"[0-9a-f]{64}", config_hash(TRAIN))
        backwards = FrozenConfigDict(dict(reversed(TRAIN.to_dict().items())))
        assert config_hash(backwards) == config_hash(TRAIN)

    def test_is_the_canonical_json_of_the_rest(self):
        rest = {k: v for k, v in TRAIN.to_dict().items() if k not in NOT_HASHED}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        assert config_hash(TRAIN) == hashlib.sha256(text.encode()).hexdigest()

    @pytest.mark.parametrize("key", sorted(CONTENT_KEYS))
    def test_counts_files_by_content(self, tmp_path, monkeypatch, key):
        one, same, other = (tmp_path / name for name in ("one", "moved", "other"))
        one.write_bytes(b"content")
        same.write_bytes(b"content")
        other.write_bytes(b"different")
        hashes = [config_hash(changed(TRAIN, **{key: str(path)})) for path in (one, same, other)]
        assert hashes[0] == hashes[1]
        assert len({*hashes, config_hash(TRAIN)}) == 3
        if key in ("pretrained", "checkpoint"):  # subsets are absolute once parsed
            monkeypatch.chdir(tmp_path)
            assert config_hash(changed(TRAIN, **{key: "one"})) == hashes[0]

    @pytest.mark.parametrize("key", ["tiny_train_subset", "tiny_infer_subset"])
    def test_counts_a_named_subset_by_name_whatever_lies_around(self, tmp_path, monkeypatch, key):
        config = changed(TRAIN, **{key: "synthetic_tiny"})
        before = config_hash(config)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "synthetic_tiny").write_text("image_00001\n")
        assert config_hash(config) == before

    def test_is_the_same_however_it_was_typed(self, tmp_path, monkeypatch):
        def parse(*argv):
            base = ["--name", "a", "--model_type", "testing", "--img_size", "64"]
            config = parse_train_args([*base, *argv], patch_sizes())
            return config_hash(resolve_length(config, 160))

        assert parse("--dataset", "synthetic", "--epochs", "3") == parse(
            "--num_steps", "30", "--dataset=synthetic", "--learning_rate", "0.03", "--seed", "42"
        )

    def test_of_an_evaluation(self, tmp_path):
        checkpoint = tmp_path / "ckpt.bin"
        checkpoint.write_bytes(b"weights")
        argv = ["--name", "a", "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path)]
        config = resolve_from_checkpoint(parse_eval_args(argv, model_names()), CHECKPOINT)
        first = config_hash(config)
        for key in config:
            if key not in (*NOT_HASHED, "checkpoint"):
                assert config_hash(changed(config, **{key: another(config[key])})) != first, key
        checkpoint.write_bytes(b"other weights")
        assert config_hash(config) != first


ROWS = 32_766  # batch x tokens up to which weight gradients are right on MPS


class TestFitMicroBatches:
    @settings(max_examples=500, deadline=None)
    @given(data=st.data(), batch=st.integers(1, 400), tokens=st.integers(1, 33_000))
    def test_cuts_as_little_as_fits(self, data, batch, tokens):
        divisors = [n for n in range(1, batch + 1) if batch % n == 0]
        asked = data.draw(st.sampled_from(divisors))
        fitting = [n for n in divisors if batch // n * tokens <= ROWS]
        if not fitting:
            with pytest.raises(InputError, match=r"wrong gradients; use a smaller --img_size$"):
                fit_micro_batches(MPS, batch, asked, tokens, may_split=True)
            return
        found = fit_micro_batches(MPS, batch, asked, tokens, may_split=True)
        assert found == (asked if asked in fitting else min(fitting))
        assert found >= asked
        assert batch % found == 0

    @settings(max_examples=500, deadline=None)
    @given(data=st.data(), batch=st.integers(1, 400), tokens=st.integers(1, 33_000))
    def test_that_may_not_cut_says_what_does(self, data, batch, tokens):
        divisors = [n for n in range(1, batch + 1) if batch % n == 0]
        asked = data.draw(st.sampled_from(divisors))
        fitting = [n for n in divisors if batch // n * tokens <= ROWS]
        if asked in fitting:
            assert fit_micro_batches(MPS, batch, asked, tokens, may_split=False) == asked
            return
        advice = "a smaller --img_size"
        if fitting:
            advice = (
                f"--gradient_accumulation_steps {min(fitting)} or --contrastive_scope effective"
            )
        message = (
            f"^a micro-batch of {batch // asked} images of {tokens} tokens is over {ROWS} rows, "
            f"for which MPS computes wrong gradients; use {advice}$"
        )
        with pytest.raises(InputError, match=message):
            fit_micro_batches(MPS, batch, asked, tokens, may_split=False)
        if fitting:  # the advice is good
            assert fit_micro_batches(MPS, batch, min(fitting), tokens, False) == min(fitting)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), batch=st.integers(1, 10_000), tokens=st.integers(1, 10**6))
    def test_leaves_other_devices_alone(self, data, batch, tokens):
        asked = data.draw(st.sampled_from([n for n in (1, 2, 5, batch) if batch % n == 0]))
        for device in (CPU, torch.device("cuda")):
            for may_split in (True, False):
                assert fit_micro_batches(device, batch, asked, tokens, may_split) == asked

    @pytest.mark.parametrize(
        ("fields", "tokens", "largest"),
        [({}, 785, 41), ({"patch_stride": 12}, 1370, 23)],
        ids=["non-overlap", "overlap"],
    )
    def test_at_448_px(self, fields, tokens, largest):
        """The numbers of the fact sheet."""
        assert num_tokens(get_config("ViT-B_16", 448, head="parts", **fields)) == tokens
        assert fit_micro_batches(MPS, largest, 1, tokens, may_split=False) == 1
        cut = fit_micro_batches(MPS, 2 * largest + 2, 1, tokens, may_split=True)
        assert (2 * largest + 2) // cut <= largest
        with pytest.raises(InputError, match=f"a micro-batch of {largest + 1} images of {tokens}"):
            fit_micro_batches(MPS, largest + 1, 1, tokens, may_split=False)


class TestRunId:
    def test_is_unique_and_sortable(self):
        ids = [new_run_id() for _ in range(100)]
        assert len(set(ids)) == 100
        assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", run_id) for run_id in ids)


class TestEnvHash:
    @settings(max_examples=50, deadline=None)
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

    def test_absent(self, tmp_path):
        assert check_env(RUNNING, tmp_path / "env_export.yml") == {
            "source": "none",
            "status": "absent",
            "differences": [],
        }

    @pytest.mark.parametrize("export", [CONDA, FREEZE], ids=["conda", "freeze"])
    def test_match(self, check, tmp_path, export):
        assert check(export.format(**SAME)) == {
            "source": str(tmp_path / "env_export.yml"),
            "status": "match",
            "differences": [],
        }

    @pytest.mark.parametrize("export", [CONDA, FREEZE], ids=["conda", "freeze"])
    def test_differs(self, check, export):
        found = check(export.format(**{**SAME, "numpy": "1.26.4", "ml": "0.1.1"}))
        assert found["status"] == "differs"
        assert found["differences"] == [
            "ml-collections: running 1.1.0, exported 0.1.1",
            "numpy: running 2.4.6, exported 1.26.4",
        ]

    def test_plain_freeze_and_conda_without_pip(self, check):
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
            "dependencies: numpy\n",
            "dependencies:\n  - pip:\n",
            "dependencies:\n  - pip: 3\n",
            "dependencies:\n  - pip: [1, {}]\n",
            "- numpy=2.4.6\n- [",
            "{",
            "\t",
            "a: b: c",
            "!!python/object/apply:os.mkdir [x]",
            b"\xff\xfen\x00",
            b"\x00\x01\x02",
            "[1, 2]",
            "unknown==1.0\n",
            "dependencies:\n  - unknown=1.0\n",
            "a: &a [*a]\n",
        ],
    )
    def test_malformed_is_refused(self, check, tmp_path, text):
        with pytest.raises(InputError, match=r"env_export.yml .*export it again") as caught:
            check(text)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "x").exists()

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot be read"):
            check_env(RUNNING, tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(alphabet="ab:-=#'\"[]{}&*!|>%@ \n1", max_size=60))
    def test_any_text_is_refused_or_checked(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "any.yml"
        path.write_text(text, encoding="utf-8")
        try:
            assert check_env(RUNNING, path)["status"] in ("match", "differs")
        except InputError as error:
            assert "any.yml" in str(error)  # noqa: PT017 - both endings are well


STAMP_KEYS = {
    "run_id",
    "name",
    "command",
    "timestamp",
    "seed",
    "config_hash",
    "config",
    "git_commit",
    "git_dirty",
    "os_version",
    "python_version",
    "torch_version",
    "torch_build",
    "torchvision_version",
    "ml_collections_version",
    "numpy_version",
    "fiftyone_version",
    "device",
    "gpu_name",
    "gpu_count",
    "num_threads",
    "processes",
    "hosts",
    "driver_version",
    "cuda_version",
    "cudnn_version",
    "fp16",
    "env_hash",
    "env_check",
    "tiny_train_subset_path",
    "tiny_infer_subset_path",
    "tiny_train_subset",
    "tiny_infer_subset",
    "dataset",
    "normalization",
}
FACTS = {
    "dataset": {"name": "synthetic", "split": "train", "samples": 200, "checksum": "0" * 64},
    "tiny_train_subset": "none",
    "tiny_infer_subset": {"name": "synthetic_tiny", "sha256": "0" * 64, "count": 4, "classes": 3},
    "normalization": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


def emptiness(value: object, path: str = "") -> list[str]:
    """Where in a JSON value a null or an empty string stands."""
    if isinstance(value, dict):
        return [found for k, v in value.items() for found in emptiness(v, f"{path}.{k}")]
    if isinstance(value, list | tuple):
        return [found for i, v in enumerate(value) for found in emptiness(v, f"{path}[{i}]")]
    return [path] if value is None or value == "" else []


@pytest.fixture(scope="module")
def stamp():
    return build_env_stamp(TRAIN, "train.py --name a", CPU, FACTS)


class TestEnvStamp:
    def test_has_every_key_and_no_more(self, stamp):
        assert set(stamp) == STAMP_KEYS

    def test_has_no_null_and_no_empty_string(self, stamp, tmp_path):
        assert TRAIN.pretrained is None
        assert emptiness(stamp) == []
        assert stamp["config"]["pretrained"] == "none"
        odd = build_env_stamp(
            TRAIN, "", CPU, {**FACTS, "dataset": {"name": "", "deep": [None, ["", {"a": None}]]}}
        )
        assert emptiness(odd) == []
        assert odd["dataset"] == {"name": "none", "deep": ["none", ["none", {"a": "none"}]]}
        write_json(tmp_path / "stamp.json", odd)

    def test_is_json_as_it_stands(self, stamp, tmp_path):
        write_json(tmp_path / "stamp.json", stamp)
        read = json.loads((tmp_path / "stamp.json").read_text("utf-8"))
        assert read["normalization"]["mean"] == [0.5, 0.5, 0.5]
        assert emptiness(read) == []

    def test_says_what_runs(self, stamp):
        assert stamp["command"] == "train.py --name a"
        assert (stamp["name"], stamp["seed"], stamp["device"]) == ("a", 42, "cpu")
        assert stamp["fp16"] is False
        assert stamp["config_hash"] == config_hash(TRAIN)
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

    def test_says_what_a_cpu_has_not(self, stamp):
        assert stamp["gpu_count"] == 0
        for key in ("gpu_name", "driver_version", "cudnn_version"):
            assert stamp[key] == "none"

    def test_says_what_is_not_installed(self, stamp):
        try:
            expected = importlib.metadata.version("fiftyone")
        except importlib.metadata.PackageNotFoundError:
            expected = "missing"
        assert stamp["fiftyone_version"] == expected

    def test_imports_no_fiftyone(self, monkeypatch):
        # Another test of this process may have imported it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "fiftyone"]:
            monkeypatch.delitem(sys.modules, name)
        build_env_stamp(TRAIN, "train.py --name a", CPU, FACTS)
        assert "fiftyone" not in sys.modules

    def test_holds_the_resolved_config(self, stamp):
        assert stamp["config"].keys() == TRAIN.to_dict().keys()
        assert stamp["config"]["num_steps"] == 1000
        assert (stamp["tiny_train_subset_path"], stamp["tiny_infer_subset_path"]) == ("none",) * 2

    def test_holds_the_subsets(self, tmp_path):
        ids = tmp_path / "ids.txt"
        ids.write_text("image_00001")
        config = changed(TRAIN, tiny_train_subset="synthetic_tiny", tiny_infer_subset=str(ids))
        stamp = build_env_stamp(config, "train.py", CPU, FACTS)
        assert stamp["tiny_train_subset_path"] == "synthetic_tiny"
        assert stamp["tiny_infer_subset_path"] == str(ids)
        assert stamp["tiny_infer_subset"] == FACTS["tiny_infer_subset"]

    def test_of_an_evaluation_names_its_checkpoint(self, tmp_path):
        checkpoint = tmp_path / "ckpt.bin"
        checkpoint.write_bytes(b"weights")
        config = resolve_from_checkpoint(
            parse_eval_args(["--name", "a", "--checkpoint", str(checkpoint)], model_names()),
            CHECKPOINT,
        )
        facts = {
            **FACTS,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256_file(checkpoint),
            "checkpoint_id": "0123456789ab",
        }
        stamp = build_env_stamp(config, "eval.py", CPU, facts)
        assert set(stamp) == {*STAMP_KEYS, "checkpoint", "checkpoint_sha256", "checkpoint_id"}
        assert emptiness(stamp) == []
        assert stamp["tiny_train_subset_path"] == "none"

    def test_of_two_runs_differs_in_run_id(self, stamp):
        again = build_env_stamp(TRAIN, "train.py --name a", CPU, FACTS)
        assert again["run_id"] != stamp["run_id"]
        same = STAMP_KEYS - {"run_id", "timestamp", "git_dirty"}
        assert {key: again[key] for key in same} == {key: stamp[key] for key in same}


def test_the_hash_of_the_config_counts_no_path_of_this_machine():
    text = json.dumps({k: v for k, v in TRAIN.to_dict().items() if k not in NOT_HASHED})
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
