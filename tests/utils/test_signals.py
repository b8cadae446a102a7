"""Check that the first signal asks and the second stops, by real signals to this process."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from utils import signals
from utils.environment import write_if_read
from utils.errors import Terminated
from utils.signals import started, stop_requests, stop_signal, until_stop

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
NOTE = "stopping after this step; a second signal stops at once\n"


def handlers() -> tuple:
    return tuple(signal.getsignal(signum) for signum in (INT, TERM, HUP, signal.SIGCHLD))


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = handlers()
    yield
    assert handlers() == before
    assert stop_signal() == 0


@pytest.fixture(autouse=True)
def _not_under_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


@pytest.fixture
def _under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


class TestFirstSignal:
    @pytest.mark.parametrize("signum", [INT, TERM, HUP])
    def test_only_asks_and_says_so(self, signum, capfd):
        with stop_requests():
            assert stop_signal() == 0
            signal.raise_signal(signum)
            assert stop_signal() == signum
        assert capfd.readouterr() == (NOTE, "")

    def test_of_one_block_is_forgotten_by_the_next(self):
        with stop_requests():
            signal.raise_signal(INT)
        with stop_requests():
            assert stop_signal() == 0
            signal.raise_signal(TERM)
            assert stop_signal() == TERM

    def test_waits_for_no_reader(self):
        """Of a terminal that Ctrl-S stopped, of `| less`."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        assert os.write(writer, bytes(1 << 22)) < 1 << 22  # it is full
        os.set_blocking(writer, True)
        write_if_read(writer, "x")
        for descriptor in (reader, writer):
            os.close(descriptor)

    def test_asks_even_if_nobody_reads_what_it_says(self):
        """Ctrl-C ends `| tee` too."""
        reader, writer = os.pipe()
        os.close(reader)
        stdout = os.dup(1)
        try:
            os.dup2(writer, 1)
            with stop_requests():
                signal.raise_signal(INT)
                assert stop_signal() == INT
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            os.close(writer)


class TestSecondSignal:
    @pytest.mark.parametrize("first", [INT, TERM])
    @pytest.mark.parametrize(("second", "stop"), [(INT, KeyboardInterrupt), (TERM, Terminated)])
    def test_stops_at_once_with_its_own_exception(self, first, second, stop, capfd):
        with stop_requests():
            signal.raise_signal(first)
            with pytest.raises(stop, match=r"^$"):
                signal.raise_signal(second)
            assert stop_signal() == first
            with pytest.raises(stop, match=r"^$"):
                signal.raise_signal(second)  # and so does any other
        assert capfd.readouterr().out == NOTE  # said once


@pytest.mark.usefixtures("_under_torchrun")
class TestUnderTorchrun:
    """It passes on what it gets, and what ends a service sends it to all processes."""

    @pytest.mark.parametrize("first", [INT, TERM])
    @pytest.mark.parametrize("echo", [INT, TERM])
    def test_the_first_asks_and_more_at_once_are_echoes(self, first, echo, capfd):
        with stop_requests():
            signal.raise_signal(first)
            for _ in range(3):
                signal.raise_signal(echo)
            assert stop_signal() == first
        assert capfd.readouterr().out == NOTE

    @pytest.mark.parametrize("first", [INT, TERM])
    @pytest.mark.parametrize(("second", "stop"), [(INT, KeyboardInterrupt), (TERM, Terminated)])
    def test_another_signal_later_stops(self, first, second, stop, monkeypatch):
        with stop_requests():
            signal.raise_signal(first)
            monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)  # as if they were over
            with pytest.raises(stop, match=r"^$"):
                signal.raise_signal(second)


class TestUntilStop:
    def test_passes_all_items_on_if_nobody_asks(self):
        assert list(until_stop(range(5))) == [0, 1, 2, 3, 4]

    def test_ends_with_the_item_during_which_the_run_is_asked(self):
        with stop_requests():
            seen = []
            for item in until_stop(range(5)):
                seen.append(item)
                if item == 2:
                    signal.raise_signal(TERM)
            assert seen == [0, 1, 2]
            assert list(until_stop(range(5))) == []

    def test_does_not_wait_for_the_next_item(self):
        def items() -> Iterator[int]:
            yield 1
            signal.raise_signal(TERM)
            pytest.fail("it would wait on")

        with stop_requests():
            assert list(until_stop(items())) == [1]
            assert stop_signal() == TERM


class TestStartedLoaders:
    """Loaders start blocked: Ctrl-C is not theirs to answer."""

    def test_lose_no_ctrl_c_of_that_moment(self):
        """Sent to this thread: another one, which does not block it, would take it at once."""

        class Loader:
            def __iter__(self) -> Iterator[int]:
                signal.pthread_kill(threading.get_ident(), INT)
                seen.append(stop_signal())
                return iter([1, 2])

        seen: list[int] = []
        with stop_requests():
            items = started(Loader())
            assert (seen, stop_signal()) == ([0], INT)
        assert list(items) == [1, 2]
        assert INT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def test_unblock_ctrl_c_even_if_they_fail(self):
        with pytest.raises(TypeError, match="not iterable"):
            started(None)
        assert INT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


class TestLostLoaders:
    """torch raises in its handler of SIGCHLD, wherever the main process is just then."""

    LOST = "DataLoader worker (pid 7) is killed by signal: Terminated. "

    @pytest.fixture
    def _torch(self):
        def raise_lost(signum: int, frame: object) -> None:
            raise RuntimeError(self.LOST)

        before = signal.signal(signal.SIGCHLD, raise_lost)
        yield
        signal.signal(signal.SIGCHLD, before)

    @pytest.mark.usefixtures("_torch")
    def test_are_reported_at_once_until_somebody_asks_to_stop(self):
        with stop_requests():
            with pytest.raises(RuntimeError, match="is killed by signal"):
                signal.raise_signal(signal.SIGCHLD)
            signal.raise_signal(TERM)
            signal.raise_signal(signal.SIGCHLD)  # told to end, as this process was
        with pytest.raises(RuntimeError, match="is killed by signal"):
            signal.raise_signal(signal.SIGCHLD)

    def batches(self, is_asked: bool, message: str) -> Iterator[int]:
        yield 1
        if is_asked:
            signals._state.signum = TERM  # just now, after the loader died
        raise RuntimeError(message)

    def test_end_the_items_if_they_were_told_to_end(self):
        with stop_requests():
            assert list(until_stop(self.batches(True, self.LOST))) == [1]

    @pytest.mark.parametrize(("is_asked", "message"), [(False, LOST), (True, "a defect")])
    def test_hide_no_other_failure(self, is_asked, message):
        with stop_requests(), pytest.raises(RuntimeError, match=message.split("(")[0]):
            list(until_stop(self.batches(is_asked, message)))


class TestHandlers:
    @pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_are_put_back_however_the_block_ends(self, stop):
        def mine(signum: int, frame: object) -> None: ...

        before = signal.signal(TERM, mine)
        try:
            with pytest.raises(stop, match="midway"), stop_requests():  # noqa: PT012
                assert signal.getsignal(TERM) is not mine
                raise stop("midway")
            assert signal.getsignal(TERM) is mine
        finally:
            signal.signal(TERM, before)

    def test_are_left_alone_by_other_threads(self):
        before, seen = handlers(), []

        def work() -> None:
            with stop_requests():
                seen.append((handlers() == before, stop_signal(), list(until_stop([1, 2]))))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [(True, 0, [1, 2])]
