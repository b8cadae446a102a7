"""Check that FiftyOne runs on this machine, and that a run's predictions load into it.

    python scripts/check_fiftyone.py
    python scripts/check_fiftyone.py --predictions output/<run>/fiftyone/predictions.jsonl

It prints one JSON report with an entry for each check, in this order: `import`, `database` (a
mongod runs), `app` (the App, headless, answers over HTTP), `predictions` (every row is right and
loads into the database). The first failure ends the check; the rest is "skipped".
Exit code: 0 ready · 1 rows are bad · 2 not ready, or no such file. It takes about 15 seconds.

FiftyOne runs in a second process, `--inside` a temporary folder that is its home. There it cannot
reach the user's database and settings or spoil the report, and this process can end it when it
hangs: it swallows exceptions in places, those of SIGTERM and Ctrl-C too.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

from scripts.shared.fiftyone_rows import CheckFailed, check_rows, load_errors
from scripts.shared.fiftyone_services import private_environment, start_database, try_app
from utils.cli.parser import Parser
from utils.entrypoint import entrypoint
from utils.errors import InputError, RunError, one_line
from utils.files import open_regular

WHAT_TO_DO = {
    "import": "run scripts/setup_fiftyone.sh, then this check with the Python that it names",
    "database": "run scripts/setup_fiftyone.sh again: it brings FiftyOne's mongod, for macOS and "
    "for x86_64 Linux with OpenSSL 3 (Debian 12, Ubuntu 22.04)",
    "app": "run this check again when the machine is less busy, or with a longer --timeout; if "
    "that does not help, `fiftyone app launch` shows what its server says",
    "predictions": "run eval.py on the run's checkpoint, which writes all rows anew; if images are "
    "missing, name their folder with --data_root",
}
NAMED_ROWS = 10  # bad rows that the report names; it only counts the rest


@dataclass(frozen=True)
class Check:
    """One entry of the report, and the exit code that it calls for."""

    name: str
    status: str  # ok, failed, skipped
    detail: str
    exit_code: int = 0
    seconds: float = 0.0

    def entry(self) -> dict[str, object]:
        """Return the entry as the report shows it."""
        entry = {"name": self.name, "status": self.status, "detail": self.detail}
        if self.status == "failed":
            entry["what_to_do"] = WHAT_TO_DO[self.name]
        return {**entry, "seconds": round(self.seconds, 1)}


# --- In the second process ------------------------------------------------------------------------


def _check_import() -> str:
    try:
        import fiftyone as fo
    except ImportError as error:
        raise CheckFailed(f"{one_line(error)} (for {sys.executable})") from error
    return f"FiftyOne {fo.__version__} (for {sys.executable})"


def _check_predictions(path: Path) -> str:
    import fiftyone as fo

    with open_regular(path) as file:
        samples, problems = check_rows(file)
    if problems:
        more = f"; and {len(problems) - NAMED_ROWS} more" if len(problems) > NAMED_ROWS else ""
        named = "; ".join(problems[:NAMED_ROWS])
        raise CheckFailed(f"{len(problems)} bad row(s) in {path}: {named}{more}")
    dataset = fo.Dataset("predictions")
    try:
        dataset.add_samples(samples, progress=False)
    except load_errors() as error:
        raise CheckFailed(f"the database does not take the rows: {one_line(error)}") from error
    if dataset.count() != len(samples):
        raise CheckFailed(f"of {len(samples)} rows {dataset.count()} are in the database")
    return f"{len(samples)} rows loaded from {path}"


def _inside(folder: Path, predictions: Path | None) -> None:
    """Run the checks and print a JSON line for each; what FiftyOne prints goes to stderr."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    steps: dict[str, Callable[[], str]] = {
        "import": _check_import,
        "database": partial(start_database, folder),
        "app": try_app,
    }
    if predictions is not None:
        steps["predictions"] = partial(_check_predictions, predictions)
    for name, step in steps.items():
        started = time.monotonic()
        try:
            status, detail, code = "ok", step(), 0
        except CheckFailed as error:
            status, detail, code = "failed", str(error), 1 if name == "predictions" else 2
        check = Check(name, status, detail, code, time.monotonic() - started)
        results.write(json.dumps(asdict(check)) + "\n")
        if code:
            return


# --- In the first process -------------------------------------------------------------------------


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill the second process and mongod, which is in its group, and return what they printed.

    The App's server ends by itself when its parent is gone. All of them hold the pipe of stderr, so
    waiting for its end waits for theirs.
    """
    # macOS says "not permitted" where only the dead are left in a group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def run_checks(predictions: Path | None, timeout: float) -> list[Check]:
    """Return all checks, the skipped ones too. No process and no folder is left in any case."""
    with tempfile.TemporaryDirectory(prefix="check_fiftyone_") as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", folder]
        if predictions is not None:
            command += ["--predictions", str(predictions.absolute())]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=private_environment(folder),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        try:
            results, noise = process.communicate(timeout=timeout)
            why = f"FiftyOne's process ended with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            results, noise = _end(process)
            why = f"not finished after {timeout:g} s"
        except BaseException:
            _end(process)
            raise
    checks = [Check(**json.loads(line)) for line in results.splitlines()]
    last_words = (noise.strip().splitlines() or ["none"])[-1]
    for name in list(WHAT_TO_DO)[len(checks) :]:
        failed = next((check.name for check in checks if check.status == "failed"), None)
        if failed is not None:
            checks.append(Check(name, "skipped", f"{failed} comes first"))
        elif name == "predictions" and predictions is None:
            checks.append(Check(name, "skipped", "no --predictions given"))
        else:
            checks.append(Check(name, "failed", f"{why}; last words: {last_words}", exit_code=2))
    return checks


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Check and print the report.

    Raises:
        InputError: FiftyOne is not ready, or a flag or its file is bad.
        RunError: the rows are bad.
    """
    parser = Parser(
        description="Check that FiftyOne runs here, and that a run's predictions load into it. "
        "Prints a JSON report. Exit code: 0 ready, 1 rows are bad, 2 not ready or no such file."
    )
    add = parser.add_argument
    add("--predictions", type=Path, metavar="JSONL", help="output/<run>/fiftyone/predictions.jsonl")
    add("--timeout", type=float, default=180.0, metavar="SECONDS", help="limit of the whole check")
    add("--inside", type=Path, help=argparse.SUPPRESS)  # the second process
    options = parser.parse_args(argv)
    if options.inside is not None:
        return _inside(options.inside, options.predictions)
    if not 0 < options.timeout <= 86400:
        raise InputError(f"--timeout must be above 0 and within a day, not {options.timeout:g}")
    if options.predictions is not None:
        try:
            open_regular(options.predictions).close()
        except OSError as error:
            raise InputError(f"--predictions cannot be read: {one_line(error)}") from error
    checks = run_checks(options.predictions, options.timeout)
    code = max(check.exit_code for check in checks)
    report = {"ready": code == 0, "exit_code": code, "checks": [check.entry() for check in checks]}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    for check in checks:
        if check.status == "failed":
            kind = RunError if check.exit_code == 1 else InputError
            raise kind(f"{check.name}: {check.detail}; {WHAT_TO_DO[check.name]}")
    return None


if __name__ == "__main__":
    sys.exit(main())
