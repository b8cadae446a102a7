"""Is FiftyOne ready on this machine, and do a run's predictions load into it?

    python scripts/check_fiftyone.py
    python scripts/check_fiftyone.py --predictions output/<run>/fiftyone/predictions.jsonl

stdout is one JSON report with an entry for each check, in this order: `import`, `database` (a
mongod that runs), `app` (the App, headless, answers over HTTP), `predictions` (every row is right
and lands in the database). The first failure ends the check; what would follow is "skipped".
Exit code: 0 ready · 1 rows are bad · 2 not ready, or no such file. Takes about 15 seconds.

FiftyOne runs in a second process, `--inside` a temporary folder that is its home. There it cannot
reach the user's database and settings or spoil the report, and whatever hangs can be ended from
out here: it swallows every exception in places, those of SIGTERM and Ctrl-C too.
"""

import argparse
import atexit
import contextlib
import http.client
import json
import os
import signal
import site
import socket
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
from utils.console import Parser
from utils.entrypoint import entrypoint
from utils.errors import InputError, RunError, one_line
from utils.files import write_json

HOST = "127.0.0.1"
WHAT_TO_DO = {
    "import": "run scripts/setup_fiftyone.sh, then this check with the Python that it names",
    "database": "run scripts/setup_fiftyone.sh again: it brings FiftyOne's mongod, for macOS and "
    "for x86_64 Linux with OpenSSL 3 (Debian 12, Ubuntu 22.04)",
    "app": "run this check again when the machine is less busy, or with a longer --timeout; if "
    "that does not help, `fiftyone app launch` shows what its server says",
    "predictions": "run eval.py on the run's checkpoint, it writes all rows anew; where images are "
    "missing, its --data_root says where they are now",
}
NAMED_ROWS = 10  # so many bad rows the report names; of more it gives the number


@dataclass(frozen=True)
class Check:
    """One entry of the report, and the exit code that it calls for."""

    name: str
    status: str  # ok, failed, skipped
    detail: str
    exit_code: int = 0
    seconds: float = 0.0

    def entry(self) -> dict[str, object]:
        """What the report says of this check."""
        entry = {"name": self.name, "status": self.status, "detail": self.detail}
        if self.status == "failed":
            entry["what_to_do"] = WHAT_TO_DO[self.name]
        return {**entry, "seconds": round(self.seconds, 1)}


def _check_predictions(path: Path) -> str:
    import fiftyone as fo

    with path.open("rb") as file:
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


def _check_import() -> str:
    try:
        import fiftyone as fo
    except ImportError as error:
        raise CheckFailed(f"{one_line(error)} (for {sys.executable})") from error
    return f"FiftyOne {fo.__version__} (for {sys.executable})"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _check_database(folder: Path) -> str:
    """Start a mongod of our own and make it FiftyOne's database."""
    import fiftyone as fo
    import pymongo
    from fiftyone.core.service import DatabaseService, ServiceExecutableNotFound

    try:
        mongod = DatabaseService.find_mongod()
        # FiftyOne itself waits 60 s for a mongod that cannot run, and does not say why.
        subprocess.run(
            [mongod, "--version"], check=True, capture_output=True, text=True, timeout=30
        )
    except subprocess.CalledProcessError as error:
        words = one_line(ValueError(error.stderr))
        raise CheckFailed(f"{mongod} does not run: {words}") from error
    except (ServiceExecutableNotFound, OSError, subprocess.TimeoutExpired) as error:
        raise CheckFailed(f"no mongod that runs: {one_line(error)}") from error

    (folder / "database").mkdir()
    port = _free_port()
    place = ["--dbpath", str(folder / "database"), "--logpath", str(folder / "mongod.log")]
    # Without --nounixsocket a killed mongod leaves its socket in the system's temporary folder.
    server = subprocess.Popen(
        [mongod, *place, "--bind_ip", HOST, "--port", str(port), "--nounixsocket"]
    )
    # Not a `with` block: FiftyOne asks the database once more when Python exits. What is registered
    # first runs last, and the connection that makes FiftyOne register is made later.
    atexit.register(server.wait)
    atexit.register(server.kill)  # nobody will read these files again
    # The default of 30 s is how long the App's server, stopped while it starts, looks for a mongod
    # that is gone. The App's server takes the address from the environment.
    fo.config.database_uri = f"mongodb://{HOST}:{port}/?serverSelectionTimeoutMS=3000"
    os.environ["FIFTYONE_DATABASE_URI"] = fo.config.database_uri
    client = pymongo.MongoClient(fo.config.database_uri)
    while server.poll() is None:
        with contextlib.suppress(pymongo.errors.ConnectionFailure):
            version = client.server_info()["version"]
            client.close()
            return f"mongod {version} from {mongod}"
    raise CheckFailed(f"{mongod} started and ended with exit code {server.returncode}")


def _app_version(port: int) -> str:
    """What the App says of itself, as soon as it answers."""
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/fiftyone")
            response = connection.getresponse()
            if response.status == 200:
                return json.loads(response.read())["version"]
        connection.close()
        time.sleep(0.2)


def _check_app() -> str:
    import fiftyone as fo
    import psutil
    from fiftyone.core.service import ServiceException

    me = psutil.Process()
    before = set(me.children(recursive=True))
    port = _free_port()
    try:
        session = fo.launch_app(remote=True, address=HOST, port=port)
    except ServiceException as error:
        raise CheckFailed(f"the App's server does not start: {one_line(error)}") from error
    version = _app_version(port)
    servers = set(me.children(recursive=True)) - before
    session.close()
    left = psutil.wait_procs(servers, timeout=20)[1]
    for process in left:
        process.kill()
    if left:
        raise CheckFailed(f"the App answered, but {len(left)} of its processes had to be killed")
    return f"the App {version} answered on {HOST}:{port} and was closed"


def _inside(folder: Path, predictions: Path | None) -> None:
    """The second process: run the checks, one JSON line each; all that FiftyOne says is noise."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    steps: dict[str, Callable[[], str]] = {
        "import": _check_import,
        "database": partial(_check_database, folder),
        "app": _check_app,
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


def _environment(folder: str) -> dict[str, str]:
    """Our environment with `folder` for a home and without what the user told FiftyOne."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith("FIFTYONE_")}
    return ours | {
        "HOME": folder,  # ~/.fiftyone, ~/fiftyone
        "PYTHONUSERBASE": site.getuserbase(),  # packages are found as before
        "MPLCONFIGDIR": folder,
        "TMPDIR": folder,
        "FIFTYONE_DO_NOT_TRACK": "true",  # the App's page would ask two trackers
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "no_proxy": HOST,  # a proxy does not know this machine's own ports
    }


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill the second process and mongod, which is in its group, and wait for the App's server.

    That one ends by itself when its parent is gone. All of them hold the pipe of stderr, so its
    end is theirs.
    """
    # macOS says "not permitted" where only the dead are left in a group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def run_checks(predictions: Path | None, timeout: float) -> list[Check]:
    """All checks, the skipped ones too. No process and no folder is left, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="check_fiftyone_") as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", folder]
        if predictions is not None:
            command += ["--predictions", str(predictions.absolute())]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder),
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
            why = f"not finished when {timeout:g} s were over"
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


def _cannot_read(path: Path) -> list[Check]:
    """The report of a predictions file that cannot be read; empty if it can."""
    try:
        path.open("rb").close()
    except OSError as error:
        skipped = [Check(name, "skipped", "predictions come first") for name in WHAT_TO_DO]
        return [*skipped[:-1], Check("predictions", "failed", one_line(error), exit_code=2)]
    return []


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Is FiftyOne ready here, and do a run's predictions load into it? Prints a "
        "JSON report. Exit code: 0 ready, 1 rows are bad, 2 not ready or no such file."
    )
    add = parser.add_argument
    add("--predictions", type=Path, metavar="JSONL", help="output/<run>/fiftyone/predictions.jsonl")
    add("--report", type=Path, metavar="PATH", help="write the report to this file too")
    add("--timeout", type=float, default=180.0, metavar="SECONDS", help="limit of the whole check")
    add("--inside", type=Path, help=argparse.SUPPRESS)  # the second process
    return parser


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Check, print and write the report.

    Raises:
        InputError: FiftyOne is not ready, or a flag or its file is bad.
        RunError: the rows are bad.
    """
    options = _parser().parse_args(argv)
    if options.inside is not None:
        return _inside(options.inside, options.predictions)
    if not 0 < options.timeout <= 86400:
        raise InputError(f"--timeout must be above 0 and within a day, not {options.timeout:g}")
    checks = _cannot_read(options.predictions) if options.predictions is not None else []
    checks = checks or run_checks(options.predictions, options.timeout)
    code = max(check.exit_code for check in checks)
    report = {"ready": code == 0, "exit_code": code, "checks": [check.entry() for check in checks]}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if options.report is not None:
        try:
            write_json(options.report, report)
        except OSError as error:
            raise InputError(f"--report cannot be written: {one_line(error)}") from error
    for check in checks:
        if check.status == "failed":
            kind = RunError if check.exit_code == 1 else InputError
            raise kind(f"{check.name}: {check.detail}; {WHAT_TO_DO[check.name]}")
    return None


if __name__ == "__main__":
    sys.exit(main())
