"""Put what a probe found into words and files: the table, `probe.json`, the learning curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.console import log
from utils.files import open_atomic
from utils.probe.curves import OutOfFold, interval
from utils.probe.methods import Row

Curves = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by method and number of images


def _row(row: Row, num_judged: int, final: float | None, num_final: int) -> dict[str, Any]:
    """Return a row as JSON; `final` is the accuracy where nothing was chosen by it."""
    judged = row.judged
    return {
        "method": row.method,
        "features": row.features,
        "is_chosen": row.is_chosen,
        "C": row.strength,
        "accuracy": None if judged is None else judged.accuracy,
        "interval": None if judged is None else interval(judged.accuracy, num_judged),
        "final_accuracy": final,
        "final_interval": None if final is None else interval(final, num_final),
        "has_converged": row.has_converged,
        "tried": {f"{strength:g}": quality.accuracy for strength, quality in row.tried.items()},
        "seconds": round(row.seconds, 3),
    }


def make_report(
    rows: Sequence[Row],
    judged: tuple[str, int],
    final: tuple[str, int],
    accuracies: Mapping[str, float],
    **more: Any,  # noqa: ANN401 - any JSON value
) -> dict[str, Any]:
    """Return `probe.json`.

    Args:
        rows: all that was tried.
        judged: what choices were made on, and the number of samples.
        final: the split that is evaluated, and the number of samples.
        accuracies: on it, by method, of the chosen rows fitted once more; empty if choices were
            made on it.
        more: other keys.
    """
    listed = [
        _row(row, judged[1], accuracies.get(row.method) if row.is_chosen else None, final[1])
        for row in rows
    ]
    return {
        "judged_on": {"split": judged[0], "samples": judged[1]},
        "evaluated_on": {"split": final[0], "samples": final[1]},
        **more,
        "rows": listed,
    }


def _percent(accuracy: float | None, bounds: Sequence[float] | None) -> str:
    """Return `87.1 (84.9-89.1)`; a dash where there is no figure."""
    if accuracy is None:
        return "-"
    low, high = bounds
    return f"{100 * accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the table as lines; a star marks the features that a method reads in the end."""
    judged, final = report["judged_on"]["split"], report["evaluated_on"]["split"]
    is_other = judged != final
    head = ["method", "features", "C", f"{judged} %", *([f"{final} %"] if is_other else []), "s"]
    rows = [head]
    for row in report["rows"]:
        rows.append(
            [
                row["method"],
                row["features"] + ("*" if row["is_chosen"] else ""),
                "-" if row["C"] is None else f"{row['C']:.3g}",
                _percent(row["accuracy"], row["interval"]),
                *([_percent(row["final_accuracy"], row["final_interval"])] if is_other else []),
                f"{row['seconds']:.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def say_report(report: Mapping[str, Any]) -> None:
    """Log the table, the learning curve and the folds."""
    for line in table_lines(report):
        log.info("%s", line)
    log.info("(in brackets 95 % bootstrap intervals; * features that were chosen)")
    for method, curve in report.get("few_shot", {}).items():
        points = [
            f"{shots}: {100 * at['mean']:.1f} ± {100 * at['sd']:.1f}" for shots, at in curve.items()
        ]
        log.info("%s, accuracy in %% by images of each class: %s", method, "; ".join(points))
    for method, spread in report.get("folds", {}).items():
        log.info(
            "%s, %d folds: %.1f ± %.1f %%",
            method,
            len(spread["accuracies"]),
            100 * spread["mean"],
            100 * spread["sd"],
        )


def write_folds(path: Path, ids: Sequence[str], labels: np.ndarray, judged: OutOfFold) -> None:
    """Write ids, labels, folds and out-of-fold probabilities as an `.npz` file."""
    with open_atomic(path) as file:
        np.savez(
            file,
            ids=np.asarray(ids, dtype=str),
            labels=labels,
            fold=judged.fold,
            probabilities=judged.probabilities,
        )


def draw_curves(path: Path, curves: Curves, split: str) -> None:
    """Draw accuracy by images of each class: a line for each method, bars of one sd, as a PNG."""
    from matplotlib.figure import Figure  # 0.3 s; without pyplot no display is looked for

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    shots: list[int] = []
    for method, curve in curves.items():
        shots = [*curve]
        means, deviations = ([100 * at[key] for at in curve.values()] for key in ("mean", "sd"))
        axes.errorbar(shots, means, deviations, marker="o", capsize=3, label=method)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(number) for number in shots])
    axes.set_xlabel("images of each class")
    axes.set_ylabel(f"accuracy on {split}, %")
    axes.grid(alpha=0.3)
    axes.legend()
    with open_atomic(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
