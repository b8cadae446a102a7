"""Time actions in turn, and count the bytes that they hold.

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
Figure = dict[str, Any]


def in_turn(actions: Mapping[str, Action], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each action in each round.

    A round runs every action once. One round before the others does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(1 + rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - started)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio_of(a: list[float], b: list[float]) -> Figure:
    """Return the median seconds of each, and the median, lowest and highest a / b of a round."""
    ratios = [time_a / time_b for time_a, time_b in zip(a, b, strict=True)]
    return {
        "a_seconds": statistics.median(a),
        "b_seconds": statistics.median(b),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def in_pairs(a: Action, b: Action, pairs: int) -> Figure:
    """Return `ratio_of` the seconds that `a` and `b` take in turn."""
    times = in_turn({"a": a, "b": b}, pairs)
    return ratio_of(times["a"], times["b"])


def peak_bytes(action: Action) -> int:
    """Return the most that torch's CPU allocator held during one call, above what it held before.

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
    memory = [event for event in events if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(memory, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
