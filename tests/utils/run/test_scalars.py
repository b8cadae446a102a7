"""utils/run/scalars.py: no step of a run is doubled or missing, and no failure goes unnoticed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import files_up_to, read_scalars
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.run.scalars import EVAL_SCALARS, EventLog


def opened(folder: Path, resumed_at: int | None = None) -> EventLog:
    events = EventLog()
    events.open(folder, resumed_at or 0, is_resumed=resumed_at is not None)
    return events


def write_session(
    folder: Path, number: int, steps: Sequence[int], resumed_at: int | None = None
) -> None:
    """A session of a run that writes `number` + step / 1000 at each step.

    TensorBoard orders sessions by the second they began in, which files say by their names. These
    begin `number` seconds after 1970: tests are faster than a second.
    """
    before = set(folder.glob("*"))
    events = opened(folder, resumed_at)
    for step in steps:
        events.log_training({"loss": number + step / 1000, "lr": 0.5}, step, False)
    events.close()
    (written,) = set(folder.glob("*")) - before
    written.rename(folder / f"events.out.tfevents.{number:010d}.host")


METRICS = dict.fromkeys(EVAL_SCALARS, 0.5)


class TestOneSession:
    def test_is_read_back_as_it_was_written(self, tmp_path):
        events = opened(tmp_path)
        events.log_training({"loss": 0.5, "lr": 0.25}, 1, False)
        events.log_training({"loss": 0.75}, 3, False)
        events.log_evaluation("eval_ema", METRICS, 3)
        events.close()
        assert read_scalars(tmp_path) == {
            "train/loss": [(1, 0.5), (3, 0.75)],
            "train/lr": [(1, 0.25)],
            **{f"eval_ema/{name}": [(3, 0.5)] for name in METRICS},
        }

    def test_is_on_the_disk_once_it_is_flushed(self, tmp_path):
        """What is killed after that has lost nothing."""
        events = opened(tmp_path)
        for step in range(1, 50):
            events.log_training({"loss": 0.5}, step, False)
            if step % 7 == 0:
                events.flush()
                assert read_scalars(tmp_path)["train/loss"][-1] == (step, 0.5)
        events.close()
        events.close()  # again is no harm
        assert len(read_scalars(tmp_path)["train/loss"]) == 49


class TestResume:
    def test_forgets_what_came_after_the_state(self, tmp_path):
        write_session(tmp_path, 1, range(1, 8))
        write_session(tmp_path, 2, range(5, 11), resumed_at=4)
        expected = [(s, pytest.approx(1 + s / 1000)) for s in range(1, 5)]
        expected += [(s, pytest.approx(2 + s / 1000)) for s in range(5, 11)]
        assert read_scalars(tmp_path)["train/loss"] == expected

    @pytest.mark.parametrize("cut", [1, 3, 20])
    def test_reads_on_after_a_record_that_was_cut_short(self, tmp_path, cut):
        """Killed, or the disk full, in the middle of a write."""
        write_session(tmp_path, 1, range(1, 8))
        (first,) = tmp_path.glob("*")
        first.write_bytes(first.read_bytes()[:-cut])
        write_session(tmp_path, 2, range(5, 8), resumed_at=4)
        scalars = read_scalars(tmp_path)
        for tag in ("train/loss", "train/lr"):
            assert [step for step, _ in scalars[tag]] == list(range(1, 8))

    def test_any_number_of_times_in_one_second(self, tmp_path):
        """Whatever numbers TensorBoard gives its files: past 9 and 99 they do not sort as text."""
        for step in range(1, 13):
            events = opened(tmp_path, step - 1)
            for lost in (step, step + 1):
                events.log_training({"loss": float(step)}, lost, False)
            events.close()
        steps = [(step, float(step)) for step in range(1, 13)]
        assert read_scalars(tmp_path)["train/loss"] == [*steps, (13, 12.0)]
        events = opened(tmp_path, 12)
        events.log_training({"loss": 13.0}, 13, False)
        events.flush()
        assert read_scalars(tmp_path)["train/loss"] == [*steps, (13, 13.0)]
        events.close()

    def test_after_a_clock_that_was_ahead(self, tmp_path):
        write_session(tmp_path, 8_000_000_000, range(1, 8))
        events = opened(tmp_path, 5)
        events.log_training({"loss": 0.5}, 6, False)
        events.close()
        there = read_scalars(tmp_path)["train/loss"]
        assert [step for step, _ in there] == [1, 2, 3, 4, 5, 6]
        assert there[-1] == (6, 0.5)

    @settings(max_examples=25)
    @given(
        sessions=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5),
        every=st.integers(1, 3),
    )
    def test_any_number_of_times_doubles_and_misses_nothing(
        self, tmp_path_factory, sessions, every
    ):
        """Each session is killed somewhere after the last state that it saved."""
        folder = tmp_path_factory.mktemp("sessions") / "run"
        saved, by_step = 0, {}
        for number, (more, lost) in enumerate(sessions, start=1):
            steps = [s for s in range(saved + 1, saved + more + lost + 1) if s % every == 0]
            write_session(folder, number, steps, None if number == 1 else saved)
            by_step = {step: n for step, n in by_step.items() if step <= saved}
            by_step |= dict.fromkeys(steps, number)
            saved += more
        last = len(sessions) + 1
        steps = [step for step in range(saved + 1, saved + 4) if step % every == 0]
        write_session(folder, last, steps, None if last == 1 else saved)
        by_step = {step: n for step, n in by_step.items() if step <= saved}
        by_step |= dict.fromkeys(steps, last)
        expected = [(step, pytest.approx(n + step / 1000)) for step, n in by_step.items()]
        assert read_scalars(folder).get("train/loss", []) == expected
        assert [step for step, _ in expected] == list(range(every, saved + 4, every))


class TestState:
    def resumed(self, events: EventLog, folder: Path, step: int) -> EventLog:
        later = EventLog()
        later.load_state_dict(events.state_dict())
        later.open(folder, step, is_resumed=True)
        return later

    def test_a_step_whose_evaluation_was_to_come_is_logged_anew(self, tmp_path):
        events = opened(tmp_path)
        events.log_training({"loss": 0.5}, 2, False)
        events.log_training({"loss": 0.25, "wait_fraction": 0.0}, 4, True)
        events.close()
        later = self.resumed(events, tmp_path, 4)
        later.log_evaluation("eval", METRICS, 4)
        later.close()
        read = read_scalars(tmp_path)
        assert read["train/loss"] == [(2, 0.5), (4, 0.25)]
        assert read["data/wait_fraction"] == [(4, 0.0)]
        assert read["eval/loss"] == [(4, 0.5)]

    def test_an_evaluation_that_is_done_again_is_not_logged_again(self, tmp_path):
        events = opened(tmp_path)
        events.log_training({"loss": 0.25}, 4, True)
        events.log_evaluation("eval", METRICS, 4)
        events.mark_evaluated(4)
        events.close()
        assert events.state_dict() == {"pending": {}, "logged": 4}
        later = self.resumed(events, tmp_path, 4)
        later.log_evaluation("eval", METRICS, 4)
        later.log_evaluation("eval", METRICS, 8)
        later.close()
        assert read_scalars(tmp_path)["eval/loss"] == [(4, 0.5), (8, 0.5)]

    def test_without_being_opened_nothing_is_written(self, tmp_path):
        events = EventLog()
        events.log_training({"loss": 0.5}, 1, True)
        events.log_evaluation("eval", METRICS, 1)
        events.flush()
        events.close()
        assert events.pending == {"loss": 0.5}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestFailure:
    """A thread writes; its OSError arrives at whoever adds or flushes next."""

    def test_of_a_disk_that_is_full_arrives_at_the_flush_at_the_latest(self, tmp_path):
        events = opened(tmp_path)
        events.log_training({"loss": 0.5}, 1, False)
        events.flush()

        def go_on() -> None:
            for step in range(2, 100):
                events.log_training({"loss": 0.5}, step, False)
            events.flush()

        with files_up_to(300), pytest.raises(OSError, match="too large"):
            go_on()
        for late in (events.flush, events.close):
            with pytest.raises(OSError, match="too large"):
                late()
        assert read_scalars(tmp_path)["train/loss"][0] == (1, 0.5)

    def test_of_the_thread_arrives_at_the_next_add(self, tmp_path):
        events = opened(tmp_path)
        (writer,) = events._writer.all_writers.values()
        worker = writer.event_writer._async_writer._worker
        with files_up_to(0):
            events.log_training({"loss": 0.5}, 1, False)
            worker.join()  # it has ended by its error
        with pytest.raises(OSError, match="too large"):
            events.log_training({"loss": 0.5}, 2, False)
        with pytest.raises(OSError, match="too large"):
            events.flush()

    @pytest.mark.parametrize(
        ("gone", "is_written"),
        [("file", True), ("run", True), ("run", False), ("tb", True), ("later", False)],
    )
    def test_of_files_that_are_gone_is_a_warning_and_a_new_file(
        self, tmp_path, gone, is_written, caplog
    ):
        """With all since the last flush, whether its thread had written them or finds nothing."""
        folder = tmp_path / "tb" / "run"
        events = opened(folder)
        events.log_training({"loss": 0.25}, 1, False)
        events.flush()
        (file,) = folder.iterdir()
        events.log_training({"loss": 0.5}, 2, False)
        if is_written:
            events._hand_over(())
        places = {"file": file, "tb": tmp_path / "tb"}
        places.get(gone, folder).rename(tmp_path / "gone")  # at once: the thread writes meanwhile
        for step in (3, 4) if gone != "later" else ():
            events.log_training({"loss": 0.5}, step, False)
        events.flush()
        events.log_training({"loss": 0.75}, 5, False)
        events.close()
        steps = [2, 5] if gone == "later" else [2, 3, 4, 5]
        assert [step for step, _ in read_scalars(folder)["train/loss"]] == steps
        (warning,) = caplog.messages
        assert warning == f"warning: {file} was removed; scalars go on in a new file"
        assert len([*folder.iterdir()]) == 1

    def test_of_a_folder_that_is_a_file_now_is_an_os_error(self, tmp_path):
        events = opened(tmp_path / "tb")
        (tmp_path / "tb").rename(tmp_path / "gone")
        (tmp_path / "tb").touch()
        with pytest.raises(NotADirectoryError):
            events.flush()
        assert (tmp_path / "tb").read_bytes() == b""
