"""What a finished run vouches for is there: damaged files are written again, or one line says so.

`soak.py files` has all files and damages; this file has what that one cannot show.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Together
from helpers import SUBSETS, TINY_EVAL, TINY_TRAIN, evaluate, read_json, train

from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.run import session
from utils.run.snapshot import load_snapshot
from utils.run.tensor_file import load_archive, save_archive
from utils.run.writer import RunWriter

# Its only evaluation is that of the last weights.
FLAGS = (
    f"--name run --dataset synthetic {TINY_TRAIN} {SUBSETS} --eval_every 4 --ema_decay 0.5 "
    "--export_logits"
)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def ended(drawn, tmp_path_factory) -> RunPaths:
    """A finished run. Read only."""
    output = tmp_path_factory.mktemp("ended")
    assert train(FLAGS, "--data_root", drawn, "--output_dir", output) == 0
    return RunPaths(output, "run")


@pytest.fixture
def paths(ended, tmp_path) -> RunPaths:
    """A copy of it, at a place of its own."""
    shutil.copytree(ended.output_dir, tmp_path / "output")
    return RunPaths(tmp_path / "output", "run")


def files_of(paths: RunPaths) -> dict[str, bytes]:
    """The bytes of all that the evaluations left, and of the labelmap."""
    both = [checkpoint_paths(paths, variant) for variant in ("", EMA)]
    files = [p for o in both for p in (o.checkpoint, o.predictions, o.metrics, o.per_class)]
    return {path.name: path.read_bytes() for path in (*files, paths.labelmap)}


@pytest.mark.parametrize("damage", [Path.unlink, flip])
def test_files_of_a_finished_run_are_written_again(ended, paths, capsys, damage):
    expected = files_of(ended)
    averaged = checkpoint_paths(paths, EMA)
    damaged = [paths.metrics, averaged.metrics, paths.per_class, averaged.predictions]
    for path in [*damaged, paths.labelmap, paths.retention]:
        damage(path)
    assert train(f"--resume {paths.run}") == 0
    shown = capsys.readouterr().out
    assert files_of(paths) == expected
    assert paths.retention.read_text() == ended.retention.read_text().replace(
        str(ended.run.resolve()), str(paths.run.resolve())
    )
    for path in damaged:
        assert f"warning: {path} is missing or was changed; it is written again" in shown
    assert shown.count("warning: ") == len(damaged)
    assert train(f"--resume {paths.run}") == 0
    assert "warning: " not in capsys.readouterr().out


def test_nothing_is_believed_of_a_run_that_kept_no_digests(ended, paths):
    """As runs before there were any: their files are written again, with the same bits."""
    payload = load_archive(paths.last)
    del payload["stamp"]
    save_archive(paths.last, payload)
    paths.env_stamp.unlink()
    flip(paths.predictions)
    assert train(f"--resume {paths.run}") == 0
    assert files_of(paths) == files_of(ended)
    assert read_json(paths.env_stamp)["run_id"] == read_json(ended.env_stamp)["run_id"]


def test_a_stamp_comes_back_from_the_snapshot(ended, paths):
    paths.env_stamp.write_bytes(b"")
    assert train(f"--name run --resume {paths.last} --output_dir {paths.output_dir}") == 0
    stamps = [read_json(each.env_stamp) for each in (paths, ended)]
    for key in ("run_id", "timestamp", "artifacts", "predictions_digest", "ema_predictions_digest"):
        assert stamps[0][key] == stamps[1][key], key
    assert stamps[0]["sessions"][:-1] == stamps[1]["sessions"]


@pytest.fixture
def lose(monkeypatch) -> Callable[[Path], None]:
    """Removes a file in the next run, after it was checked at the start and before the end."""

    def call(path: Path) -> None:
        def forget(*_: object) -> None:
            path.unlink()

        monkeypatch.setattr(session, "forget_lost_best", forget)

    return call


def test_a_checkpoint_that_is_gone_at_the_end_is_one_line(paths, lose, capsys):
    payload = load_archive(paths.last)
    payload["parts"]["progress"]["best"][""]["checkpoint_id"] = "of an earlier step"
    save_archive(paths.last, payload)
    lose(paths.checkpoint)
    assert train(f"--resume {paths.run}") == 1
    error = capsys.readouterr().err
    assert f"error: checkpoint {paths.checkpoint} cannot be read (No such file" in error
    assert "--resume keeps the last weights as best" in error
    assert error.count("\n") == 1
    assert read_json(paths.env_stamp)["status"] == "unfinished"


def test_a_checkpoint_of_the_last_weights_is_written_again(ended, paths, lose):
    paths.predictions.unlink()
    lose(paths.checkpoint)
    assert train(f"--resume {paths.run}") == 0
    assert files_of(paths) == files_of(ended)


def test_a_file_that_vanishes_from_an_evaluation_is_one_line(
    ended, drawn, tmp_path, monkeypatch, capsys
):
    write_stamp = RunWriter.write_stamp

    def vanish(self, **facts: object) -> None:
        write_stamp(self, **facts)
        if "skipped_images" in facts:
            self.paths.per_class.unlink()

    monkeypatch.setattr(RunWriter, "write_stamp", vanish)
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    assert evaluate(f"--name a {TINY_EVAL} --checkpoint {ended.checkpoint}", *where) == 1
    assert "per_class.csv was changed or removed by another" in capsys.readouterr().err


def test_two_processes_evaluate_again_together(ended, paths, tmp_path):
    paths.predictions.unlink()
    output = tmp_path / "said.txt"
    together = Together(2, "train.py", ["--resume", str(paths.run)], output)
    assert together.end() == [0, 0], together.said()
    assert together.said().count("it is written again") == 1
    assert files_of(paths) == files_of(ended)


def test_lost_events_are_one_warning(paths, capsys):
    (events,) = paths.tensorboard.iterdir()
    data = events.read_bytes()
    events.write_bytes(data + b"of what came after the snapshot")
    assert train(f"--resume {paths.run}") == 0
    assert "warning: " not in capsys.readouterr().out
    # A finished run saves no more: its snapshot knows of the first file alone.
    assert len(load_snapshot(paths.last).header.stamp["events"]) == 1
    for path in paths.tensorboard.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert train(f"--resume {paths.run} --allow_change num_steps --num_steps 6") == 0
    shown = capsys.readouterr().out
    assert shown.count("1 of 1 event files in") == shown.count("warning: ") == 1
    assert train(f"--resume {paths.run}") == 0
    assert "event files" not in capsys.readouterr().out
