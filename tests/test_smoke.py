"""Run the specified smoke tests (T013, T014, T021, T022, T027) through the real CLI and model.

    pytest -m "smoke_train or smoke" -q
    pytest -m "smoke_eval or smoke" -q

They use the task list's commands on flowers drawn in the official layout, and on the real ones
where those are at hand.
"""

import hashlib
import json
import math

import pytest
import torch
from helpers import (
    REAL_FLOWERS,
    REPO,
    assert_no_nulls,
    evaluate,
    files_below,
    read_json,
    read_scalars,
    rows_of,
    train,
)

from utils.data_utils import RunPaths

pytestmark = pytest.mark.smoke

# Letter for letter the flags of the task list, but for the paths.
US1 = (
    "--name flower_mps --dataset flower102 --model_type testing --img_size 64 --num_steps 10 "
    "--eval_every 5 --train_batch_size 4 --eval_batch_size 2 --prefer_mps "
    "--tiny_train_subset flower102_tiny --tiny_infer_subset flower102_tiny"
)
US2 = (
    "--name flower_eval --dataset flower102 --img_size 64 --eval_batch_size 2 --prefer_mps "
    "--tiny_infer_subset flower102_tiny"
)
US3 = (
    "--name meta_test --dataset flower102 --img_size 64 --num_steps 2 --eval_every 2 "
    "--train_batch_size 2 --eval_batch_size 2 --tiny_train_subset flower102_tiny "
    "--tiny_infer_subset flower102_tiny --prefer_mps"
)

# The keys of a stamp, as the golden test pins them.
GOLDEN = read_json(REPO / "tests" / "project" / "golden.json")
OF_TRAINING, OF_EVALUATION = (
    {key for key in GOLDEN[run]["stamp_keys"] if "." not in key} for run in ("plain", "eval")
)
EVAL_TAGS = {
    "eval/loss",
    "eval/accuracy",
    "eval/top5",
    "eval/mean_per_class_accuracy",
    "eval/macro_f1",
}
TRAIN_TAGS = {
    "train/loss",
    "train/accuracy",
    "train/lr",
    "train/images_per_second",
    "data/wait_fraction",
}


@pytest.fixture(scope="module", params=["drawn", "real"])
def data_root(request, drawn):
    if request.param == "drawn":
        return drawn
    if REAL_FLOWERS is None:
        pytest.skip("the real Flowers-102 is not here: export DATA_ROOT=/path/to/its/parent")
    return REAL_FLOWERS


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """The US1 run."""
    output = tmp_path_factory.mktemp("us1")
    assert train(US1, "--data_root", data_root, "--output_dir", output) == 0
    return RunPaths(output, "flower_mps")


@pytest.fixture(scope="module")
def evaluated(trained, data_root):
    """The US2 run on the US1 run's checkpoint."""
    where = ("--data_root", data_root, "--output_dir", trained.output_dir)
    assert evaluate(US2, "--checkpoint", trained.checkpoint, *where) == 0
    return RunPaths(trained.output_dir, "flower_eval")


@pytest.mark.smoke_train
class TestTrain:
    def test_every_artifact_is_there_and_nothing_else(self, trained):
        below = files_below(trained.run)
        assert {path.as_posix() for path in below if (trained.run / path).is_file()} == {
            "checkpoints/ckpt.bin",
            "checkpoints/last.bin",
            "checkpoints/last~1.bin",
            "fiftyone/predictions.jsonl",
            "labelmap.json",
            "env_stamp.json",
            "metrics.json",
            "per_class.csv",
            "RETENTION.txt",
        }
        assert trained.tensorboard == trained.output_dir / "tb" / "flower_mps"

    def test_tensorboard_has_loss_accuracy_and_lr(self, trained):
        scalars = read_scalars(trained.tensorboard)
        assert set(scalars) == TRAIN_TAGS | EVAL_TAGS
        assert [step for step, _ in scalars["eval/loss"]] == [5, 10]
        assert [step for step, _ in scalars["train/loss"]] == [5, 10]
        assert all(math.isfinite(value) for points in scalars.values() for _, value in points)

    def test_training_moves_the_weights(self, trained):
        checkpoint = torch.load(trained.checkpoint, weights_only=True)
        weights = checkpoint["state_dict"]
        assert weights["head.weight"].abs().max() > 0  # it starts at zero
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())

    def test_predictions_are_two_eval_batches(self, trained):
        rows = rows_of(trained)
        assert len(rows) == len({row["sample_id"] for row in rows}) == 4

    def test_rows_say_what_the_contract_says(self, trained, data_root):
        classes = read_json(trained.labelmap)["classes"]
        for row in rows_of(trained):
            assert row["filepath"] == str((data_root / row["relative_path"]).resolve())
            assert (row["tags"], row["run"]) == (["val"], "flower_mps")
            logits = row["predictions"]["logits"]
            assert len(logits) == len(classes) == 102
            best = max(range(102), key=logits.__getitem__)
            assert row["predictions"]["label"] == classes[best]
            assert row["correct"] == (row["ground_truth"]["label"] == classes[best])
            assert len(row["predictions_top5"]["classifications"]) == 5

    def test_labelmap(self, trained):
        labelmap = read_json(trained.labelmap)
        assert set(labelmap) == {"dataset", "num_classes", "classes", "checksum"}
        assert labelmap["dataset"] == "flower102"
        assert labelmap["num_classes"] == len(labelmap["classes"]) == 102
        assert labelmap["classes"][0] == "pink primrose"
        compact = json.dumps(labelmap["classes"], separators=(",", ":"), ensure_ascii=False)
        assert labelmap["checksum"] == hashlib.sha256(compact.encode()).hexdigest()

    def test_retention_note(self, trained):
        text = trained.retention.read_text(encoding="utf-8")
        assert "at least 90 days" in text
        assert str(trained.run.resolve()) in text

    def test_metrics_belong_to_the_checkpoint(self, trained):
        checkpoint = torch.load(trained.checkpoint, weights_only=True)
        assert read_json(trained.metrics) == checkpoint["metrics"]
        rows = rows_of(trained)
        assert checkpoint["metrics"]["accuracy"] == sum(row["correct"] for row in rows) / 4
        assert {row["checkpoint_id"] for row in rows} == {checkpoint["metrics"]["checkpoint_id"]}
        assert len(trained.per_class.read_text("utf-8").splitlines()) == 1 + 102

    def test_env_stamp_is_complete(self, trained):
        stamp = read_json(trained.env_stamp)
        assert set(stamp) == OF_TRAINING
        assert_no_nulls(stamp)
        assert stamp["micro_batches"] == 1
        assert stamp["fp16"] is False
        assert stamp["tiny_train_subset_path"] == "flower102_tiny"
        assert stamp["tiny_train_subset"]["count"] == 8
        assert stamp["tiny_infer_subset"]["count"] == 4
        assert stamp["tiny_infer_subset"]["classes"] >= 2
        assert stamp["torch_version"] == torch.__version__


@pytest.mark.smoke_train
def test_default_model_leaves_a_full_stamp(drawn, tmp_path):
    """US3: the default ViT-B_16."""
    assert train(US3, "--data_root", drawn, "--output_dir", tmp_path) == 0
    stamp = read_json(RunPaths(tmp_path, "meta_test").env_stamp)
    assert set(stamp) == OF_TRAINING
    assert_no_nulls(stamp)
    assert stamp["config"]["model_type"] == "ViT-B_16"


@pytest.mark.smoke_eval
class TestEval:
    def test_everything_but_a_checkpoint(self, evaluated):
        below = files_below(evaluated.run)
        assert {path.as_posix() for path in below if (evaluated.run / path).is_file()} == {
            "fiftyone/predictions.jsonl",
            "labelmap.json",
            "env_stamp.json",
            "metrics.json",
            "per_class.csv",
            "RETENTION.txt",
        }

    def test_row_count(self, evaluated):
        assert len(rows_of(evaluated)) == 4

    def test_metrics_equal_the_training_runs_to_the_last_byte(self, evaluated, trained):
        assert evaluated.metrics.read_bytes() == trained.metrics.read_bytes()
        assert evaluated.per_class.read_bytes() == trained.per_class.read_bytes()
        digests = [read_json(run.env_stamp)["predictions_digest"] for run in (evaluated, trained)]
        assert digests[0] == digests[1] != "none"

    def test_tags_equal_the_training_runs(self, evaluated):
        assert set(read_scalars(evaluated.tensorboard)) == EVAL_TAGS

    def test_env_stamp_names_the_checkpoint(self, evaluated, trained):
        stamp = read_json(evaluated.env_stamp)
        assert set(stamp) == OF_EVALUATION
        assert_no_nulls(stamp)
        data = trained.checkpoint.read_bytes()
        assert stamp["checkpoint"] == str(trained.checkpoint.resolve())
        assert stamp["checkpoint_sha256"] == hashlib.sha256(data).hexdigest()
        assert stamp["checkpoint_id"] == read_json(trained.metrics)["checkpoint_id"]

    def test_missing_checkpoint_fails_fast(self, data_root, tmp_path, capsys):
        missing, output = tmp_path / "nowhere.bin", tmp_path / "output"
        where = ("--data_root", data_root, "--output_dir", output)
        assert evaluate(US2, "--checkpoint", missing, *where) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert str(missing) in error
        assert not output.exists()

    def test_device_is_logged_and_weights_load_onto_it(self, trained, data_root, tmp_path, capsys):
        where = ("--data_root", data_root, "--output_dir", tmp_path)
        more = ("--checkpoint", trained.checkpoint, "--device", "cpu")
        assert evaluate(US2, *where, *more) == 0
        assert "device cpu (as asked)" in capsys.readouterr().out
        assert read_json(RunPaths(tmp_path, "flower_eval").env_stamp)["device"] == "cpu"
