"""utils/run/lock.py: one run, one writer, among real processes."""

import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import REPO, read_json
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.data_utils import RunPaths
from utils.errors import InputError, RunError
from utils.files import write_json
from utils.ownership import MARKER
from utils.run import lock as lock_module
from utils.run.lock import check_not_locked, run_lock

HOLDER = """
import sys
from pathlib import Path
from utils.data_utils import RunPaths
from utils.run.lock import run_lock
with run_lock(RunPaths(Path(sys.argv[1]).parent, "demo")):
    print("held", flush=True)
    sys.stdin.read()
"""
# On a disk that has no locks.
LOCKLESS_HOLDER = f"""
import errno, fcntl
def lockf(*args):
    raise OSError(errno.ENOTSUP, "Operation not supported")
fcntl.lockf = lockf
{HOLDER}
"""
# A child that forks another, as loader workers are; that one outlives it.
FORKING_HOLDER = """
import os, sys
from pathlib import Path
from utils.data_utils import RunPaths
from utils.run.lock import run_lock
with run_lock(RunPaths(Path(sys.argv[1]).parent, "demo")):
    if os.fork() == 0:
        print("held", os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os.waitpid(-1, 0)
"""
# Enters the lock again and again, until it was inside often enough and was refused as well; fails
# if somebody else is inside.
CONTENDER = """
import os, sys
from pathlib import Path
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.run.lock import run_lock
lock, inside, entered, refused = Path(sys.argv[1]), sys.argv[1] + ".inside", 0, 0
one_is_done = Path(sys.argv[1] + ".done")
print("ready", flush=True)
sys.stdin.readline()
# Who is alone, since the other is done, is never refused.
while entered < 50 or not (refused or one_is_done.exists()):
    try:
        with run_lock(RunPaths(lock.parent, "demo")):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            os.unlink(inside)
            entered += 1
    except InputError:
        refused += 1
one_is_done.touch()
print("done", refused > 0, flush=True)
"""


@pytest.fixture
def lock(tmp_path) -> Path:
    return tmp_path / "output" / ".demo.lock"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process of a piece of code; ends it after the test."""
    started = []

    def call(code: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def hold(start) -> Callable[[Path], subprocess.Popen]:
    """Has another process hold a lock."""

    def call(path: Path) -> subprocess.Popen:
        process = start(HOLDER, path)
        assert process.stdout.readline() == "held\n"
        return process

    return call


@pytest.fixture
def lines(caplog) -> Callable[[], list[str]]:
    """What was logged since it was asked for."""
    caplog.set_level("INFO", logger="fine_vit")
    return lambda: [record.getMessage() for record in caplog.records]


def run_of(lock: Path) -> RunPaths:
    return RunPaths(lock.parent, lock.name.removeprefix(".").removesuffix(".lock"))


def owner_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


class TestHolding:
    def test_says_who_it_is_and_leaves_nothing_behind(self, lock, lines):
        with run_lock(run_of(lock)):
            owner = owner_of(lock)
            assert owner.pop("since").endswith("+00:00")
            assert owner.pop("machine") == uuid.getnode()
            assert owner.pop("began")
            assert owner == {"name": "demo", "pid": os.getpid(), "host": platform.node()}
        assert [path.name for path in lock.parent.iterdir()] == [MARKER]
        assert lines() == []

    @pytest.mark.parametrize("stop", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
    def test_ends_with_its_block_however_that_ends(self, lock, stop):
        with pytest.raises(stop, match="midway"), run_lock(run_of(lock)):
            raise stop("midway")
        assert not lock.exists()

    def test_does_not_mind_that_the_file_was_removed(self, lock):
        with run_lock(run_of(lock)):
            lock.unlink()
        assert not lock.exists()


class TestRefusal:
    def test_names_process_host_and_time(self, lock, hold):
        holder = hold(lock)
        owner = owner_of(lock)
        assert owner["pid"] == holder.pid
        message = (
            f"^--name demo is being written by process {holder.pid} on {platform.node()} since "
            rf"{owner['since'].replace('+', '[+]')}; wait for it, end it, or choose another name$"
        )
        with pytest.raises(InputError, match=message), run_lock(run_of(lock)):
            pass
        with pytest.raises(InputError, match=message):
            check_not_locked(run_of(lock))
        assert owner_of(lock) == owner
        holder.communicate("")  # it ends well
        assert not lock.exists()
        with run_lock(run_of(lock)):
            assert owner_of(lock)["pid"] == os.getpid()

    @pytest.mark.parametrize("content", ["", "{", "[]"])
    def test_of_what_says_nothing_names_the_run_all_the_same(self, lock, hold, content):
        """The owner may be between locking the file and writing into it."""
        hold(lock)
        lock.write_text(content, encoding="utf-8")
        message = r"^--name demo is being written by process unknown on an unknown host since an"
        with pytest.raises(InputError, match=message), run_lock(run_of(lock)):
            pass
        with pytest.raises(InputError, match=message):
            check_not_locked(run_of(lock))


class TestTakingOver:
    def test_from_a_killed_process_says_so(self, lock, hold, lines):
        holder = hold(lock)
        holder.kill()
        holder.wait()
        assert owner_of(lock)["pid"] == holder.pid
        check_not_locked(run_of(lock))
        with run_lock(run_of(lock)):
            assert owner_of(lock)["pid"] == os.getpid()
            assert lock.read_text(encoding="utf-8").count("\n") == 1
        assert lines() == [f"took over the run from process {holder.pid}, which is dead"]
        assert not lock.exists()

    def test_does_not_wait_for_what_the_killed_one_started(self, lock, start, lines):
        holder = start(FORKING_HOLDER, lock)
        word, child = holder.stdout.readline().split()
        assert word == "held"
        with pytest.raises(InputError, match=f"by process {holder.pid} on"), run_lock(run_of(lock)):
            pass
        holder.kill()
        holder.wait()
        os.kill(int(child), 0)  # it lives
        with run_lock(run_of(lock)):
            os.kill(int(child), 0)
        assert lines() == [f"took over the run from process {holder.pid}, which is dead"]

    @settings(max_examples=50)
    @example(b"null")
    @example(b"[]")
    @example(b'{"pid": 12}\n{')
    @given(content=st.binary(max_size=200))
    def test_from_one_that_left_any_bytes(self, tmp_path_factory, content):
        path = tmp_path_factory.getbasetemp() / ".bytes.lock"
        path.write_bytes(content)
        check_not_locked(run_of(path))
        assert path.read_bytes() == content
        with run_lock(run_of(path)):
            assert owner_of(path)["pid"] == os.getpid()
        assert not path.exists()


ELSEWHERE = {"name": "demo", "pid": 77, "host": "another.host", "since": "2026-01-01T00:00:00"}


class TestOtherHost:
    def test_is_refused_by_the_name_of_the_file(self, lock, lines):
        lock.parent.mkdir()
        content = json.dumps(ELSEWHERE)
        lock.write_text(content, encoding="utf-8")
        message = (
            rf"^{lock} says that process 77 on another\.host writes this run; if that process has "
            "ended, repeat the command with --take_over$"
        )
        for _ in range(2):
            with pytest.raises(InputError, match=message), run_lock(run_of(lock)):
                pass
            with pytest.raises(InputError, match=message):
                check_not_locked(run_of(lock))
        assert lock.read_text(encoding="utf-8") == content
        assert lines() == []
        check_not_locked(run_of(lock), take_over=True)
        with run_lock(run_of(lock), take_over=True):
            assert owner_of(lock)["pid"] == os.getpid()
        assert lines() == ["took over the run from process 77, on another.host"]
        assert not lock.exists()

    def test_is_not_taken_over_while_it_holds_the_lock_here(self, lock, hold):
        """As two containers on one disk do, each with a name of its own."""
        hold(lock)
        lock.write_text(json.dumps(ELSEWHERE), encoding="utf-8")
        with (
            pytest.raises(InputError, match=r"is being written by process 77 on another\.host"),
            run_lock(run_of(lock), take_over=True),
        ):
            pass


def no_locks(*args: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


class TestWithoutLocks:
    """On disks that have none, the process that the lock's file names is looked for."""

    @pytest.fixture(autouse=True)
    def _no_locks(self, monkeypatch):
        monkeypatch.setattr(fcntl, "lockf", no_locks)

    def test_another_process_of_this_host_is_refused_as_long_as_it_lives(self, lock, start, lines):
        holder = start(LOCKLESS_HOLDER, lock)
        while holder.stdout.readline() != "held\n":
            pass  # the warning comes before
        paths, content = run_of(lock), lock.read_bytes()
        for take_over in (False, True):
            message = f"^--name demo is being written by process {holder.pid} on"
            with pytest.raises(InputError, match=message):
                check_not_locked(paths, take_over)
            with pytest.raises(InputError, match=message), run_lock(paths, take_over):
                pass
        assert lock.read_bytes() == content
        holder.kill()  # and not waited for: its number is still taken
        assert holder.stdout.read() == ""
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        check_not_locked(paths)
        with run_lock(paths):
            assert owner_of(lock)["pid"] == os.getpid()
        assert lines() == [
            f"took over the run from process {holder.pid}, which is dead",
            f"warning: the disk of {lock} has no locks: only processes of this host are kept from "
            "writing the same run",
        ]
        assert not lock.exists()

    def test_another_program_of_the_same_number_is_not_the_holder(self, lock):
        with run_lock(run_of(lock)):
            owner = owner_of(lock)
        for pid in (os.getppid(), -1, 0, 2**40, "1", None):
            lock.write_text(json.dumps({**owner, "pid": pid, "began": "1"}), encoding="utf-8")
            check_not_locked(run_of(lock))
            with run_lock(run_of(lock)):
                pass

    def test_who_loses_a_race_ends_before_its_next_save(self, lock, start):
        other = start("import sys; sys.stdin.read()", lock)
        with run_lock(run_of(lock)) as renew:
            renew()
            owner = {**owner_of(lock), "pid": other.pid, "began": lock_module._began(other.pid)}
            lock.write_text(json.dumps(owner), encoding="utf-8")
            with pytest.raises(RunError, match=f"lost the run: .* by process {other.pid} on"):
                renew()
        assert owner_of(lock) == owner


class TestFileThatIsRemoved:
    def test_is_made_again_and_admits_nobody(self, lock, hold):
        with run_lock(run_of(lock)) as renew:
            owner = owner_of(lock)
            lock.unlink()
            renew()
            assert owner_of(lock)["pid"] == owner["pid"]
            shutil.rmtree(lock.parent)
            renew()
            assert owner_of(lock)["pid"] == owner["pid"]
            contender = subprocess.run(
                [sys.executable, "-c", HOLDER, lock], cwd=REPO, capture_output=True, check=False
            )
            assert b"is being written by" in contender.stderr
        assert not lock.exists()

    def test_leaves_the_stamp_that_names_the_writer(self, lock, hold):
        holder, paths = hold(lock), run_of(lock)
        write_json(paths.env_stamp, {"name": "demo", "writer": owner_of(lock)})
        copy = RunPaths(lock.parent, "copy")
        write_json(copy.env_stamp, read_json(paths.env_stamp))
        check_not_locked(copy)
        lock.unlink()
        for attempt in (check_not_locked, lambda paths: run_lock(paths).__enter__()):
            with pytest.raises(InputError, match=f"by process {holder.pid} on"):
                attempt(paths)
        holder.kill()
        holder.wait()
        with run_lock(paths):
            check_not_locked(paths)

    def test_is_not_seen_by_its_number_alone(self, lock, monkeypatch):
        """Some disks give all files one number."""
        monkeypatch.setattr(os.path, "samestat", lambda one, other: True)
        with run_lock(run_of(lock)) as renew:
            lock.rename(lock.with_name("moved"))
            lock.write_text("{}\n", encoding="utf-8")
            renew()
            assert owner_of(lock)["pid"] == os.getpid()


class TestLink:
    @pytest.mark.parametrize("is_late", [False, True])
    def test_is_refused_and_its_target_untouched(self, lock, monkeypatch, is_late):
        lock.parent.mkdir()
        target = lock.with_name("precious")
        target.write_text("mine", encoding="utf-8")
        check = lock_module._check_is_lock

        def check_and_link(path: Path) -> None:
            check(path)
            path.symlink_to(target)

        if is_late:
            monkeypatch.setattr(lock_module, "_check_is_lock", check_and_link)
        else:
            lock.symlink_to(target)
        for attempt in (check_not_locked, lambda paths: run_lock(paths).__enter__()):
            with pytest.raises(
                InputError, match="is a symbolic link, not the lock of a run; move it"
            ):
                attempt(run_of(lock))
        assert target.read_text(encoding="utf-8") == "mine"
        assert lock.is_symlink()


class TestLooking:
    """`check_not_locked` writes nothing."""

    def test_at_nothing(self, tmp_path):
        check_not_locked(RunPaths(tmp_path / "output", "demo"))
        check_not_locked(RunPaths(tmp_path, "demo"))
        assert list(tmp_path.iterdir()) == []

    def test_at_one_that_is_free_or_held(self, lock, hold):
        lock.parent.mkdir()
        lock.write_bytes(b"some text")
        stat = lock.stat()
        check_not_locked(run_of(lock))
        assert (lock.read_bytes(), lock.stat().st_mtime_ns) == (b"some text", stat.st_mtime_ns)
        hold(lock)
        content, stat = lock.read_bytes(), lock.stat()
        with pytest.raises(InputError, match="is being written by process"):
            check_not_locked(run_of(lock))
        assert (lock.read_bytes(), lock.stat().st_mtime_ns) == (content, stat.st_mtime_ns)
        assert [path.name for path in lock.parent.iterdir()] == [lock.name]


def test_two_processes_are_never_inside_together(lock, start):
    contenders = [start(CONTENDER, lock) for _ in range(2)]
    assert [process.stdout.readline() for process in contenders] == ["ready\n"] * 2
    for process in contenders:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate() for process in contenders]
    assert all(output.startswith("done ") for output, _ in results), results
    assert any(output == "done True\n" for output, _ in results), results
    assert not lock.exists()
