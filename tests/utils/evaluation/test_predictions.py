"""Check that prediction rows are as the contract has them, their digest, and the tables."""

import csv
import json
import math

import numpy as np
import pytest
from helpers import read_json
from helpers import rows_of as read_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data_utils import RunPaths
from utils.evaluation.evaluate import Evaluation
from utils.evaluation.metrics import per_class, per_sample, summarize
from utils.evaluation.predictions import (
    export_evaluation,
    prediction_rows,
    predictions_digest,
    write_predictions,
)

SCHEMA = {
    "filepath": str,
    "tags": list,
    "sample_id": str,
    "ground_truth": dict,
    "predictions": dict,
    "predictions_top5": dict,
    "correct": bool,
    "loss": float,
    "margin": float,
    "checkpoint_id": str,
    "run": str,
    "relative_path": str,
}


def evaluation_of(samples: int, classes: int, seed: int = 0) -> Evaluation:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (samples, classes)).astype(np.float32)
    return Evaluation(logits, generator.integers(0, classes, samples), None, np.arange(samples))


def with_parts(evaluation: Evaluation, heads: int = 4, seed: int = 0) -> Evaluation:
    samples = len(evaluation.labels)
    points = np.random.default_rng(seed).uniform(0, 1, (samples, heads, 2))
    return evaluation._replace(parts=points)


def split_of(make_split, evaluation: Evaluation, root):
    labels, classes = evaluation.labels.tolist(), evaluation.logits.shape[1]
    return make_split(root, labels, num_classes=classes, photos=False)


@pytest.fixture
def rows_of(make_split, tmp_path):
    """The rows of an evaluation as they come back from the file."""

    def make(evaluation: Evaluation, run="demo", checkpoint_id="0123456789ab", logits=True):
        split = split_of(make_split, evaluation, tmp_path)
        path = tmp_path / "predictions.jsonl"
        write_predictions(path, prediction_rows(evaluation, split, run, checkpoint_id, logits))
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    return make


class TestRows:
    @pytest.mark.parametrize("classes", [1, 2, 5, 7])
    def test_have_the_schema_of_the_contract(self, rows_of, tmp_path, classes):
        evaluation = evaluation_of(6, classes)
        rows = rows_of(evaluation)
        assert len(rows) == 6
        names = [f"class {c}" for c in range(classes)]
        results = per_sample(evaluation.logits, evaluation.labels)
        for i, row in enumerate(rows):
            assert {key: type(value) for key, value in row.items()} == SCHEMA
            assert row["sample_id"] == f"photo_{i:03d}"
            assert row["relative_path"] == f"jpg/photo_{i:03d}.jpg"
            assert row["filepath"] == str(tmp_path / row["relative_path"])
            assert row["tags"] == ["val"]
            assert (row["run"], row["checkpoint_id"]) == ("demo", "0123456789ab")
            label = names[evaluation.labels[i]]
            assert row["ground_truth"] == {"_cls": "Classification", "label": label}

            best = int(evaluation.logits[i].argmax())
            assert row["predictions"] == {
                "_cls": "Classification",
                "label": names[best],
                "confidence": results.probabilities[i, best],
                "logits": evaluation.logits[i].tolist(),
            }
            top = row["predictions_top5"]
            assert top.keys() == {"_cls", "classifications"}
            assert top["_cls"] == "Classifications"
            order = sorted(range(classes), key=lambda c: -evaluation.logits[i, c])[:5]
            assert top["classifications"] == [
                {
                    "_cls": "Classification",
                    "label": names[c],
                    "confidence": results.probabilities[i, c],
                }
                for c in order
            ]
            assert row["correct"] is (label == names[best])
            assert row["loss"] == pytest.approx(results.losses[i])
            probabilities = sorted(results.probabilities[i], reverse=True)
            second = probabilities[1] if classes > 1 else 0.0
            assert row["margin"] == probabilities[0] - second

    def test_are_of_the_evaluated_samples_alone(self, make_split, tmp_path):
        """The first and the fourth are bad images, which were left out."""
        evaluation = evaluation_of(3, 4)._replace(positions=np.array([1, 2, 4]))
        split = make_split(tmp_path, [0, 1, 2, 3, 0], photos=False)
        rows = list(prediction_rows(evaluation, split, "demo", "0123456789ab", False))
        assert [row["sample_id"] for row in rows] == ["photo_001", "photo_002", "photo_004"]
        assert [row["relative_path"][4:13] for row in rows] == [row["sample_id"] for row in rows]

    def test_hold_no_logits_unless_asked_to(self, rows_of):
        evaluation = evaluation_of(3, 4)
        bare, full = rows_of(evaluation, logits=False), rows_of(evaluation)
        for row, with_logits in zip(bare, full, strict=True):
            assert row["predictions"].keys() == {"_cls", "label", "confidence"}
            del with_logits["predictions"]["logits"]
            assert row == with_logits

    def test_of_one_class_are_certain(self, rows_of):
        for row in rows_of(evaluation_of(2, 1)):
            assert (row["predictions"]["confidence"], row["margin"]) == (1.0, 1.0)
            assert row["correct"] is True
            assert len(row["predictions_top5"]["classifications"]) == 1
            assert row["loss"] == 0
            assert math.copysign(1, row["loss"]) == 1  # no "-0.0" in the file

    @settings(max_examples=50)
    @given(data=st.data(), classes=st.integers(1, 8))
    def test_hold_finite_numbers_for_any_finite_logits(
        self, make_split, tmp_path_factory, data, classes
    ):
        value = st.floats(width=32, allow_nan=False, allow_infinity=False)
        logits = data.draw(st.lists(value, min_size=classes, max_size=classes))
        evaluation = Evaluation(
            np.array([logits], dtype=np.float32),
            np.array([data.draw(st.integers(0, classes - 1))]),
            None,
            np.arange(1),
        )
        root = tmp_path_factory.getbasetemp()
        split = split_of(make_split, evaluation, root)
        (row,) = prediction_rows(evaluation, split, "demo", "id", True)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        confidences = [c["confidence"] for c in row["predictions_top5"]["classifications"]]
        assert confidences == sorted(confidences, reverse=True)
        assert 0 <= row["margin"] <= 1
        assert row["loss"] >= 0

    def test_hold_a_keypoint_for_every_head(self, rows_of):
        evaluation, heads = with_parts(evaluation_of(5, 3)), 4
        rows, bare = rows_of(evaluation), rows_of(evaluation._replace(parts=None))
        for i, (row, without) in enumerate(zip(rows, bare, strict=True)):
            assert {key: type(value) for key, value in row.items()} == {**SCHEMA, "parts": dict}
            assert row.pop("parts") == {
                "_cls": "Keypoints",
                "keypoints": [
                    {
                        "_cls": "Keypoint",
                        "label": f"head {head}",
                        "points": [[float(x) for x in evaluation.parts[i, head]]],
                    }
                    for head in range(heads)
                ],
            }
            assert row == without  # and nothing else changes

    def test_hold_points_as_exact_floats(self, rows_of):
        """FiftyOne takes no ints where floats are wanted, and JSON must give the same bits back."""
        points = np.array([[[0.0, 1.0], [1 / 3, 0.1]]])
        (row,) = rows_of(evaluation_of(1, 2)._replace(parts=points))
        read = [keypoint["points"] for keypoint in row["parts"]["keypoints"]]
        assert read == [[[0.0, 1.0]], [[1 / 3, 0.1]]]
        assert all(type(value) is float for (point,) in read for value in point)


class TestDigest:
    def digest(self, tmp_path, rows) -> str:
        path = tmp_path / "rows.jsonl"
        written = write_predictions(path, iter(rows))
        assert predictions_digest(path) == written
        return written

    def test_ignores_where_and_which_and_nothing_else(self, rows_of, tmp_path):
        rows = rows_of(evaluation_of(3, 4))
        first = self.digest(tmp_path, rows)
        for key, value in {"filepath": "/x", "run": "y", "checkpoint_id": "z"}.items():
            changed = [{**row, key: value} for row in rows]
            assert self.digest(tmp_path, changed) == first
            dropped = [{k: v for k, v in row.items() if k != key} for row in rows]
            assert self.digest(tmp_path, dropped) == first
        others = set()
        for key in SCHEMA.keys() - {"filepath", "run", "checkpoint_id"}:
            others.add(self.digest(tmp_path, [{**rows[0], key: "changed"}, *rows[1:]]))
        others.add(self.digest(tmp_path, rows[::-1]))
        others.add(self.digest(tmp_path, rows[:-1]))
        others.add(self.digest(tmp_path, [*rows, rows[-1]]))
        others.add(self.digest(tmp_path, [{**row, "more": 1} for row in rows]))
        assert first not in others
        assert len(others) == len(SCHEMA) - 3 + 4

    @pytest.mark.parametrize(
        "path",
        [
            ("predictions", "logits", 0),
            ("predictions_top5", "classifications", 1, "confidence"),
            ("parts", "keypoints", 3, "points", 0, 1),
            ("loss",),
        ],
    )
    def test_sees_the_last_bit(self, rows_of, tmp_path, path):
        rows = rows_of(with_parts(evaluation_of(2, 4)))
        first = self.digest(tmp_path, rows)
        *parents, last = path
        holder = rows[1]
        for key in parents:
            holder = holder[key]
        holder[last] = math.nextafter(holder[last], math.inf)
        assert self.digest(tmp_path, rows) != first

    def test_ignores_spelling(self, rows_of, tmp_path):
        rows = rows_of(evaluation_of(2, 3))
        first = self.digest(tmp_path, rows)
        path = tmp_path / "spelled.jsonl"
        lines = [json.dumps(dict(reversed(row.items())), indent=None) for row in rows]
        path.write_text("\r\n".join(lines), encoding="utf-8", newline="")
        assert predictions_digest(path) == first

    def test_a_failure_midway_leaves_the_old_rows(self, rows_of, tmp_path):
        rows = rows_of(evaluation_of(3, 3))
        path = tmp_path / "predictions.jsonl"
        before = path.read_bytes()

        def broken():
            yield rows[0]
            yield {**rows[1], "loss": float("nan")}

        with pytest.raises(ValueError, match=r"not JSON compliant"):
            write_predictions(path, broken())
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]


class TestExport:
    @pytest.fixture
    def exported(self, make_split, tmp_path):
        evaluation = evaluation_of(9, 4)
        evaluation.labels[evaluation.labels == 3] = 0  # a class without samples
        split = split_of(make_split, evaluation, tmp_path / "photos")
        paths = RunPaths(tmp_path / "output", "demo")
        metrics = summarize(evaluation.logits, evaluation.labels)
        metrics |= {"checkpoint_id": "0123456789ab", "split": "val"}
        digest = export_evaluation(paths, evaluation, split, metrics, export_logits=False)
        return evaluation, paths, metrics, digest

    def test_writes_three_files(self, exported):
        _, paths, metrics, digest = exported
        assert digest == predictions_digest(paths.predictions)
        assert read_json(paths.metrics) == metrics
        rows = read_rows(paths)
        assert [row["sample_id"] for row in rows] == [f"photo_{i:03d}" for i in range(9)]
        assert {row["run"] for row in rows} == {"demo"}
        assert {row["checkpoint_id"] for row in rows} == {"0123456789ab"}
        assert "logits" not in rows[0]["predictions"]
        assert sum(row["correct"] for row in rows) / 9 == metrics["accuracy"]
        assert math.fsum(row["loss"] for row in rows) / 9 == metrics["loss"]
        files = {path.name for path in paths.run.rglob("*") if path.is_file()}
        assert files == {"predictions.jsonl", "metrics.json", "per_class.csv"}

    def test_the_table_has_a_row_for_every_class(self, exported):
        evaluation, paths, metrics, _ = exported
        with paths.per_class.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["class"] for row in rows] == ["class 0", "class 1", "class 2", "class 3"]
        assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
        counts = per_class(evaluation.logits.argmax(axis=1), evaluation.labels, 4)
        for i, row in enumerate(rows):
            assert int(row["samples"]) == counts.samples[i]
            assert int(row["predicted"]) == counts.predicted[i]
            assert int(row["correct"]) == counts.correct[i]
        assert rows[3]["samples"] == "0"
        assert rows[3]["accuracy"] == ""
        seen = [float(row["accuracy"]) for row in rows if row["accuracy"]]
        assert math.fsum(seen) / len(seen) == metrics["mean_per_class_accuracy"]
        assert sum(int(row["samples"]) for row in rows) == 9

    def test_the_table_survives_names_with_commas_and_quotes(self, make_split, tmp_path):
        evaluation = evaluation_of(2, 2)
        split = split_of(make_split, evaluation, tmp_path)
        object.__setattr__(split, "classes", ('a, "b"', "c\nd"))
        paths = RunPaths(tmp_path / "output", "demo")
        export_evaluation(paths, evaluation, split, {"checkpoint_id": "x"}, export_logits=True)
        with paths.per_class.open(encoding="utf-8", newline="") as file:
            assert [row["class"] for row in csv.DictReader(file)] == ['a, "b"', "c\nd"]
        assert len(paths.predictions.read_text("utf-8").splitlines()) == 2
