"""utils/run/scalars.py: no step of a run is doubled or missing, and no failure goes unnoticed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import files_up_to, read_scalars
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.run.scalars import Scalars


def write_session(
    folder: Path, number: int, steps: Sequence[int], resumed_at: int | None = None
) -> None:
    """A session of a run that writes `number` + step / 1000 at each step.

    TensorBoard orders sessions by the second they began in, which files say by their names. These
    begin `number` seconds after 1970: tests are faster than a second.
    """
    before = set(folder.glob("*"))
    scalars = Scalars(folder, resumed_at)
    for step in steps:
        scalars.add("train", {"loss": number + step / 1000, "lr": 0.5}, step)
    scalars.close()
    (written,) = set(folder.glob("*")) - before
    written.rename(folder / f"events.out.tfevents.{number:010d}.host")


class TestOneSession:
    def test_is_read_back_as_it_was_written(self, tmp_path):
        scalars = Scalars(tmp_path, None)
        scalars.add("train", {"loss": 0.5, "lr": 0.25}, 1)
        scalars.add("train", {"loss": 0.75}, 3)
        scalars.add("eval_ema", {"accuracy": 1.0}, 3)
        scalars.close()
        assert read_scalars(tmp_path) == {
            "train/loss": [(1, 0.5), (3, 0.75)],
            "train/lr": [(1, 0.25)],
            "eval_ema/accuracy": [(3, 1.0)],
        }

    def test_is_on_the_disk_once_it_is_flushed(self, tmp_path):
        """What is killed after that has lost nothing."""
        scalars = Scalars(tmp_path, None)
        for step in range(1, 50):
            scalars.add("train", {"loss": 0.5}, step)
            if step % 7 == 0:
                scalars.flush()
                assert read_scalars(tmp_path)["train/loss"][-1] == (step, 0.5)
        scalars.close()
        scalars.close()  # again is no harm
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
            scalars = Scalars(tmp_path, step - 1)
            for lost in (step, step + 1):
                scalars.add("train", {"loss": float(step)}, lost)
            scalars.close()
        steps = [(step, float(step)) for step in range(1, 13)]
        assert read_scalars(tmp_path)["train/loss"] == [*steps, (13, 12.0)]
        scalars = Scalars(tmp_path, 12)
        scalars.add("train", {"loss": 13.0}, 13)
        scalars.flush()
        assert read_scalars(tmp_path)["train/loss"] == [*steps, (13, 13.0)]
        scalars.close()

    def test_after_a_clock_that_was_ahead(self, tmp_path):
        write_session(tmp_path, 8_000_000_000, range(1, 8))
        scalars = Scalars(tmp_path, 5)
        scalars.add("train", {"loss": 0.5}, 6)
        scalars.close()
        there = read_scalars(tmp_path)["train/loss"]
        assert [step for step, _ in there] == [1, 2, 3, 4, 5, 6]
        assert there[-1] == (6, 0.5)

    def test_at_the_last_step_keeps_it(self, tmp_path):
        write_session(tmp_path, 1, range(1, 5))
        write_session(tmp_path, 2, [], resumed_at=4)
        assert [step for step, _ in read_scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4]

    def test_at_the_start_forgets_all(self, tmp_path):
        write_session(tmp_path, 1, range(1, 5))
        write_session(tmp_path, 2, range(1, 3), resumed_at=0)
        assert read_scalars(tmp_path)["train/loss"] == [
            (s, pytest.approx(2 + s / 1000)) for s in (1, 2)
        ]

    @settings(max_examples=25, deadline=None)
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestFailure:
    """A thread writes; its OSError arrives at whoever adds or flushes next."""

    def test_of_a_disk_that_is_full_arrives_at_the_flush_at_the_latest(self, tmp_path):
        scalars = Scalars(tmp_path, None)
        scalars.add("train", {"loss": 0.5}, 1)
        scalars.flush()

        def go_on() -> None:
            for step in range(2, 100):
                scalars.add("train", {"loss": 0.5}, step)
            scalars.flush()

        with files_up_to(300), pytest.raises(OSError, match="too large"):
            go_on()
        for late in (scalars.flush, scalars.close):
            with pytest.raises(OSError, match="too large"):
                late()
        assert read_scalars(tmp_path)["train/loss"][0] == (1, 0.5)

    def test_of_the_thread_arrives_at_the_next_add(self, tmp_path):
        scalars = Scalars(tmp_path, None)
        (writer,) = scalars._writer.all_writers.values()
        worker = writer.event_writer._async_writer._worker
        with files_up_to(0):
            scalars.add("train", {"loss": 0.5}, 1)
            worker.join()  # it has ended by its error
        with pytest.raises(OSError, match="too large"):
            scalars.add("train", {"loss": 0.5}, 2)
        with pytest.raises(OSError, match="too large"):
            scalars.flush()

    def test_of_a_folder_that_is_gone_is_an_os_error(self, tmp_path):
        """Also with nothing to write, which is all that the writer would notice."""
        scalars = Scalars(tmp_path / "tb", None)
        scalars.flush()
        shutil.rmtree(tmp_path / "tb")
        with pytest.raises(FileNotFoundError, match="tb"):
            scalars.flush()

    def test_to_begin_is_an_os_error(self, tmp_path):
        (tmp_path / "tb").write_bytes(b"")
        with pytest.raises(OSError, match="tb"):
            Scalars(tmp_path / "tb" / "run", None)
