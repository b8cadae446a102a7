"""Write what an evaluation leaves on disk: FiftyOne rows, metrics, the per-class table.

Shapes: S samples, C classes, H heads.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.splits import Split
from utils.data_utils import RunPaths
from utils.evaluation.evaluate import Evaluation
from utils.evaluation.metrics import f1_scores, per_class, per_sample
from utils.files import canonical_json, open_atomic, write_json, write_text

# What a row says of places and of who predicted. The rest is the result.
NOT_THE_RESULT = frozenset({"filepath", "run", "checkpoint_id"})


def _classification(label: str, **attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    return {"_cls": "Classification", "label": label, **attributes}


def _keypoints(points: np.ndarray) -> dict[str, Any]:
    """Return (H, 2) points as FiftyOne's label, one keypoint a head."""
    keypoints = [
        {"_cls": "Keypoint", "label": f"head {head}", "points": [point]}
        for head, point in enumerate(points.tolist())
    ]
    return {"_cls": "Keypoints", "keypoints": keypoints}


def prediction_rows(
    evaluation: Evaluation, split: Split, run: str, checkpoint_id: str, export_logits: bool
) -> Iterator[dict[str, Any]]:
    """Yield one row per sample in split order, as `fiftyone.Sample.from_dict` takes it.

    Args:
        evaluation: evaluation of samples of `split`, of all that are not bad.
        split: the samples.
        run: name of the run that evaluates.
        checkpoint_id: id of the evaluated weights.
        export_logits: whether rows carry all C logits, in labelmap order.
    """
    results = per_sample(evaluation.logits, evaluation.labels)
    for i, at in enumerate(evaluation.positions.tolist()):
        classes, ranked = split.classes, results.ranking[i].tolist()
        confidences = results.probabilities[i, ranked].tolist()
        logits = {"logits": evaluation.logits[i].tolist()} if export_logits else {}
        parts = {} if evaluation.parts is None else {"parts": _keypoints(evaluation.parts[i])}
        top = [
            _classification(classes[c], confidence=p)
            for c, p in zip(ranked, confidences, strict=True)
        ]
        yield {
            "filepath": str(split.root / split.paths[at]),
            "tags": [split.tag_of(at)],
            "sample_id": str(split.ids[at]),
            "ground_truth": _classification(classes[evaluation.labels[i]]),
            "predictions": {**top[0], **logits},
            "predictions_top5": {"_cls": "Classifications", "classifications": top},
            **parts,
            "correct": ranked[0] == int(evaluation.labels[i]),
            "loss": float(results.losses[i]),
            # With one class there is no second: it has the rest of the probability, none.
            "margin": confidences[0] - (confidences[1] if len(confidences) > 1 else 0.0),
            "checkpoint_id": checkpoint_id,
            "run": run,
            "relative_path": str(split.paths[at]),
        }


def write_predictions(path: Path, rows: Iterator[Mapping[str, Any]]) -> str:
    """Write `rows` to `path`, one JSON object a line, and return their predictions digest.

    The digest is the SHA-256 over the canonical JSON of each row's result.
    """
    digest = hashlib.sha256()
    with open_atomic(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            digest.update(_result_line(row))
    return digest.hexdigest()


def _result_line(row: Mapping[str, Any]) -> bytes:
    result = {key: value for key, value in row.items() if key not in NOT_THE_RESULT}
    return canonical_json(result).encode() + b"\n"


def predictions_digest(path: Path) -> str:
    """Return the predictions digest of a written file; equal digests mean equal predictions."""
    digest = hashlib.sha256()
    with path.open(encoding="utf-8") as file:
        for line in file:
            digest.update(_result_line(json.loads(line)))
    return digest.hexdigest()


def _per_class_csv(evaluation: Evaluation, classes: Sequence[str]) -> str:
    predicted = evaluation.logits.argmax(axis=1)
    counts = per_class(predicted, evaluation.labels, len(classes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "class", "samples", "predicted", "correct", "accuracy", "f1"])
    for i, (name, f1) in enumerate(zip(classes, f1_scores(counts).tolist(), strict=True)):
        samples, correct = int(counts.samples[i]), int(counts.correct[i])
        accuracy = correct / samples if samples else ""  # no sample, no accuracy
        writer.writerow([i, name, samples, int(counts.predicted[i]), correct, accuracy, f1])
    return text.getvalue()


def export_evaluation(
    paths: RunPaths,
    evaluation: Evaluation,
    split: Split,
    metrics: Mapping[str, Any],
    export_logits: bool,
) -> str:
    """Write predictions, metrics and per-class table, and return the predictions digest.

    Args:
        paths: paths of the run that evaluates.
        evaluation: evaluation of samples of `split`, of all that are not bad.
        split: the samples.
        metrics: metrics of the evaluation, with the `checkpoint_id` of the weights.
        export_logits: whether rows carry all C logits, in labelmap order.
    """
    rows = prediction_rows(evaluation, split, paths.name, metrics["checkpoint_id"], export_logits)
    digest = write_predictions(paths.predictions, rows)
    write_json(paths.metrics, metrics)
    write_text(paths.per_class, _per_class_csv(evaluation, split.classes))
    return digest
