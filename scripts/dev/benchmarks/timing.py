"""Time actions in turn, and count the bytes they hold: what the benchmarks measure with.

Absolute times of a shared machine are noise; the ratio within a round is not.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Action = Callable[[], object]


def seconds_of(action: Action) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turn(actions: Mapping[str, Action], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round: all once, then all again; one uncounted round first."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds_of(action))
    return times


def ratio_of(a: list[float], b: list[float]) -> dict[str, float | list[float]]:
    """Median seconds of each, and the median, lowest and highest ratio a / b within a round."""
    ratios = [time_a / time_b for time_a, time_b in zip(a, b, strict=True)]
    return {
        "a_seconds": statistics.median(a),
        "b_seconds": statistics.median(b),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def in_pairs(a: Action, b: Action, pairs: int) -> dict[str, float | list[float]]:
    """Time `a` and `b` in turn: `ratio_of` their seconds."""
    times = in_turn({"a": a, "b": b}, pairs)
    return ratio_of(times["a"], times["b"])


def peak_bytes(action: Action) -> int:
    """The most that torch's CPU allocator held during one call, above what it held before.

    Counted from the allocator's own events, so that it does not depend on what the system gives
    back when. Memory that libraries take for themselves (oneDNN's scratch) is not in it.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak
