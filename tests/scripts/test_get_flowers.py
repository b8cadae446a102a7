"""Run scripts/get_flowers.py for real, against a small web server on this machine."""

import hashlib
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import REAL_FLOWERS, REPO

from scripts import get_flowers
from scripts.shared import download
from utils import speed

ARCHIVE = get_flowers.ARCHIVE
IMAGES = ["image_00001.jpg", "image_00002.jpg", "image_00003.jpg"]


class Server(ThreadingHTTPServer):
    """Serves `files` under /flowers/; the switches make it misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, str | None]] = []  # file and range of each request
        self.ranges = True  # off: every answer is the whole file
        self.content_range: str | None = None  # said instead of the true one
        self.drops: list[int] = []  # of the next archive answers only so many bytes are sent
        self.errors: list[int] = []  # status of the next answers
        self.silent = threading.Event()  # set: no answer until it is cleared ...
        self.released = threading.Event()  # ... or the test is over

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/flowers"

    def ranges_of(self, name: str) -> list[str | None]:
        return [asked for seen, asked in self.seen if seen == name]


class Handler(BaseHTTPRequestHandler):
    """Closes the connection after each answer (HTTP/1.0), so that a short one is a dropped one."""

    server: Server

    def do_GET(self):
        name = self.path.removeprefix("/flowers/")
        asked = self.headers.get("Range")
        self.server.seen.append((name, asked))
        if self.server.silent.is_set():
            self.server.released.wait(timeout=30)
            return
        if self.server.errors:
            self.send_error(self.server.errors.pop(0))
        elif name not in self.server.files:
            self.send_error(404)
        else:
            self.send_file(name, asked)

    def send_file(self, name, asked):
        content = self.server.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            true = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", self.server.content_range or true)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if name == ARCHIVE and self.server.drops:
            body = body[: self.server.drops.pop(0)]
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


def jpeg(seed: int) -> bytes:
    """The beginning of a JPEG, and what hardly shrinks."""
    return b"\xff\xd8\xff" + random.Random(seed).randbytes(1000)


def tgz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def image_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    folder = tarfile.TarInfo("jpg")
    folder.type = tarfile.DIRTYPE
    images = [(tarfile.TarInfo(f"jpg/{name}"), jpeg(n)) for n, name in enumerate(IMAGES)]
    return [(folder, b""), *images]


def make_official(monkeypatch, files: dict[str, bytes]) -> None:
    """Put the checksums and sizes of `files` in the place of the official ones."""
    table = {
        name: get_flowers.Official(hashlib.md5(content).hexdigest(), len(content))
        for name, content in files.items()
    }
    monkeypatch.setattr(get_flowers, "OFFICIAL_FILES", table)


@pytest.fixture
def server(monkeypatch):
    """A server with three small official files, and a script that takes them for official."""
    server = Server()
    server.files = {
        "imagelabels.mat": b"labels " * 20,
        "setid.mat": b"split " * 50,
        ARCHIVE: tgz(image_members()),
    }
    make_official(monkeypatch, server.files)
    monkeypatch.setattr(get_flowers, "IMAGE_COUNT", len(IMAGES))
    monkeypatch.setattr(download, "RETRY_WAIT_SECONDS", 0)
    monkeypatch.setattr(download, "CHUNK_BYTES", 256)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(server, capsys):
    """Run the script: `(DEST, exit code, *flags)`; what was on stderr comes back."""

    def run(dest: Path, code: int, *flags: str) -> str:
        argv = [str(dest), *flags]
        if "--base_url" not in flags:
            argv += ["--base_url", server.url]
        capsys.readouterr()
        assert get_flowers.main(argv) == code
        stderr = capsys.readouterr().err
        if code:
            assert re.fullmatch(r"error: [^\n]+\n", stderr)
        else:
            assert stderr == ""
        return stderr

    return run


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


WHOLE = sorted([ARCHIVE, "imagelabels.mat", "setid.mat", "jpg", *(f"jpg/{n}" for n in IMAGES)])


def assert_whole(dest: Path, server: Server) -> None:
    assert tree(dest) == WHOLE
    for name, content in server.files.items():
        assert (dest / name).read_bytes() == content
    with tarfile.open(dest / ARCHIVE) as tar:
        for name in IMAGES:
            assert (dest / "jpg" / name).read_bytes() == tar.extractfile(f"jpg/{name}").read()


def test_whole_download(run, server, tmp_path):
    dest = tmp_path / "new" / "flowers"
    run(dest, 0, "--base_url", server.url + "/")
    assert_whole(dest, server)
    assert server.seen == [(name, None) for name in server.files]


def test_second_run_downloads_nothing(run, server, tmp_path):
    run(tmp_path, 0)
    server.seen.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run(tmp_path, 0)
    assert server.seen == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_archive_is_removed_on_request_and_not_missed(run, server, tmp_path):
    run(tmp_path, 0, "--no-keep_archive")
    assert tree(tmp_path) == [name for name in WHOLE if name != ARCHIVE]
    server.seen.clear()
    run(tmp_path, 0, "--keep_archive")
    assert server.seen == []


@pytest.mark.parametrize("ranges", [True, False])
def test_drop_within_one_run_asks_only_for_the_rest(run, server, tmp_path, ranges):
    server.ranges = ranges  # without them, every answer is the whole file
    server.drops = [1000]
    run(tmp_path, 0)
    assert server.ranges_of(ARCHIVE) == [None, "bytes=1000-"]
    assert_whole(tmp_path, server)


def test_next_run_asks_only_for_the_rest(run, server, tmp_path):
    server.drops = [1000] + [0] * download.TRIES
    message = run(tmp_path, 1)
    assert f"1,000 of {len(server.files[ARCHIVE]):,} bytes are kept, run the same" in message
    assert (tmp_path / f"{ARCHIVE}.part").read_bytes() == server.files[ARCHIVE][:1000]
    assert not (tmp_path / ARCHIVE).exists()
    server.seen.clear()
    server.drops.clear()
    run(tmp_path, 0)
    assert server.seen == [(ARCHIVE, "bytes=1000-")]
    assert_whole(tmp_path, server)


def test_tries_count_only_while_nothing_arrives(run, server, tmp_path):
    server.drops = [100] * (2 * download.TRIES)
    run(tmp_path, 0)
    assert len(server.ranges_of(ARCHIVE)) == 2 * download.TRIES + 1
    assert_whole(tmp_path, server)


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (lambda whole: whole, []),
        (lambda whole: whole[:9], ["bytes=9-"]),
        (lambda whole: whole + b"!", [None]),  # not a start of the file
    ],
)
def test_part_of_any_length_is_completed(run, server, tmp_path, change, asked):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(change(server.files[ARCHIVE]))
    run(tmp_path, 0)
    assert server.ranges_of(ARCHIVE) == asked
    assert_whole(tmp_path, server)


def test_server_without_ranges_that_always_drops_is_given_up(run, server, tmp_path):
    server.ranges = False
    server.drops = [1000] * 100
    run(tmp_path, 1)
    assert len(server.ranges_of(ARCHIVE)) == download.TRIES


def test_server_that_sends_another_range_is_refused(run, server, tmp_path):
    server.content_range = "bytes 3-9/10"
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.files[ARCHIVE][:5])
    assert "asked for the bytes from 5, the server sent 'bytes 3-9/10'" in run(tmp_path, 1)
    assert (tmp_path / f"{ARCHIVE}.part").read_bytes() == server.files[ARCHIVE][:5]


def test_file_of_another_size_is_not_fetched(run, server, tmp_path):
    official = server.files[ARCHIVE]
    server.files[ARCHIVE] = official + b"more"
    part = tmp_path / f"{ARCHIVE}.part"
    part.write_bytes(official[:1000])
    message = run(tmp_path, 1)
    assert f"offers {len(official) + 4:,} bytes, the official file has {len(official):,}" in message
    assert part.read_bytes() == official[:1000]


def test_wrong_checksum_leaves_nothing_and_the_next_run_starts_afresh(run, server, tmp_path):
    content = server.files[ARCHIVE]
    server.files[ARCHIVE] = content[:-1] + bytes([content[-1] ^ 1])
    message = run(tmp_path, 1)
    assert f"{ARCHIVE}: the MD5 is " in message
    assert hashlib.md5(content).hexdigest() in message
    assert tree(tmp_path) == ["imagelabels.mat", "setid.mat"]
    server.files[ARCHIVE] = content
    run(tmp_path, 0)
    assert server.ranges_of(ARCHIVE) == [None, None]
    assert_whole(tmp_path, server)


def test_absent_file_is_an_error_at_once(run, server, tmp_path):
    del server.files["setid.mat"]
    message = run(tmp_path, 1)
    assert f"{server.url}/setid.mat: HTTP 404 Not Found" in message
    assert server.ranges_of("setid.mat") == [None]
    assert tree(tmp_path) == ["imagelabels.mat"]


def test_busy_server_is_asked_again(run, server, tmp_path):
    server.errors = [503, 429]
    run(tmp_path, 0)
    assert server.ranges_of("imagelabels.mat") == [None, None, None]
    assert_whole(tmp_path, server)


def test_silent_server_times_out(run, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(download, "TRIES", 2)
    server.silent.set()
    assert "timed out" in run(tmp_path, 1)
    assert len(server.seen) == 2


def test_server_that_sends_next_to_nothing_is_given_up(run, server, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SLOW_SECONDS", 0)
    monkeypatch.setattr(speed, "SLOW_BYTES", 1e18)
    error = run(tmp_path / "flowers", 1)
    assert re.search(r"came in \d+ s, which is too slow; \d+ of \d+ bytes are kept, run the", error)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("pieces", "is_slow"),
    [
        ([(1, 20)] * 9, True),  # bytes, and the seconds that they take
        ([(1023, 1)] * 90, True),
        ([(1024, 1)] * 200, False),
        ([(100_000, 1), *[(1, 10)] * 30], True),  # slow only later
        ([(1, 59), (100_000, 1)], False),
    ],
)
def test_slow_is_less_than_1024_bytes_a_second_for_a_minute(monkeypatch, pieces, is_slow):
    clock = SimpleNamespace(now=0.0)

    def arriving():
        for size, seconds in pieces:
            clock.now += seconds
            yield bytes(size)

    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: clock.now))
    chunks = speed.unless_too_slow(arriving())
    with pytest.raises(speed.TooSlow) if is_slow else nullcontext():
        assert sum(map(len, chunks)) == sum(size for size, _ in pieces)
    assert clock.now < 130 or not is_slow


def test_no_server(run, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        port = gone.server_port
    assert "refused" in run(tmp_path, 1, "--base_url", f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["dest", "--base_url", "ftp://host/flowers/"], "must start with https://HOST"),
        (["dest", "--base_url", "https:///flowers"], "must start with https://HOST"),
        (["dest", "--base_url", "http://host:port/flowers"], "Port could not be cast"),
        (["dest", "--base_url", "http://host/two words"], "as %XX"),
        ([""], "argument DEST: '' is not a path"),
        (["file"], "file is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(argv, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert get_flowers.main(argv) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", error)
    assert reason in error
    assert tree(tmp_path) == ["file"]
    assert Path("file").read_text() == "mine"


def test_file_that_is_not_the_official_one_is_left_alone(run, server, tmp_path):
    (tmp_path / ARCHIVE).write_text("mine")
    assert f"{tmp_path / ARCHIVE} is not the official file" in run(tmp_path, 2)
    assert server.seen == []
    assert tree(tmp_path) == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_text() == "mine"


@pytest.mark.parametrize("damage", [Path.unlink, partial(Path.write_bytes, data=b"")])
def test_damaged_images_are_named_and_left_alone(run, server, tmp_path, damage):
    run(tmp_path, 0)
    damage(tmp_path / "jpg" / IMAGES[1])
    before = tree(tmp_path)
    server.seen.clear()
    message = run(tmp_path, 2)
    assert f"{tmp_path / 'jpg'} lacks 1 of the 3 images" in message
    assert f"(first: {IMAGES[1]})" in message
    assert server.seen == []
    assert tree(tmp_path) == before


def test_full_disk_is_found_before_anything_is_written(run, server, tmp_path, monkeypatch):
    usage = get_flowers.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(get_flowers.shutil, "disk_usage", lambda path: usage)
    assert "the disk has 0.0 MB free" in run(tmp_path / "dest", 1)
    assert server.seen == []
    assert tree(tmp_path) == []


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.SYMTYPE
    member.linkname = target
    return member


def with_member(member: tarfile.TarInfo) -> bytes:
    return tgz([*image_members(), (member, b"")])


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (lambda: with_member(tarfile.TarInfo("jpg/../../outside.jpg")), "is not an image of"),
        (lambda: with_member(tarfile.TarInfo("/outside.jpg")), "'/outside.jpg' is not an image"),
        (lambda: with_member(tarfile.TarInfo("jpg/image_00004.jpg")), "is not an image of"),
        (lambda: with_member(link(f"jpg/{IMAGES[0]}", "/etc/hosts")), "is not an image of"),
        (lambda: with_member(link("jpg", "..")), "'jpg' is not an image of Flowers-102"),
        (lambda: tgz(image_members()[:-1]), "holds 2 images, not 3"),
        (lambda: b"no gzip", ARCHIVE),
        (lambda: tgz(image_members())[:-2000], ARCHIVE),
    ],
)
def test_bad_archive_is_refused(run, server, tmp_path, monkeypatch, archive, message):
    dest = tmp_path / "dest"
    server.files[ARCHIVE] = archive()
    make_official(monkeypatch, server.files)
    assert message in run(dest, 1)
    assert tree(tmp_path) == ["dest", *(f"dest/{name}" for name in sorted(server.files))]


def test_interrupted_unpacking_is_redone(run, server, tmp_path, monkeypatch):
    extract, done = tarfile.TarFile.extract, []

    def interrupted(tar, member, path, **kwargs):
        if done:
            raise KeyboardInterrupt
        done.append(member)
        extract(tar, member, path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", interrupted)
        assert run(tmp_path, 130) == "error: interrupted\n"
    assert tree(tmp_path) == sorted(server.files)
    server.seen.clear()
    run(tmp_path, 0)
    assert server.seen == []
    assert_whole(tmp_path, server)


MINE = {
    f"{ARCHIVE}.part": lambda path: path.write_bytes(b"notes"),
    "setid.mat.part": lambda path: path.symlink_to("elsewhere"),
    "imagelabels.mat.part": os.mkfifo,
    "imagelabels.mat": os.mkfifo,
    "setid.mat": lambda path: path.symlink_to("gone"),
    ".jpg.part": lambda path: (path / "holiday").mkdir(parents=True),
    "jpg": lambda path: path.symlink_to("gone"),
}


@pytest.mark.parametrize("name", MINE)
def test_what_is_not_ours_stays_untouched(run, server, tmp_path, name):
    MINE[name](tmp_path / name)
    before = tree(tmp_path)
    assert str(tmp_path) in run(tmp_path, 2)
    assert (tree(tmp_path), server.seen) == (before, [])


def test_remains_of_a_killed_unpacking_are_replaced(run, server, tmp_path):
    remains = tmp_path / ".jpg.part" / "jpg"
    remains.mkdir(parents=True)
    (remains / IMAGES[0]).write_bytes(b"half")
    (remains / "stray.jpg").write_bytes(b"half")
    run(tmp_path, 0)
    assert_whole(tmp_path, server)


def test_as_a_command_from_any_folder(tmp_path):
    script = REPO / "scripts" / "get_flowers.py"
    shown = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in ("DEST", "--base_url", get_flowers.BASE_URL, "--no-keep_archive"):
        assert word in shown.stdout
    assert tree(tmp_path) == []


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_the_official_table_holds_for_real_files(name):
    if REAL_FLOWERS is None:
        pytest.skip("the real Flowers-102 is not here")
    content = (REAL_FLOWERS / name).read_bytes()
    official = get_flowers.OFFICIAL_FILES[name]
    assert official == (hashlib.md5(content).hexdigest(), len(content))
